"""Read UTM positions in the names of pictures: @UTM_east@UTM_north@..."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from pairvpr.runtime.geometry.poses import Pose


def utm_pose(name: str) -> Pose | None:
    """Return the pose in a file name `@UTM_east@UTM_north@zone number@zone letter@...`, as many data sets have them.

    The frame is "utm17T" if the name has the zone, else "utm". Return None if the name is not of this form.
    """
    fields = PurePosixPath(name).stem.split("@")
    if len(fields) < 3 or fields[0] or not all(re.fullmatch(r"-?\d+(\.\d+)?", f) for f in fields[1:3]):
        return None
    zone = re.fullmatch(r"(0?[1-9]|[1-5]\d|60)@([C-HJ-NP-X])", "@".join(fields[3:5]))
    frame = "utm" if zone is None else f"utm{int(zone[1])}{zone[2]}"
    return Pose(float(fields[1]), float(fields[2]), 0.0, frame=frame)


def named_pose(name: str) -> Pose | None:
    """Return the pose in a file name like `utm_pose`, None if its numbers are degrees."""
    return None if is_degrees(name) else utm_pose(name)


def is_degrees(name: str) -> bool:
    """Return whether the two numbers of a `@UTM_east@UTM_north@` name look like longitude and latitude in degrees.

    Both are small enough for degrees, and have the 4 or more decimals that metres never need.
    """
    fields = PurePosixPath(name).stem.split("@")[1:3]
    if utm_pose(name) is None or not all(re.fullmatch(r"-?\d+\.\d{4,}", field) for field in fields):
        return False
    first, second = (abs(float(field)) for field in fields)
    return max(first, second) <= 180 and min(first, second) <= 90
