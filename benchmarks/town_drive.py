"""Draw two drives of a robot with four cameras through the made-up town: one for a map, and a later one.

    python -m benchmarks.town_drive data/drives --streets 10

Streets follow each other. OUT/map and OUT/drive have a folder for each camera, front, right, back and left, with
pictures of the same names taken at the same moment. OUT/map.csv and OUT/drive.csv have the poses of the cameras, which
look along x of their frames: of `front/00-000.jpg`, say, and of the front camera also as `00-000.jpg`. The later drive
is a metre aside and in another weather on each street.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pairvpr.data.town.dataset import SIZE, street_seed
from pairvpr.data.town.plan import Street, draw_street
from pairvpr.data.town.studio import take_pictures
from pairvpr.data.town.visits import CONDITIONS, Visit, draw_visit

CAMERAS = ("front", "right", "back", "left")
"""Each camera looks a quarter turn to the right of the one before."""
QUARTER = math.pi / 2
TOWN = 2
FIRST, LAST, STEP = 2.0, 98.0, 4.0
"""Metres along a street between which pictures are taken, and from one to the next."""
LENGTH = LAST - FIRST + STEP
"""Metres from the first picture of a street to the first one of the next street."""
ASIDE, BETWEEN = 1.0, 1.5
"""Metres by which the later drive is to the right of the map's, and further along."""
HARDNESS = 0.6

Row = tuple[str, float, float, float]


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--streets", type=int, default=10)
    return parser.parse_args()


def main() -> None:
    """Draw both drives and write their poses."""
    args = arguments()
    for drive in ("map", "drive"):
        rows: list[Row] = []
        for number in range(args.streets):
            rows += write_street(args.out / drive, number, later=drive == "drive")
        with (args.out / f"{drive}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("name", "x", "y", "z", "qx", "qy", "qz", "qw"))
            for name, x, y, heading in rows:
                turns = [
                    (name, heading),
                    *((f"{each}/{name}", heading - QUARTER * i) for i, each in enumerate(CAMERAS)),
                ]
                for picture, turn in turns:
                    q = 0, 0, f"{math.sin(turn / 2):.6f}", f"{math.cos(turn / 2):.6f}"
                    table.writerow((picture, f"{x:.3f}", f"{y:.3f}", 0, *q))
        print(f"{args.out / drive}: {len(rows)} moments of {len(CAMERAS)} cameras")


def write_street(out: Path, number: int, *, later: bool) -> list[Row]:
    """Write the pictures of one street. Return the name, x, y and heading in radians of each moment."""
    rng = np.random.default_rng((TOWN, number, later))
    street = draw_street(street_seed(TOWN, number))
    condition = CONDITIONS[number % len(CONDITIONS)] if later else "overcast"
    pass_by = draw_visit(street, 1, rng, condition, HARDNESS if later else 0.0)
    rows, moments = [], list(drive_along(street, pass_by, rng, later))
    for i, visit in enumerate(moments):
        name = f"{number:02d}-{i:03d}.jpg"
        along = number * LENGTH + visit.view.z
        rows.append((name, along, -visit.view.x, -visit.view.yaw))
        turned = [
            replace(visit, view=replace(visit.view, yaw=visit.view.yaw + turn * QUARTER), seed=visit.seed + turn)
            for turn in range(len(CAMERAS))
        ]
        pictures = take_pictures(turned, [HARDNESS if later else 0.0] * len(turned), SIZE)
        for camera, picture in zip(CAMERAS, pictures, strict=True):
            (out / camera).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(out / camera / name, quality=88)
    return rows


def drive_along(street: Street, pass_by: Visit, rng: np.random.Generator, later: bool) -> Iterator[Visit]:
    """Yield the front camera's visit at each moment of a drive along the street."""
    start = FIRST + (BETWEEN if later else 0.0)
    for i, z in enumerate(np.arange(start, LAST + 1e-6, STEP).tolist()):
        heading = math.atan2(street.middle(z + 1) - street.middle(z - 1), 2.0)
        view = replace(
            pass_by.view,
            x=street.middle(z) + (ASIDE if later else 0.0),
            z=z,
            yaw=heading + (float(rng.normal(0.0, 0.05)) if later else 0.0),
        )
        yield replace(pass_by, view=view, seed=pass_by.seed + len(CAMERAS) * i)


if __name__ == "__main__":
    main()
