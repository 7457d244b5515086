"""Traverses whose pictures are numbered frame by frame: the number in a name is the place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.pose_files import utm_pose
from pairvpr.runtime.image import PICTURE_EXTENSIONS


def frame_number(name: str, where: str | Path) -> int:
    """The last number in the file's name, as 42 in Image042.jpg, in walk/Image042.jpg and in clip2.mp4#000042.

    where: what an error names. Raises SourceError where there is none.
    """
    file = PurePosixPath(name)
    numbers = re.findall(r"\d+", file.stem if file.suffix.lower() in PICTURE_EXTENSIONS else file.name)
    if utm_pose(name) is not None:
        raise SourceError(f"{where}: its name is a UTM position, no frame number; leave out --tolerance")
    if not numbers or len(numbers[-1]) > 18:
        raise SourceError(f"{where}: no frame number in its name; name pictures as Image042.jpg")
    return int(numbers[-1])


def frame_numbers(traverse: Iterable[tuple[str, str | Path]]) -> list[int]:
    """The frame numbers of a traverse's pictures (name, and what an error names), every one a different one.

    Raises SourceError where one has no number, or that of another.
    """
    frames: dict[int, str | Path] = {}
    for name, where in traverse:
        frame = frame_number(name, where)
        if frame in frames:
            raise SourceError(
                f"{where}: has frame number {frame}, as {Path(frames[frame]).name}; a traverse has one picture a frame"
            )
        frames[frame] = where
    return list(frames)
