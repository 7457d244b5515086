"""Load pictures as upright 8-bit RGB, and resize them to the model's size."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from pairvpr.errors import SourceError, one_line
from pairvpr.runtime.bit_depth import scale_16_bit, scale_floats
from pairvpr.runtime.picture_formats import (
    EXTENSIONS_OF_FORMATS,
    PICTURE_EXTENSIONS,
    SLOW_FORMATS,
    UNREAD_EXTENSIONS,
)
from pairvpr.runtime.resize_rules import RULES, SQUASH

MIN_SIDE = 16  # pixels; a smaller picture shows no place
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
SIGNIFICANT_BITS = "significant bits"  # key in the information of a PNG picture
MAX_SCANS = 100  # of a progressive JPEG file, each of which takes as long as a picture; cameras write about 10
MAX_PIXELS = 100_000_000  # 300 MB when decoded; a larger picture may be a decompression bomb

_TURN_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_picture(picture: str | Path | Image.Image | npt.NDArray[np.uint8]) -> Image.Image:
    """Load an upright RGB picture from a file, a PIL picture or a uint8 array (H, W, 3) in RGB order.

    EXIF orientation is applied, alpha is dropped, and 16-bit grey and floating-point values are scaled to 8 bit by the
    range that they use. A PIL picture that needs no change is returned itself.

    Raises SourceError if the picture is missing, damaged, not representable in 8 bit, smaller than MIN_SIDE on a side
    or larger than MAX_PIXELS.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if isinstance(picture, Image.Image):
        title = str(getattr(picture, "filename", "") or "the PIL picture")
        _check_size(picture, title, MAX_PIXELS)
        return _upright_rgb(picture, title)
    with open_picture(picture) as opened:
        return _upright_rgb(opened, str(picture))


def make_thumbnail(picture: Image.Image, size: tuple[int, int], quality: int = 80) -> bytes:
    """Return an RGB picture as a JPEG of at most `size` (width, height) pixels; `picture` itself is not changed."""
    scale = min(size[0] / picture.width, size[1] / picture.height, 1)
    fitting = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    small = picture.resize(fitting, Image.Resampling.BILINEAR, reducing_gap=2.0)  # as `Image.thumbnail` does in place
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def decode_picture(
    content: bytes | bytearray, title: str, max_pixels: int = MAX_PIXELS, formats: Sequence[str] | None = None
) -> Image.Image:
    """Load an upright RGB picture from the bytes of a picture file.

    content: the bytes of the file.
    title: the name in error messages.
    max_pixels: a larger picture is refused before it is decoded. For formats of SLOW_FORMATS it is less.
    formats: the formats of EXTENSIONS_OF_FORMATS to accept, None for all.

    Raises SourceError like `load_picture`.
    """
    if not content:
        raise SourceError(f"{title} is empty: send the bytes of a picture file")
    with pillow_reads(title):
        opened = _open(io.BytesIO(content), tuple(formats or EXTENSIONS_OF_FORMATS))
    with opened:
        _check_size(opened, title, int(max_pixels * SLOW_FORMATS.get(opened.format or "", 1)))
        return _upright_rgb(opened, title)


def resize(picture: Image.Image, size: tuple[int, int], rule: str = SQUASH) -> npt.NDArray[np.uint8]:
    """Resize an RGB picture to `size` (height, width) and return uint8 (height, width, 3).

    rule: a name of RULES. By default the filter is antialiased bilinear, and the aspect ratio is not kept, as in the
    preprocessing of the published weights.
    """
    height, width = size
    how = RULES[rule]
    box: tuple[float, float, float, float] = (0, 0, picture.width, picture.height)
    if how.crop:
        scale = max(height / picture.height, width / picture.width)
        left, top = (picture.width - width / scale) / 2, (picture.height - height / scale) / 2
        box = (
            max(left, 0),
            max(top, 0),
            min(left + width / scale, picture.width),
            min(top + height / scale, picture.height),
        )
    kind = Image.Resampling.BICUBIC if how.bicubic else Image.Resampling.BILINEAR
    return np.array(picture.resize((width, height), kind, box))


@contextmanager
def open_picture(path: str | Path) -> Iterator[Image.Image]:
    """Open a picture file and read its header alone. Raise SourceError like `load_picture`."""
    path = Path(path)
    if path.is_dir():
        raise SourceError(f"{path} is a folder, not a picture: name a picture in it")
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise SourceError(f"{path} is not a file: name a picture file")
        stream = path.open("rb")
    except FileNotFoundError:
        raise SourceError(f"there is no picture {path}: check the path") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be opened ({error.strerror}): check the file and its rights") from error
    with stream:
        with pillow_reads(str(path)):
            if not stream.read(1):
                raise SourceError(f"{path} is an empty file: replace or remove it")
            stream.seek(0)
            opened = _open(stream, tuple(EXTENSIONS_OF_FORMATS))
        with opened:
            _check_size(opened, str(path), MAX_PIXELS)
            yield opened


@contextmanager
def pillow_reads(title: str) -> Iterator[None]:
    """Turn Pillow's errors on the picture `title` into SourceError, and silence its warnings."""
    with _no_pillow_warnings:
        try:
            yield
        except (MemoryError, SourceError):
            raise
        except UnidentifiedImageError as error:
            if advice := UNREAD_EXTENSIONS.get(Path(title).suffix.lower()):
                raise SourceError(f"{title} is of a format that is not read: {advice}") from error
            known = " ".join(PICTURE_EXTENSIONS)
            raise SourceError(f"{title} is not a picture of a known format: convert it to one of {known}") from error
        except Image.DecompressionBombError as error:
            raise SourceError(_too_large(title, MAX_PIXELS)) from error
        except Exception as error:  # damaged bytes raise nearly any type: OSError, SyntaxError, zlib.error, ...
            raise SourceError(
                f"{title} is damaged or cannot be decoded ({one_line(error)}): replace or remove it"
            ) from error


def _open(stream: BinaryIO, formats: tuple[str, ...]) -> Image.Image:
    """Open a picture. Text and colour profiles of a PNG file that Pillow finds too large are left out."""
    try:
        picture = Image.open(stream, formats=formats)
    except ValueError:
        stream.seek(0)
        content = stream.read()
        if not content.startswith(PNG_HEAD):
            raise
        stream = io.BytesIO(_without_text(content))
        picture = Image.open(stream, formats=formats)
    if picture.format == "PNG" and picture.mode.startswith("I"):
        picture.info[SIGNIFICANT_BITS] = _significant_bits(stream)
    return picture


def _significant_bits(stream: BinaryIO) -> int:
    """Return the bits of a grey PNG file's values by its sBIT chunk, 16 without (PNG specification 11.3.2.7)."""
    back = stream.tell()
    stream.seek(len(PNG_HEAD))
    bits = 16
    while len(head := stream.read(8)) == 8 and head[4:] not in (b"PLTE", b"IDAT"):
        if head[4:] == b"sBIT":
            bits = (stream.read(1) or b"\x10")[0]
            break
        stream.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
    stream.seek(back)
    return bits


def _load(picture: Image.Image) -> Image.Image:
    """Decode an opened picture, and return it. Mend a JPEG file that lacks its end marker alone.

    The pixels are then whole if they do not depend on the bytes that are put in the place of the end.
    """
    stream = getattr(picture, "fp", None)
    if picture.format == "JPEG" and picture.info.get("progressive") and stream is not None:
        back = stream.tell()
        stream.seek(0)
        # In the data of a scan, 0xFF is never followed by the marker's second byte.
        if stream.read().count(b"\xff\xda") > MAX_SCANS:
            raise ValueError(f"more than {MAX_SCANS} scans")
        stream.seek(back)
    try:
        picture.load()
        return picture
    except (OSError, ValueError) as error:
        if stream is None or stream.closed or picture.format not in ("JPEG", "PNG"):
            raise
        stream.seek(0)
        content = stream.read()
        if picture.format == "PNG":
            if not isinstance(error, ValueError):
                raise
            return _decode(_without_text(content), "PNG")
        content = content.removesuffix(b"\xff")  # half of the marker
        first, second = (_decode(content + fill * 512 + b"\xff\xd9", "JPEG") for fill in (b"\x00", b"\x5a"))
        if first.tobytes() != second.tobytes():
            raise
        return first


def _decode(content: bytes, kind: str) -> Image.Image:
    picture = Image.open(io.BytesIO(content), formats=(kind,))
    picture.load()
    return picture


def _without_text(content: bytes) -> bytes:
    """Return a PNG file without its text and colour profile, which do not change the pixels (PNG specification 11)."""
    kept, at = [content[: len(PNG_HEAD)]], len(PNG_HEAD)
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise SourceError(
            f"an array of shape {array.shape} and dtype {array.dtype} is not a picture; give uint8 (H, W, 3), RGB"
        )
    _check_sides(array.shape[1], array.shape[0], "the array", MAX_PIXELS)
    return Image.fromarray(np.ascontiguousarray(array))


def _upright_rgb(picture: Image.Image, title: str) -> Image.Image:
    with pillow_reads(title):
        picture = _load(picture)  # before the orientation is read, because a TIFF file is rotated while loading
        turn = _TURN_OF_ORIENTATION.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
        if picture.mode == "F":
            picture = Image.fromarray(_scale_floats(picture, title))
        elif picture.mode == "I" or picture.mode.startswith("I;16"):
            picture = _grey_from_16_bit(picture, title)
        if picture.mode != "RGB":
            picture = picture.convert("RGB")
        if turn is not None:
            # ImageOps.exif_transpose would write the EXIF block again and fail on unknown tags.
            picture = picture.transpose(turn)
            picture.info.clear()  # so that the picture is not rotated a second time
        return picture


def _grey_from_16_bit(picture: Image.Image, title: str) -> Image.Image:
    """Scale 16-bit grey to 8 bit. Pillow's own conversion clips all values above 255 to white."""
    values = np.asarray(picture)
    if int(values.min()) < 0 or int(values.max()) > 65535:
        raise SourceError(f"{title} holds grey values outside 0 to 65535: convert it to 8 or 16 bit")
    return Image.fromarray(scale_16_bit(values, int(picture.info.get(SIGNIFICANT_BITS, 16))))


def _scale_floats(picture: Image.Image, title: str) -> npt.NDArray[np.uint8]:
    try:
        return scale_floats(np.asarray(picture))
    except SourceError as error:
        raise SourceError(f"{title}: {error}") from None


def _check_size(picture: Image.Image, title: str, max_pixels: int) -> None:
    _check_sides(picture.width, picture.height, title, max_pixels)


def _check_sides(width: int, height: int, title: str, max_pixels: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise SourceError(f"{title} has {width} x {height} pixels: a picture needs {MIN_SIDE} on each side")
    if width * height > max_pixels:
        raise SourceError(_too_large(title, max_pixels, f" ({width} x {height})"))


def _too_large(title: str, max_pixels: int, size: str = "") -> str:
    return f"{title} has more than {max_pixels // 1_000_000} megapixels{size}: scale it down"


class _NoPillowWarnings:
    """Ignore Pillow's warnings while any thread is inside.

    `warnings.catch_warnings` in several threads at once can restore a wrong state. Here the first thread to enter saves
    the filters, and the last to leave restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved: warnings.catch_warnings[None] = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_no_pillow_warnings = _NoPillowWarnings()
