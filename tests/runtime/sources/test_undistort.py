"""Undistortion, against points that are projected one by one with formulas written out from OpenCV's documentation."""

from __future__ import annotations

import array
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pairvpr.errors import SourceError
from pairvpr.runtime.sources import SourceOptions, open_source
from pairvpr.runtime.sources.undistort import Lens, parse_camera, read_camera

SIZE = (320, 240)
K = (210.0, 205.0, 165.0, 118.0)  # fx, fy, cx, cy

PLUMB_BOB = """# made by camera_calibration
image_width: 320
image_height: 240
camera_name: front
camera_matrix:
  rows: 3
  cols: 3
  data: [210.0, 0.0, 165.0, 0.0, 205.0, 118.0,
         0.0, 0.0, 1.0]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.28, 0.074, 0.0019, -0.0017, 0.002]
"""
RECTIFIED = """
rectification_matrix:
  rows: 3
  cols: 3
  data: [0.9998000066665778, 0.0, 0.019998666693333, 0.0, 1.0, 0.0, -0.019998666693333, 0.0, 0.9998000066665778]
projection_matrix:
  rows: 3
  cols: 4
  data: [180.0, 0.0, 150.0, 0.0, 0.0, 185.0, 125.0, 0.0, 0.0, 0.0, 1.0, 0.0]
"""
RATIONAL = """header:
  stamp:
    sec: 5
height: 240
width: 320
distortion_model: "rational_polynomial"
d:
- 0.35
- -0.4
- 0.0005
- -0.0007
- 0.02
- 0.72
- -0.35
- 0.05
k: [210.0, 0.0, 165.0, 0.0, 205.0, 118.0, 0.0, 0.0, 1.0]
roi:
  height: 7
  width: 7
"""
EQUIDISTANT = """image_width: 320
image_height: 240
camera_matrix: {rows: 3}
K: [210.0, 0.0, 165.0, 0.0, 205.0, 118.0, 0.0, 0.0, 1.0]
distortion_model: equidistant
D: [-0.013, 0.021, -0.012, 0.002]
"""
EUROC = """# General sensor definitions.
sensor_type: camera
comment: VI-Sensor cam0 (MT9M034)
T_BS:
  cols: 4
  rows: 4
  data: [0.0148655429818, -0.999880929698, 0.00414029679422, -0.0216401454975,
         0.0, 0.0, 0.0, 1.0]
rate_hz: 20
resolution: [320, 240]
camera_model: pinhole
intrinsics: [210.0, 205.0, 165.0, 118.0] #fu, fv, cu, cv
distortion_model: radial-tangential
distortion_coefficients: [-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05]
"""
FILES = {
    "plumb_bob": (PLUMB_BOB, (-0.28, 0.074, 0.0019, -0.0017, 0.002)),
    "rectified": (PLUMB_BOB + RECTIFIED, (-0.28, 0.074, 0.0019, -0.0017, 0.002)),
    "rational": (RATIONAL, (0.35, -0.4, 0.0005, -0.0007, 0.02, 0.72, -0.35, 0.05)),
    "equidistant": (EQUIDISTANT, (-0.013, 0.021, -0.012, 0.002)),
    "euroc": (EUROC, (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05)),
}


def project(x: float, y: float, d: tuple[float, ...], fisheye: bool) -> tuple[float, float]:
    """The pixel at which the lens shows the point (x, y, 1)."""
    fx, fy, cx, cy = K
    r = math.hypot(x, y)
    if fisheye:
        theta = math.atan(r)
        theta_d = theta + d[0] * theta**3 + d[1] * theta**5 + d[2] * theta**7 + d[3] * theta**9
        ratio = theta_d / r if r else 1.0
        return fx * x * ratio + cx, fy * y * ratio + cy
    k1, k2, p1, p2, k3, k4, k5, k6 = (*d, *[0.0] * (8 - len(d)))
    ratio = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
    x2 = x * ratio + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2)
    y2 = y * ratio + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y
    return fx * x2 + cx, fy * y2 + cy


def spot(u: float, v: float) -> Image.Image:
    """A soft white spot on black."""
    columns, rows = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    light = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * 2.0**2))
    return Image.fromarray(np.repeat(np.round(light).astype(np.uint8)[:, :, None], 3, axis=2))


def where(picture: Image.Image) -> tuple[float, float]:
    light = np.asarray(picture).astype(float)[:, :, 0]
    columns, rows = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    return (light * columns).sum() / light.sum(), (light * rows).sum() / light.sum()


@pytest.mark.parametrize("name", FILES)
def test_a_grid_of_points_comes_to_where_a_pinhole_has_it(tmp_path: Path, name: str) -> None:
    text, coefficients = FILES[name]
    (tmp_path / "camera.yaml").write_text(text)
    lens = Lens(read_camera(tmp_path / "camera.yaml"))
    for x in np.linspace(-0.55, 0.5, 4):
        for y in np.linspace(-0.4, 0.4, 3):
            seen = spot(*project(float(x), float(y), coefficients, name == "equidistant"))
            if name == "rectified":  # turned by 0.02 about y, then through the new camera
                a, b = math.cos(0.02), math.sin(0.02)
                expected = 180 * (a * x + b) / (a - b * x) + 150, 185 * y / (a - b * x) + 125
            else:
                expected = K[0] * x + K[2], K[1] * y + K[3]
            assert where(lens.undistort(seen, "spot")) == pytest.approx(expected, abs=0.35), (x, y)


def test_the_camera_of_a_message_is_that_of_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "camera.yaml").write_text(FILES["plumb_bob"][0])
    k = [K[0], 0.0, K[2], 0.0, K[1], K[3], 0.0, 0.0, 1.0]
    message = SimpleNamespace(
        width=320, height=240, distortion_model="plumb_bob", d=array.array("d", FILES["plumb_bob"][1]),
        k=np.array(k), r=np.eye(3).ravel(), p=np.zeros(12),
    )  # fmt: skip
    found, expected = parse_camera(message, "the CameraInfo"), read_camera(tmp_path / "camera.yaml")
    assert {**vars(found), "rotation": None} == {**vars(expected), "rotation": None}
    assert np.array_equal(found.rotation, expected.rotation)
    message.d, message.distortion_model = [], ""
    assert parse_camera(message, "the CameraInfo").coefficients == (0.0,) * 8
    message.k = np.zeros(9)
    with pytest.raises(SourceError, match="the CameraInfo has a focal length or size of 0"):
        parse_camera(message, "the CameraInfo")


def test_no_distortion_changes_nothing(tmp_path: Path) -> None:
    text = PLUMB_BOB.replace("[-0.28, 0.074, 0.0019, -0.0017, 0.002]", "[0, 0, 0, 0, 0]")
    (tmp_path / "camera.yaml").write_text(text)
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    found = np.asarray(Lens(read_camera(tmp_path / "camera.yaml")).undistort(Image.fromarray(pixels), "noise"))
    assert np.array_equal(found, pixels)


def test_what_the_camera_did_not_see_is_black(tmp_path: Path) -> None:
    (tmp_path / "camera.yaml").write_text(PLUMB_BOB.replace("-0.28, 0.074", "0.4, 0.1"))
    white = Image.new("RGB", SIZE, "white")
    found = np.asarray(Lens(read_camera(tmp_path / "camera.yaml")).undistort(white, "white"))
    assert found[0, 0].tolist() == [0, 0, 0]
    assert found[120, 160].tolist() == [255, 255, 255]


def test_a_source_is_undistorted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    spot(*project(0.4, 0.3, FILES["euroc"][1], fisheye=False)).save(tmp_path / "in" / "a.png")
    (tmp_path / "sensor.yaml").write_text(EUROC)
    options = SourceOptions(undistort=tmp_path / "sensor.yaml")
    (frame,) = open_source(str(tmp_path / "in"), options)
    assert where(frame.picture) == pytest.approx((K[0] * 0.4 + K[2], K[1] * 0.3 + K[3]), abs=0.35)
    Image.new("RGB", (640, 480)).save(tmp_path / "in" / "b.png")
    with pytest.raises(SourceError, match=r"b\.png has 640 x 480 pixels, the calibration 320 x 240"):
        list(open_source(str(tmp_path / "in"), options))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no image_width: give a ROS"),
        (PLUMB_BOB.replace("plumb_bob", "thin_prism"), "pinhole with 'thin_prism' is not supported: use pinhole"),
        (EUROC.replace("pinhole", "omni"), "omni with 'radial-tangential' is not supported"),
        (PLUMB_BOB.replace("0.0019, -0.0017, ", ""), "3 distortion coefficients, but plumb_bob has 4 or 5"),
        (PLUMB_BOB.replace("-0.28", "x"), "distortion_coefficients.data: 'x' is not a number"),
        (PLUMB_BOB.replace("210.0", "nan"), "camera_matrix.data: nan is not a finite number"),
        (PLUMB_BOB.replace("210.0", "0.0"), "focal length or size of 0"),
        (PLUMB_BOB.replace("image_width: 320", "image_width: wide"), "image_width: 'wide' is not a number"),
        (PLUMB_BOB + RECTIFIED.replace("0.9998000066665778", "2"), "rectification matrix is not a rotation"),
        (EUROC.replace("resolution: [320, 240]", "resolution: [320, 240"), "is not"),
    ],
)  # fmt: skip
def test_calibrations_that_cannot_be_used(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "camera.yaml"
    file.write_text(text)
    with pytest.raises(SourceError, match=told) as caught:
        read_camera(file)
    assert str(file) in str(caught.value)


def test_calibrations_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        read_camera(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\x00")
    with pytest.raises(SourceError, match="is not a text file"):
        read_camera(tmp_path / "bytes.yaml")
