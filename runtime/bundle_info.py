"""Describe a bundle: the content of `bundle.json`, which holds the sha256 of every file and its own checksum."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pairvpr.errors import BundleError, one_line
from pairvpr.files import check_member
from pairvpr.printing import json_document
from pairvpr.runtime.measure import Measure
from pairvpr.runtime.resize_rules import RULES
from pairvpr.validation import (
    Check,
    check_bool,
    check_fields,
    check_int,
    check_keys,
    check_list,
    check_mapping,
    check_real,
    check_text,
    parse_json,
    whole,
)

FORMAT = 3
"""Format of a bundle with a first look. Others are written in the older formats, which older versions can read."""
PAIR_FORMAT, DESCRIPTOR_FORMAT = 1, 2
"""Formats of bundles without a first look: with a pair classifier and its own descriptor, and with any other."""
ENCODER, DESCRIPTOR, LOOK = "encoder", "descriptor", "pair_look"
GRAPHS = (ENCODER, LOOK, "pair_prefix", "pair_suffix")
"""The graphs of a bundle with a pair classifier. Older bundles have no first look."""
FILE = "bundle.json"
RESTORE = "copy the bundle again or export it again with `pairvpr export`"
_LARGEST_SIZE = 1 << 16  # of descriptors and tokens
_LARGEST_PICTURE = 4096  # pixels of a side
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    look: numbers of the first look at a pair. 0 for a bundle of an older version, which has no such graph.
    """

    descriptor: int
    tokens: int = 0
    token_dim: int = 0
    heads: int = 0
    decoder_depth: int = 0
    split: int = 0
    look: int = 0


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
        pairs = GRAPHS if self.dims.look else tuple(name for name in GRAPHS if name != LOOK)
        own = pairs if self.pair_classifier else (ENCODER,)
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
        older = PAIR_FORMAT if plain else DESCRIPTOR_FORMAT
        content = {"format": FORMAT if self.dims.look else older, **self.content()}
        return json_document({**content, "checksum": checksum(content)})

    def content(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values = asdict(self)
        if not self.dims.look:
            del values["dims"]["look"]
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
            if content.get("checksum") != checksum(fields):
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


def _check_rule(value: object, name: str) -> str:
    rule = check_text(value, name, 200)
    if rule not in RULES:
        raise ValueError(f"{name} {rule!r:.50} is no known rule")
    return rule


def _colours(low: float = -math.inf) -> Check:
    return lambda value, name: [check_real(each, name, low) for each in check_list(value, name, 3, 3)]


_SIDE, _SIZE = whole(1, _LARGEST_PICTURE), whole(1, _LARGEST_SIZE)
_PICTURE = {"height": _SIDE, "width": _SIDE, "resize": _check_rule, "mean": _colours(), "std": _colours(1e-9)}
_WEIGHTS: dict[str, Check] = {"origin": check_text, "licence": check_text, "trained": check_bool}
_DIMS = {
    **dict.fromkeys(("descriptor", "tokens", "token_dim", "look"), _SIZE),
    **dict.fromkeys(("decoder_depth", "heads"), whole(1, 1000)),
    "split": whole(0, 1000),
}


def _decode_picture(content: object) -> PictureFormat:
    return PictureFormat(**check_fields(content, "picture", _PICTURE))


def _decode_weights(content: object) -> Weights:
    return Weights(**check_fields(content, "weights", _WEIGHTS))


def _decode_first_stage(content: object) -> FirstStage:
    stage = check_keys(content, "descriptor", {"picture", "weights"})
    return FirstStage(_decode_picture(stage["picture"]), _decode_weights(stage["weights"]))


def _decode_dims(content: object, number: int) -> Dims:
    rules = {name: rule for name, rule in _DIMS.items() if name != "look" or number == FORMAT}
    dims = check_keys(content, "dims", set(rules))
    if number == DESCRIPTOR_FORMAT and dims["tokens"] == 0:
        alone = Dims(_SIZE(dims["descriptor"], "descriptor"))
        if {**dims, "look": 0} != asdict(alone):
            raise ValueError("dims has sizes of a pair classifier")
        return alone
    found = Dims(**check_fields(dims, "dims", rules))
    check_int(found.split, "split", 0, found.decoder_depth)
    return found


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


def checksum(content: Mapping[str, Any]) -> str:
    """Return the sha256 of the content as canonical JSON, in hexadecimal digits."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=True)  # hashed, never written
    return hashlib.sha256(canonical.encode()).hexdigest()
