"""The command pairvpr-run, and the parts that both command lines share."""
