"""Show the pictures that a map was made of: from their files, or as the thumbnails that the map stores."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pairvpr.errors import SourceError
from pairvpr.html.album import THUMBNAIL, thumbnail
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.map import Map, Record


def picture_file(record: Record) -> Path | None:
    """Return the file of a record's picture.

    Return None if the picture came out of a video, bag or camera, if the file is gone, or if it cannot be reached.
    """
    folder = Path(record.source)
    if not folder.is_absolute():  # a camera or stream
        return None
    try:
        return folder / record.name if (folder / record.name).is_file() else None
    except OSError:  # no right to look, or no name that this file system could have
        return None


def recorded_thumbnail(map_: Map, record: Record, size: tuple[int, int] = THUMBNAIL) -> bytes | None:
    """Return a JPEG of a record's picture, of at most `size` (width, height) pixels, or as the map stores it.

    Return None if neither is there.
    """
    file = picture_file(record)
    if file is not None:
        with suppress(SourceError):
            return thumbnail(load_picture(file), size)
    return map_.read_thumbnail(record)
