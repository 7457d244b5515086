"""Cut views out of SF-XL's panoramas.

A panorama is equirectangular. Its columns cover 360 degrees, its rows are angles above and below the horizon, both at
the same scale. SF-XL's panoramas have 3328 x 512 pixels. They were cut from full ones of 3328 x 1664 by removing 512
rows at the top and 640 at the bottom (their author in github.com/gmberton/CosPlace/issues/43), so the horizon lies at
5/8 of the height.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pairvpr.errors import SourceError

CROP = 512 / 3328
"""Width of a view as a share of the panorama's width.

The crops of CosPlace and EigenPlaces have 512 pixels, which is 55.4 degrees.
"""


def view(panorama: npt.NDArray[np.uint8], turn: float) -> npt.NDArray[np.uint8]:
    """Return the picture of a level camera that is turned `turn` degrees clockwise from the panorama's middle column.

    panorama: uint8 (H, W, 3) of any size, either full (W = 2 H) or cut like SF-XL's.

    The view is a central projection, uint8 (S, S, 3) with S = W * CROP, 360 * CROP degrees wide, interpolated
    bilinearly. The horizon is moved up or down by the least amount that keeps the view inside the panorama.
    Raises SourceError for other proportions.
    """
    height, width = panorama.shape[:2]
    degree = width / 360
    horizon = _horizon(height, width)
    side = round(width * CROP)
    half = np.tan(np.radians(180 * CROP))  # half of the view's width at distance 1
    across = half * (2 * (np.arange(side) + 0.5) / side - 1)
    azimuth = np.arctan(across)
    # Short of straight up and down, where the tangent changes sign.
    lowest, highest = np.tan(np.radians(np.clip([(horizon - height) / degree, horizon / degree], -89, 89)))
    middle = np.clip(0.0, lowest + half, highest - half)
    elevation = np.arctan((middle - across[:, None]) * np.cos(azimuth))
    # The centre of pixel n is at n + 1/2.
    x = width / 2 + (np.degrees(azimuth) + turn) * degree - 0.5
    y = np.clip(horizon - np.degrees(elevation) * degree - 0.5, 0, height - 1)
    return _bilinear(panorama, x, y)


def _horizon(height: int, width: int) -> float:
    """Return the number of rows above the horizon."""
    if abs(height - width * CROP) <= 1:
        return height * 5 / 8
    if abs(height - width / 2) <= 1:
        return height / 2
    raise SourceError(f"{width} x {height} pixels are neither a panorama of SF-XL (3328 x 512) nor a full one (2:1)")


def _bilinear(
    panorama: npt.NDArray[np.uint8], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """Sample the panorama at columns `x` (S,) and rows `y` (S, S), one row index per column. Columns wrap around."""
    height, width = panorama.shape[:2]
    left = np.floor(x).astype(np.int64)
    top = np.minimum(np.floor(y).astype(np.int64), height - 2)
    right_share = (x - left).astype(np.float32)[:, None]
    low_share = (y - top).astype(np.float32)[..., None]
    # Columns first, because all rows share them.
    one, other = (panorama[:, column % width].astype(np.float32) for column in (left, left + 1))
    columns = one + (other - one) * right_share
    number = np.arange(len(x))
    upper, lower = columns[top, number], columns[top + 1, number]
    rounded: npt.NDArray[np.uint8] = np.rint(upper + (lower - upper) * low_share).astype(np.uint8)
    return rounded
