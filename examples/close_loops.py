"""Grow a map with a drive and print an edge for the pose graph whenever the robot sees an earlier place again.

python examples/close_loops.py DRIVE MAP SCORE
"""

import sys

import pairvpr
from pairvpr.runtime import Closure, LoopCloser, Threshold


def main(drive: str, db: str, score: str) -> None:
    """Add the pictures of `drive`, which need time stamps, to the map `db`; pairs of at least `score` are loops."""
    model = pairvpr.load_model()

    def edge(loop: Closure) -> None:
        print(f"{loop.timestamp} s {loop.name} -> {loop.earlier_timestamp} s {loop.earlier}, score {loop.score:.2f}")

    with LoopCloser(model, Threshold(float(score)), exclude=30.0, report=edge) as closer:
        report = pairvpr.build_map(drive, db, model=model, loop_closer=closer)
    print(f"{report.added} pictures added")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except pairvpr.PairVPRError as error:
        sys.exit(str(error))
