"""What every source of pictures has in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from PIL import Image

S = TypeVar("S", bound="Source")


@dataclass(frozen=True)
class Frame:
    """One picture of a source, or why it could not be read.

    name: the picture's path relative to the folder, or `clip.mp4#000123` for a frame, counted from 0.
    timestamp: seconds; as a video file or finite stream counts them, or Unix time of arrival if live.
    picture: upright RGB; None exactly if `error` says in one line what was wrong.
    decode_ms: milliseconds spent on reading and decoding.
    """

    name: str
    timestamp: float | None
    picture: Image.Image | None
    error: str | None
    decode_ms: float


class Source(Protocol):
    """Pictures in order. Iterating raises SourceError when nothing more can be read because of a fault.

    live: pictures arrive whether or not they are read; only the newest is kept.
    single: exactly one picture was asked for, so that a fault in it is raised, not put into a Frame.
    length: how many frames will come, as far as the source says; None if it does not.
    """

    live: bool
    single: bool
    length: int | None

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None:
        """Releases files, threads and devices; may be called again."""
        ...

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
