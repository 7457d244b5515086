"""A bundle opens, says what it is, and no damage to it goes unseen where it is used."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pairvpr.errors import BundleError
from pairvpr.runtime import bundle_info, load_model
from pairvpr.runtime.bundle import REFERENCE, Bundle, sha256
from pairvpr.runtime.bundle_info import FILE, FORMAT, BundleInfo
from pairvpr.runtime.model import default_bundle
from pairvpr.runtime.reference import check_reference

GRAPH_FILES = sorted(name for name in Bundle.open(default_bundle()).info.files if name != REFERENCE)
USED_ON_CPU = [name for name in GRAPH_FILES if not name.endswith((".fp16.onnx", "-cuda.onnx"))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bundle whose files may be replaced; links to the default's, so never written in place."""
    folder = tmp_path / "bundle"
    Bundle.open(default_bundle()).install(folder)
    return folder


def put(file: Path, content: bytes) -> None:
    """Replace a file, leaving alone what is linked to it."""
    file.unlink()
    file.write_bytes(content)


def flip(file: Path, seed: int) -> None:
    chance = random.Random(f"{file.name} {seed}")
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= chance.randrange(1, 256)
    put(file, bytes(content))


def assert_one_line(error: pytest.ExceptionInfo[BundleError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_the_default_bundle_opens() -> None:
    bundle = Bundle.open(str(default_bundle()))
    assert bundle.identity == bundle.info.identity == json.loads((default_bundle() / FILE).read_text())["identity"]
    assert len(bundle.identity) == 64
    assert bundle.info.preset == "nano"
    assert bundle.info.weights.trained
    assert bundle.verify() == [default_bundle() / name for name in bundle.info.files]
    assert set(bundle.info.precisions) == {"fp16"}
    assert load_model().bundle.identity == bundle.identity


def test_info_survives_being_written_and_read() -> None:
    info = Bundle.open(default_bundle()).info
    assert BundleInfo.from_json(info.to_json(), Path("here")) == info


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", USED_ON_CPU)
def test_a_flipped_byte_in_a_file_that_is_used(path: Path, name: str, seed: int) -> None:
    flip(path / name, seed)
    with pytest.raises(BundleError) as error:
        load_model(path, "cpu")
    assert_one_line(error, str(path / name), "damaged", "pairvpr export")
    with pytest.raises(BundleError):
        Bundle.open(path).verify()


def test_a_flipped_byte_in_files_that_a_cpu_leaves_alone(path: Path) -> None:
    unused = [name for name in GRAPH_FILES if name not in USED_ON_CPU]
    assert len(unused) == 8
    for name in unused:
        flip(path / name, 0)
        with pytest.raises(BundleError, match=f"{name}: damaged"):
            Bundle.open(path).verify([name])
        asked = Bundle.open(path)
        ask = asked.cuda_graph if name.endswith("-cuda.onnx") else partial(asked.graph, cpu=False)
        with pytest.raises(BundleError, match=f"{name}: damaged"):
            ask("fp16", name.split(".")[0])
    with pytest.raises(BundleError, match="damaged"):
        Bundle.open(path).verify()
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    expected, found = (load_model(bundle, "cpu").encode([image]) for bundle in (None, path))
    np.testing.assert_array_equal(found.descriptors, expected.descriptors)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_a_flipped_byte_in_the_reference(path: Path) -> None:
    flip(path / REFERENCE, 0)
    with pytest.raises(BundleError, match=f"{REFERENCE}: damaged"):
        check_reference(load_model(path))


def test_a_flipped_byte_in_the_description_is_seen_or_changes_nothing() -> None:
    original = (default_bundle() / FILE).read_bytes()
    info = Bundle.open(default_bundle()).info
    chance = random.Random(7)
    messages = []
    for place in sorted(chance.sample(range(len(original)), 400)):
        content = bytearray(original)
        content[place] ^= chance.randrange(1, 256)
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue  # below, through a file
        try:
            assert BundleInfo.from_json(text, Path(FILE)) == info
        except BundleError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)


def test_a_description_that_is_no_text(path: Path) -> None:
    put(path / FILE, b"\xff" + (path / FILE).read_bytes())
    with pytest.raises(BundleError) as error:
        Bundle.open(path)
    assert_one_line(error, str(path / FILE), "cannot be read")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b"{}", b'{"checksum": 1, "format": 1}'])
def test_a_description_of_something_else(path: Path, content: bytes) -> None:
    put(path / FILE, content)
    with pytest.raises(BundleError) as error:
        Bundle.open(path)
    assert_one_line(error, str(path / FILE), "pairvpr export")


def test_a_newer_format_says_upgrade(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = Bundle.open(path).info
    with monkeypatch.context() as future:
        future.setattr(bundle_info, "FORMAT", FORMAT + 1)
        text = info.to_json()
    put(path / FILE, text.replace('"preset"', '"new name of preset"').encode())
    with pytest.raises(BundleError) as error:
        Bundle.open(path)
    assert_one_line(error, f"bundle format {FORMAT + 1}", "upgrade pairvpr")


def test_an_identity_that_was_changed_by_hand(path: Path) -> None:
    text = (path / FILE).read_text()
    identity = Bundle.open(path).identity
    put(path / FILE, text.replace(identity, identity[::-1]).encode())
    with pytest.raises(BundleError, match="its checksum does not match"):
        Bundle.open(path)


def test_a_graph_that_the_description_does_not_list(path: Path) -> None:
    info = Bundle.open(path).info
    files = {name: file for name, file in info.files.items() if name != "pair_prefix.fp16.weights"}
    put(path / FILE, dataclasses.replace(info, files=files).to_json().encode())
    with pytest.raises(BundleError, match=r"fp16 pair_prefix has a file that is not listed"):
        load_model(path)


@pytest.mark.parametrize("name", [*USED_ON_CPU, FILE])
def test_a_missing_file(path: Path, name: str) -> None:
    (path / name).unlink()
    with pytest.raises(BundleError) as error:
        load_model(path, "cpu")
    assert_one_line(error, name, "pairvpr export")


def test_a_file_that_is_cut_short_or_a_folder(path: Path) -> None:
    weights = path / "encoder.fp16.weights"
    put(weights, weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match="damaged"):
        load_model(path)
    weights.unlink()
    weights.mkdir()
    with pytest.raises(BundleError, match=r"damaged|cannot be read"):
        load_model(path)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: None], ids=["empty folder", "file", "nothing"])
def test_not_a_bundle(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "x"
    make(path)
    with pytest.raises(BundleError) as error:
        Bundle.open(path)
    assert_one_line(error, f"{path}: no model bundle there", "pairvpr export")


def fail_with(number: int) -> Callable[..., None]:
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return link


@pytest.mark.parametrize("number", [None, errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_install_links_or_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None) -> None:
    source, target = Bundle.open(default_bundle()), tmp_path / "deep" / "model"
    first = tmp_path / "first"
    source.install(first)  # beside the target, so that links are possible between the two
    if number is not None:
        monkeypatch.setattr(os, "link", fail_with(number))
    Bundle.open(first).install(target)
    names = [*source.info.files, FILE]
    assert sorted(names) == sorted(file.name for file in target.iterdir())
    for name in names:
        assert (target / name).samefile(first / name) == (number is None)
        assert sha256(target / name) == sha256(default_bundle() / name)
    installed = Bundle.open(target)
    assert installed.info == source.info
    installed.verify()
    assert check_reference(load_model(target)).ok


def test_install_refuses_to_spread_damage(path: Path, tmp_path: Path) -> None:
    flip(path / REFERENCE, 3)
    with pytest.raises(BundleError, match="damaged"):
        Bundle.open(path).install(tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_install_says_what_hinders_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", fail_with(errno.ENOSPC))
    with pytest.raises(BundleError) as error:
        Bundle.open(default_bundle()).install(tmp_path / "target")
    assert_one_line(error, str(tmp_path / "target"), "No space left on device")
