"""What every source of pictures has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from PIL import Image

from pairvpr.runtime.geometry.poses import Gps, Pose

Wanted = Callable[[int, str, "float | None"], bool]
"""Asked with a frame's number, name and timestamp before its picture is converted: whether to go on with it."""

S = TypeVar("S", bound="Source")


class Header(NamedTuple):
    """What a ROS message says of itself: nanoseconds since 1970, exact, and the id of the frame that it is in."""

    stamp: int
    frame_id: str


@dataclass(frozen=True)
class Frame:
    """One picture of a source, or why it could not be read.

    name: the picture's path relative to the folder, or `clip.mp4#000123` for a frame, counted from 0.
    timestamp: seconds; as a video file or finite stream counts them, Unix time where it was recorded, or Unix
    time of arrival if live.
    picture: upright RGB; None exactly if `error` says in one line what was wrong.
    decode_ms: milliseconds spent on reading and decoding.
    pose, gps: where it was taken, if the source itself says so. path: the picture's own file, if it has one.
    header: of the message that it came in, if it did.
    """

    name: str
    timestamp: float | None
    picture: Image.Image | None
    error: str | None
    decode_ms: float
    pose: Pose | None = None
    gps: Gps | None = None
    path: Path | None = None
    header: Header | None = None


def every_frame(number: int, name: str, timestamp: float | None) -> bool:
    """Wants every frame."""
    return True


class Source(Protocol):
    """Pictures in order. Iterating raises SourceError when nothing more can be read because of a fault.

    live: pictures arrive whether or not they are read; only the newest is kept.
    single: exactly one picture was asked for, so that a fault in it is raised, not put into a Frame.
    length: how many frames will come, as far as the source says; None if it does not.
    names: their names, where they are known before anything is read.
    origin: what a name is relative to; a picture is the same if origin and name are.
    dropped: frames of a live source that came and went while nobody asked.
    """

    live: bool
    single: bool
    length: int | None
    names: Sequence[str] | None
    origin: str
    dropped: int = 0

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """The frames that are `wanted`, in order; the others cost as little as the source allows."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def close(self) -> None:
        """Releases files, threads and devices; may be called again."""
        ...

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
