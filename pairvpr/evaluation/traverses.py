"""Read frame numbers from picture names. In a numbered traverse the frame number stands for the place."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.utm_names import utm_pose
from pairvpr.runtime.picture_formats import PICTURE_EXTENSIONS


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


def doubt_numbers(names: Iterable[str]) -> str | None:
    """Return a reason to doubt that the last numbers in the names count frames, None without one."""
    names = list(names)
    stems = [PurePosixPath(name).stem for name in names]
    if any(re.search(r"\d\.\d", stem) for stem in stems):
        return "names hold decimal numbers, whose last digits are read as frame numbers"
    numbers = [re.findall(r"\d+", stem) for stem in stems]
    if any(found and len(found[-1].lstrip("0")) >= 10 for found in numbers):
        return "numbers in names have 10 digits or more, as time stamps have, and are read as frame numbers"
    first = numbers[0] if numbers else []
    varied = sum(len({found[i] for found in numbers if len(found) > i}) > 1 for i in range(len(first)))
    if varied > 1 and len({PurePosixPath(name).parent for name in names}) == 1:
        return "names hold several numbers that differ, of which the last is read as the frame number"
    return None


def doubt_sides(database: Sequence[int], queries: Sequence[int], tolerance: int) -> str | None:
    """Return a reason to doubt that the same number is the same place on two sides of one size, None without one."""
    ends = [(min(side), max(side)) for side in (database, queries)]
    if len(database) != len(queries) or all(abs(a - b) <= tolerance for a, b in zip(*ends, strict=True)):
        return None
    (first, last), (begin, end) = ends
    return (
        f"as many pictures on both sides have other frame numbers ({first} to {last} in the database, {begin} to "
        f"{end} in the queries), but the same number is taken for the same place"
    )


def doubt_order(database: Sequence[str], queries: Sequence[str]) -> str | None:
    """Return a reason to doubt that pictures in the order of their names are consecutive frames, None without one.

    Names are compared that hold a number alone, or one in the eighth field between @ as the downloader of
    VPR-methods-evaluation writes it.
    """
    sides = [[_only_number(name) for name in side] for side in (database, queries)]
    numbers = [[number for number in side if number is not None] for side in sides]
    for side, found in zip((database, queries), numbers, strict=True):
        if len(found) == len(side) and len({b - a for a, b in itertools.pairwise(found)}) > 1:
            return "frame numbers in the names have gaps or turn back, but the pictures are counted in order"
    if len(database) == len(queries) == len(numbers[0]) == len(numbers[1]) and numbers[0] != numbers[1]:
        return "frame numbers in the names differ between the sides, but the pictures are counted in order"
    return None


def _only_number(name: str) -> int | None:
    stem = PurePosixPath(name).stem
    fields = stem.split("@")
    match = re.fullmatch(r"\D*(\d{1,18})", fields[7] if len(fields) > 7 else stem)
    return None if match is None else int(match[1])


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
