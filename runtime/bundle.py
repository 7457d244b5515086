"""Read a bundle: the folder that holds everything a robot needs of the model.

`bundle.json` describes the graphs and holds the sha256 of every file and its own checksum. Files are written under
another name and renamed, never written in place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pairvpr.errors import BundleError
from pairvpr.files import sync, write_atomically

Result = TypeVar("Result")

FORMAT = 1
GRAPHS = ("encoder", "pair_prefix", "pair_suffix")
FILE = "bundle.json"
REFERENCE = "reference.safetensors"
ENGINES = "engines"
TUNING = "tuning"
"""Key of the tuned setting. It is valid for one map and one set of other results, and is dropped with them."""
RESTORE = "copy the bundle again or export it again with `pairvpr export`"


@dataclass(frozen=True)
class PictureFormat:
    """Describe the encoder's input: uint8 RGB of this size in pixels. The graph itself applies `mean` and `std`."""

    height: int
    width: int
    resize: str
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class Dims:
    """Hold the sizes of the graphs.

    descriptor, tokens, token_dim: G, T and D.
    heads, decoder_depth: attention heads and blocks of the pair decoder.
    split: number of its blocks in the prefix.
    """

    descriptor: int
    tokens: int
    token_dim: int
    heads: int
    decoder_depth: int
    split: int


@dataclass(frozen=True)
class Weights:
    """Hold origin and licence of the weights. trained: False for seeded weights."""

    origin: str
    licence: str
    trained: bool


@dataclass(frozen=True)
class GraphFiles:
    """Name the files of one graph in one precision. All forms read the same weights.

    file: pure ONNX, for any engine.
    cpu_file: form for CPUs. It computes in float32, whatever the weights are stored in, and may hold ONNX Runtime's
    own operators.
    weights: file of the weights.
    cuda_file: form for CUDA, which may hold ONNX Runtime's own operators. None for INT8 and in older bundles.
    """

    file: str
    cpu_file: str
    weights: str
    cuda_file: str | None = None


@dataclass(frozen=True)
class PrecisionInfo:
    """Hold the graphs of one precision and their errors against the network, as measured by the export."""

    graphs: Mapping[str, GraphFiles]
    errors: Mapping[str, float]


@dataclass(frozen=True)
class FileInfo:
    """Hold size in bytes and sha256 of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class BundleInfo:
    """Hold the content of `bundle.json`."""

    identity: str
    preset: str
    picture: PictureFormat
    dims: Dims
    weights: Weights
    top_k: int
    files: Mapping[str, FileInfo] = field(default_factory=dict)
    precisions: Mapping[str, PrecisionInfo] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    made_with: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of `bundle.json`, with its checksum."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps({**content, "checksum": _checksum(content)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, where: Path) -> BundleInfo:
        """Parse the text of `bundle.json`. Raises BundleError if it is damaged or of a newer format."""
        try:
            content = json.loads(text)
            checksum = content.pop("checksum")
            number = content.pop("format")
            if isinstance(number, int) and number > FORMAT:
                raise BundleError(f"{where}: bundle format {number}, this pairvpr reads {FORMAT}; upgrade pairvpr")
            if checksum != _checksum({"format": number, **content}):
                raise BundleError(f"{where}: its checksum does not match its content; {RESTORE}")
            return BundleInfo(
                identity=content["identity"],
                preset=content["preset"],
                picture=PictureFormat(**content["picture"]),
                dims=Dims(**content["dims"]),
                weights=Weights(**content["weights"]),
                top_k=content["top_k"],
                files={name: FileInfo(**info) for name, info in content["files"].items()},
                precisions={
                    name: PrecisionInfo({g: GraphFiles(**f) for g, f in p["graphs"].items()}, p["errors"])
                    for name, p in content["precisions"].items()
                },
                calibration=content["calibration"],
                made_with=content["made_with"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"{where}: not a bundle description ({type(error).__name__}: {error}); {RESTORE}"
            ) from error


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
            text = (folder / FILE).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError) as error:
            if (folder / "model" / FILE).is_file():
                raise BundleError(f"{folder}: a map, not a model bundle; its bundle is {folder / 'model'}") from error
            raise BundleError(f"{folder}: no model bundle there (no {FILE}); make one with `pairvpr export`") from error
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{folder / FILE}: cannot be read ({error}); {RESTORE}") from error
        return cls(folder, BundleInfo.from_json(text, folder / FILE))

    @property
    def identity(self) -> str:
        """Return the hash of weights, preprocessing and token format. A map belongs to one identity."""
        return self.info.identity

    def graph(self, precision: str, graph: str, cpu: bool) -> Path:
        """Return the verified ONNX file of a graph, in the form for CPUs or the pure one. Raises BundleError."""
        files = self.info.precisions[precision].graphs[graph]
        self.verify([files.weights])
        return self.verify([files.cpu_file if cpu else files.file])[0]

    def cuda_graph(self, precision: str, graph: str) -> Path:
        """Return the verified ONNX file of a graph for ONNX Runtime's CUDA, or the pure one. Raises BundleError."""
        files = self.info.precisions[precision].graphs[graph]
        self.verify([files.weights])
        return self.verify([files.cuda_file or files.file])[0]

    def reference(self) -> Path:
        """Return the verified file of the reference check. Raises BundleError."""
        return self.verify([REFERENCE])[0]

    def verify(self, names: Sequence[str] | None = None) -> list[Path]:
        """Check files (all by default) against size and sha256, and return their paths. Raises BundleError."""
        names = list(self.info.files) if names is None else names
        for name in names:
            info, file = self.info.files.get(name), self.path / name
            if info is None:
                raise BundleError(f"{self.path / FILE}: names no file {name}; {RESTORE}")
            try:
                damaged = file.stat().st_size != info.bytes or sha256(file) != info.sha256
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


def has_plans(bundle: Bundle) -> bool:
    """Return whether the bundle holds any TensorRT plans."""
    return any((bundle.path / ENGINES).glob("*/*.plan"))


def sha256(file: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _without_tuning(calibration: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result for name, result in calibration.items() if name != TUNING}


def _cannot_write(folder: Path, error: OSError) -> BundleError:
    return BundleError(
        f"{folder}: cannot be written ({error.strerror or error}); free space, allow writing, or calibrate a copy"
    )


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


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
            f"{bundle.path / FILE}: its {what} cannot be used ({type(error).__name__}: {error}); {remedy}"
        ) from error


def check_model(bundle: Bundle, identity: str) -> None:
    """Raise ValueError if a result was calibrated for another model."""
    if identity != bundle.identity:
        raise ValueError(f"calibrated for model {str(identity)[:12]}, not for {bundle.identity[:12]}")
