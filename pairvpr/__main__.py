"""`python -m pairvpr` is the command `pairvpr`."""

from pairvpr.cli import main

main(prog_name="pairvpr")
