"""What can be chosen of a source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pairvpr.errors import SourceError
from pairvpr.runtime.image import MIN_SIDE


@dataclass(frozen=True)
class SourceOptions:
    """What to read of a source, and how to turn its pictures.

    topic, pose_topic: of a bag; None where there is one to choose from.
    every: of so many frames only the first. start, duration: seconds from the first frame on. max_fps: at most so
    many frames in a second of the source's time.
    undistort: a calibration (see `read_camera`). rotate: degrees clockwise, after that. crop: x, y, width and height
    in pixels of the picture as it then is.
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
        """Whether frames are chosen by their time stamps."""
        return self.start > 0 or self.duration is not None or self.max_fps is not None

    @property
    def adjust(self) -> bool:
        """Whether anything is asked for that is the same for all kinds of source."""
        return (
            self.by_time or self.every != 1 or self.undistort is not None or self.rotate != 0 or self.crop is not None
        )


DEFAULT = SourceOptions()


def read_crop(text: str) -> tuple[int, int, int, int]:
    """The part of a picture that "X,Y,WIDTH,HEIGHT" names, in pixels; raises SourceError."""
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise SourceError(f"{text!r} is not X,Y,WIDTH,HEIGHT in pixels")
    x, y, width, height = map(int, parts)
    if min(width, height) < MIN_SIDE:
        raise SourceError(f"a picture needs {MIN_SIDE} pixels on each side, not {width} x {height}")
    return x, y, width, height
