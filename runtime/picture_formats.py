"""List the formats of pictures that are read, by Pillow's names and by file extensions."""

from __future__ import annotations

import importlib

# Shares of the allowed pixels for formats that take several times as long to decode.
SLOW_FORMATS = {"JPEG2000": 1 / 8, "AVIF": 1 / 4, "HEIF": 1 / 4}


def _registers(module: str, flag: str) -> bool:
    """Register a plugin of Pillow. Return False if it is not installed or not usable."""
    try:
        found = getattr(importlib.import_module(module), flag)
    except (ImportError, AttributeError):
        return False
    return bool(found() is None if callable(found) else found)


# Common formats of photographs. Pillow's other formats are left out, because some of them run programs (EPS).
EXTENSIONS_OF_FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2",),
    "PNG": (".png",),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
# Formats that Pillow reads with a plugin or in newer versions, and the remedy if it does not.
if _registers("PIL.AvifImagePlugin", "SUPPORTED"):
    EXTENSIONS_OF_FORMATS["AVIF"] = (".avif",)
if _registers("pillow_heif", "register_heif_opener"):
    EXTENSIONS_OF_FORMATS["HEIF"] = (".heic", ".heif")
_CONVERT = "convert them to JPEG or PNG"
UNREAD_EXTENSIONS = {
    ".avif": "upgrade Pillow to 11.3",
    ".heic": "pip install pillow-heif",
    ".heif": "pip install pillow-heif",
    **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".exr", ".jxl", ".nef", ".orf", ".psd", ".raf", ".rw2"), _CONVERT),
}
for _extensions in EXTENSIONS_OF_FORMATS.values():
    for _extension in _extensions:
        UNREAD_EXTENSIONS.pop(_extension, None)
PICTURE_EXTENSIONS = tuple(sorted(ext for group in EXTENSIONS_OF_FORMATS.values() for ext in group))
