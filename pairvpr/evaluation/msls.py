"""Load Mapillary Street-Level Sequences, the validation cities, as published: pictures beside CSV files.

    train_val/<city>/{query,database}/images/<key>.jpg, raw.csv, postprocessed.csv, subtask_index.csv

The protocol is the one of github.com/mapillary/mapillary_sls (`evaluate.py`, task im2im, subtask all, 25 m) and of
the papers that report "740 queries". It takes the rows of Copenhagen and San Francisco that are marked `all` in
subtask_index.csv and are no panoramas. It leaves out queries without a database picture of their city within 25 m.
Queries of both cities are searched for in both cities, among 18,871 database pictures.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import SourceError
from pairvpr.evaluation.benchmark import Benchmark, Indices, Picture, within_radius
from pairvpr.evaluation.folders import RADIUS

CITIES = ("cph", "sf")
NAME = "msls-val"


def load_msls_val(root: Path) -> Benchmark:
    """Load the validation benchmark from `root`, which holds `train_val`. Raises SourceError."""
    base = root / "train_val"
    if not base.is_dir():
        raise SourceError(f"{base}: is missing; give the folder into which the MSLS archives were unpacked")
    database: list[Picture] = []
    queries: list[Picture] = []
    positives: list[Indices] = []
    dropped = 0
    for city in CITIES:
        known, known_at = _read_side(base, f"{city}/database")
        asked, asked_at = _read_side(base, f"{city}/query")
        for query, right in zip(asked, within_radius(known_at, asked_at, RADIUS), strict=True):
            if len(right):
                queries.append(query)
                positives.append(right + len(database))
            else:
                dropped += 1
        database += known
    protocol = (
        f"Right is a database picture of the same city within {RADIUS:.0f} m. The {dropped} queries without one are "
        "left out, and so are panoramas, as in mapillary_sls/evaluate.py (subtask all)."
    )
    return Benchmark(NAME, tuple(database), tuple(queries), tuple(positives), protocol)


def _read_side(base: Path, side: str) -> tuple[list[Picture], npt.NDArray[np.float64]]:
    """Return the pictures of a city's side that take part, and their easts and norths in metres (n, 2)."""
    folder = base / side
    tables = {name: _read_table(folder / name) for name in ("raw.csv", "postprocessed.csv", "subtask_index.csv")}
    if len({len(rows) for rows in tables.values()}) != 1:
        counts = ", ".join(f"{name} {len(rows)}" for name, rows in tables.items())
        raise SourceError(f"{folder}: its tables have different numbers of rows ({counts}); unpack the metadata again")
    pano = _column(tables["raw.csv"], "pano", folder / "raw.csv")
    part = _column(tables["subtask_index.csv"], "all", folder / "subtask_index.csv")
    where = folder / "postprocessed.csv"
    placed = tables["postprocessed.csv"]
    keys, east, north = (_column(placed, name, where) for name in ("key", "easting", "northing"))
    taken = [i for i in range(len(keys)) if part[i] == "True" and pano[i] == "False"]
    pictures = [(f"{side}/images/{keys[i]}.jpg", folder / "images" / f"{keys[i]}.jpg") for i in taken]
    missing = [path for _, path in pictures if not path.is_file()]
    if missing:
        raise SourceError(
            f"{missing[0]}: is missing, with {len(missing) - 1} more of {len(pictures)} pictures; "
            "unpack all MSLS image archives into the same folder"
        )
    positions = [(_number(east[i], where), _number(north[i], where)) for i in taken]
    return pictures, np.array(positions, np.float64).reshape(-1, 2)


def _read_table(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            return list(csv.DictReader(stream))
    except FileNotFoundError:
        raise SourceError(f"{file}: is missing; unpack the MSLS metadata archive beside the pictures") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{file}: cannot be read as CSV ({error}); unpack the metadata again") from error


def _column(rows: Sequence[dict[str, str]], name: str, file: Path) -> list[str]:
    values = [row.get(name) for row in rows]
    if None in values:
        raise SourceError(f"{file}: has no column {name!r} in every row; unpack the metadata again")
    return [value for value in values if value is not None]


def _number(text: str, file: Path) -> float:
    try:
        return float(text)
    except ValueError:
        raise SourceError(f"{file}: {text!r} is no coordinate; unpack the metadata again") from None
