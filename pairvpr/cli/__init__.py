"""The command pairvpr."""
