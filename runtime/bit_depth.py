"""Scale grey values and colours of more than 8 bits to 8 bits, by the range that a picture uses.

Each rule needs one picture alone, so that a map and its queries are treated in one way.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import SourceError
from pairvpr.runtime.remarks import remark

BAND = 256  # rows that are converted at once
_ENDS = (0.5, 99.5)  # percentiles that a stretched picture shows as black and as white
_NARROW = 1 / 8  # a band of grey values that is narrower than this share of its brightest value
_LARGEST = 1e300  # a larger value counts as this one, so that differences are finite
_PERCENTILE_VALUES = 4_000_000  # the most values of a picture that percentiles are taken of


def scale_16_bit(values: npt.NDArray[np.integer[Any]], significant: int = 16) -> npt.NDArray[np.uint8]:
    """Scale values from 0 to 65535 to 8 bit.

    The range is 0 to the most that the used bits (8, 10, 12, 14 or 16) can hold, as in machine-vision cameras. Values
    in a narrow band, as of thermal cameras, are stretched to it.

    values: an array (height, width) or (height, width, channels).
    significant: number of bits that the file names.
    """
    most = int(values.max())
    bits = next(b for b in (8, 10, 12, 14, 16) if most < 2**b)
    if bits <= significant < 16:  # else the values are scaled to 16 bits, as the specification has it
        bits = significant
    low, high = 0.0, float(2**bits - 1)
    darkest, brightest = np.percentile(_thinned(values), _ENDS).tolist()
    if 0 < brightest - darkest < _NARROW * brightest:
        low, high = darkest, brightest
    if bits < 16 or low > 0:
        remark("16-bit pictures that use fewer bits or a narrow band are scaled to 8 bits by the range they use")
    return _scale(values, low, high)


def scale_floats(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Scale measured values in any unit, as distances or temperatures, to 8 bit.

    The finite values have the range, without half a percent at each end. Other values become black, because they are no
    measurement. Raises SourceError if no value is finite.

    values: an array (height, width).
    """
    thinned = _thinned(values)
    finite = thinned[np.isfinite(thinned)]
    if not len(finite):
        raise SourceError("none of its floating-point values is finite: check the program that wrote it")
    low, high = np.percentile(np.clip(finite.astype(np.float64), -_LARGEST, _LARGEST), _ENDS).tolist()
    remark("floating-point pictures are scaled to 8 bits by the range they use, values that are not finite to black")
    return _scale(values, low, high)


def _thinned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return enough evenly spaced values for percentiles."""
    step = math.isqrt(values.size // _PERCENTILE_VALUES) + 1
    return values[::step, ::step]


def _scale(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Map `low` to 0 and `high` to 255. Values beyond become 0 or 255, and NaN and infinity 0."""
    floats = values.dtype.kind == "f"
    factor = 255 / (high - low) if high > low else 0.0
    eight = np.empty(values.shape, np.uint8)
    for first in range(0, len(values), BAND):  # or else the numbers in float32 take four times the picture
        band = values[first : first + BAND].astype(np.float64 if floats else np.float32)
        if floats:
            band[~np.isfinite(band)] = low
        eight[first : first + BAND] = (np.clip(band, low, high) - low) * factor + 0.5
    return eight
