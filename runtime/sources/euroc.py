"""Read camera folders in the layout of the EuRoC MAV data set (Burri et al., IJRR 2016), also of TUM-VI."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.pose_fields import read_pose
from pairvpr.runtime.geometry.rotations import IDENTITY
from pairvpr.runtime.geometry.trajectory import Trajectory
from pairvpr.runtime.remarks import remark
from pairvpr.runtime.sources.base import ClockWatch, Frame, Source, Wanted, every_frame
from pairvpr.runtime.sources.folder import is_clean, read_frame

TABLE, PICTURES = "data.csv", "data"
GROUND_TRUTHS = (Path("state_groundtruth_estimate0", TABLE), Path("mocap0", TABLE))  # EuRoC, TUM-VI; beside a camera
CAMERAS = (Path(), Path("cam0"), Path("mav0", "cam0"))  # in a camera's folder, a recording's and a download's


class EurocSource(Source):
    """Provide a camera folder: `data.csv` with time stamps in nanoseconds and file names, `data/` with the pictures.

    Time stamps are Unix seconds. If the ground truth lies beside the folder, frames get the pose of the vehicle's body,
    interpolated to their time stamps.

    Raises SourceError for a malformed table.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows = _read_pictures(folder / TABLE)
        truths = [folder.resolve().parent / truth for truth in GROUND_TRUTHS]
        self._poses = next((_read_ground_truth(truth) for truth in truths if truth.exists()), None)
        self.length = len(self._rows)
        self.names = [name for name, _ in self._rows]
        self.origin = str(folder.resolve())

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """Yield the pictures that are wanted. The others are not opened."""
        clock = ClockWatch()
        for number, (name, seconds) in enumerate(self._rows):
            clock.look(name, seconds)
            if wanted(number, name, seconds):
                frame = read_frame(name, seconds, self._folder / name)
                yield frame if self._poses is None else replace(frame, pose=self._poses.at(seconds).pose)

    def close(self) -> None:
        """Do nothing: no file stays open between frames."""


def find_euroc_camera(folder: Path) -> Path | None:
    """Return the camera folder that a folder is or holds, None if there is none. Remark if it is one of several."""
    cameras = (folder / camera for camera in CAMERAS)
    found = next((each for each in cameras if (each / TABLE).is_file() and (each / PICTURES).is_dir()), None)
    if found is not None and found != folder:
        others = sorted(each.parent.name for each in found.parent.glob(f"cam*/{TABLE}") if each.parent != found)
        if others:
            remark(
                f"{folder}: the pictures of {found.name} are read; give {found.parent / others[0]} for another camera"
            )
    return found


def _read_pictures(table: Path) -> list[tuple[str, float]]:
    """Read the names, relative to the camera's folder, and the time stamps in seconds."""
    rows: dict[str, float] = {}
    for where, fields in _rows(table, 2):
        file = fields[1]
        if not file or "/" in file or not is_clean(file):
            raise SourceError(f"{where}: {file!r} is not a file name of a picture: correct it")
        name = f"{PICTURES}/{file}"
        if name in rows:
            raise SourceError(f"{where}: {file} is in the table twice: keep one of the two")
        rows[name] = _seconds(fields[0], where)
    if not rows:
        raise SourceError(f"{table} lists no pictures: add lines of time stamp and file name, or remove the table")
    return list(rows.items())


def _read_ground_truth(table: Path) -> Trajectory:
    """Read the body's poses: time stamp, x, y, z and a quaternion with w first. More columns may follow."""
    stamps, poses = [], []
    for where, fields in _rows(table, 8):
        x, y, z, qw, qx, qy, qz = fields[1:8]
        pose = read_pose([x, y, z, qx, qy, qz, qw], where)
        stamps.append(_seconds(fields[0], where))
        poses.append([pose.x, pose.y, pose.z, *(pose.q or IDENTITY)])
    return Trajectory(stamps, poses, "map")


def _rows(table: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of a table, each with its file and line for messages. A row needs `columns` fields or more."""
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise SourceError(f"{table} is not a text file: replace it") from None
    except OSError as error:
        raise SourceError(f"{table} cannot be read ({error.strerror}): check its rights") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split(",")]
        if number == 1 and fields[0].startswith("timestamp"):  # a header without its #
            continue
        where = f"{table}, line {number}"
        if len(fields) < columns:
            raise SourceError(f"{where}: {len(fields)} fields, fewer than the {columns} of an EuRoC table: correct it")
        yield where, fields


def _seconds(text: str, where: str) -> float:
    if not (text.isascii() and text.isdigit()):
        raise SourceError(f"{where}: {text!r} is not a time stamp in nanoseconds: correct it")
    return int(text) / 1e9
