"""Load published benchmarks by name, from the folders they commonly come in.

pitts30k, pitts250k, tokyo247: the test sets as github.com/gmberton/VPR-datasets-downloader lays them out, pictures
named by UTM position. nordland-2760, nordland-27592: two protocols on the same pictures; their figures do not
compare with each other. msls-val: as published, or as index files. npy: any data set in index files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from pairvpr.errors import SourceError
from pairvpr.evaluation.benchmark import Benchmark, Picture, within_frames
from pairvpr.evaluation.folders import utm_folders, warn_of_doubts
from pairvpr.evaluation.indices import DATABASE, load_index_files
from pairvpr.evaluation.msls import load_msls_val
from pairvpr.evaluation.traverses import doubt_order
from pairvpr.runtime.sources import list_pictures

LAYOUTS = ("images/test/database", "images/test/queries"), ("database", "queries"), ("ref", "query")
"""Folders of database and queries: as the downloader writes them, its test folder alone, and those of VPR-Bench."""


def load_dataset(name: str, root: str | Path) -> Benchmark:
    """Load the published benchmark `name` (one of DATASETS) from the folder `root`. Raises SourceError."""
    root = Path(root)
    if name not in DATASETS:
        raise SourceError(f"{name}: no known data set; give one of {', '.join(DATASETS)}")
    if not root.exists():
        raise SourceError(f"{root}: no such folder; give the folder of {name}")
    return DATASETS[name](root)


def _pitts_or_tokyo(name: str, index: str, size: tuple[int, int], root: Path) -> Benchmark:
    if (root / f"{index}{DATABASE}").exists():
        return _sized(load_index_files(root / f"{index}{DATABASE}", name), size)
    return _sized(utm_folders(*_sides(root), name), size)


def _msls_val(root: Path) -> Benchmark:
    file = root / f"msls_val{DATABASE}"
    return _sized(load_index_files(file, "msls-val") if file.exists() else load_msls_val(root), (18_871, 740))


def _nordland_2760(root: Path) -> Benchmark:
    """Load every tenth frame as a query, right within one frame: VPR-Bench (Zaffar et al., IJCV 2021), SALAD, BoQ."""
    size = (27_592, 2_760)
    if (root / f"Nordland{DATABASE}").exists():
        return _sized(load_index_files(root / f"Nordland{DATABASE}", "nordland-2760"), size)
    return _sized(_nordland("nordland-2760", root, every=10, tolerance=1), size)


def _nordland_27592(root: Path) -> Benchmark:
    """Load every frame as a query, right within ten: Patch-NetVLAD (Hausler et al., CVPR 2021), the downloader."""
    return _sized(_nordland("nordland-27592", root, every=1, tolerance=10), (27_592, 27_592))


def _nordland(name: str, root: Path, every: int, tolerance: int) -> Benchmark:
    """Load two seasons whose pictures, in order, are the same frames; the queries may be thinned out already.

    Names are not used: the downloader's positions are made up, and differ between its two protocols.
    """
    sides = _sides(root)
    database, queries = (list_pictures(side) for side in sides)
    asked: list[tuple[int, Picture]]
    if len(queries) == len(database):
        asked = list(enumerate(queries))[::every]
    elif len(queries) == -(-len(database) // every):
        asked = [(every * i, picture) for i, picture in enumerate(queries)]
    else:
        raise SourceError(
            f"{sides[1]}: {len(queries)} pictures and a database of {len(database)}; {name} needs a query "
            f"for every frame, or for every {every}th"
        )
    positives = within_frames(range(len(database)), [frame for frame, _ in asked], tolerance)
    doubts = [doubt_order([each for each, _ in database], [each for each, _ in queries])]
    return Benchmark(
        name,
        tuple(database),
        tuple(picture for _, picture in asked),
        positives,
        f"Right is a database frame at most {tolerance} off. Every query has one."
        + warn_of_doubts(name, doubts, positives, len(database)),
    )


def _sides(root: Path) -> tuple[Path, Path]:
    for database, queries in LAYOUTS:
        if (root / database).is_dir() and (root / queries).is_dir():
            return root / database, root / queries
    known = ", ".join(f"{database} and {queries}" for database, queries in LAYOUTS)
    raise SourceError(f"{root}: holds none of {known}; give the folder above them")


def _sized(benchmark: Benchmark, published: tuple[int, int]) -> Benchmark:
    """Return the benchmark; add a warning to its protocol if it has another size than the published one."""
    found = len(benchmark.database), len(benchmark.queries)
    if found == published:
        return benchmark
    warning = (
        f" NOT the published set: {found[0]} database pictures and {found[1]} queries, not {published[0]} and "
        f"{published[1]}; figures do not compare."
    )
    return dataclasses.replace(benchmark, protocol=benchmark.protocol + warning)


DATASETS: Mapping[str, Callable[[Path], Benchmark]] = MappingProxyType(
    {
        "msls-val": _msls_val,
        "pitts30k": partial(_pitts_or_tokyo, "pitts30k", "pitts30k_test", (10_000, 6_816)),
        "pitts250k": partial(_pitts_or_tokyo, "pitts250k", "pitts250k_test", (83_952, 8_280)),
        "tokyo247": partial(_pitts_or_tokyo, "tokyo247", "tokyo247", (75_984, 315)),
        "nordland-2760": _nordland_2760,
        "nordland-27592": _nordland_27592,
        "npy": load_index_files,
    }
)
"""Functions that load a benchmark from a folder, by its name on the command line."""
