"""Test the cache of INT8 ranges: it is used if nothing has changed, and ignored otherwise."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pairvpr.export.int8_cache import Measured, cache_file, load, store
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import GRAPHS
from pairvpr.runtime.model import default_bundle

MEASURED = Measured({"encoder 1": 3.5, "pair_prefix 1": 0.25}, {"encoder 1": 0.01, "pair_prefix 1": 0.0})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pairvpr"


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{number}.jpg" for number in range(3)]
    for file in files:
        file.write_bytes(file.name.encode())
    return files


def test_a_file_belongs_to_model_exporter_and_pictures(pictures: list[Path], tmp_path: Path, cache: Path) -> None:
    info = Bundle.open(default_bundle()).info
    file = cache_file(info, "encoder", pictures, 4, 4)
    assert file.parent == cache
    moved = [picture.rename(tmp_path / f"moved-{picture.name}") for picture in pictures]
    assert cache_file(info, "encoder", moved, 4, 4) == file  # content counts
    others = {
        cache_file(dataclasses.replace(info, identity="another"), "encoder", moved, 4, 4),
        cache_file(dataclasses.replace(info, made_with={"torch": "9"}), "encoder", moved, 4, 4),
        cache_file(info, "pair_prefix", moved, 4, 4),
        cache_file(info, "encoder", moved, 4, 5),
        cache_file(info, "encoder", moved[:2], 4, 4),
        cache_file(info, "encoder", moved[::-1], 4, 4),
    }
    moved[0].write_bytes(b"edited")
    others.add(cache_file(info, "encoder", moved, 4, 4))
    assert len(others | {file}) == 8


def test_stored_measurements_are_loaded(cache: Path) -> None:
    file = cache / "int8-ranges-0.json"
    assert load(file, MEASURED.ranges) is None
    store(file, MEASURED)
    assert load(file, MEASURED.ranges) == MEASURED
    assert [path.name for path in cache.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        json.dumps({"ranges": MEASURED.ranges}),
        json.dumps({"ranges": MEASURED.ranges, "errors": {}}),
        json.dumps({"ranges": MEASURED.ranges, "errors": dict.fromkeys(MEASURED.errors, float("nan"))}),
        json.dumps({"ranges": dict.fromkeys(MEASURED.ranges, "wide"), "errors": MEASURED.errors}),
    ],
)
def test_damaged_measurements_are_ignored(content: str, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "file").write_text(content)
    assert load(cache / "file", MEASURED.ranges) is None


def test_measurements_of_other_layers_are_ignored(cache: Path) -> None:
    store(cache / "file", MEASURED)
    assert load(cache / "file", ["encoder 1", "pair_prefix 2"]) is None


def test_an_export_measures_once(
    pictures: list[Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    from pairvpr.export import int8_bundle

    measured: list[str] = []

    def ranges(graph: SimpleNamespace, feeds: object) -> dict[str, float]:
        measured.append(graph.name)
        return {f"{graph.name} 1": 2.0}

    monkeypatch.setattr(
        int8_bundle, "FloatGraph", lambda name: SimpleNamespace(name=name, layers=[SimpleNamespace(name=f"{name} 1")])
    )
    monkeypatch.setattr(int8_bundle, "measure_ranges", ranges)
    monkeypatch.setattr(int8_bundle, "layer_errors", lambda graph, ranges, feeds: dict.fromkeys(ranges, 0.5))
    told: list[str] = []

    def export() -> int8_bundle.Int8Export:
        made = int8_bundle.Int8Export.__new__(int8_bundle.Int8Export)  # without the answers it begins with
        info = Bundle.open(default_bundle()).info
        made.floats = SimpleNamespace(info=info, graph=lambda precision, name, cpu: name)  # type: ignore[assignment]
        made.names = info.graphs
        made.pictures, made.progress = int8_bundle.Pictures(pictures, []), told.append
        return made

    first = export()._calibrate()
    assert measured == list(GRAPHS)
    assert first == ({f"{name} 1": 2.0 for name in GRAPHS}, {f"{name} 1": 0.5 for name in GRAPHS})
    assert export()._calibrate() == first
    assert measured == list(GRAPHS)
    assert "ranges and errors measured before with these pictures" in told[-1]
    pictures[1].write_bytes(b"edited")
    export()._calibrate()
    assert measured == [*GRAPHS, *GRAPHS]

    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert export()._calibrate() == first
    assert "ranges cannot be kept for other exports" in told[-1]
