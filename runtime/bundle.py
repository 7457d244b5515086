"""Read a bundle: the folder that holds everything a robot needs of the model.

`bundle.json` describes the graphs and holds the sha256 of every file and its own checksum. Files are written under
another name and renamed, never written in place.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pairvpr.errors import BundleError, one_line
from pairvpr.files import check_member, open_member, read_member, sync, write_atomically
from pairvpr.printing import json_document
from pairvpr.runtime.measure import Measure
from pairvpr.runtime.onnx_locations import find_locations
from pairvpr.runtime.resize_rules import RULES
from pairvpr.validation import (
    check_bool,
    check_int,
    check_keys,
    check_list,
    check_mapping,
    check_real,
    check_text,
    parse_json,
)

Result = TypeVar("Result")

FORMAT = 2
PAIR_FORMAT = 1
"""Format of a bundle with a pair classifier and its own descriptor. Older versions can read it."""
ENCODER, DESCRIPTOR = "encoder", "descriptor"
GRAPHS = (ENCODER, "pair_prefix", "pair_suffix")
"""The graphs of a bundle with a pair classifier."""
FILE = "bundle.json"
REFERENCE = "reference.safetensors"
ENGINES = "engines"
TUNING = "tuning"
"""Key of the tuned setting. It is valid for one map and one set of other results, and is dropped with them."""
_LONGEST_DESCRIPTION = 8 << 20  # bytes of bundle.json
_LARGEST_GRAPH = 2 << 30  # bytes of an ONNX file, which protobuf limits too
_LARGEST_REFERENCE = 256 << 20
_LARGEST_SIZE = 1 << 16  # of descriptors and tokens
_LARGEST_PICTURE = 4096  # pixels of a side
_SHA256 = re.compile(r"[0-9a-f]{64}")
RESTORE = "copy the bundle again or export it again with `pairvpr export`"


@dataclass(frozen=True)
class PictureFormat:
    """Describe the input of a graph: uint8 RGB of this size in pixels. The graph itself applies `mean` and `std`.

    resize: a name of RULES.
    """

    height: int
    width: int
    resize: str
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class Dims:
    """Hold the sizes of the graphs. Without a pair classifier all but `descriptor` are 0.

    descriptor, tokens, token_dim: G, T and D.
    heads, decoder_depth: attention heads and blocks of the pair decoder.
    split: number of its blocks in the prefix.
    """

    descriptor: int
    tokens: int = 0
    token_dim: int = 0
    heads: int = 0
    decoder_depth: int = 0
    split: int = 0


@dataclass(frozen=True)
class Weights:
    """Hold origin and licence of the weights. trained: False for seeded weights."""

    origin: str
    licence: str
    trained: bool


@dataclass(frozen=True)
class FirstStage:
    """Describe a descriptor in front of the pair classifier, in place of the network's own."""

    picture: PictureFormat
    weights: Weights


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

    @property
    def names(self) -> set[str]:
        """The names of all its files."""
        return {self.file, self.cpu_file, self.weights} | ({self.cuda_file} if self.cuda_file else set())


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
    """Hold the content of `bundle.json`.

    picture, weights: of the encoder.
    descriptor: a descriptor of another network, None if the encoder makes the descriptors.
    """

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
    descriptor: FirstStage | None = None

    @property
    def pair_classifier(self) -> bool:
        """Return whether the model can compare pairs. If not, it is a descriptor alone and makes no tokens."""
        return self.dims.tokens > 0

    @property
    def graphs(self) -> tuple[str, ...]:
        """Return the names of the graphs."""
        own = GRAPHS if self.pair_classifier else (ENCODER,)
        return own if self.descriptor is None else (*own, DESCRIPTOR)

    def picture_of(self, graph: str) -> PictureFormat:
        """Return the pictures that a graph reads."""
        return self.descriptor.picture if graph == DESCRIPTOR and self.descriptor is not None else self.picture

    @property
    def licence(self) -> str:
        """Return the licence of all weights."""
        own = self.weights.licence
        return own if self.descriptor is None else f"{own}; descriptor: {self.descriptor.weights.licence}"

    @property
    def origin(self) -> str:
        """Return the origin of all weights."""
        own = self.weights.origin
        return own if self.descriptor is None else f"{own}; {self.descriptor.weights.origin}"

    @property
    def measure(self) -> Measure:
        """Return the number that ranks the model's answers."""
        return Measure.SCORE if self.pair_classifier else Measure.SIMILARITY

    def to_json(self) -> str:
        """Return the text of `bundle.json`, with its checksum."""
        plain = self.pair_classifier and self.descriptor is None
        content = {"format": PAIR_FORMAT if plain else FORMAT, **self.content()}
        return json_document({**content, "checksum": _checksum(content)})

    def content(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values = asdict(self)
        return values if self.descriptor is not None else {k: v for k, v in values.items() if k != "descriptor"}

    @staticmethod
    def from_json(text: str, where: Path) -> BundleInfo:
        """Parse the text of `bundle.json`. Raises BundleError if it is damaged or of a newer format."""
        try:
            content = check_mapping(parse_json(text), "it", 100)
            fields = {key: value for key, value in content.items() if key != "checksum"}
            number = check_int(fields.get("format"), "format", 1, 2**31)
            if number > FORMAT:
                raise BundleError(f"{where}: bundle format {number}, this pairvpr reads {FORMAT}; upgrade pairvpr")
            if content.get("checksum") != _checksum(fields):
                raise BundleError(f"{where}: its checksum does not match its content; {RESTORE}")
            return _decode(fields, number)
        except ValueError as error:
            raise BundleError(f"{where}: not a bundle description ({one_line(error)}); {RESTORE}") from error


def _decode(content: Mapping[str, Any], number: int) -> BundleInfo:
    """Validate the content of `bundle.json`: whoever made the file made its checksum. Raises ValueError."""
    names = {each.name for each in fields(BundleInfo)} - {"descriptor"}
    check_keys(content, "it", {"format", *names}, set() if number == PAIR_FORMAT else {"descriptor"})
    files = {
        check_member(name): _decode_file(info, name)
        for name, info in check_mapping(content["files"], "files", 1000).items()
    }
    if FILE in files:
        raise ValueError(f"files has {FILE} itself")
    precisions = check_mapping(content["precisions"], "precisions", 100)
    info = BundleInfo(
        identity=check_text(content["identity"], "identity", 200),
        preset=check_text(content["preset"], "preset", 200),
        picture=_decode_picture(content["picture"]),
        dims=_decode_dims(content["dims"], number),
        weights=_decode_weights(content["weights"]),
        top_k=check_int(content["top_k"], "top_k", 1, 10**6),
        files=files,
        calibration=check_mapping(content["calibration"], "calibration", 100),
        made_with={
            check_text(name, "made_with", 200): check_text(version, "made_with", 200)
            for name, version in check_mapping(content["made_with"], "made_with", 100).items()
        },
        descriptor=_decode_first_stage(content["descriptor"]) if "descriptor" in content else None,
    )
    if not info.pair_classifier and info.descriptor is not None:
        raise ValueError("it has a descriptor in front of no pair classifier")
    decoded = {name: _decode_precision(value, name, info.graphs, files) for name, value in precisions.items()}
    return replace(info, precisions=decoded)


def _decode_file(content: object, name: str) -> FileInfo:
    info = check_keys(content, name, {"bytes", "sha256"})
    if not _SHA256.fullmatch(check_text(info["sha256"], f"sha256 of {name}")):
        raise ValueError(f"sha256 of {name} is not one")
    return FileInfo(check_int(info["bytes"], f"bytes of {name}", 0, 1 << 50), info["sha256"])


def _decode_picture(content: object) -> PictureFormat:
    picture = check_keys(content, "picture", {each.name for each in fields(PictureFormat)})
    mean, std = (check_list(picture[name], name, 3, 3) for name in ("mean", "std"))
    return PictureFormat(
        check_int(picture["height"], "height", 1, _LARGEST_PICTURE),
        check_int(picture["width"], "width", 1, _LARGEST_PICTURE),
        _check_rule(picture["resize"]),
        [check_real(value, "mean") for value in mean],
        [check_real(value, "std", 1e-9) for value in std],
    )


def _check_rule(value: object) -> str:
    rule = check_text(value, "resize", 200)
    if rule not in RULES:
        raise ValueError(f"resize {rule!r:.50} is no known rule")
    return rule


def _decode_first_stage(content: object) -> FirstStage:
    stage = check_keys(content, "descriptor", {each.name for each in fields(FirstStage)})
    return FirstStage(_decode_picture(stage["picture"]), _decode_weights(stage["weights"]))


def _decode_dims(content: object, number: int) -> Dims:
    dims = check_keys(content, "dims", {each.name for each in fields(Dims)})
    if number != PAIR_FORMAT and dims["tokens"] == 0:
        alone = Dims(check_int(dims["descriptor"], "descriptor", 1, _LARGEST_SIZE))
        if dims != asdict(alone):
            raise ValueError("dims has sizes of a pair classifier")
        return alone
    descriptor, tokens, width = (
        check_int(dims[name], name, 1, _LARGEST_SIZE) for name in ("descriptor", "tokens", "token_dim")
    )
    depth = check_int(dims["decoder_depth"], "decoder_depth", 1, 1000)
    heads, split = check_int(dims["heads"], "heads", 1, 1000), check_int(dims["split"], "split", 0, depth)
    return Dims(descriptor, tokens, width, heads, depth, split)


def _decode_weights(content: object) -> Weights:
    weights = check_keys(content, "weights", {each.name for each in fields(Weights)})
    return Weights(
        check_text(weights["origin"], "origin"),
        check_text(weights["licence"], "licence"),
        check_bool(weights["trained"], "trained"),
    )


def _decode_precision(
    content: object, name: str, wanted: Sequence[str], files: Mapping[str, FileInfo]
) -> PrecisionInfo:
    precision = check_keys(content, name, {"graphs", "errors"})
    graphs = check_keys(precision["graphs"], f"graphs of {name}", set(wanted))
    errors = check_mapping(precision["errors"], f"errors of {name}", 100)
    return PrecisionInfo(
        {graph: _decode_graph(value, f"{name} {graph}", files) for graph, value in graphs.items()},
        {key: check_real(value, f"errors of {name}") for key, value in errors.items()},
    )


def _decode_graph(content: object, name: str, files: Mapping[str, FileInfo]) -> GraphFiles:
    graph = check_keys(content, name, {"file", "cpu_file", "weights"}, {"cuda_file"})
    for key, file in graph.items():
        if file is None and key == "cuda_file":
            continue
        if check_text(file, f"a file of {name}") not in files:
            raise ValueError(f"{name} has a file that is not listed")
        if key != "weights" and not file.endswith(".onnx"):  # engines choose a reader by the ending
            raise ValueError(f"{name} has a graph whose name does not end in .onnx")
    return GraphFiles(graph["file"], graph["cpu_file"], graph["weights"], graph.get("cuda_file"))


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
        return _checksum({key: value for key, value in self.info.content().items() if key != "calibration"})

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


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=True)  # hashed, never written
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
