"""Read the GPS position in a picture's EXIF data."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import ExifTags, TiffImagePlugin

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.poses import Gps, find_fix
from pairvpr.runtime.image import open_picture, pillow_reads
from pairvpr.runtime.remarks import Tally


def exif_gps(path: str | Path, no_fix: Tally | None = None) -> Gps | None:
    """Return the GPS position in a picture's EXIF data, None if it has none or it is not clear.

    Degrees, minutes and seconds may be given as one number, two or three. GPSStatus is ignored, because many devices
    set it wrongly.

    no_fix: counts the positions that are given and are no fix.

    Raises SourceError if the file cannot be read. EXIF data that is damaged gives None.
    """
    with open_picture(path) as picture:
        try:
            with pillow_reads(str(path)):
                tags = picture.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        except SourceError:  # the pixels may be sound
            tags = {}
        parts = [tags.get(tag) for tag in (ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLongitude)]
        refs = [tags.get(tag) for tag in (ExifTags.GPS.GPSLatitudeRef, ExifTags.GPS.GPSLongitudeRef)]
        latitude, longitude = _degrees(parts[0], refs[0], "NS"), _degrees(parts[1], refs[1], "EW")
        altitude = _real(tags.get(ExifTags.GPS.GPSAltitude))
        below = tags.get(ExifTags.GPS.GPSAltitudeRef) in (1, b"\x01")
        gps = find_fix(latitude, longitude, -altitude if below else altitude)
        if gps is None and no_fix is not None and not all(part is None for part in parts):
            no_fix.add(str(path))
        return gps


def _degrees(parts: object, ref: object, signs: str) -> float:
    """Return the degrees of EXIF's degrees, minutes and seconds, NaN if they or the hemisphere are not clear.

    parts: a number, or up to three. A part of 0/0 after a part with a fraction is left out.
    ref: the hemisphere as a letter or a word, text or bytes.
    signs: the letters of the positive and the negative hemisphere.
    """
    text = ref.decode("ascii", "replace") if isinstance(ref, bytes) else str(ref or "")
    text = text.strip("\0 ").upper()
    sign = {signs[0]: 1, signs[1]: -1}.get(text[:1], 0)
    if sign == 0 or text not in (signs[0], signs[1], "NORTH", "SOUTH", "EAST", "WEST"):
        return math.nan
    numbers = [_real(part) for part in (parts if isinstance(parts, tuple | list) else (parts,))]
    while len(numbers) > 1 and math.isnan(numbers[-1]) and numbers[-2] % 1:
        numbers.pop()
    if not 1 <= len(numbers) <= 3 or not all(0 <= minutes <= 60 for minutes in numbers[1:]):
        return math.nan
    value = sum(number / 60**power for power, number in enumerate(numbers))
    # A negative number in the positive hemisphere contradicts itself.
    return math.nan if value < 0 and sign > 0 else sign * abs(value)


def _real(value: object) -> float:
    """Return an EXIF number as a float, NaN if it is missing or 0/0, which receivers without a fix write."""
    if getattr(value, "denominator", 1) == 0 or not isinstance(value, int | float | TiffImagePlugin.IFDRational):
        return math.nan
    return float(value)
