"""Find the unit of time stamps, and follow clocks that jump."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SECONDS_BELOW = 1e11  # a larger number of seconds since 1970 is later than the year 5000
UNIX_SECONDS = (5e8, 5e9)  # 1985 to 2128
UNITS = (("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9))
SURE_STEP = 5.0  # seconds; whole numbers that are further apart may be milliseconds
LONGEST_STEP = 60.0  # seconds from one pose to the next; further ones place no pictures
USUAL_STEPS = (1e-3, 10.0)  # seconds from one pose to the next; outside, another unit is likelier
MAX_STEP = 3600.0  # seconds; a longer step from one picture to the next is a clock that was set
MAX_LATE = 0.5  # seconds; pictures may arrive out of order by less


def find_unit(stamp: float) -> tuple[str, float] | None:
    """Return the name of a time stamp's unit and the number of units in a second.

    A stamp below SECONDS_BELOW is in seconds. Another is in the unit that makes it a Unix time of UNIX_SECONDS. Return
    None if no unit does.
    """
    if abs(stamp) < SECONDS_BELOW:
        return "seconds", 1.0
    earliest, latest = UNIX_SECONDS
    return next(((name, per) for name, per in UNITS if earliest <= stamp / per <= latest), None)


def find_step_unit(stamps: Sequence[float], whole: bool) -> tuple[str, float] | None:
    """Return the unit of a trajectory's time stamps like `find_unit`, also of a clock that does not count from 1970.

    Such a clock's unit is the one in which poses are LONGEST_STEP or less apart, and that makes the rate plausible.

    stamps: the time stamps, ascending.
    whole: no time stamp has a decimal point. A step of SURE_STEP or more is then no clear number of seconds.

    Return None if no unit or more than one fits.
    """
    first, last = stamps[0], stamps[-1]
    largest = max(abs(first), abs(last))
    step = statistics.median(b - a for a, b in itertools.pairwise(stamps)) if len(stamps) > 1 else 0.0
    unit = find_unit(largest)
    if unit is not None and largest >= SECONDS_BELOW and step / unit[1] <= MAX_STEP:
        return unit
    if largest < SECONDS_BELOW:
        earliest, latest = UNIX_SECONDS
        if earliest <= first <= last <= latest or step < SURE_STEP or (not whole and step <= LONGEST_STEP):
            return unit
    fitting = [each for each in UNITS if USUAL_STEPS[0] <= step / each[1] <= USUAL_STEPS[1]]
    return fitting[0] if len(fitting) == 1 else None


def hours_of_day(stamps: Sequence[float | None]) -> npt.NDArray[np.float64]:
    """Return the time of day (n,) of time stamps in seconds: hours from 0 to 24, UTC.

    It is NaN for a time stamp that is None, or no Unix time of UNIX_SECONDS: such a clock does not count from 1970.
    """
    seconds = np.array([math.nan if stamp is None else stamp for stamp in stamps], np.float64)
    earliest, latest = UNIX_SECONDS
    dated = np.where((seconds >= earliest) & (seconds <= latest), seconds, math.nan)
    return dated % 86400 / 3600


class SteadyClock:
    """Turn the time stamps of pictures in their order into seconds since the first that never run backwards.

    A step of more than MAX_LATE backwards, or of more than MAX_STEP ahead, is a jump. The clock then takes the last
    step before the jump once more.

    elapsed: seconds since the first stamp.
    jumps: number of jumps so far.
    still: number of stamps so far that equal the stamp before.
    """

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.jumps = 0
        self.still = 0
        self._start: float | None = None
        self._last = 0.0
        self._step = 0.0

    def advance(self, stamp: float) -> float:
        """Return the seconds since the first stamp. The argument is the next stamp in seconds."""
        if self._start is None:
            self._start = self._last = stamp
            return self.elapsed
        step = stamp - self._last
        if -MAX_LATE <= step < 0:
            return self.elapsed
        if 0 <= step <= MAX_STEP:
            self.still += step == 0
            self._step = step
        else:
            self.jumps += 1
            self._start = stamp - self.elapsed - self._step
        self.elapsed = stamp - self._start
        self._last = stamp
        return self.elapsed
