"""Pictures of made-up places for the tests and benchmarks: colours in patches, no files and no drawing library."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image


def draw_scene(place: int, visit: int = 0, size: tuple[int, int] = (240, 320)) -> npt.NDArray[np.uint8]:
    """Return an RGB picture (height, width, 3) of a place; visits after 0 shift it and change its light."""
    height, width = size
    random = np.random.default_rng((place, 0))
    coarse, fine = (random.integers(0, 256, (rows, rows * 4 // 3, 3), np.uint8) for rows in (3, 12))
    texture = Image.blend(*(Image.fromarray(each).resize((width, height)) for each in (coarse, fine)), 0.5)
    if visit == 0:
        return np.asarray(texture).copy()
    random = np.random.default_rng((place, visit))
    left, top = random.uniform(0, (width / 12, height / 12))
    moved = texture.resize((width, height), box=(left, top, left + width * 11 / 12, top + height * 11 / 12))
    lit = np.asarray(moved, np.float32) * random.uniform(0.75, 1.15) + random.normal(0, 5, (height, width, 3))
    return np.clip(lit, 0, 255).astype(np.uint8)
