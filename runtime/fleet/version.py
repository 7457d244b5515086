"""Read and write the description of a fleet: `fleet.json`, and a file in `versions/` for each state of the fleet.

`fleet.json` names the current version and its sha256. Replacing it is the only commit. A version lists the tiles and
every file with its size and sha256.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pairvpr.errors import MapError, one_line
from pairvpr.files import check_member
from pairvpr.printing import json_document
from pairvpr.runtime.bundle_info import FileInfo
from pairvpr.runtime.fleet.place import reaches
from pairvpr.runtime.fleet.storage import FolderStorage, Storage
from pairvpr.runtime.geometry.poses import Gps
from pairvpr.runtime.map.errors import reading
from pairvpr.runtime.map.meta import Meta
from pairvpr.runtime.map.records import checksum
from pairvpr.validation import check_int, check_keys, check_list, check_mapping, check_real, check_text, parse_json

FILE = "fleet.json"
VERSIONS, MODELS, TILES = "versions", "models", "tiles"
STAGING = "staging"
"""The folder of a publication that is not finished."""
FORMAT = 1
_LONGEST_START = 4096  # bytes of fleet.json
_LONGEST_VERSION = 1 << 30
_LARGEST_FILE = 1 << 50
_MOST_FILES = 10**7
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TILE = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")


@dataclass(frozen=True)
class Tile:
    """A part of the map at one place, which never changes.

    id: name of the place, see `pairvpr.runtime.fleet.place`. Several tiles can have the same place.
    digest: sha256 of the names, sizes and contents of the files. With the id it names the tile's folder.
    pictures: number of pictures that are not deleted.
    gps: south, west, north and east of the pictures with a GPS position, in degrees. None without one.
    frames: least x, least y, most x and most y in metres of the pictures with a pose, by frame.
    time: first and last time stamp in seconds, None without one.
    files: size and sha256 of the catalog and of the files in `segments/`, by name.
    """

    id: str
    digest: str
    pictures: int
    gps: tuple[float, float, float, float] | None
    frames: Mapping[str, tuple[float, float, float, float]]
    time: tuple[float, float] | None
    files: Mapping[str, FileInfo]

    @property
    def folder(self) -> str:
        """Return the tile's folder in the fleet."""
        return f"{TILES}/{self.id}/{self.digest}"

    @property
    def bytes(self) -> int:
        """Return the size of all files."""
        return sum(info.bytes for info in self.files.values())

    @staticmethod
    def digest_of(files: Mapping[str, FileInfo]) -> str:
        """Return the digest of a tile with these files."""
        return _sha256_of([[name, info.bytes, info.sha256] for name, info in sorted(files.items())])


@dataclass(frozen=True)
class Version:
    """One state of a fleet.

    number: counts up from 1.
    meta: properties of the map of all tiles. Segments and records count those of all tiles, deleted ones included.
    model: the files of the bundle in `models/`.
    next_id, next_segment: the record id and segment number for the next picture. Both are never used twice.
    tiles: in the order in which they were published.
    """

    number: int
    meta: Meta
    model: Mapping[str, FileInfo]
    next_id: int
    next_segment: int
    tiles: tuple[Tile, ...]

    @property
    def sha256(self) -> str:
        """Return the sha256 of the version's file."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def file(self) -> str:
        """Return the name of the version's file in the fleet."""
        return version_file(self.number, self.sha256)

    @property
    def identity(self) -> str:
        """Return the identity of the model."""
        return self.meta.identity

    @property
    def model_folder(self) -> str:
        """Return the model's folder in the fleet."""
        return f"{MODELS}/{self.identity}"

    @property
    def pictures(self) -> int:
        """Return the number of pictures."""
        return sum(tile.pictures for tile in self.tiles)

    def near(self, position: Gps, radius: float) -> tuple[Tile, ...]:
        """Return the tiles that may hold pictures within `radius` metres of a position."""
        return tuple(tile for tile in self.tiles if tile.gps is not None and reaches(tile.gps, position, radius))

    def encode(self) -> bytes:
        """Encode as the content of the version's file."""
        content = {"format": FORMAT, **asdict(self), "map": asdict(self.meta)}
        del content["meta"]
        return json_document(content).encode()

    @staticmethod
    def decode(content: bytes, file: str) -> Version:
        """Decode the content of a version's file. Raises ValueError if it is damaged, MapError for a newer format."""
        fields = check_mapping(parse_json(content), "it", 20)
        _check_format(fields, file)
        check_keys(fields, "it", {"format", "number", "map", "model", "next_id", "next_segment", "tiles"})
        rows = [(key, json.dumps(value, allow_nan=False)) for key, value in sorted(_fields(fields["map"]).items())]
        meta = Meta.decode([*rows, ("crc", str(checksum(rows)))], Path(file))
        check_member(meta.identity)  # it names the model's folder
        tiles = tuple(map(_decode_tile, check_list(fields["tiles"], "tiles", 0, _MOST_FILES)))
        if len({tile.folder for tile in tiles}) != len(tiles):
            raise ValueError("it lists a tile twice")
        return Version(
            check_int(fields["number"], "number", 1, 2**53),
            meta,
            _decode_files(fields["model"], "model"),
            check_int(fields["next_id"], "next_id", 1, 2**62),
            check_int(fields["next_segment"], "next_segment", 1, 2**53),
            tiles,
        )


def version_file(number: int, sha256: str) -> str:
    """Return the name of a version's file in the fleet. Two publishers never write the same one."""
    return f"{VERSIONS}/{number:06d}-{sha256[:8]}.json"


def encode_start(number: int, sha256: str) -> bytes:
    """Encode `fleet.json` for the version with this number and the sha256 of its file."""
    start = {"format": FORMAT, "current": number, "sha256": sha256}
    return (json.dumps(start, allow_nan=False) + "\n").encode()


def read_start(storage: Storage) -> tuple[int, str]:
    """Read number and sha256 of the current version. Return 0 and "" without a fleet. Raises MapError if damaged."""
    start, where = storage.read(FILE, _LONGEST_START), storage.where(FILE)
    if start is None:
        return 0, ""
    try:
        fields = check_mapping(parse_json(start), "it", 10)
        _check_format(fields, where)
        check_keys(fields, "it", {"format", "current", "sha256"})
        return check_int(fields["current"], "current", 1, 2**53), _check_sha256(fields["sha256"], "sha256")
    except ValueError as error:
        raise _damaged(where, error) from error


def read_current(storage: Storage) -> Version:
    """Read the current version of a fleet. Raises MapError if there is no fleet, or it is damaged or of a newer format.

    A publisher may replace `fleet.json` in the meantime, but no file that it names.
    """
    number, sha256 = read_start(storage)
    if not number:
        if isinstance(storage, FolderStorage):
            check_not_lost(storage.path)
        raise MapError(f"{storage.where('')} holds no fleet: {storage.if_absent}")
    return read_version(storage, number, sha256)


def check_not_lost(path: Path) -> None:
    """Raise MapError if a folder without `fleet.json` holds versions or tiles of a fleet.

    A first publication that was interrupted leaves them too, but with its staging folder beside them.
    """
    with reading(path):
        versions = sorted((path / VERSIONS).glob("[0-9]*-*.json"))
        if (path / FILE).exists() or not (versions or any((path / TILES).glob("*"))):
            return
        if (path / STAGING).exists() and all(int(file.name.partition("-")[0]) == 1 for file in versions):
            return
        remedy = "restore the folder from a copy"
        if versions:
            sha256 = hashlib.sha256(versions[-1].read_bytes()).hexdigest()
            number = int(versions[-1].name.partition("-")[0])
            if path / version_file(number, sha256) == versions[-1]:
                start = encode_start(number, sha256).decode().strip()
                remedy = f"restore it from a copy, or write {start} to it, for the newest file of {VERSIONS}/"
    raise MapError(f"{path / FILE} is missing, but the folder holds tiles or versions of a fleet: {remedy}")


def read_version(storage: Storage, number: int, sha256: str) -> Version:
    """Read a version of a fleet, current or not. Raises MapError if it is missing, damaged or of a newer format."""
    file = version_file(number, sha256)
    where = storage.where(file)
    content = storage.read(file, _LONGEST_VERSION)
    if content is None:
        raise _damaged(where, "it is missing")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _damaged(where, f"its sha256 is not the one in {FILE}")
    try:
        version = Version.decode(content, where)
        if version.number != number:
            raise ValueError("it is of another number")
    except ValueError as error:
        raise _damaged(where, error) from error
    return version


def _damaged(where: str, fault: object) -> MapError:
    return MapError(f"{where} is damaged ({one_line(fault)}): restore the fleet's folder from a copy")


def _check_format(fields: Mapping[str, Any], where: str) -> None:
    number = check_int(fields.get("format"), "format", 1, 2**31)
    if number > FORMAT:
        raise MapError(f"{where} was made by a newer pairvpr (format {number}, this one reads {FORMAT}): upgrade")


def _fields(content: object) -> Mapping[str, Any]:
    return check_keys(content, "map", {each.name for each in dataclasses.fields(Meta)})


def _decode_tile(content: object) -> Tile:
    fields = check_keys(content, "a tile", {each.name for each in dataclasses.fields(Tile)})
    name = check_text(fields["id"], "a tile's id")
    if not _TILE.fullmatch(name):
        raise ValueError(f"{name!r:.50} is not a tile's id")
    of = f"of tile {name}"
    files = _decode_files(fields["files"], f"files {of}", f"{_CATALOG}|{_SEGMENTS}")
    if Tile.digest_of(files) != fields["digest"]:
        raise ValueError(f"the digest {of} is not the one of its files")
    frames = check_mapping(fields["frames"], f"frames {of}", 10_000)
    return Tile(
        name,
        fields["digest"],
        check_int(fields["pictures"], f"pictures {of}", 1, 2**40),
        None if fields["gps"] is None else _box(fields["gps"], of),
        {check_text(frame, f"a frame {of}"): _box(box, of) for frame, box in frames.items()},
        None if fields["time"] is None else _interval(fields["time"], of),
        files,
    )


_CATALOG, _SEGMENTS = r"map\.sqlite", r"segments/\d{6,}\.(safetensors|thumbnails)"


def _decode_files(content: object, name: str, pattern: str = "[^/]+") -> dict[str, FileInfo]:
    files = {}
    for file, fields in check_mapping(content, name, _MOST_FILES).items():
        if not re.fullmatch(pattern, file):
            raise ValueError(f"{name} has a file {file!r:.80}")
        check_member(file.rpartition("/")[2])
        info = check_keys(fields, file, {"bytes", "sha256"})
        size = check_int(info["bytes"], f"bytes of {file}", 0, _LARGEST_FILE)
        files[file] = FileInfo(size, _check_sha256(info["sha256"], f"sha256 of {file}"))
    return files


def _check_sha256(value: object, name: str) -> str:
    text = check_text(value, name, 64)
    if not _SHA256.fullmatch(text):
        raise ValueError(f"{name} is not one")
    return text


def _box(value: object, of: str) -> tuple[float, float, float, float]:
    a, b, c, d = (check_real(each, f"the box {of}") for each in check_list(value, f"the box {of}", 4, 4))
    if a > c or b > d:
        raise ValueError(f"the box {of} is inside out")
    return a, b, c, d


def _interval(value: object, of: str) -> tuple[float, float]:
    first, last = (check_real(each, f"the time {of}") for each in check_list(value, f"the time {of}", 2, 2))
    return first, last


def _sha256_of(content: object) -> str:
    return hashlib.sha256(json.dumps(content, allow_nan=False).encode()).hexdigest()
