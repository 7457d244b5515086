"""Read pose files by time: lines of TUM, and tables of EuRoC and others whose header names the columns."""

from __future__ import annotations

import bisect
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.clocks import SECONDS_BELOW, find_step_unit, find_unit
from pairvpr.runtime.geometry.pose_fields import POSE_FILE_FORMS, content_lines, read_number, read_pose
from pairvpr.runtime.geometry.poses import Place, Pose
from pairvpr.runtime.remarks import Tally, remark

TIMED_COLUMNS = ["timestamp", "x", "y", "z", "qx", "qy", "qz", "qw"]
# Names of TIMED_COLUMNS in headers of TUM's and EuRoC's tools.
TIMED_NAMES = {
    **{name: name for name in TIMED_COLUMNS},
    **{"time": "timestamp", "t": "timestamp", "stamp": "timestamp"},
    **{f"t{axis}": axis for axis in "xyz"},
    **{f"p_rs_r_{axis}": axis for axis in "xyz"},
    **{f"q_rs_{axis}": f"q{axis}" for axis in "xyzw"},
}
MAX_TIME_GAP = 0.05  # seconds between a picture's time stamp and a TUM pose that still counts as its own


class TimedOrder(NamedTuple):
    """Hold the position of each of TIMED_COLUMNS in a line, and the number of fields of a line."""

    positions: list[int]
    width: int


class TimedPoses:
    """Hold poses by time, for pictures that have a time stamp or a file stem that is one.

    A stem is a time in seconds with a decimal point (TUM), or an integer of nanoseconds (EuRoC) or whole seconds.
    An integer of fewer than 10 digits or with leading zeros is a running number, which would match a trajectory that
    starts at 0.

    Time stamps of the file that cannot be seconds are converted to seconds. Lines whose pose is not finite, which
    trackers write when they are lost, are left out. Both are remarked.

    path: the file, for messages.
    lines: the lines of the file.
    header: number of the line above the first pose.
    order: the order of the fields of a line, which commas, semicolons or spaces separate.
    """

    def __init__(self, path: Path, lines: list[str], header: int, order: TimedOrder) -> None:
        by_time: dict[float, Pose] = {}
        whole = True
        lost = Tally("lines hold no finite pose and are left out")
        for number, line in content_lines(lines):
            if number <= header:
                continue
            where = f"{path}, line {number}"
            fields = _timed_fields(line)
            if len(fields) != order.width:
                named = ' of "timestamp x y z qx qy qz qw"' if order.width == 8 else " of the header"
                raise SourceError(f"{where}: {len(fields)} fields, not the {order.width}{named}")
            stamp, *values = (fields[position] for position in order.positions)
            whole = whole and not is_decimal(stamp)
            time = read_number(stamp, where)
            if time in by_time:
                raise SourceError(f"{where}: time stamp {stamp} is in the file twice: keep one of the two")
            if any(_is_not_finite(value) for value in values):
                lost.add(where)
            else:
                by_time[time] = read_pose(values, where)
        if not by_time:
            raise SourceError(f"{path} holds no finite pose: give {POSE_FILE_FORMS}")
        unit = find_step_unit(sorted(by_time), whole=whole)
        if unit is None:
            raise SourceError(
                f"{path}: the time stamps {min(by_time):g} to {max(by_time):g} may be no seconds, and their unit is "
                "not clear: write seconds with a decimal point"
            )
        if unit[1] != 1:
            remark(f"{path}: the time stamps are {unit[0]}, and are converted to seconds")
        self._by_time = {time / unit[1]: pose for time, pose in by_time.items()}
        self._times = sorted(self._by_time)
        self.first = f"time stamp {self._times[0]:.6f} s"

    def find(self, name: str, timestamp: float | None = None) -> Place | None:
        """Return the pose nearest in time and the picture's time stamp, None if it is over MAX_TIME_GAP away."""
        for stamp in _stamps(PurePosixPath(name).stem) if timestamp is None else [timestamp]:
            index = bisect.bisect_left(self._times, stamp)
            around = self._times[max(index - 1, 0) : index + 1]
            nearest = min(around, key=lambda time: abs(time - stamp))
            # Unix time in float64 is exact to 2e-7 s, so allow for rounding.
            if abs(nearest - stamp) <= MAX_TIME_GAP + 1e-6:
                return Place(pose=self._by_time[nearest], timestamp=stamp)
        return None


def timed_order(header: str) -> TimedOrder | None:
    """Return the order of the columns that a header names, None if it lacks one of TIMED_COLUMNS.

    The header may be a comment, and may have units in brackets.
    """
    names = re.split(r"[,;\s]+", re.sub(r"\[[^\]]*\]", "", header.lower()).strip(" #\t\r,;"))
    columns = [TIMED_NAMES.get(name.strip('"'), "") for name in names]
    if any(columns.count(column) != 1 for column in TIMED_COLUMNS):
        return None
    return TimedOrder([columns.index(column) for column in TIMED_COLUMNS], len(columns))


def _timed_fields(line: str) -> list[str]:
    """Return the fields of a line, which commas, semicolons or spaces separate."""
    separator = next((each for each in ";," if each in line), None)
    fields = [field.strip() for field in line.strip().split(separator)]
    return fields[:-1] if separator and not fields[-1] else fields


def is_decimal(text: str) -> bool:
    """Return whether a number is written with a decimal point or an exponent."""
    return re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+(\.\d*)?e[+-]?\d+)", text.strip().lower()) is not None


def _stamps(stem: str) -> list[float]:
    """Return the times in seconds that a file stem may mean."""
    if re.fullmatch(r"\d+\.\d+", stem):
        return [float(stem)] if float(stem) < SECONDS_BELOW else []
    if not re.fullmatch(r"[1-9]\d{9,24}", stem):
        return []
    unit = find_unit(float(stem))
    # A clock that does not start in 1970 counts nanoseconds, as in EuRoC.
    return list(dict.fromkeys([*([] if unit is None else [int(stem) / unit[1]]), int(stem) / 1e9]))


def _is_not_finite(text: str) -> bool:
    return text.strip().lower().lstrip("+-") in ("nan", "inf", "infinity")
