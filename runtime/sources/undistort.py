"""Read camera calibrations and undo the distortion of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.pose_fields import read_number

Floats = npt.NDArray[np.float64]

MODELS = {
    "plumb_bob": "polynomial",
    "radial-tangential": "polynomial",
    "rational_polynomial": "polynomial",
    "equidistant": "equidistant",
}
_EVEN, _BYTE, _HALVES = np.uint32(0x00FF00FF), np.uint32(8), 0x00800080
FORMS = "give a ROS camera_info YAML or an EuRoC sensor.yaml"


@dataclass(frozen=True)
class Camera:
    """Describe a calibrated camera, and the ideal camera without distortion that replaces it.

    size: width and height in pixels.
    focal: focal length (x, y) in pixels.
    centre: principal point (x, y) in pixels.
    model: a value of MODELS.
    coefficients: k1 k2 p1 p2 k3 k4 k5 k6 (polynomial) or k1 to k4 (equidistant).
    rotation: rotation matrix (3, 3) from the camera to the ideal camera.
    new_focal, new_centre: focal length and principal point of the ideal camera.
    """

    size: tuple[int, int]
    focal: tuple[float, float]
    centre: tuple[float, float]
    model: str
    coefficients: tuple[float, ...]
    rotation: Floats
    new_focal: tuple[float, float]
    new_centre: tuple[float, float]

    def distort(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return the distorted position of the undistorted position (x, y), in units of the focal length.

        The models are the rational and equidistant ("fisheye") models of OpenCV 4, module calib3d, which ROS (REP 104)
        uses.
        """
        r2 = x * x + y * y
        if self.model == "equidistant":
            k1, k2, k3, k4 = self.coefficients
            r = np.sqrt(r2)
            angle = np.arctan(r)
            a2 = angle * angle
            bent = angle * (1 + a2 * (k1 + a2 * (k2 + a2 * (k3 + a2 * k4))))
            scale = np.divide(bent, r, out=np.ones_like(r), where=r > 1e-9)
            return x * scale, y * scale
        k1, k2, p1, p2, k3, k4, k5, k6 = self.coefficients
        radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
        return (
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        )


class Lens:
    """Undo a camera's distortion. The source position of every pixel is computed once."""

    def __init__(self, camera: Camera) -> None:
        self._size = camera.size
        width, height = camera.size
        columns, rows = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
        rays = np.stack(
            [
                (columns - camera.new_centre[0]) / camera.new_focal[0],
                (rows - camera.new_centre[1]) / camera.new_focal[1],
                np.ones_like(rows),
            ],
            axis=2,
        )
        rays = rays @ camera.rotation  # a row vector times the matrix: the inverse rotation
        ahead = rays[:, :, 2] > 1e-6
        depth = np.where(ahead, rays[:, :, 2], 1)
        x, y = camera.distort(rays[:, :, 0] / depth, rays[:, :, 1] / depth)
        u, v = x * camera.focal[0] + camera.centre[0], y * camera.focal[1] + camera.centre[1]
        inside = ahead & (u >= 0) & (v >= 0) & (u <= width - 1) & (v <= height - 1)
        u, v = np.where(inside, u, 0), np.where(inside, v, 0)
        left, top = np.minimum(np.floor(u), width - 2), np.minimum(np.floor(v), height - 2)
        # Bilinear: index and weight (in 256ths) of each of the four pixels around a point. Outside is black.
        first = (top * width + left).astype(np.int32).ravel()
        right = np.round(256 * (u - left)).astype(np.int64)
        lower = np.round(256 * (v - top)).astype(np.int64)
        both = (right * lower + 128) // 256
        shares = (256 - right - lower + both, right - both, lower - both, both)
        self._corners = [
            (first + offset, (share * inside).astype(np.uint32).ravel())
            for offset, share in zip((0, 1, width, width + 1), shares, strict=True)
        ]

    def undistort(self, picture: Image.Image, name: str) -> Image.Image:
        """Return the RGB picture without distortion. Raise SourceError if its size is not the calibration's."""
        width, height = self._size
        if picture.size != self._size:
            raise SourceError(
                f"{name} has {picture.width} x {picture.height} pixels, the calibration {width} x {height}: "
                "give --undistort a calibration of this camera at this size"
            )
        # A pixel is a number of four bytes. Blending two bytes at once is five times as fast as separate channels.
        pixels = np.asarray(picture.convert("RGBX")).view(np.uint32).ravel()
        even, odd = (np.full(len(pixels), _HALVES, np.uint32) for _ in range(2))
        for indices, share in self._corners:
            values = pixels.take(indices)
            even += (values & _EVEN) * share
            odd += ((values >> _BYTE) & _EVEN) * share
        blend = ((even >> _BYTE) & _EVEN) | (odd & ~_EVEN)
        return Image.frombytes("RGB", self._size, blend.tobytes(), "raw", "RGBX")


def read_camera(path: Path) -> Camera:
    """Read a calibration from a ROS camera_info YAML (of the calibrator or a message) or an EuRoC sensor.yaml.

    With a rectification and projection matrix, pictures become those of ROS's image_proc. Otherwise the camera keeps
    its focal length and centre.

    Raises SourceError if the file cannot be read or used.
    """
    try:
        values = dict(_yaml_values(path.read_text(encoding="utf-8").splitlines()))
    except UnicodeDecodeError:
        raise SourceError(f"{path} is not a text file: {FORMS}") from None
    except OSError as error:
        raise SourceError(f"the calibration {path} cannot be read ({error.strerror}): check the path") from error
    return _camera(_Calibration(str(path), values))


def parse_camera(message: Any, title: str) -> Camera:
    """Return the camera of a CameraInfo message. Errors name it by `title`.

    A message without coefficients, as simulated cameras send it, describes a camera without distortion.

    Raises SourceError if the message cannot be used.
    """
    values = {name: list(map(str, getattr(message, name))) for name in ("d", "k", "r", "p")}
    for name in ("width", "height", "distortion_model"):
        values[name] = [str(getattr(message, name))]
    if not values["d"]:
        values |= {"d": ["0"] * 5, "distortion_model": ["plumb_bob"]}
    return _camera(_Calibration(title, values))


def _camera(file: _Calibration) -> Camera:
    """Return the camera of a calibration's values. Raise SourceError if they cannot be used."""
    title = file.title
    if "resolution" in file.values:
        width, height = file.numbers(2, "resolution")
        fx, fy, cx, cy = file.numbers(4, "intrinsics")
    else:
        (width,), (height,) = file.numbers(1, "image_width", "width"), file.numbers(1, "image_height", "height")
        fx, _, cx, _, fy, cy, *_ = file.numbers(9, "camera_matrix.data", "K", "k")
    if not (fx > 0 and fy > 0 and width >= 2 and height >= 2):
        raise SourceError(f"{title} has a focal length or size of 0, as for an uncalibrated camera: calibrate it")
    model = file.text("distortion_model")
    kind = file.text("camera_model", default="pinhole")
    if model not in MODELS or kind != "pinhole":
        raise SourceError(
            f"{title}: {kind} with {model!r} is not supported: use pinhole with one of {', '.join(MODELS)}"
        )
    coefficients = file.numbers(None, "distortion_coefficients.data", "distortion_coefficients", "D", "d")
    counts = {"equidistant": (4,), "rational_polynomial": (8,)}.get(model, (4, 5))
    if len(coefficients) not in counts:
        wanted = " or ".join(map(str, counts))
        raise SourceError(f"{title}: {len(coefficients)} distortion coefficients, but {model} has {wanted}: correct it")
    if MODELS[model] == "polynomial":
        coefficients += [0.0] * (8 - len(coefficients))
    rotation, new_focal, new_centre = np.eye(3), (fx, fy), (cx, cy)
    projection = file.numbers(12, "projection_matrix.data", "P", "p", default=[0.0] * 12)
    if projection[0] > 0 and projection[5] > 0:
        new_focal, new_centre = (projection[0], projection[5]), (projection[2], projection[6])
        identity = np.eye(3).ravel().tolist()
        rotation = np.reshape(file.numbers(9, "rectification_matrix.data", "R", "r", default=identity), (3, 3))
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3):
            raise SourceError(f"{title}: its rectification matrix is not a rotation: correct it")
    return Camera(
        (int(width), int(height)),
        (fx, fy),
        (cx, cy),
        MODELS[model],
        tuple(coefficients),
        rotation,
        new_focal,
        new_centre,
    )


@dataclass(frozen=True)
class _Calibration:
    """Read values of a calibration by key. Raise SourceError for missing and malformed values."""

    title: str
    values: dict[str, list[str]]

    def text(self, key: str, default: str | None = None) -> str:
        """Return a single value."""
        value = self.values.get(key) or ([] if default is None else [default])
        if len(value) != 1:
            raise SourceError(f"{self.title} has no {key}: {FORMS}")
        return value[0]

    def numbers(self, count: int | None, *keys: str, default: list[float] | None = None) -> list[float]:
        """Return the `count` finite numbers (None: any number of them) under the first key that the file has."""
        key = next((key for key in keys if key in self.values), None)
        if key is None:
            if default is not None:
                return default
            raise SourceError(f"{self.title} has no {keys[0]}: {FORMS}")
        numbers = [read_number(value, f"{self.title}: {key}") for value in self.values[key]]
        if count is not None and len(numbers) != count:
            raise SourceError(f"{self.title}: {key} is not {count} numbers: correct it")
        return numbers


def _yaml_values(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield dotted keys and their values, from the part of YAML that calibrations use.

    This part is mappings, scalars, and lists of scalars in brackets or in lines with dashes. Other values are skipped,
    so that a needed value then counts as missing.
    """
    above: list[tuple[int, str]] = []  # indents and keys
    dashed: list[str] = []
    rest = iter(re.sub(r"(^|\s)#.*", "", line).rstrip() for line in lines)
    for line in rest:
        if item := re.fullmatch(r"\s*- +([^\s:]+)", line):
            dashed.append(item[1].strip("\"'"))
            continue
        if not (entry := re.fullmatch(r"( *)([\w.-]+) *:(?: +(.*))?", line)):
            continue
        indent, key, value = len(entry[1]), entry[2], (entry[3] or "").strip()
        above = [each for each in above if each[0] < indent]
        above.append((indent, key))
        while value.startswith("[") and "]" not in value and (more := next(rest, None)) is not None:
            value += " " + more
        path = ".".join(name for _, name in above)
        if not value:
            dashed = []
            yield path, dashed  # filled by the lines that follow, if they have dashes
        else:
            yield path, [part.strip(" \"'") for part in value.strip("[] ").split(",") if part.strip()]
