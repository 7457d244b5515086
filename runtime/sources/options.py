"""Define the options of a source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pairvpr.errors import SourceError
from pairvpr.runtime.image import MIN_SIDE


@dataclass(frozen=True)
class SourceOptions:
    """Choose the frames of a source and the transforms of its pictures.

    topic: a bag's image topic, None for its only one.
    pose_topic: a bag's topic of poses or GPS positions, None for its only one.
    every: take one frame of every N.
    start: seconds to skip after the first frame.
    duration: seconds to read after `start`, None for all.
    max_fps: largest number of frames for a second of the source's time, None for all.
    undistort: a calibration file, see `read_camera`.
    rotate: clockwise rotation in degrees: 0, 90, 180 or 270. It follows `undistort`.
    crop: x, y, width and height in pixels of the rotated picture.
    """

    topic: str | None = None
    pose_topic: str | None = None
    every: int = 1
    start: float = 0.0
    duration: float | None = None
    max_fps: float | None = None
    undistort: Path | None = None
    rotate: int = 0
    crop: tuple[int, int, int, int] | None = None

    @property
    def by_time(self) -> bool:
        """Return whether frames are chosen by their time stamps."""
        return self.start > 0 or self.duration is not None or self.max_fps is not None

    @property
    def transforms(self) -> bool:
        """Return whether an option needs a `TransformedSource`."""
        return (
            self.by_time or self.every != 1 or self.undistort is not None or self.rotate != 0 or self.crop is not None
        )


DEFAULT = SourceOptions()


def read_crop(text: str) -> tuple[int, int, int, int]:
    """Parse "X,Y,WIDTH,HEIGHT" in pixels. Raise SourceError for anything else."""
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise SourceError(f"{text!r} is not X,Y,WIDTH,HEIGHT in pixels")
    x, y, width, height = map(int, parts)
    if min(width, height) < MIN_SIDE:
        raise SourceError(f"a picture needs {MIN_SIDE} pixels on each side, not {width} x {height}")
    return x, y, width, height
