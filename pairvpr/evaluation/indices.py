"""Load benchmarks that come as index files: `*_dbImages.npy`, `*_qImages.npy` and their right answers.

The format of github.com/amaralibey/gsv-cities and github.com/serizba/salad: arrays of paths relative to the data
set's folder, and an array that holds for each query the indices of its right answers. MSLS-val has two arrays
instead: `*_qIdx.npy` chooses the queries that have right answers, `*_pIdx.npy` holds the answers of these queries.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from pairvpr.errors import SourceError
from pairvpr.evaluation.benchmark import Benchmark, Indices, Picture

DATABASE = "_dbImages.npy"


def load_index_files(root: str | Path, name: str | None = None) -> Benchmark:
    """Load the benchmark of the index files in the folder `root`, or of one file `*_dbImages.npy` if there are several.

    The paths of pictures are relative to the folder of the index files.
    Raises SourceError for missing, damaged or contradictory files.
    """
    file = _database_file(Path(root))
    prefix = file.name.removesuffix(DATABASE)
    database = _pictures(file)
    queries = _pictures(file.with_name(f"{prefix}_qImages.npy"))
    chosen = file.with_name(f"{prefix}_qIdx.npy")
    if chosen.exists():
        truth = file.with_name(f"{prefix}_pIdx.npy")
        which = _indices(_read(chosen), len(queries), chosen).tolist()
        note = f"{len(queries) - len(which)} queries without one are left out, as in {chosen.name}."
        queries = [queries[i] for i in which]
    else:
        truth = _truth_file(file, prefix)
        note = "Queries without one count as misses."
    listed = _read(truth)
    if len(listed) != len(queries):
        raise SourceError(f"{truth}: has {len(listed)} entries for {len(queries)} queries; get both from one source")
    positives = tuple(np.unique(_indices(entry, len(database), truth)) for entry in listed)
    _check_files([*database, *queries], file)
    return Benchmark(
        name or prefix, tuple(database), tuple(queries), positives, f"Right is what {truth.name} lists. {note}"
    )


def _database_file(root: Path) -> Path:
    if root.name.endswith(DATABASE):
        return root
    found = sorted(root.glob(f"*{DATABASE}"))
    if not found:
        raise SourceError(f"{root}: holds no *{DATABASE}; copy the index files beside the pictures")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise SourceError(f"{root}: holds {names}; name one of them in place of the folder")
    return found[0]


def _truth_file(file: Path, prefix: str) -> Path:
    """Return `*_gt.npy`, or the file with its radius in the name, `*_gt_25m.npy`. Raises SourceError."""
    found = [
        candidate
        for candidate in (file.with_name(f"{prefix}_gt.npy"), *sorted(file.parent.glob(f"{prefix}_gt_*.npy")))
        if candidate.exists()
    ]
    if len(found) != 1:
        what = ", ".join(candidate.name for candidate in found) or "no"
        raise SourceError(f"{file.parent}: {what} {prefix}_gt.npy; one file with the right answers is needed")
    return found[0]


def _pictures(file: Path) -> list[Picture]:
    names = _read(file).ravel().tolist()
    if not all(isinstance(name, str) for name in names):
        raise SourceError(f"{file}: does not hold paths of pictures; get it again")
    return [(name, file.parent / name) for name in names]


def _check_files(pictures: list[Picture], file: Path) -> None:
    missing = [path for _, path in pictures if not path.is_file()]
    if missing:
        raise SourceError(
            f"{missing[0]}: is missing, with {len(missing) - 1} more of {len(pictures)} pictures that {file.name} and "
            f"the queries' file name; unpack the pictures into {file.parent}"
        )


def _indices(values: Any, count: int, file: Path) -> Indices:
    """Return one index or a list of indices as an array, in order. Raises SourceError outside 0 to `count` - 1."""
    try:
        array = np.array(np.asarray(values).tolist()).reshape(-1)  # an array of objects becomes one of numbers
    except ValueError:  # lists of different lengths inside
        array = np.array([None])
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= count:
        raise SourceError(f"{file}: holds other things than indices from 0 to {count - 1}; get both from one source")
    return array.astype(np.int64)


def _read(file: Path) -> npt.NDArray[Any]:
    """Read an array from an npy file. An array of lists is a pickle: only arrays and lists are built from it."""
    try:
        with file.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version in header and header[version](stream)[2].hasobject:
                array = _ArraysOnly(stream).load()
            else:
                stream.seek(0)
                array = np.load(stream, allow_pickle=False)
    except FileNotFoundError:
        raise SourceError(f"{file}: is missing; copy all index files of the data set beside the pictures") from None
    except OSError as error:
        raise SourceError(f"{file}: cannot be read ({error.strerror or error}); check its rights") from error
    # A damaged pickle can make the unpickler raise anything.
    except Exception as error:
        raise SourceError(f"{file}: no npy file of numbers or paths ({error}); get it again") from error
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise SourceError(f"{file}: does not hold a list; get it again")
    return array


class _ArraysOnly(pickle.Unpickler):
    """An unpickler of numpy arrays, scalars and plain types, which refuses every other name in a pickle."""

    # By the names that numpy writes into a pickle; the module differs between numpy versions.
    ALLOWED: ClassVar[dict[str, Any]] = {
        "_reconstruct": np.zeros(1).__reduce__()[0],
        "scalar": np.int64(0).__reduce__()[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in self.ALLOWED:
            return self.ALLOWED[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")
