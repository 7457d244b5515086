"""Every value of `bundle.json` has limits: values inside are read as they are, values outside are refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pairvpr.errors import BundleError
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import DESCRIPTOR_FORMAT, FILE, FORMAT, GRAPHS, PAIR_FORMAT, BundleInfo, checksum
from pairvpr.runtime.model import default_bundle
from pairvpr.runtime.resize_rules import SQUASH

Content = dict[str, Any]
SHA = "0123456789abcdef" * 4
PICTURE = {"height": 224, "width": 112, "resize": SQUASH, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
WEIGHTS = {"origin": "made here", "licence": "Apache-2.0", "trained": True}
GRAPH = {"file": "a.onnx", "cpu_file": "b.onnx", "weights": "c.weights", "cuda_file": None}
FIRST_STAGE = {"picture": {**PICTURE, "height": 64}, "weights": {**WEIGHTS, "licence": "MIT", "origin": "elsewhere"}}
PAIR: Content = {
    "format": PAIR_FORMAT,
    "identity": "a" * 64,
    "preset": "nano",
    "picture": PICTURE,
    "dims": {"descriptor": 256, "tokens": 49, "token_dim": 192, "heads": 3, "decoder_depth": 4, "split": 1},
    "weights": WEIGHTS,
    "top_k": 100,
    "files": {name: {"bytes": 7, "sha256": SHA} for name in ("a.onnx", "b.onnx", "c.weights")},
    "precisions": {
        "fp16": {
            "graphs": dict.fromkeys(("encoder", "pair_prefix", "pair_suffix"), GRAPH),
            "errors": {"scores": 0.1},
        }
    },
    "calibration": {"note": {"any": ["thing"]}},
    "made_with": {"torch": "2.9"},
}
ALONE: Content = {
    **PAIR,
    "format": DESCRIPTOR_FORMAT,
    "dims": {"descriptor": 256, "tokens": 0, "token_dim": 0, "heads": 0, "decoder_depth": 0, "split": 0},
    "precisions": {"fp16": {"graphs": {"encoder": GRAPH}, "errors": {}}},
}
WITH_DESCRIPTOR: Content = {
    **PAIR,
    "format": DESCRIPTOR_FORMAT,
    "descriptor": FIRST_STAGE,
    "precisions": {
        "fp16": {
            "graphs": dict.fromkeys(("encoder", "pair_prefix", "pair_suffix", "descriptor"), GRAPH),
            "errors": {},
        }
    },
}
WITH_LOOK: Content = {
    **PAIR,
    "format": FORMAT,
    "dims": {**PAIR["dims"], "look": 2},
    "precisions": {"fp16": {"graphs": dict.fromkeys(GRAPHS, GRAPH), "errors": {}}},
}


def read(content: Content) -> BundleInfo:
    fields = json.loads(json.dumps(content))
    return BundleInfo.from_json(json.dumps({**fields, "checksum": checksum(fields)}), Path(FILE))


def changed(content: Content, path: str, value: Any) -> Content:
    """Return the content with another value at a path such as "dims.tokens"."""
    result = copy.deepcopy(content)
    *parents, last = path.split("/")
    inner = result
    for part in parents:
        inner = inner[part]
    inner[last] = value
    return result


def many(count: int, value: Any) -> Content:
    return {f"k{number}": value for number in range(count)}


FIRST = "precisions/fp16/graphs/encoder"
LIMITS: list[tuple[str, list[Any], list[Any]]] = [
    ("format", [1, 2], [0, 2**31 + 1, "1", True, None]),
    ("identity", ["", "x" * 200], ["x" * 201, 1]),
    ("preset", ["", "x" * 200], ["x" * 201, None]),
    ("top_k", [1, 10**6], [0, 10**6 + 1, 1.0]),
    *((f"picture/{side}", [1, 4096], [0, 4097, "224"]) for side in ("height", "width")),
    ("picture/resize", [SQUASH], ["", "stretch", "x" * 201, 1]),
    ("picture/mean", [[0, -1e9, 1e9]], [[0, 0], [0, 0, 0, 0], [0, 0, "0"], 0]),
    ("picture/std", [[1e-9, 1, 1e9]], [[0.9e-9, 1, 1], [1, -1, 1], [1, 1], None]),
    *((f"dims/{name}", [1, 65536], [0, 65537, -1]) for name in ("descriptor", "tokens", "token_dim")),
    ("dims/heads", [1, 1000], [0, 1001]),
    ("dims/decoder_depth", [1, 1000], [0, 1001]),
    ("dims/split", [0, 4], [5, -1]),
    *((f"weights/{name}", ["", "x" * 4096], ["x" * 4097, None]) for name in ("origin", "licence")),
    ("weights/trained", [True, False], [1, "no"]),
    ("files/a.onnx/bytes", [0, 2**50], [-1, 2**50 + 1, 1.0]),
    ("files/a.onnx/sha256", ["0" * 64, "f" * 64], ["0" * 63, "0" * 65, "G" * 64, "A" * 64, 7]),
    ("files/a.onnx", [{"bytes": 1, "sha256": SHA}], [{"bytes": 1}, {"bytes": 1, "sha256": SHA, "x": 1}, []]),
    ("files/bundle.json", [], [{"bytes": 1, "sha256": SHA}]),
    ("files/a\nb", [], [{"bytes": 1, "sha256": SHA}]),
    ("precisions/fp16/errors", [{}, many(100, -1e300)], [many(101, 0.0), {"scores": "0"}, {"scores": None}, []]),
    ("precisions/fp16/graphs", [], [{"encoder": GRAPH}, {}, []]),
    ("precisions/fp16/graphs/fourth", [], [GRAPH]),
    ("precisions/fp16", [], [{}, {"graphs": {}}, None]),
    ("precisions", [{}, many(100, PAIR["precisions"]["fp16"])], [[], many(101, {"graphs": {}, "errors": {}})]),
    *((f"{FIRST}/{name}", ["a.onnx", "b.onnx"], ["c.weights", "d.onnx", "", None]) for name in ("file", "cpu_file")),
    (f"{FIRST}/weights", ["c.weights", "a.onnx"], ["d", None, 1]),
    (f"{FIRST}/cuda_file", [None, "b.onnx"], ["c.weights", "d.onnx", 0]),
    (f"{FIRST}/other", [], ["a.onnx"]),
    ("calibration", [{}, many(100, {"a": [1, None]})], [many(101, 1), []]),
    (
        "made_with",
        [{}, many(100, "1"), {"x" * 200: "y" * 200}],
        [many(101, "1"), {"x" * 201: ""}, {"x": "y" * 201}, {"x": 1}],
    ),
    ("extra", [], [1]),
]


@pytest.mark.parametrize(("path", "inside", "outside"), LIMITS)
def test_values_have_limits(path: str, inside: list[Any], outside: list[Any]) -> None:
    assert read(PAIR).pair_classifier
    for value in inside:
        content = changed(PAIR, path, value)
        found = {"format": content["format"], **json.loads(json.dumps(read(content).content()))}
        assert found == content, value
    for value in outside:
        with pytest.raises(BundleError, match=r"^bundle.json: (not a bundle description|bundle format)") as error:
            read(changed(PAIR, path, value))
        assert str(error.value).isprintable()


def test_a_format_that_no_version_can_have_is_damage() -> None:
    for number, told in (
        (FORMAT + 1, "upgrade pairvpr"),
        (2**31, "upgrade pairvpr"),
        (2**31 + 1, "format is not a whole"),
    ):
        with pytest.raises(BundleError, match=told):
            read({**PAIR, "format": number})


@pytest.mark.parametrize("content", [PAIR, ALONE, WITH_DESCRIPTOR], ids=["pair", "alone", "descriptor"])
def test_a_description_survives_being_written_and_read(content: Content) -> None:
    info = read(content)
    assert BundleInfo.from_json(info.to_json(), Path(FILE)) == info
    assert {**json.loads(info.to_json()), "checksum": None} == {**content, "checksum": None}


def test_there_may_be_a_thousand_files() -> None:
    listed = {**PAIR["files"], **many(997, {"bytes": 0, "sha256": SHA})}
    assert len(read({**PAIR, "files": listed}).files) == 1000
    with pytest.raises(BundleError, match="files is not a mapping of at most 1000"):
        read({**PAIR, "files": {**listed, "one more": {"bytes": 0, "sha256": SHA}}})


@pytest.mark.parametrize(
    "content", [PAIR, ALONE, WITH_DESCRIPTOR, WITH_LOOK], ids=["pair", "alone", "descriptor", "look"]
)
def test_every_key_is_needed(content: Content) -> None:
    read(content)
    for name in content:
        if name == "descriptor":
            continue
        less = {key: value for key, value in content.items() if key != name}
        with pytest.raises(BundleError, match="not a bundle description"):
            read(less)


def test_the_checksum_covers_every_value() -> None:
    text = json.dumps({**PAIR, "checksum": checksum(PAIR)})
    assert BundleInfo.from_json(text, Path(FILE)) == read(PAIR)
    for spoilt in (text.replace('"nano"', '"nono"'), json.dumps(PAIR), json.dumps({**PAIR, "checksum": None})):
        with pytest.raises(BundleError, match="its checksum does not match"):
            BundleInfo.from_json(spoilt, Path(FILE))


def test_a_descriptor_alone() -> None:
    info = read(ALONE)
    assert (info.pair_classifier, info.graphs, info.dims.descriptor) == (False, ("encoder",), 256)
    assert (info.licence, info.measure.name) == ("Apache-2.0", "SIMILARITY")
    for name in ("token_dim", "heads", "decoder_depth", "split"):
        with pytest.raises(BundleError, match="dims has sizes of a pair classifier"):
            read(changed(ALONE, f"dims/{name}", 1))
    for size in (0, 65537):
        with pytest.raises(BundleError, match="descriptor is not a whole number from 1 to 65536"):
            read(changed(ALONE, "dims/descriptor", size))
    with pytest.raises(BundleError, match="a descriptor in front of no pair classifier"):
        read({**ALONE, "descriptor": FIRST_STAGE})
    with pytest.raises(BundleError, match="not a bundle description"):
        read({**ALONE, "format": PAIR_FORMAT})
    assert json.loads(info.to_json())["format"] == DESCRIPTOR_FORMAT


def test_a_descriptor_in_front_of_a_pair_classifier() -> None:
    info = read(WITH_DESCRIPTOR)
    assert info.graphs == ("encoder", "pair_prefix", "pair_suffix", "descriptor")
    assert (info.picture_of("descriptor").height, info.picture_of("encoder").height) == (64, 224)
    assert (info.licence, info.origin) == ("Apache-2.0; descriptor: MIT", "made here; elsewhere")
    assert (info.measure.name, json.loads(info.to_json())["format"]) == ("SCORE", DESCRIPTOR_FORMAT)
    for path, value in (("descriptor/picture/height", 0), ("descriptor/weights/trained", 1), ("descriptor/more", 1)):
        with pytest.raises(BundleError, match="not a bundle description"):
            read(changed(WITH_DESCRIPTOR, path, value))
    with pytest.raises(BundleError, match="not a bundle description"):
        read({**WITH_DESCRIPTOR, "format": PAIR_FORMAT})


def test_a_bundle_of_an_older_version_keeps_its_format() -> None:
    text = json.loads(read(PAIR).to_json())
    assert text["format"] == PAIR_FORMAT
    assert "descriptor" not in text
    assert "look" not in text["dims"]
    assert read(PAIR).graphs == ("encoder", "pair_prefix", "pair_suffix")


def test_a_bundle_with_a_first_look() -> None:
    info = read(WITH_LOOK)
    assert (info.graphs, info.dims.look) == (GRAPHS, 2)
    assert json.loads(info.to_json())["format"] == FORMAT
    assert Bundle.open(default_bundle()).info.graphs == GRAPHS
    both = {**WITH_LOOK, "descriptor": FIRST_STAGE, **only_graphs((*GRAPHS, "descriptor"))}
    assert read(both).graphs == (*GRAPHS, "descriptor")
    for path, value in (("dims/look", 0), ("dims/look", 65537), ("dims/tokens", 0)):
        with pytest.raises(BundleError, match="not a bundle description"):
            read(changed(WITH_LOOK, path, value))
    for number in (PAIR_FORMAT, DESCRIPTOR_FORMAT):
        with pytest.raises(BundleError, match="not a bundle description"):
            read({**WITH_LOOK, "format": number})
    with pytest.raises(BundleError, match="not a bundle description"):
        read({**WITH_LOOK, **only_graphs(("encoder", "pair_prefix", "pair_suffix"))})


def only_graphs(names: tuple[str, ...]) -> Content:
    return {"precisions": {"fp16": {"graphs": dict.fromkeys(names, GRAPH), "errors": {}}}}


def test_the_files_of_a_graph() -> None:
    graph = read(PAIR).precisions["fp16"].graphs["encoder"]
    assert graph.names == {"a.onnx", "b.onnx", "c.weights"}
    with_cuda = changed(PAIR, "files/d.onnx", {"bytes": 1, "sha256": SHA})
    with_cuda = changed(with_cuda, f"{FIRST}/cuda_file", "d.onnx")
    assert read(with_cuda).precisions["fp16"].graphs["encoder"].names == {"a.onnx", "b.onnx", "c.weights", "d.onnx"}
