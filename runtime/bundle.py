"""The model on disk: a folder with all that a robot needs of the model.

`bundle.json` says what the graphs are and holds the sha256 of every file, and of itself. Files are written beside
and renamed, never written in place.
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
"""The calibration result that holds for one map and the other results beside it: it goes where either is another."""
RESTORE = "copy the bundle again or export it again with `pairvpr export`"


@dataclass(frozen=True)
class PictureFormat:
    """What the encoder is fed: uint8 RGB of this size; `mean` and `std` are applied inside the graph."""

    height: int
    width: int
    resize: str
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class Dims:
    """G, T and D of design and graphs; heads and depth of the pair decoder, blocks in its prefix."""

    descriptor: int
    tokens: int
    token_dim: int
    heads: int
    decoder_depth: int
    split: int


@dataclass(frozen=True)
class Weights:
    """Where the weights come from, under which terms, and whether they were ever trained."""

    origin: str
    licence: str
    trained: bool


@dataclass(frozen=True)
class GraphFiles:
    """One graph in one precision: the file, its weights beside it, and the forms for CPUs and for CUDA.

    All forms read the same weights. The file is pure ONNX for any engine; the others may hold ONNX Runtime's own
    operators. The form for CPUs computes in float32, whatever the weights are stored in. Older bundles and INT8
    have no form for CUDA.
    """

    file: str
    cpu_file: str
    weights: str
    cuda_file: str | None = None


@dataclass(frozen=True)
class PrecisionInfo:
    """The graphs of one precision and what their export measured against the network."""

    graphs: Mapping[str, GraphFiles]
    errors: Mapping[str, float]


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and sha256 of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class BundleInfo:
    """The content of `bundle.json`."""

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
        """The text of `bundle.json`, with its checksum."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps({**content, "checksum": _checksum(content)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, where: Path) -> BundleInfo:
        """Read `bundle.json`; raises BundleError where it is damaged or of a newer format."""
        try:
            content = json.loads(text)
            checksum = content.pop("checksum")
            number = content.pop("format")
            if isinstance(number, int) and number > FORMAT:
                raise BundleError(f"{where}: bundle format {number}, this pairvpr reads {FORMAT}; upgrade pairvpr")
            if checksum != _checksum({"format": number, **content}):
                raise BundleError(f"{where}: its checksum does not fit its content; {RESTORE}")
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
    """An opened bundle. Files are checked against their sha256 before they are used."""

    def __init__(self, path: Path, info: BundleInfo) -> None:
        self.path = path
        self.info = info

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle folder; raises BundleError where it is missing or damaged."""
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
        """Hash of weights, preprocessing and token format; a map belongs to one."""
        return self.info.identity

    def graph(self, precision: str, graph: str, cpu: bool) -> Path:
        """The verified ONNX file of a graph, in the form for CPUs or for devices that compute in its precision."""
        files = self.info.precisions[precision].graphs[graph]
        self.verify([files.weights])
        return self.verify([files.cpu_file if cpu else files.file])[0]

    def cuda_graph(self, precision: str, graph: str) -> Path:
        """The verified ONNX file of a graph for ONNX Runtime's CUDA, or the one for devices where there is none."""
        files = self.info.precisions[precision].graphs[graph]
        self.verify([files.weights])
        return self.verify([files.cuda_file or files.file])[0]

    def reference(self) -> Path:
        """The verified file of the reference check."""
        return self.verify([REFERENCE])[0]

    def verify(self, names: Sequence[str] | None = None) -> list[Path]:
        """Check files (all by default) against their size and sha256; raises BundleError, else their paths."""
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
        """Put the verified bundle into `folder` (made if missing): hard links, or copies where links cannot be.

        A setting that was tuned for a map stays behind.
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
                f"{folder}: the model could not be put there ({error.strerror}); free or allow the folder"
            ) from error

    def check_writable(self) -> None:
        """Raise BundleError where calibration results could not be stored, before they are worked out."""
        try:
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def store_calibration(self, name: str, result: Mapping[str, Any]) -> None:
        """Put a JSON value among the calibration results, in place of an earlier one of that name.

        A tuned setting was measured with the results there were: it goes when another comes.
        The description is written beside and renamed; where it was linked to another bundle's, that keeps its own.
        Raises BundleError where it cannot be written or the bundle became another model's meanwhile.
        """
        now = Bundle.open(self.path).info  # an export may have added a precision
        if now.identity != self.identity:
            raise BundleError(f"{self.path}: became another model's bundle meanwhile; calibrate again")
        info = replace(now, calibration={**_without_tuning(now.calibration), name: dict(result)})
        try:
            with write_atomically(self.path / FILE) as partial:
                partial.write_text(info.to_json(), encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self.info = info


def has_plans(bundle: Bundle) -> bool:
    """Whether TensorRT plans of whatever kind lie in the bundle."""
    return any((bundle.path / ENGINES).glob("*/*.plan"))


def sha256(file: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _without_tuning(calibration: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result for name, result in calibration.items() if name != TUNING}


def _cannot_write(folder: Path, error: OSError) -> BundleError:
    return BundleError(
        f"{folder}: cannot be written ({error.strerror or error}); free or allow the folder, or calibrate a copy of it"
    )


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where there can be none."""
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES):
            raise
        shutil.copyfile(source, target)
        sync(target)


def read_result(bundle: Bundle, key: str, what: str, remedy: str, parse: Callable[[Any], Result]) -> Result | None:
    """The bundle's calibration result of that name; None where there is none.

    parse: makes it of its JSON value; KeyError, TypeError and ValueError say that it cannot be used. what, remedy: for
    the message. Raises BundleError for one that cannot.
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
    """Raise ValueError where a result is another model's."""
    if identity != bundle.identity:
        raise ValueError(f"calibrated for model {str(identity)[:12]}, not for {bundle.identity[:12]}")
