import csv
import math

import numpy as np
import pytest
from PIL import ExifTags, Image, TiffImagePlugin

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.exif import exif_gps
from pairvpr.runtime.geometry.pose_files import PlaceFinder, read_poses
from pairvpr.runtime.geometry.poses import Gps, Place, Pose, find_fix
from pairvpr.runtime.geometry.timed_poses import MAX_TIME_GAP
from pairvpr.runtime.geometry.utm_names import utm_pose
from pairvpr.runtime.remarks import remark_scope


def write(tmp_path, text, name="poses.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def picture(path, gps=None):
    exif = Image.Exif()
    if gps is not None:
        ifd = exif.get_ifd(ExifTags.IFD.GPSInfo)
        ifd.update(gps)
        exif[ExifTags.IFD.GPSInfo] = ifd
        exif.load(exif.tobytes())  # Pillow 10.3 puts GPS into TIFF files only from EXIF that was read
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(path, exif=exif)
    return path


HERE = {1: "N", 2: (47.0, 30.0, 36.0), 3: "E", 4: (8.0, 45.0, 0.0)}


def test_csv_poses_are_normalised(tmp_path):
    rows = ["a.jpg,1,-2.5,3e1,0,0,2,0", "", '"b, two.jpg", 0,0,0, 1,1,1,1', "./c/d.jpg,1,2,3,0,0,0,1", ""]
    poses = read_poses(write(tmp_path, "\r\n".join(["name,x,y,z,qx,qy,qz,qw", *rows])))
    assert poses.find("a.jpg") == Place(pose=Pose(1.0, -2.5, 30.0, (0.0, 0.0, 1.0, 0.0), "map"))
    assert poses.find("b, two.jpg").pose.q == (0.5, 0.5, 0.5, 0.5)
    assert poses.find("c/d.jpg").pose.q == (0.0, 0.0, 0.0, 1.0)
    assert poses.find("d.jpg") is None


def test_csv_gps(tmp_path):
    text = "\ufeffname, latitude, longitude, altitude\na.jpg,-33.5,151.25,12\nb.jpg,1,2,\n"
    poses = read_poses(write(tmp_path, text))
    assert poses.find("a.jpg") == Place(gps=Gps(-33.5, 151.25, 12.0))
    assert poses.find("b.jpg") == Place(gps=Gps(1.0, 2.0, None))
    flat = read_poses(write(tmp_path, "name,latitude,longitude\na.jpg,1,2\n"))
    assert flat.find("a.jpg") == Place(gps=Gps(1.0, 2.0))


POSE = "name,x,y,z,qx,qy,qz,qw\n"
GPS = "name,latitude,longitude,altitude\n"
MALFORMED = [
    ("", "holds no poses: give CSV"),
    ("# only a comment\n", "holds no poses"),
    (POSE, "has a header but no poses"),
    ("name,x,y,z\na,1,2,3\n", "line 1: neither a known header nor a TUM line: give CSV"),
    ("\n\nsome words\n", "line 3: neither"),
    (b"\xff\xfe\x00PNG\x80", "is not a text file"),
    (POSE + " ,1,2,3,0,0,0,1\n", "line 2: the name is missing"),
    (POSE + "a,1,2,3,0,0,0,1\nb,1,2,3\n", "line 3: 4 fields, but the header has 8"),
    (POSE + "\n\na,1,2,x,0,0,0,1\n", "line 4: 'x' is not a number"),
    (POSE + "a,1,2,,0,0,0,1\n", "line 2: '' is not a number"),
    (POSE + "a,1,2,nan,0,0,0,1\n", "line 2: nan is not a finite number"),
    (POSE + "a,1,2,3,0,0,inf,1\n", "line 2: inf is not a finite number"),
    (POSE + "a,1,2,3,0,0,0,0\n", "line 2: the quaternion is zero"),
    (POSE + "a,1,-1.1e12,3,0,0,0,1\n", "line 2: a coordinate is larger than 1e+12 m"),
    (POSE + "a,1,2,3,0,0,0,1\n./a,1,2,3,0,0,0,1\n", "line 3: a is in the file twice"),
    (GPS + "a,91,0,0\nb,0,-181,0\nc,0,0,\nd,nan,1,\n", "none of its 4 GPS positions is a fix"),
    (GPS + "a,1,2,high\n", "line 2: 'high' is not a number"),
    ("name,x,y,z,qx,qy,qz,qw,X\n", "line 1: a column is in the header twice"),
    (POSE + "a" * 200_000 + ",1,2,3,0,0,0,1\n", "line 2: field larger"),
    ("# t x y z\n1.0 1 2 3 0 0 0 1\n2.0 1 2 3 0 0 0\n", "line 3: 7 fields, not the 8"),
    ("1.0 1 2 3 0 0 0 1\n\n1.00 1 2 3 0 0 0 1\n", "line 3: time stamp 1.00 is in the file twice"),
    ("1.0 1 2 3 0 0 0 0\n", "line 1: the quaternion is zero"),
    ("nan 1 2 3 0 0 0 1\n", "line 1: nan is not a finite number"),
    ("1 0 0 5 0 1 0 0 0 0 1 0\n", "line 1: 12 numbers are a pose of KITTI, without name or time stamp"),
    ("1403636579763555584,1,2,3,1,0,0,0\n", "line 1: nothing says where the quaternion's w is: write the header"),
    ("# timestamp x y z qx qy qz qw id\n1.0 1 2 3 0 0 0 1\n", "line 2: 8 fields, not the 9 of the header"),
    ("# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n1 1 0 0 0 1 2 3 1\n", "line 2: 9 fields, not the 10"),
    ("# two lines of data per image\n1 1 0 0 0 1 2 3 1 a\n\n2 1 0 0 0 1 2 3 1 a\n", "line 4: a is in the file twice"),
    (b"n\0a\0m\0e\0", "is not a text file in UTF-8: save it as UTF-8"),
    ("".join(f"{i * 2000} 1 2 3 0 0 0 1\n" for i in range(9)), "0 to 16000 may be no seconds, and their unit is not"),
    ("1 nan nan nan nan nan nan nan\n", "holds no finite pose"),
    ("1e21 1 2 3 0 0 0 1\n", "the time stamps 1e+21 to 1e+21 may be no seconds"),
]


def test_a_long_field_is_refused_whatever_limit_another_library_has_set(tmp_path):
    before = csv.field_size_limit(2**31 - 1)
    try:
        with pytest.raises(SourceError, match="line 2: field larger"):
            read_poses(write(tmp_path, POSE + "a" * 200_000 + ",1,2,3,0,0,0,1\n"))
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(("text", "message"), MALFORMED)
def test_malformed_files_name_file_and_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(SourceError) as caught:
        read_poses(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_pose_file(tmp_path):
    for path in (tmp_path / "nope.csv", tmp_path):
        with pytest.raises(SourceError, match=r"the pose file .* cannot be read"):
            PlaceFinder(path)


def test_tum_nearest_in_time(tmp_path):
    poses = read_poses(
        write(tmp_path, "# timestamp tx ty tz\n1305031102.20 2 0 0 0 0 0 1\n\n1305031102.10 1 0 0 0 0 0 3\n")
    )
    found = poses.find("rgb/1305031102.135.png")
    assert found == Place(Pose(1.0, 0.0, 0.0, (0.0, 0.0, 0.0, 1.0)), None, 1305031102.135)
    assert poses.find("1305031102.165.png").pose.x == 2.0
    assert poses.find("1305031102.25.png").pose.x == 2.0  # exactly MAX_TIME_GAP away
    assert poses.find("1305031102.04.png") is None
    assert poses.find("1305031102.26.png") is None
    assert poses.find("office.png") is None
    assert MAX_TIME_GAP == 0.05


def test_tum_nanoseconds_and_whole_seconds(tmp_path):
    poses = read_poses(write(tmp_path, "1403636579.76 1 0 0 0 0 0 1\n1403636585 2 0 0 0 0 0 1\n"))
    found = poses.find("cam0/data/1403636579763555584.png")
    assert found.pose.x == 1.0
    assert found.timestamp == pytest.approx(1403636579.763555584, abs=1e-6)
    assert poses.find("1403636585.png").pose.x == 2.0
    assert poses.find("1403636585.png").timestamp == 1403636585.0


NS = [1403636579763555584 + i * 50_000_000 for i in range(3)]
EUROC = "p_RS_R_x [m],p_RS_R_y [m],p_RS_R_z [m],q_RS_w [],q_RS_x [],q_RS_y [],q_RS_z []"
SECONDS = [f"{ns / 1e9:.6f}" for ns in NS]
TIMED = [
    f"#timestamp [ns],{EUROC}\n" + "".join(f"{ns},{i},0,0,0.8,0,0,0.6\n" for i, ns in enumerate(NS)),
    f"timestamp,{EUROC},v_x\r\n" + "".join(f"{ns},{i},0,0,0.8,0,0,0.6,9\r\n" for i, ns in enumerate(NS)),
    "".join(f"{s},{i},0,0,0,0,0.6,0.8\n" for i, s in enumerate(SECONDS)),
    "timestamp tx ty tz qx qy qz qw\n" + "".join(f"{s} {i} 0 0 0 0 0.6 0.8 \n" for i, s in enumerate(SECONDS)),
    "# by a tracker\n# time;x;y;z;qw;qx;qy;qz;id\n"
    + "".join(f"{s};{i};0;0;.8;0;0;.6;7\n" for i, s in enumerate(SECONDS)),
]


@pytest.mark.parametrize("text", TIMED)
def test_poses_by_time_with_commas_headers_and_other_orders(tmp_path, text):
    poses = read_poses(write(tmp_path, text))
    for i, ns in enumerate(NS):
        found = poses.find(f"cam0/data/{ns}.png")
        assert (found.pose.x, found.pose.q) == (i, pytest.approx((0, 0, 0.6, 0.8)))


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_tables_of_a_spreadsheet(tmp_path, delimiter, encoding):
    rows = [POSE.strip().split(","), ["a b.jpg", "1,5", "-2", "0,25", "0", "0", "0", "1"]]
    text = "\r\n".join(delimiter.join(row) for row in rows) + "\r\n"
    poses = read_poses(write(tmp_path, text.encode(encoding)))
    assert poses.find("a b.jpg") == Place(pose=Pose(1.5, -2.0, 0.25, (0.0, 0.0, 0.0, 1.0)))
    fixes = f"name{delimiter}lat{delimiter}lon\na.jpg{delimiter}-27,5{delimiter}153\n"
    assert read_poses(write(tmp_path, fixes.encode(encoding))).find("a.jpg") == Place(gps=Gps(-27.5, 153.0))


def test_images_of_colmap_are_turned_into_places_of_cameras(tmp_path):
    turned = math.sqrt(0.5)  # by 90 degrees about z
    text = (
        "# Image list with two lines of data per image:\n"
        "#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n"
        f"1 {turned} 0 0 {turned} 1 2 3 1 a b.jpg\n\n"
        "2 1 0 0 0 1 2 3 1 c/d.jpg\n10.0 20.0 -1 30.0 40.0 7\n"
    )
    poses = read_poses(write(tmp_path, text, "images.txt"))
    first, second = poses.find("a b.jpg").pose, poses.find("c/d.jpg").pose
    # The camera's position c solves R c + t = 0. R turns x into y, and y into -x.
    assert (first.x, first.y, first.z) == pytest.approx((-2, 1, -3))
    assert first.q == pytest.approx((0, 0, -turned, turned))
    assert ((second.x, second.y, second.z), second.q) == ((-1, -2, -3), pytest.approx((0, 0, 0, 1)))
    with remark_scope(strict=True), pytest.raises(SourceError, match="positions of COLMAP are taken for metres"):
        read_poses(tmp_path / "images.txt")


@pytest.mark.parametrize(
    ("per", "rate", "unit"),
    [
        (1e3, 30, "milliseconds"),
        (1e3, 2, "milliseconds"),
        (1e6, 30, "microseconds"),
        (1e6, 4, "microseconds"),
        (1e9, 30, "nanoseconds"),
        (1e9, 1, "nanoseconds"),
    ],
)
def test_relative_time_stamps_in_other_units_become_seconds(tmp_path, caplog, per, rate, unit):
    stamps = [round(i / rate * per) for i in range(100)]
    poses = read_poses(write(tmp_path, "".join(f"{s} {i} 0 0 0 0 0 1\n" for i, s in enumerate(stamps))))
    assert [poses.find("a.jpg", i / rate).pose.x for i in (0, 50, 99)] == [0, 50, 99]
    assert f"the time stamps are {unit}, and are converted to seconds" in caplog.text


@pytest.mark.parametrize(
    "stamps", [["0.0", "30.0", "60.0"], ["0", "1", "4"], ["1700000000", "1700000100", "1700000200"]]
)
def test_sparse_seconds_stay_seconds(tmp_path, caplog, stamps):
    poses = read_poses(write(tmp_path, "".join(f"{s} {i} 0 0 0 0 0 1\n" for i, s in enumerate(stamps))))
    assert [poses.find("a.jpg", float(s)).pose.x for s in stamps] == list(range(len(stamps)))
    assert caplog.messages == []


def test_a_drive_of_an_hour_in_nanoseconds_is_none_in_milliseconds_since_1970(tmp_path):
    stamps = [i * 100_000_000 for i in range(36_000)]
    poses = read_poses(write(tmp_path, "".join(f"{s} {i} 0 0 0 0 0 1\n" for i, s in enumerate(stamps))))
    assert poses.find("a.jpg", 3599.9).pose.x == 35_999


def test_numbers_with_leading_zeros_are_no_time_stamps(tmp_path):
    poses = read_poses(write(tmp_path, "".join(f"{i}.0 {i} 0 0 0 0 0 1\n" for i in range(5))))
    assert poses.find("0000000003.png") is None  # as KITTI names its pictures
    assert poses.find("3000000000.png").pose.x == 3


def test_running_numbers_are_no_time_stamps(tmp_path):
    poses = read_poses(write(tmp_path, "0.0 1 0 0 0 0 0 1\n1.0 2 0 0 0 0 0 1\n5.0 3 0 0 0 0 0 1\n"))
    assert [poses.find(name) for name in ("000000.png", "1.png", "000005.png")] == [None] * 3
    assert poses.find("5.02.png").pose.x == 3.0
    assert poses.find("5000000000.png").pose.x == 3.0  # a simulation's clock in nanoseconds


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("@0584363.02@4477128.93@17@T@040.44@-080.00@x@0@@@@@2015@@.jpg", (584363.02, 4477128.93, "utm17T")),
        ("db/@0543256.96@4178906.70@10@S@.jpg", (543256.96, 4178906.70, "utm10S")),
        ("@-12.5@400@07@T@.jpg", (-12.5, 400.0, "utm7T")),
        ("@0584363.02@4477128.93@.jpg", (584363.02, 4477128.93, "utm")),
        ("@0584363.02@4477128.93.jpg", (584363.02, 4477128.93, "utm")),
        ("@0584363.02@4477128.93@@@@@@.jpg", (584363.02, 4477128.93, "utm")),
        ("@0584363.02@4477128.93@17@@.jpg", (584363.02, 4477128.93, "utm")),
        ("@0584363.02@4477128.93@61@T@.jpg", (584363.02, 4477128.93, "utm")),
        ("Image001.jpg", None),
        ("@here@there@.jpg", None),
        ("@nan@1@.jpg", None),
        ("a@1@2@.jpg", None),
        ("@1.jpg", None),
    ],
)
def test_utm_names(name, expected):
    pose = utm_pose(name)
    assert (pose and (pose.x, pose.y, pose.frame)) == expected
    if pose:
        assert (pose.z, pose.q) == (0.0, None)


@pytest.mark.parametrize(
    ("refs", "expected"),
    [("NE", (47.51, 8.75)), ("SE", (-47.51, 8.75)), ("NW", (47.51, -8.75)), ("SW", (-47.51, -8.75))],
)
@pytest.mark.parametrize("extension", ["jpg", "png", "tiff"])
def test_exif_gps_hemispheres(tmp_path, refs, expected, extension):
    gps = exif_gps(picture(tmp_path / f"a.{extension}", {**HERE, 1: refs[0], 3: refs[1]}))
    assert (gps.latitude, gps.longitude) == pytest.approx(expected, abs=1e-6)
    assert gps.altitude is None


@pytest.mark.parametrize(("ref", "altitude"), [(None, 420.5), (b"\0", 420.5), (b"\1", -420.5)])
def test_exif_altitude(tmp_path, ref, altitude):
    tags = {**HERE, 6: 420.5, **({} if ref is None else {5: ref})}
    assert exif_gps(picture(tmp_path / "a.jpg", tags)).altitude == pytest.approx(altitude)


def rational(numerator, denominator):
    return TiffImagePlugin.IFDRational(numerator, denominator)


@pytest.mark.parametrize(
    "gps",
    [
        None,
        {},
        {1: "N", 2: (47.0, 30.0, 0.0)},
        {2: (47.0, 30.0, 0.0), 4: (8.0, 0.0, 0.0)},
        {**HERE, 2: (rational(0, 0), rational(0, 0), rational(0, 0))},
        {**HERE, 2: (91.0, 0.0, 0.0)},
        {**HERE, 1: "E"},
        {**HERE, 2: (0.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)},
        {**HERE, 2: (17056881.0, 0.0, 0.0)},
        {**HERE, 2: (47.0, rational(0, 0), rational(0, 0))},
        {**HERE, 2: (47.0, 75.0, 0.0)},
    ],
)
def test_no_usable_gps(tmp_path, gps):
    assert exif_gps(picture(tmp_path / "a.jpg", gps)) is None


def test_unknown_altitude_leaves_the_position(tmp_path):
    gps = exif_gps(picture(tmp_path / "a.jpg", {**HERE, 6: rational(0, 0)}))
    assert gps.altitude is None
    assert math.isclose(gps.longitude, 8.75)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({2: (47.0, 30.6)}, 47.51),
        ({2: (47.0, 30.6, rational(0, 0))}, 47.51),
        ({2: 47.51}, 47.51),
        ({2: (47.51, rational(0, 0), rational(0, 0))}, 47.51),
        ({1: "s"}, -47.51),
        ({1: "South"}, -47.51),
        ({1: b"S\0"}, -47.51),
        ({1: "S", 2: -47.51}, -47.51),
        ({9: "V"}, 47.51),
        ({2: -47.51}, None),
        ({1: b"\xff"}, None),
        ({2: "47.51"}, None),
        ({2: (47.0, 30.0, 36.0, 0.0)}, None),
        ({2: ()}, None),
    ],
)
def test_odd_forms_of_gps_positions(tmp_path, tags, expected, monkeypatch):
    path = picture(tmp_path / "a.jpg")
    monkeypatch.setattr(Image.Exif, "get_ifd", lambda *_: {**HERE, **tags})  # Pillow writes well-formed tags only
    gps = exif_gps(path)
    assert (gps is None) == (expected is None)
    if gps is not None:
        assert (gps.latitude, gps.longitude) == pytest.approx((expected, 8.75), abs=1e-6)


def test_damaged_gps_tags_are_no_place(tmp_path, monkeypatch):
    path = picture(tmp_path / "a.jpg", HERE)
    monkeypatch.setattr(Image.Exif, "get_ifd", lambda *_: 1 / 0)
    assert exif_gps(path) is None
    with pytest.raises(SourceError, match="there is no picture"):
        exif_gps(tmp_path / "nope.jpg")


def test_an_altitude_beyond_all_bounds_is_left_out():
    assert find_fix(1, 2, 1e12) == Gps(1, 2, 1e12)
    for altitude in (1.1e12, float("nan"), float("-inf"), None):
        assert find_fix(1, 2, altitude) == Gps(1, 2)


def test_positions_without_a_fix_are_counted_and_said_once(tmp_path, caplog):
    nowhere = {**HERE, 2: (0.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)}
    paths = [picture(tmp_path / f"{i}.jpg", tags) for i, tags in enumerate([nowhere, HERE, nowhere, None])]
    with remark_scope():
        finder = PlaceFinder(write(tmp_path, GPS + "b.jpg,0,0,\nc.jpg,1,2,nan\nd.jpg,inf,2,\n"))
        assert [finder.find_place(path.name, path).gps is None for path in paths] == [True, False, True, True]
        assert finder.find_place("c.jpg") == Place(gps=Gps(1.0, 2.0))
        assert finder.find_place("b.jpg") == Place()
    assert [message[:40] for message in caplog.messages] == ["2 GPS positions are no fix (out of range"] * 2
    assert caplog.messages[0].endswith("poses.csv, line 2")
    assert caplog.messages[1].endswith("0.jpg")
    with remark_scope(strict=True), pytest.raises(SourceError, match=r"first: .*0\.jpg; --strict stops here"):
        PlaceFinder().find_place("0.jpg", paths[0])


@pytest.mark.parametrize(
    "header",
    [
        '"name","x","y","z","qx","qy","qz","qw"',
        "Name, X, Y, Z, QX, QY, QZ, QW",
    ],
)
def test_headers_as_tables_are_saved(tmp_path, header):
    assert read_poses(write(tmp_path, header + '\n"a.jpg",1,2,3,0,0,0,1\n')).find("a.jpg").pose.x == 1.0


def test_columns_in_any_order_and_more_of_them(tmp_path, caplog):
    poses = read_poses(write(tmp_path, ",lon,name,lat,speed\n0,153,a.jpg,-27,9\n"))
    assert poses.find("a.jpg") == Place(gps=Gps(-27.0, 153.0))
    assert 'the columns "", speed are not read' in caplog.text


@pytest.mark.parametrize(("unit", "per"), [("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9)])
def test_time_stamps_are_brought_to_seconds(tmp_path, caplog, unit, per):
    text = "".join(f"{(1403636579 + i / 2) * per:.0f} {i} 0 0 0 0 0 1\n" for i in range(3))
    poses = read_poses(write(tmp_path, text))
    assert f"the time stamps are {unit}, and are converted to seconds" in caplog.text
    for stem in ("1403636579500000000", "1403636579500", "1403636579.5"):
        found = poses.find(f"{stem}.png")
        assert (found.pose.x, found.timestamp) == (1.0, pytest.approx(1403636579.5))
    with remark_scope(strict=True), pytest.raises(SourceError, match=f"the time stamps are {unit}"):
        read_poses(write(tmp_path, text))


def test_lines_of_a_lost_tracker_are_left_out(tmp_path, caplog):
    poses = read_poses(write(tmp_path, "1.0 1 0 0 0 0 0 1\n2.0 nan nan nan nan nan nan nan\n3.0 3 0 0 0 0 0 1\n"))
    assert [poses.find(f"{second}.0.png") is None for second in (1, 2, 3)] == [False, True, False]
    assert "line 2" in caplog.text


def test_degrees_in_names_give_no_place(tmp_path, caplog):
    with remark_scope():
        finder = PlaceFinder()
        assert finder.find_place("@116.3000000@40.0100000@.png") == Place()
        assert finder.find_place("@-27.4772@153.0277@.png") == Place()
        assert finder.find_place("@0584363.0212@4477128.9312@.png").pose.x == 584363.0212
        assert finder.find_place("@12.5@40.25@.png").pose.x == 12.5
    assert [message[:24] for message in caplog.messages] == ["2 names hold degrees whe"]


def test_precedence_and_count(tmp_path):
    name = "@0584363.02@4477128.93@17@T@.jpg"
    path = picture(tmp_path / name, HERE)
    plain = picture(tmp_path / "plain.jpg", HERE)
    poses = write(tmp_path, f"name,latitude,longitude\n{name},1,2\n")

    finder = PlaceFinder(poses)
    assert finder.find_place(name, path) == Place(gps=Gps(1.0, 2.0))
    assert finder.matched == 1
    assert finder.find_place("plain.jpg", plain).gps.latitude == pytest.approx(47.51)
    assert finder.matched == 1

    without = PlaceFinder()
    pose, gps, timestamp = without.find_place(name, path)
    assert (pose.frame, gps, timestamp) == ("utm17T", None, None)
    assert without.find_place("plain.jpg", plain).gps is not None
    assert without.find_place("clip.mp4#000001") == Place()
    assert without.matched == 0


def test_a_file_for_other_pictures_matches_none(tmp_path):
    finder = PlaceFinder(write(tmp_path, POSE + "other.jpg,1,2,3,0,0,0,1\n"))
    assert finder.find_place("a.jpg", picture(tmp_path / "a.jpg")) == Place()
    assert finder.matched == 0
