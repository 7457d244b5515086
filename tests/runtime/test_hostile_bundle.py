"""A bundle from a stranger, whose checksums hold: it is used correctly or refused, and nothing beside it is touched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pairvpr.errors import BundleError
from pairvpr.runtime.bundle import Bundle, has_plans, sha256
from pairvpr.runtime.bundle_info import FILE, GRAPHS, checksum
from pairvpr.runtime.model import default_bundle
from pairvpr.runtime.onnx_locations import find_locations
from pairvpr.runtime.search import FaissIndex

Content = dict[str, Any]
GRAPH = "encoder.fp16-cpu.onnx"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    Bundle.open(default_bundle()).install(folder)
    return folder


def reseal(path: Path, edit: Callable[[Content], object]) -> None:
    """Edit `bundle.json` in place and make its checksum again."""
    content = json.loads((path / FILE).read_text())
    del content["checksum"]
    edit(content)
    (path / FILE).unlink()
    (path / FILE).write_text(json.dumps({**content, "checksum": checksum(content)}))


def listed(file: Path) -> Content:
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def replace(path: Path, name: str, content: bytes) -> None:
    """Replace a file of the bundle, and what `bundle.json` says of it."""
    (path / name).unlink()
    (path / name).write_bytes(content)
    reseal(path, lambda info: info["files"].update({name: listed(path / name)}))


@pytest.mark.parametrize("name", ["../outside", "/dev/zero", "a/b", "..", "", "a\nb", "bundle.json"])
def test_a_bundle_lists_files_of_its_folder_alone(path: Path, name: str) -> None:
    (path.parent / "outside").write_text("private")
    reseal(path, lambda info: info["files"].update({name: listed(path.parent / "outside")}))
    with pytest.raises(BundleError, match="not a bundle description"):
        Bundle.open(path)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda info: info["dims"].update(heads=4), "dims has sizes of a pair classifier"),
        (lambda info: info["dims"].update(descriptor=0), "descriptor is not a whole number from 1"),
        (
            lambda info: info.update(descriptor={"picture": info["picture"], "weights": info["weights"]}),
            "a descriptor in front of no pair classifier",
        ),
    ],
)
def test_a_descriptor_alone_has_nothing_of_a_pair_classifier(
    descriptor_bundle: Path, tmp_path: Path, edit: Callable[[Content], object], told: str
) -> None:
    shutil.copytree(descriptor_bundle, tmp_path / "bundle")
    assert not Bundle.open(tmp_path / "bundle").info.pair_classifier
    reseal(tmp_path / "bundle", edit)
    with pytest.raises(BundleError, match=told):
        Bundle.open(tmp_path / "bundle")


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_pipe_is_not_installed(path: Path, kind: str) -> None:
    secret = path.parent / "secret"
    secret.write_text("private")
    if kind == "link":
        (path / "notes.txt").symlink_to(secret)
    else:
        os.mkfifo(path / "notes.txt")
    reseal(path, lambda info: info["files"].update({"notes.txt": listed(secret)}))
    with pytest.raises(BundleError, match=r"notes.txt: cannot be read \(it is not a regular file\)"):
        Bundle.open(path).install(path.parent / "copy")
    assert not (path.parent / "copy").exists()


@pytest.mark.parametrize("kind", ["pipe", "zero", "large", "nested"])
def test_the_description_is_a_file_of_bounded_size(path: Path, kind: str) -> None:
    (path / FILE).unlink()
    if kind == "pipe":
        os.mkfifo(path / FILE)
    elif kind == "zero":
        (path / FILE).symlink_to("/dev/zero")
    elif kind == "large":
        with (path / FILE).open("wb") as stream:
            stream.truncate(3 << 30)  # takes no room on the disk
    else:
        (path / FILE).write_text("[" * 100_000)
    with pytest.raises(BundleError):
        Bundle.open(path)


def test_a_graph_reads_its_listed_weights_alone(path: Path) -> None:
    (path / "unlisted.bin").write_bytes((path / "encoder.fp16.weights").read_bytes())
    content = (path / GRAPH).read_bytes()
    # The same length, so that the protobuf stays one.
    replace(path, GRAPH, content.replace(b"encoder.fp16.weights", b"./////./unlisted.bin"))
    with pytest.raises(BundleError, match=r"reads \./////\./unlisted.bin, which is not its weights"):
        Bundle.open(path).graph("fp16", "encoder", cpu=True)


def header(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return (
        bytes([number << 3 | 2, len(content)]) if number < 16 else bytes([number << 3 & 0x7F | 0x82, 1, len(content)])
    )


def message(number: int, content: bytes) -> bytes:
    return header(number, content) + content


ENTRY = message(1, b"location") + message(2, b"../secret")
REVERSED = message(2, b"../secret") + message(1, b"location")


@pytest.mark.parametrize("entry", [ENTRY, REVERSED, message(1, b"length") + ENTRY])
def test_locations_are_found_wherever_tensors_are(entry: bytes) -> None:
    tensor = message(13, entry)
    node = message(5, message(5, tensor))
    inner = message(5, message(6, message(5, tensor)))
    sparse = message(15, message(1, tensor))
    for graph in (message(5, tensor), message(1, node), message(1, inner), sparse):
        assert find_locations(message(7, graph)) == {"../secret"}
        assert find_locations(message(20, message(1, graph))) == {"../secret"}
    assert find_locations(message(25, message(7, node))) == {"../secret"}
    assert find_locations(message(7, message(5, message(13, message(1, b"offset") + message(2, b"7"))))) == set()


@pytest.mark.parametrize("content", [b"\x3b", b"\x3a\x7f", b"\xff" * 12, b"\x39\x01", b"\x08"])
def test_what_is_no_protobuf_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"ONNX|cut short"):
        find_locations(content)


def test_a_graph_nested_without_end_is_refused() -> None:
    def enclose(number: int, content: bytes) -> bytes:
        length = len(content)
        return bytes([number << 3 | 2, length & 0x7F | 0x80, length >> 7]) + content

    graph = message(1, b"")
    for _ in range(120):
        graph = enclose(1, enclose(5, enclose(6, graph)))
    with pytest.raises(ValueError, match="too deeply"):
        find_locations(enclose(7, graph))


def test_bundles_of_earlier_versions_have_no_graph_for_cuda(path: Path) -> None:
    def edit(info: Content) -> None:
        for precision in info["precisions"].values():
            for graph in precision["graphs"].values():
                graph["cuda_file"] = None
            precision["graphs"][GRAPHS[0]].pop("cuda_file")

    reseal(path, edit)
    bundle = Bundle.open(path)
    for graph in GRAPHS:
        assert bundle.cuda_graph("fp16", graph) == bundle.graph("fp16", graph, cpu=False)


def test_a_reference_check_that_is_too_large_is_refused(path: Path) -> None:
    file = path / "reference.safetensors"
    limit = 256 << 20
    for size, refused in ((limit, False), (limit + 1, True)):
        file.unlink()
        with file.open("wb") as stream:
            stream.truncate(size)  # takes no space on the disk
        reseal(path, lambda info: info["files"].update({file.name: listed(file)}))
        if refused:
            with pytest.raises(BundleError, match="larger than a reference check"):
                Bundle.open(path).reference()
        else:
            assert Bundle.open(path).reference() == file


def test_a_map_is_no_bundle_and_the_message_names_its_own(path: Path) -> None:
    (path.parent / "map").mkdir()
    path.rename(path.parent / "map" / "model")
    with pytest.raises(BundleError, match=r"map: a map, not a model bundle; its bundle is .*model$"):
        Bundle.open(path.parent / "map")


def test_plans_in_a_linked_folder_are_passed_over(path: Path) -> None:
    outside = path.parent / "plans"
    outside.mkdir()
    (outside / "encoder.fp16.plan").touch()
    (path / "engines").mkdir()
    shutil.copytree(outside, path / "engines/own")
    assert has_plans(Bundle.open(path))
    shutil.rmtree(path / "engines/own")
    (path / "engines/own").symlink_to(outside)
    assert not has_plans(Bundle.open(path))


@pytest.mark.parametrize(
    "edit",
    [
        lambda info: info.update(format="1"),
        lambda info: info.update(format=0),
        lambda info: info.update(format=1, descriptor={"picture": info["picture"], "weights": info["weights"]}),
        lambda info: info.update(top_k=0),
        lambda info: info.update(top_k=10**6 + 1),
        lambda info: info.update(top_k=True),
        lambda info: info.update(preset=None),
        lambda info: info["picture"].update(height=10**6),
        lambda info: info["picture"].update(mean=[0, 0]),
        lambda info: info["picture"].update(std=[0, 0, 0]),
        lambda info: info["dims"].update(tokens=-1),
        lambda info: info["dims"].update({name: 0 for name in info["dims"] if name != "descriptor"}),
        lambda info: info["dims"].update(split=99),
        lambda info: info["weights"].update(trained="yes"),
        lambda info: info["weights"].update(licence=["MIT"]),
        lambda info: info["files"][GRAPH].update(bytes=-1),
        lambda info: info["files"][GRAPH].update(sha256="x"),
        lambda info: info["precisions"]["fp16"]["graphs"].pop("encoder"),
        lambda info: info["precisions"]["fp16"]["graphs"]["encoder"].update(weights="/dev/zero"),
        lambda info: info["precisions"]["fp16"]["graphs"]["encoder"].update(weights=None),
        lambda info: info["precisions"]["fp16"]["graphs"]["encoder"].update(cuda_file=7),
        lambda info: info["precisions"]["fp16"]["graphs"]["encoder"].update(file="reference.safetensors"),
        lambda info: info["precisions"]["fp16"].update(errors={"scores": "none"}),
        lambda info: info["precisions"].update(fp32=7),
        lambda info: info.update(calibration=[]),
        lambda info: info.update(made_with={"a": 1}),
        lambda info: info.update(extra=1),
        lambda info: info["picture"].update(mean=[float("nan")] * 3),
    ],
)
def test_values_of_the_description_have_types_and_ranges(path: Path, edit: Callable[[Content], object]) -> None:
    reseal(path, edit)
    with pytest.raises(BundleError, match="not a bundle description") as error:
        Bundle.open(path)
    assert "\n" not in str(error.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in nested mappings and lists."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else []
    return [place for key in keys for place in ((*path, key), *places(content[key], (*path, key)))]


def forge(content: Any, place: tuple[Any, ...], value: Any) -> None:
    """Replace one value of nested mappings and lists."""
    for key in place[:-1]:
        content = content[key]
    content[place[-1]] = value


@pytest.mark.parametrize("examples", [100, pytest.param(2000, marks=pytest.mark.soak)])
def test_a_forged_description_is_refused_or_read_as_it_is(path: Path, examples: int) -> None:
    original = (path / FILE).read_text()
    every = places({key: value for key, value in json.loads(original).items() if key != "checksum"})

    @settings(
        max_examples=examples,
        deadline=5000,
        derandomize=examples < 1000,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(every), VALUES)
    def check(place: tuple[Any, ...], value: Any) -> None:
        content = json.loads(original)
        del content["checksum"]
        forge(content, place, value)
        (path / FILE).unlink()
        (path / FILE).write_text(json.dumps({**content, "checksum": checksum(content)}))
        before = sorted(path.parent.rglob("*"))
        said = ""
        try:
            bundle = Bundle.open(path)
            for precision in bundle.info.precisions:
                for graph in GRAPHS:
                    bundle.graph(precision, graph, cpu=True)
        except BundleError as error:
            said = str(error)
        assert said == "" or said.isprintable()
        assert sorted(path.parent.rglob("*")) == before

    check()


def test_a_search_gives_no_row_that_is_not_there() -> None:
    descriptors = np.eye(4, dtype=np.float32)
    descriptors[2] = np.nan
    similarities, rows = FaissIndex(descriptors).search(np.ones((1, 4), np.float32), 4)
    assert sorted(rows) == [0, 1, 3]
    assert np.isfinite(similarities).all()
