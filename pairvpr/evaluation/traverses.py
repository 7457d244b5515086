"""Read frame numbers from picture names. In a numbered traverse the frame number stands for the place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.pose_files import utm_pose
from pairvpr.runtime.image import PICTURE_EXTENSIONS


def frame_number(name: str, where: str | Path) -> int:
    """Return the last number in the file's name: 42 for Image042.jpg, walk/Image042.jpg and clip2.mp4#000042.

    name: the picture's name, a posix path.
    where: the picture in error messages.

    Raises SourceError if the name has no frame number.
    """
    file = PurePosixPath(name)
    numbers = re.findall(r"\d+", file.stem if file.suffix.lower() in PICTURE_EXTENSIONS else file.name)
    if utm_pose(name) is not None:
        raise SourceError(f"{where}: its name holds a UTM position and no frame number; leave out --tolerance")
    if not numbers or len(numbers[-1]) > 18:
        raise SourceError(f"{where}: no frame number in its name; name pictures as Image042.jpg")
    return int(numbers[-1])


def frame_numbers(traverse: Iterable[tuple[str, str | Path]]) -> list[int]:
    """Return the frame numbers of a traverse.

    traverse: for each picture its name, and the picture in error messages.

    Raises SourceError if a name has no frame number, and for two pictures with the same number.
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
