import io
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from pairvpr.errors import SourceError
from pairvpr.runtime.image import MAX_PIXELS, MIN_SIDE, decode_picture, load_picture, resize
from pairvpr.runtime.picture_formats import PICTURE_EXTENSIONS, UNREAD_EXTENSIONS
from pairvpr.runtime.remarks import remark_scope
from tests.conftest import shared


def scene(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a picture of this size and holds none of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def test_rgb_file_keeps_its_pixels(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        picture = load_picture(path)
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), scene())


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_modes_convert_as_pillow_converts(mode):
    base = Image.fromarray(scene())
    picture = base.convert("P").convert("PA") if mode == "PA" else base.convert(mode)
    loaded = load_picture(picture)
    assert loaded.mode == "RGB"
    assert np.array_equal(np.asarray(loaded), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "name"),
    [("CMYK", "a.jpg"), ("L", "a.jpg"), ("P", "a.gif"), ("RGBA", "a.webp"), ("1", "a.pbm"), ("LA", "a.png")],
)
def test_modes_in_files(tmp_path, mode, name):
    Image.fromarray(scene()).convert(mode).save(tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        expected = np.asarray(opened.convert("RGB"))
    assert np.array_equal(np.asarray(load_picture(tmp_path / name)), expected)


def test_alpha_is_dropped_not_blended():
    rgba = np.dstack([scene(), np.zeros(scene().shape[:2], np.uint8)])
    assert np.array_equal(np.asarray(load_picture(Image.fromarray(rgba))), scene())


def test_palette_transparency_leaks_no_warning(tmp_path):
    Image.fromarray(scene()).convert("P").save(tmp_path / "a.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_picture(tmp_path / "a.png").size == Image.fromarray(scene()).size


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    expected = np.rint(values / 257).astype(np.uint8)
    big_endian = Image.frombytes("I;16B", (64, 64), values.astype(">u2").tobytes())
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tiff")
    big_endian.save(tmp_path / "b.tiff")
    (tmp_path / "a.pgm").write_bytes(b"P5 64 64 65535\n" + values.astype(">u2").tobytes())
    sources = [tmp_path / name for name in ("a.png", "a.tiff", "b.tiff", "a.pgm")]
    for source in [*sources, Image.fromarray(values), big_endian, Image.fromarray(values.astype(np.int32))]:
        loaded = np.asarray(load_picture(source))
        assert np.array_equal(loaded, np.repeat(expected[..., None], 3, axis=2)), source


@pytest.mark.parametrize(
    ("bits", "values"),
    [
        (10, lambda grey: grey * 4),
        (12, lambda grey: grey * 16),
        (14, lambda grey: grey * 64),
    ],
)
def test_grey_of_fewer_bits_is_as_bright_as_eight_bit(tmp_path, caplog, bits, values):
    grey = np.asarray(Image.fromarray(scene()).convert("L")).astype(np.uint16)
    Image.fromarray(values(grey)).save(tmp_path / "a.png")
    with remark_scope():
        for _ in range(2):
            loaded = np.asarray(load_picture(tmp_path / "a.png"))[:, :, 0].astype(int)
        assert np.abs(loaded - grey).max() <= 1
        load_picture(Image.fromarray(grey * 257))
    assert [text[:35] for text in caplog.messages] == ["16-bit pictures that use fewer bits"]
    with remark_scope(strict=True), pytest.raises(SourceError, match="--strict stops here"):
        load_picture(tmp_path / "a.png")


def test_a_narrow_band_of_grey_is_stretched(tmp_path):
    """As a thermal camera writes it."""
    grey = np.asarray(Image.fromarray(scene()).convert("L")).astype(np.uint16)
    Image.fromarray(7300 + grey).save(tmp_path / "a.png")
    loaded = np.asarray(load_picture(tmp_path / "a.png"))[:, :, 0].astype(float)
    assert np.corrcoef(loaded.ravel(), grey.ravel())[0, 1] > 0.99
    assert loaded.max() - loaded.min() > 200


def test_the_significant_bits_of_a_png_count(tmp_path):
    dark = np.full((20, 20), 100, np.uint16)
    dark[0] = 0
    Image.fromarray(dark).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    chunk = b"sBIT\x0c"
    chunk = b"\0\0\0\1" + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (tmp_path / "b.png").write_bytes(content[:33] + chunk + content[33:])
    assert np.asarray(load_picture(tmp_path / "a.png")).max() == 100  # as 8 bit
    assert np.asarray(load_picture(tmp_path / "b.png")).max() == 6  # 100 of 4095


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_whole(tmp_path, progressive):
    Image.fromarray(scene()).save(tmp_path / "a.jpg", progressive=progressive)
    content, whole = (tmp_path / "a.jpg").read_bytes(), np.asarray(load_picture(tmp_path / "a.jpg"))
    for missing in (1, 2):
        (tmp_path / "b.jpg").write_bytes(content[:-missing])
        assert np.array_equal(np.asarray(load_picture(tmp_path / "b.jpg")), whole)
        assert np.array_equal(np.asarray(decode_picture(content[:-missing], "b")), whole)
    for missing in (20, 200, len(content) // 2):
        (tmp_path / "b.jpg").write_bytes(content[:-missing])
        with pytest.raises(SourceError, match=r"b\.jpg is damaged"):
            load_picture(tmp_path / "b.jpg")


@pytest.mark.parametrize("kind", ["text", "late text", "profile"])
def test_large_text_and_profiles_of_a_png_are_no_hindrance(tmp_path, kind):
    info = PngImagePlugin.PngInfo()
    if kind != "profile":
        text = b"a\0\0" + zlib.compress(b"x" * 3_000_000)
        info.add(b"zTXt", text, after_idat=kind == "late text")
    Image.fromarray(scene()).save(
        tmp_path / "a.png", pnginfo=info, icc_profile=bytes(3_000_000) if kind == "profile" else None
    )
    assert np.array_equal(np.asarray(load_picture(tmp_path / "a.png")), scene())


def test_pictures_of_formats_that_need_a_plugin(tmp_path, monkeypatch):
    monkeypatch.setitem(UNREAD_EXTENSIONS, ".heic", "pip install pillow-heif")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(2000))
    with pytest.raises(SourceError, match=r"a\.heic is of a format that is not read: pip install pillow-heif"):
        load_picture(tmp_path / "a.heic")


@pytest.mark.parametrize("value", [-1, 65536])
def test_grey_beyond_sixteen_bit_is_refused(value):
    with pytest.raises(SourceError, match="outside 0 to 65535"):
        load_picture(Image.fromarray(np.full((20, 20), value, np.int32)))


def test_a_float_picture_is_scaled_by_the_range_it_uses(tmp_path, caplog):
    """As a thermal camera or a range image, whatever its unit."""
    grey = np.asarray(Image.fromarray(scene()).convert("L")).astype(np.float32)
    Image.fromarray(grey * 0.01 + 290).save(tmp_path / "kelvin.tiff")
    with remark_scope():
        loaded = np.asarray(load_picture(tmp_path / "kelvin.tiff"))[:, :, 0].astype(float)
    assert np.corrcoef(loaded.ravel(), grey.ravel())[0, 1] > 0.99
    assert (loaded.min(), loaded.max()) == (0, 255)
    assert [text[:36] for text in caplog.messages] == ["floating-point pictures are scaled t"]
    Image.fromarray(np.full((20, 20), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(SourceError, match=r"nan\.tiff: none of its floating-point values is finite: check the program"):
        load_picture(tmp_path / "nan.tiff")


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    lossless = {"lossless": True} if name == "a.webp" else {}
    Image.fromarray(scene()).save(tmp_path / name, exif=exif, **lossless)
    with Image.open(tmp_path / name) as opened:
        by_pillow = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    loaded = load_picture(tmp_path / name)
    assert np.array_equal(np.asarray(loaded), by_pillow)
    if name != "a.jpg":
        assert np.array_equal(np.asarray(loaded), UPRIGHT[orientation](scene()))
    assert np.array_equal(np.asarray(load_picture(loaded)), by_pillow)  # not turned a second time


def test_exif_that_pillow_cannot_write_again_is_no_hindrance(tmp_path):
    # An ASCII tag that claims to be a rational: read without complaint, refused by Exif.tobytes.
    tiff = b"II*\0\x08\0\0\0" + (2).to_bytes(2, "little")
    tiff += bytes([0x12, 1, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0]) + bytes([0x12, 2, 2, 0, 2, 0, 0, 0, 65, 0, 0, 0])
    Image.fromarray(scene()).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + tiff + bytes(4))
    assert load_picture(tmp_path / "a.jpg").size == (40, 60)


def test_malformed_exif_counts_as_none(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.jpg", exif=b"Exif\0\0nonsense that is no TIFF header")
    assert load_picture(tmp_path / "a.jpg").size == (60, 40)


def test_arrays():
    array = scene()
    assert np.array_equal(np.asarray(load_picture(array)), array)
    assert np.array_equal(np.asarray(load_picture(array[:, ::-1])), array[:, ::-1])


@pytest.mark.parametrize(
    "array",
    [
        scene().astype(np.float32),
        scene()[..., 0],
        np.zeros((40, 60, 4), np.uint8),
        np.zeros((2, 40, 60, 3), np.uint8),
        scene().astype(np.uint16),
    ],
)
def test_other_arrays_are_refused_with_shape_and_dtype(array):
    with pytest.raises(SourceError) as caught:
        load_picture(array)
    assert str(array.shape) in str(caught.value)
    assert str(array.dtype) in str(caught.value)


def test_pictures_that_need_no_change_are_not_copied():
    picture = Image.fromarray(scene())
    assert load_picture(picture) is picture


def encoded(format: str, **options) -> bytes:  # noqa: A002
    stream = io.BytesIO()
    Image.fromarray(scene(64, 64)).save(stream, format, **options)
    return stream.getvalue()


BAD_FILES = {
    "empty.jpg": (b"", "empty file"),
    "text.jpg": (b"these are words, not pixels\n" * 20, "not a picture"),
    "magic.png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged|not a picture"),
    "short.jpg": (encoded("JPEG")[:900], "damaged"),
    "short.png": (encoded("PNG")[:2000], "damaged"),
    "short.bmp": (encoded("BMP")[:2000], "damaged"),
    "short.webp": (encoded("WEBP")[:900], "damaged|not a picture"),
    "short.tiff": (encoded("TIFF")[:2000], "damaged|not a picture"),
    "short.gif": (encoded("GIF")[:1500], "damaged"),
    "zlib.png": (encoded("PNG").replace(b"IDAT", b"IDAT\0\1\2\3", 1), "damaged"),
    "dot.png": (png_header(1, 1), "1 x 1 pixels"),
    "thin.png": (png_header(MIN_SIDE - 1, 400), "15 x 400 pixels"),
    "large.png": (png_header(10_001, 10_000), "more than 100 megapixels"),
    "bomb.png": (png_header(20_000, 20_000), "more than 100 megapixels"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SourceError, match=message) as caught:
            load_picture(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert ": " in str(caught.value)  # the remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(150))
def test_flipped_bytes_end_in_a_picture_or_a_source_error(tmp_path, seed):
    random = np.random.default_rng(seed)
    format = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "JPEG2000")[seed % 6]  # noqa: A001
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = np.frombuffer(encoded(format, **({"exif": exif} if seed % 6 < 4 else {})), np.uint8).copy()
    data[random.integers(0, min(len(data), 600), 8)] = random.integers(0, 256, 8)
    (tmp_path / "a.bin").write_bytes(data.tobytes())
    with suppress(SourceError):
        assert load_picture(tmp_path / "a.bin").mode == "RGB"


def test_missing_and_folder(tmp_path):
    with pytest.raises(SourceError, match=r"there is no picture .*nope.jpg: check"):
        load_picture(tmp_path / "nope.jpg")
    with pytest.raises(SourceError, match="is a folder"):
        load_picture(tmp_path)
    with pytest.raises(SourceError, match="is not a file"):
        load_picture("/dev/null")


def test_limits_hold_for_arrays_and_pil_pictures(monkeypatch):
    assert MAX_PIXELS == 100_000_000
    for tiny in (scene(MIN_SIDE, MIN_SIDE - 1), Image.fromarray(scene(MIN_SIDE - 1, MIN_SIDE))):
        with pytest.raises(SourceError, match="pixels: a picture needs 16"):
            load_picture(tiny)
    assert load_picture(scene(MIN_SIDE, MIN_SIDE)).size == (MIN_SIDE, MIN_SIDE)
    monkeypatch.setattr("pairvpr.runtime.image.MAX_PIXELS", 1000)
    for large in (scene(), Image.fromarray(scene())):
        with pytest.raises(SourceError, match=r"megapixels \(60 x 40\)"):
            load_picture(large)


def test_running_out_of_memory_is_not_the_pictures_fault(tmp_path, monkeypatch):
    Image.fromarray(scene()).save(tmp_path / "a.png")

    def load(self):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(MemoryError):
        load_picture(tmp_path / "a.png")


def test_warning_filters_survive_loading_in_threads(tmp_path):
    Image.fromarray(scene()).convert("P").save(tmp_path / "a.png", transparency=bytes(range(256)))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(load_picture, [tmp_path / "a.png"] * 200))
    assert list(warnings.filters) == before


@pytest.mark.parametrize("size", [(32, 32), (20, 90), (322, 322)])
def test_resize_is_pillows_squash(size):
    picture = Image.fromarray(scene(97, 131))
    small = resize(picture, size)
    assert small.shape == (*size, 3)
    assert small.dtype == np.uint8
    assert small.flags.writeable
    assert np.array_equal(small, np.asarray(picture.resize((size[1], size[0]), Image.BILINEAR)))


def test_resize_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 254
    assert np.abs(resize(Image.fromarray(stripes), (16, 16))[:, 2:-2].astype(int) - 127).max() <= 20


def test_extensions():
    assert {".jpg", ".jpeg", ".png", ".tif", ".pgm"} <= set(PICTURE_EXTENSIONS)
    Image.init()
    assert set(PICTURE_EXTENSIONS) <= set(Image.registered_extensions())


def test_real_picture():
    picture = load_picture(shared("data/gardens_point/day_right/Image000.jpg"))
    assert picture.size == (960, 540)
    assert resize(picture, (322, 322)).std() > 10


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG file that repeats its last scan."""
    stream = io.BytesIO()
    Image.fromarray(scene()).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * count + b"\xff\xd9"


def test_a_jpeg_file_of_very_many_scans_is_refused_before_it_is_decoded():
    """Each scan takes as long as a picture, and a few bytes."""
    assert decode_picture(jpeg_of_scans(20), "a").size == Image.fromarray(scene()).size
    with pytest.raises(SourceError, match="more than 100 scans"):
        decode_picture(jpeg_of_scans(200), "a")


def test_slow_formats_have_fewer_pixels():
    stream = io.BytesIO()
    Image.fromarray(np.zeros((400, 400, 3), np.uint8)).save(stream, "JPEG2000")
    assert decode_picture(stream.getvalue(), "a", 1_600_000).size == (400, 400)
    with pytest.raises(SourceError, match="megapixels"):
        decode_picture(stream.getvalue(), "a", 1_200_000)
