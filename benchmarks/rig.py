"""Measure how much several cameras at one moment gain, on a drive through the made-up town.

    python -m benchmarks.town_drive town --streets 10
    python -m benchmarks.rig town

The robot drives every second street backwards, against the direction of the map's drive. The map has the pictures of
the front camera alone, or of all four. Answers are fused as `PlaceRecognizer.recognize_rig` does. Right is a first
match within 6 m. Headings are compared in the map of the front camera, where the cameras' poses give them.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.town_drive import CAMERAS, QUARTER
from pairvpr.runtime import PlaceRecognizer, Pose, Recognition, build_map
from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.geometry.pose_files import PlaceFinder
from pairvpr.runtime.geometry.rotations import inverse, multiply, rotation_vector
from pairvpr.runtime.geometry.transforms import Transform
from pairvpr.runtime.rig import fuse, to_base

RIGS = (("front",), ("front", "back"), CAMERAS)
RADIUS = 6.0


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("town", type=Path, help="A folder of `benchmarks.town_drive`.")
    parser.add_argument("--model", type=Path, help="Bundle; the default model's without one.")
    parser.add_argument("--top-k", type=int, default=50)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    names = sorted(path.name for path in (args.town / "drive" / "front").iterdir())
    finder = PlaceFinder(args.town / "drive.csv")
    results: dict[str, Any] = {"moments": len(names), "top_k": args.top_k, "radius": RADIUS}
    for map_of, pictures in (("front camera", args.town / "map" / "front"), ("four cameras", args.town / "map")):
        with tempfile.TemporaryDirectory() as folder:
            build_map(pictures, Path(folder) / "map", model=args.model, poses=args.town / "map.csv")
            with PlaceRecognizer.open(Path(folder) / "map", device="cpu", top_k=args.top_k, exact=True) as recognizer:
                results.setdefault("preset", recognizer.model.bundle.info.preset)
                moments = [ask(recognizer, args.town / "drive", name, is_backwards(name)) for name in names]
                truths = [turned(finder.find_place(name).pose, is_backwards(name)) for name in names]
                results[f"map of the {map_of}: {len(recognizer.map)} pictures"] = {
                    f"{len(rig)}: {', '.join(rig)}": figures(rig, moments, truths, one=map_of == "front camera")
                    for rig in RIGS
                }
    print(json.dumps(results, indent=1, allow_nan=False))


def is_backwards(name: str) -> bool:
    """Return whether the robot drives the street of this picture backwards."""
    return int(name[:2]) % 2 == 1


def turned(pose: Pose | None, backwards: bool) -> Pose:
    """Return the pose of the robot at a moment."""
    assert pose is not None
    assert pose.q is not None
    return Pose(pose.x, pose.y, pose.z, multiply(pose.q, (0.0, 0.0, 1.0, 0.0)) if backwards else pose.q)


def ask(recognizer: PlaceRecognizer, drive: Path, name: str, backwards: bool) -> dict[str, Recognition]:
    """Return the answers of the robot's cameras. On the way back its front camera looks where the back one was."""
    shift = len(CAMERAS) // 2 if backwards else 0
    return {
        camera: recognizer.recognize(drive / CAMERAS[(i + shift) % len(CAMERAS)] / name)
        for i, camera in enumerate(CAMERAS)
    }


def figures(
    rig: Sequence[str], moments: Sequence[dict[str, Recognition]], truths: Sequence[Pose], one: bool
) -> dict[str, Any]:
    """Return recall in percent, on the way and back, and the median error of headings in degrees of right answers.

    one: the map has the pictures of one camera.
    """
    right, errors = [], []
    for answers, truth in zip(moments, truths, strict=True):
        chosen = fuse([to_base(answers[each], mount(each), mount("front")) if one else answers[each] for each in rig])
        pose = chosen.best.pose
        assert isinstance(pose, Pose)
        right.append(distance_between(pose, truth) <= RADIUS)
        if right[-1] and pose.q is not None and truth.q is not None:
            turn = rotation_vector(multiply(inverse(truth.q), pose.q))
            errors.append(math.degrees(float(np.linalg.norm(turn))))
    back = np.array([abs(truth.q[2]) > abs(truth.q[3]) for truth in truths if truth.q is not None])
    hits = np.array(right)
    found = {
        "recall": round(100 * float(hits.mean()), 1),
        "on the way": round(100 * float(hits[~back].mean()), 1),
        "back": round(100 * float(hits[back].mean()), 1),
    }
    return found | {"heading_error_median": round(float(np.median(errors)), 1)} if one else found


def mount(camera: str) -> Transform:
    """Return the pose of a camera in the robot's base."""
    angle = -QUARTER * CAMERAS.index(camera)
    return Transform.of((0, 0, 0), (0, 0, math.sin(angle / 2), math.cos(angle / 2)))


if __name__ == "__main__":
    main()
