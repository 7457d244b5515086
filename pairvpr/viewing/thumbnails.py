"""The pictures a map was made of, where they are still there."""

from __future__ import annotations

from pathlib import Path

from pairvpr.errors import SourceError
from pairvpr.html.document import thumbnail
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.map import Record

THUMBNAIL = (240, 180)  # pixels, at most


def picture_file(record: Record) -> Path | None:
    """The file of the record's picture; None where it came out of a video, bag or camera, is gone or out of reach."""
    folder = Path(record.source)
    if not folder.is_absolute():  # a camera or stream
        return None
    try:
        return folder / record.name if (folder / record.name).is_file() else None
    except OSError:  # no right to look, or no name that this file system could have
        return None


def recorded_thumbnail(record: Record, size: tuple[int, int] = THUMBNAIL) -> bytes | None:
    """A JPEG of the record's picture, of `size` (width, height) at most, None where it is no longer there as a file."""
    file = picture_file(record)
    if file is None:
        return None
    try:
        return thumbnail(load_picture(file), size)
    except SourceError:
        return None
