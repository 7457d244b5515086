"""Answer other programs over HTTP."""
