"""The HTML pages' shared parts."""
