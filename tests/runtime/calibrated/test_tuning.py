"""The tuned setting of a map: what it fills in, what overrides it, and what happens where it cannot be had."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from pairvpr import machine
from pairvpr.errors import BundleError, EngineError
from pairvpr.runtime.bundle import TUNING, Bundle
from pairvpr.runtime.bundle_info import FILE
from pairvpr.runtime.calibrated import tuning as tuning_module
from pairvpr.runtime.calibrated.tuning import RuntimeSetting, Tuning, open_tuned
from pairvpr.runtime.model import default_bundle

CHOSEN = RuntimeSetting("openvino", "bf16", 2, 8, exact=False)
TUNED = Tuning(
    setting=CHOSEN,
    computer=machine.name(),
    engine="OpenVINO",
    map_pictures=500,
    candidates=100,
    pictures=700,
    changed=1,
    interval=(0.0003, 0.008),
    max_loss=0.003,
    budget_ms=None,
    median_ms=41.2,
    p99_ms=60.0,
    exact_ms=320.0,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A copy of the default bundle with a tuning."""
    Bundle.open(default_bundle()).install(tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    bundle.store_calibration(TUNING, TUNED.to_json())
    return bundle


class Loader:
    """Stands where models are opened: notes what was asked for, and lacks some devices."""

    def __init__(self) -> None:
        self.lacks: set[str] = set()
        self.opened: list[RuntimeSetting] = []

    def __call__(
        self, path: Path, device: str, precision: str | None, *, threads: int | None, batch_size: int | None
    ) -> str:
        if device in self.lacks:
            raise EngineError(f"device {device}: not installed")
        self.opened.append(RuntimeSetting(device, precision, threads, batch_size))
        return "model"


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader()
    monkeypatch.setattr(tuning_module, "load_model", loader)
    return loader


@pytest.mark.parametrize(
    ("asked", "completed"),
    [
        (RuntimeSetting(), CHOSEN),
        (RuntimeSetting("openvino"), CHOSEN),
        (RuntimeSetting(precision="bf16", threads=1), dataclasses.replace(CHOSEN, threads=1)),
        (RuntimeSetting(batch_size=4, exact=True), dataclasses.replace(CHOSEN, batch_size=4, exact=True)),
        (RuntimeSetting("cpu"), None),
        (RuntimeSetting(precision="fp32"), None),
        (RuntimeSetting("openvino", "fp32", 2), None),
    ],
)
def test_what_is_asked_for_comes_first(asked: RuntimeSetting, completed: RuntimeSetting | None) -> None:
    assert asked.fill_from(CHOSEN) == completed


def test_what_was_tuned_to_be_exact_can_be_asked_to_drop_candidates() -> None:
    exact = dataclasses.replace(CHOSEN, exact=True)
    assert RuntimeSetting().fill_from(exact) == exact
    assert RuntimeSetting(exact=False).fill_from(exact) == CHOSEN


def test_a_tuning_survives_being_stored(bundle: Bundle) -> None:
    assert Tuning.find_in(Bundle.open(bundle.path)) == TUNED
    assert Tuning.find_in(Bundle.open(default_bundle())) is None


def test_it_goes_where_what_it_was_measured_with_goes(bundle: Bundle, tmp_path: Path) -> None:
    bundle.install(tmp_path / "another")  # as for another map
    other = Bundle.open(tmp_path / "another")
    other.verify()
    assert Tuning.find_in(other) is None
    assert Tuning.find_in(Bundle.open(bundle.path)) == TUNED
    bundle.store_calibration("cascade", {"another": 1})
    assert dict(Bundle.open(bundle.path).info.calibration) == {"cascade": {"another": 1}}


@pytest.mark.parametrize(
    "change", [{"changed": 701}, {"setting": {"device": "abacus"}}, {"interval": [0.1]}, {"of tomorrow": 1}]
)
def test_one_that_cannot_be_used_is_refused(bundle: Bundle, change: dict[str, object]) -> None:
    bundle.store_calibration(TUNING, {**TUNED.to_json(), **change})
    with pytest.raises(BundleError, match=rf"{FILE}: its tuned setting cannot be used .*`pairvpr tune`"):
        Tuning.find_in(bundle)


def test_it_fills_in_what_is_left_open(bundle: Bundle, loader: Loader) -> None:
    assert open_tuned(bundle.path, RuntimeSetting()) == ("model", CHOSEN, f"tuned: {CHOSEN}")
    assert loader.opened == [RuntimeSetting("openvino", "bf16", 2, 8)]
    _, setting, note = open_tuned(bundle.path, RuntimeSetting(threads=1))
    assert setting == dataclasses.replace(CHOSEN, threads=1)
    assert note == f"tuned, with the options given: {setting}"


def test_another_device_may_be_asked_for(bundle: Bundle, loader: Loader) -> None:
    note = f"the setting tuned for this map ({CHOSEN}) is not used: another device or precision was given"
    assert open_tuned(bundle.path, RuntimeSetting("cpu")) == ("model", RuntimeSetting("cpu"), note)
    assert loader.opened == [RuntimeSetting("cpu")]


@pytest.mark.parametrize("why", ["an engine that is not installed", "another computer"])
def test_what_cannot_be_had_is_said(
    bundle: Bundle, loader: Loader, why: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "another computer":
        monkeypatch.setattr(machine, "name", lambda: "a robot with 6 cores")
        said = f"it was measured on {TUNED.computer}, this is a robot with 6 cores"
    else:
        loader.lacks = {"openvino"}
        said = "device openvino: not installed"
    assert open_tuned(bundle.path, RuntimeSetting(threads=3)) == ("model", RuntimeSetting(threads=3), "")
    assert loader.opened == [RuntimeSetting(threads=3)]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"is not used: {said}; find one for this computer with `pairvpr tune`" in record.message


def test_what_was_asked_for_and_cannot_be_had_is_an_error_and_no_warning(
    bundle: Bundle, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    loader.lacks = {"openvino"}
    with pytest.raises(EngineError, match="openvino: not installed"):
        open_tuned(bundle.path, RuntimeSetting("openvino"))
    assert not caplog.records
