"""Read a bundle: the folder that holds everything a robot needs of the model.

`bundle.json` describes it, see `BundleInfo`. Files are written under another name and renamed, never written in place.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pairvpr.errors import BundleError, one_line
from pairvpr.files import open_member, read_member, sync, write_atomically
from pairvpr.runtime.bundle_info import FILE, RESTORE, BundleInfo, checksum
from pairvpr.runtime.onnx_locations import find_locations

Result = TypeVar("Result")

REFERENCE = "reference.safetensors"
ENGINES = "engines"
TUNING = "tuning"
"""Key of the tuned setting. It is valid for one map and one set of other results, and is dropped with them."""
_LONGEST_DESCRIPTION = 8 << 20  # bytes of bundle.json
_LARGEST_GRAPH = 2 << 30  # bytes of an ONNX file, which protobuf limits too
_LARGEST_REFERENCE = 256 << 20


class Bundle:
    """Give access to a bundle's files. Each is checked against its sha256 before use."""

    def __init__(self, path: Path, info: BundleInfo) -> None:
        self.path = path
        self.info = info

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle folder. Raises BundleError if it is missing or damaged."""
        folder = Path(path)
        try:
            text = read_member(folder, FILE, _LONGEST_DESCRIPTION).decode("utf-8")
        except (FileNotFoundError, NotADirectoryError) as error:
            if (folder / "model" / FILE).is_file():
                raise BundleError(f"{folder}: a map, not a model bundle; its bundle is {folder / 'model'}") from error
            raise BundleError(f"{folder}: no model bundle there (no {FILE}); make one with `pairvpr export`") from error
        except (OSError, ValueError) as error:
            raise BundleError(f"{folder / FILE}: cannot be read ({one_line(error)}); {RESTORE}") from error
        return cls(folder, BundleInfo.from_json(text, folder / FILE))

    @property
    def identity(self) -> str:
        """Return the hash of weights, preprocessing and token format. A map belongs to one identity."""
        return self.info.identity

    @property
    def digest(self) -> str:
        """Return the sha256 of the bundle's description and so of all its files, except calibration results.

        The identity is a name that the maker of a bundle writes down. The digest pins the content.
        """
        return checksum({key: value for key, value in self.info.content().items() if key != "calibration"})

    def check_digest(self, expected: str) -> None:
        """Raise BundleError if the digest is another than `expected`."""
        if self.digest != expected:
            raise BundleError(
                f"{self.path}: its digest is {self.digest}, not {one_line(expected, 64)}; take the bundle from where "
                "its digest comes from"
            )

    def require_pair_classifier(self, use: str) -> None:
        """Raise BundleError if the model is a descriptor alone.

        use: the command or option that needs pair scores.
        """
        if not self.info.pair_classifier:
            raise BundleError(
                f"{self.path}: {use} needs a pair classifier, and this model is a descriptor alone; leave it out, or "
                "use a model that was exported from a checkpoint"
            )

    def graph(self, precision: str, graph: str, cpu: bool) -> Path:
        """Return the verified ONNX file of a graph, in the form for CPUs or the pure one. Raises BundleError."""
        files = self.info.precisions[precision].graphs[graph]
        return self._graph(files.cpu_file if cpu else files.file, files.weights)

    def cuda_graph(self, precision: str, graph: str) -> Path:
        """Return the verified ONNX file of a graph for ONNX Runtime's CUDA, or the pure one. Raises BundleError."""
        files = self.info.precisions[precision].graphs[graph]
        return self._graph(files.cuda_file or files.file, files.weights)

    def reference(self) -> Path:
        """Return the verified file of the reference check. Raises BundleError."""
        file = self.verify([REFERENCE])[0]
        if self.info.files[REFERENCE].bytes > _LARGEST_REFERENCE:
            raise BundleError(f"{file}: larger than a reference check; {RESTORE}")
        return file

    def _graph(self, name: str, weights: str) -> Path:
        """Return a verified ONNX file that reads no other file than its verified weights. Raises BundleError."""
        self.verify([weights])
        file = self.verify([name])[0]
        try:
            foreign = find_locations(read_member(self.path, name, _LARGEST_GRAPH)) - {weights}
        except (OSError, ValueError) as error:
            raise BundleError(f"{file}: not an ONNX file ({one_line(error)}); {RESTORE}") from error
        if foreign:
            raise BundleError(f"{file}: reads {one_line(min(foreign), 80)}, which is not its weights; {RESTORE}")
        return file

    def verify(self, names: Sequence[str] | None = None) -> list[Path]:
        """Check files (all by default) against size and sha256, and return their paths. Raises BundleError."""
        names = list(self.info.files) if names is None else names
        for name in names:
            info, file = self.info.files.get(name), self.path / name
            if info is None:
                raise BundleError(f"{self.path / FILE}: names no file {name}; {RESTORE}")
            try:
                with open_member(self.path, name) as stream:
                    size = os.fstat(stream.fileno()).st_size
                    damaged = size != info.bytes or _sha256(stream) != info.sha256
            except ValueError as error:
                raise BundleError(f"{file}: cannot be read ({error}); {RESTORE}") from error
            except FileNotFoundError as error:
                raise BundleError(f"{file}: missing; {RESTORE}") from error
            except OSError as error:
                raise BundleError(f"{file}: cannot be read ({error.strerror}); {RESTORE}") from error
            if damaged:
                raise BundleError(f"{file}: damaged (its sha256 is not the one in {FILE}); {RESTORE}")
        return [self.path / name for name in names]

    def install(self, folder: Path) -> None:
        """Verify the bundle and hard-link its files into `folder`, or copy them if links are impossible.

        The folder is made if it is missing. A setting tuned for a map is not installed. Raises BundleError.
        """
        self.verify()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in self.info.files:
                link_or_copy(self.path / name, folder / name)
            if TUNING in self.info.calibration:
                info = replace(self.info, calibration=_without_tuning(self.info.calibration))
                (folder / FILE).write_text(info.to_json(), encoding="utf-8")
            else:
                link_or_copy(self.path / FILE, folder / FILE)
        except OSError as error:
            raise BundleError(
                f"{folder}: the model cannot be written there ({error.strerror}); free space or allow writing"
            ) from error

    def check_writable(self) -> None:
        """Raise BundleError if calibration results cannot be stored. Checked before they are computed."""
        try:
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def store_calibration(self, name: str, result: Mapping[str, Any]) -> None:
        """Store a JSON value among the calibration results. It replaces an earlier one of that name.

        A tuned setting is dropped: it was measured with the earlier results. If `bundle.json` is linked to another
        bundle's file, that file stays unchanged.
        Raises BundleError if `bundle.json` cannot be written, or if the bundle has become another model's meanwhile.
        """
        now = Bundle.open(self.path).info  # an export may have added a precision
        if now.identity != self.identity:
            raise BundleError(f"{self.path}: has become another model's bundle meanwhile; calibrate again")
        info = replace(now, calibration={**_without_tuning(now.calibration), name: dict(result)})
        try:
            with write_atomically(self.path / FILE) as partial:
                partial.write_text(info.to_json(), encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self.info = info


def plan_folders(bundle: Bundle) -> list[Path]:
    """Return the folders of TensorRT plans in the bundle. Links are passed over."""
    folder = bundle.path / ENGINES
    found = [] if folder.is_symlink() or not folder.is_dir() else sorted(folder.iterdir())
    return [each for each in found if not each.is_symlink() and each.is_dir()]


def has_plans(bundle: Bundle) -> bool:
    """Return whether the bundle holds any TensorRT plans."""
    return any(any(folder.glob("*.plan")) for folder in plan_folders(bundle))


def sha256(file: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with file.open("rb") as stream:
        return _sha256(stream)


def _sha256(stream: io.RawIOBase | io.BufferedIOBase) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _without_tuning(calibration: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result for name, result in calibration.items() if name != TUNING}


def _cannot_write(folder: Path, error: OSError) -> BundleError:
    return BundleError(
        f"{folder}: cannot be written ({error.strerror or error}); free space, allow writing, or calibrate a copy"
    )


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if it cannot be linked. Raises OSError."""
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES):
            raise
        shutil.copyfile(source, target)
        sync(target)


def read_result(bundle: Bundle, key: str, what: str, remedy: str, parse: Callable[[Any], Result]) -> Result | None:
    """Read and validate a calibration result of a bundle. Return None if the bundle has none.

    key: name of the result in `bundle.json`.
    what, remedy: parts of the error message.
    parse: makes the result from its JSON value. It raises KeyError, TypeError or ValueError for an unusable value.
    Raises BundleError for an unusable value.
    """
    content = bundle.info.calibration.get(key)
    if content is None:
        return None
    try:
        return parse(content)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.path / FILE}: its {what} cannot be used ({type(error).__name__}: {one_line(error)}); {remedy}"
        ) from error


def check_model(bundle: Bundle, identity: str) -> None:
    """Raise ValueError if a result was calibrated for another model."""
    if identity != bundle.identity:
        raise ValueError(f"calibrated for model {str(identity)[:12]}, not for {bundle.identity[:12]}")
