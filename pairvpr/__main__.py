"""`python -m pairvpr` is the command `pairvpr`."""

from pairvpr.cli.main import main

main(prog_name="pairvpr")
