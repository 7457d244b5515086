"""The commands `pairvpr` and `pairvpr-run`: check the options, import, call, print."""
