"""The commands pairvpr-run and `pairvpr serve`, and the parts that all commands share."""
