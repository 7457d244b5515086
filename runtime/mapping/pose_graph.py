"""Write a map's poses, and the loops that `pairvpr map loops` found, in the formats of pose graphs: g2o and TUM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairvpr.errors import MapError, SourceError
from pairvpr.files import write_atomically
from pairvpr.runtime.geometry.poses import Pose
from pairvpr.runtime.map import Map, Record
from pairvpr.runtime.mapping.closure import INFORMATION
from pairvpr.validation import check_list, check_mapping, check_real, check_text, parse_json

_HALF_ANGLES = 4.0
"""g2o measures rotations by quaternions, whose vector is half the angle, so its information is four times as large."""


@dataclass(frozen=True)
class Edge:
    """A line of `pairvpr map loops`.

    name, earlier: the pictures. relative: x, y, z, qx, qy, qz, qw of `name` seen from `earlier`.
    information: the upper triangle of the information matrix, 21 numbers. Both are None for a candidate.
    """

    name: str
    earlier: str
    relative: tuple[float, ...] | None
    information: tuple[float, ...] | None


@dataclass(frozen=True)
class GraphReport:
    """Count a written graph.

    poses: pictures with a pose. without: pictures left out, which have no pose with an orientation.
    loops: edges written. candidates: edges left out, which have no relative pose. missing: edges left out, whose
    pictures the graph lacks.
    """

    poses: int
    without: int
    loops: int = 0
    candidates: int = 0
    missing: int = 0


def read_edges(path: Path) -> list[Edge]:
    """Read the JSON lines of `pairvpr map loops`. Raises SourceError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read ({error}); give the --out of `pairvpr map loops`") from error
    edges = []
    for number, line in enumerate(lines, 1):
        try:
            edges.append(_read_edge(check_mapping(parse_json(line), "the line", 100)))
        except ValueError as error:
            raise SourceError(
                f"{path}, line {number}: is no loop ({error}); give the --out of `pairvpr map loops`"
            ) from error
    return edges


def write_g2o(map_: Map, edges: Sequence[Edge], out: Path) -> GraphReport:
    """Write a vertex for each picture with pose and orientation, and the loops between them.

    The number of a vertex is the picture's place in `pairvpr map list`, from 0. Odometry edges are not written, because
    the map does not know how precise its poses are.
    Raises MapError without such pictures, and SourceError if the file cannot be written.
    """
    vertices = {record.name: (number, pose) for number, (record, pose) in _posed(map_)}
    loops, candidates, missing = [], 0, 0
    for edge in edges:
        if edge.name not in vertices or edge.earlier not in vertices:
            missing += 1
        elif edge.relative is None or edge.information is None:
            candidates += 1
        else:
            pair = f"{vertices[edge.earlier][0]} {vertices[edge.name][0]}"
            numbers = [*edge.relative, *_in_half_angles(edge.information)]
            loops.append(f"EDGE_SE3:QUAT {pair} {_join(numbers)}")
    lines = [f"VERTEX_SE3:QUAT {number} {_join(_numbers(pose))}" for number, pose in vertices.values()]
    _write(out, [*lines, *loops])
    return GraphReport(len(vertices), len(map_) - len(vertices), len(loops), candidates, missing)


def write_tum(map_: Map, out: Path) -> GraphReport:
    """Write a line "timestamp x y z qx qy qz qw" for each picture with time stamp, pose and orientation, by time.

    Raises MapError without such pictures or with poses in several frames, SourceError if the file cannot be written.
    """
    posed = [(record.timestamp, pose) for _, (record, pose) in _posed(map_) if record.timestamp is not None]
    frames = sorted({pose.frame for _, pose in posed})
    if not posed:
        raise MapError(f"{map_.path}: no picture with a pose has a time stamp, which TUM files need; write a .g2o file")
    if len(frames) > 1:
        raise MapError(f"{map_.path}: has poses in the frames {', '.join(frames)}, not in one; write a .g2o file")
    _write(out, [_join([timestamp, *_numbers(pose)]) for timestamp, pose in sorted(posed, key=lambda each: each[0])])
    return GraphReport(len(posed), len(map_) - len(posed))


def _posed(map_: Map) -> Iterator[tuple[int, tuple[Record, Pose]]]:
    """Yield number, record and pose of the pictures that have an orientation. Raises MapError if there are none."""
    found = False
    for number, record in enumerate(map_.records):
        if record.pose is not None and record.pose.q is not None:
            found = True
            yield number, (record, record.pose)
    if not found:
        raise MapError(f"{map_.path}: no picture has a pose with an orientation; build the map with --poses")


def _read_edge(line: Any) -> Edge:
    name, earlier = (check_text(line.get(key), key) for key in ("from", "to"))
    relative, information = line.get("relative_pose"), line.get("information")
    if relative is None or information is None:
        return Edge(name, earlier, None, None)
    pose = check_mapping(relative, "relative_pose", 10)
    numbers = [*(pose.get(axis) for axis in "xyz"), *check_list(pose.get("q"), "q", 4, 4)]
    matrix = check_list(information, "information", INFORMATION, INFORMATION)
    return Edge(
        name,
        earlier,
        tuple(check_real(number, "relative_pose") for number in numbers),
        tuple(check_real(number, "information") for number in matrix),
    )


def _in_half_angles(information: Sequence[float]) -> list[float]:
    """Return the upper triangle for rotations in half angles. Rows and columns from the fourth on are rotations."""
    pairs = [(row, column) for row in range(6) for column in range(row, 6)]
    return [
        value * _HALF_ANGLES ** (((row > 2) + (column > 2)) / 2)
        for value, (row, column) in zip(information, pairs, strict=True)
    ]


def _numbers(pose: Pose) -> list[float]:
    return [pose.x, pose.y, pose.z, *(pose.q or ())]


def _join(numbers: Sequence[float]) -> str:
    return " ".join(repr(float(number)) for number in numbers)


def _write(out: Path, lines: Sequence[str]) -> None:
    try:
        with write_atomically(out) as partial:
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
    except OSError as error:
        raise SourceError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
