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


def _published(
    name: str, size: tuple[int, int], index: str | None, folders: Callable[[str, Path], Benchmark], root: Path
) -> Benchmark:
    """Load index files that begin with `index` if they are there, else the folders.

    Add a warning to the protocol if the benchmark has another size than the published one.
    """
    file = root / f"{index}{DATABASE}"
    benchmark = load_index_files(file, name) if index is not None and file.exists() else folders(name, root)
    found = len(benchmark.database), len(benchmark.queries)
    if found == size:
        return benchmark
    warning = (
        f" NOT the published set: {found[0]} database pictures and {found[1]} queries, not {size[0]} and "
        f"{size[1]}; figures do not compare."
    )
    return dataclasses.replace(benchmark, protocol=benchmark.protocol + warning)


def _by_utm(name: str, root: Path) -> Benchmark:
    return utm_folders(*_sides(root), name)


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


DATASETS: Mapping[str, Callable[[Path], Benchmark]] = MappingProxyType(
    {
        "msls-val": partial(_published, "msls-val", (18_871, 740), "msls_val", lambda _, root: load_msls_val(root)),
        "pitts30k": partial(_published, "pitts30k", (10_000, 6_816), "pitts30k_test", _by_utm),
        "pitts250k": partial(_published, "pitts250k", (83_952, 8_280), "pitts250k_test", _by_utm),
        "tokyo247": partial(_published, "tokyo247", (75_984, 315), "tokyo247", _by_utm),
        # Every tenth frame is a query, right within one frame: VPR-Bench (Zaffar et al., IJCV 2021), SALAD, BoQ.
        "nordland-2760": partial(
            _published, "nordland-2760", (27_592, 2_760), "Nordland", partial(_nordland, every=10, tolerance=1)
        ),
        # Every frame is a query, right within ten: Patch-NetVLAD (Hausler et al., CVPR 2021), the downloader.
        "nordland-27592": partial(
            _published, "nordland-27592", (27_592, 27_592), None, partial(_nordland, every=1, tolerance=10)
        ),
        "npy": load_index_files,
    }
)
"""Functions that load a benchmark from a folder, by its name on the command line."""
