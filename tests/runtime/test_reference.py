"""A foreign bundle's reference check runs once, and a pinned digest holds before any graph is loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.numpy import load_file, save

from pairvpr.cli.main import main as pairvpr
from pairvpr.cli.run import main as pairvpr_run
from pairvpr.errors import BundleError
from pairvpr.runtime import load_model, reference
from pairvpr.runtime.bundle import REFERENCE, Bundle
from pairvpr.runtime.features import Features
from pairvpr.runtime.model import default_bundle
from pairvpr.runtime.reference import Reference
from tests.runtime.test_hostile_bundle import replace
from tests.scenes import draw_scene


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`pictures`, a foreign `bundle` (the default model under another description) and an empty `cache`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    for place in range(3):
        Image.fromarray(draw_scene(place, 0, (96, 128))).save(tmp_path / f"pictures/{place}.png")
    Bundle.open(default_bundle()).install(tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").write_text("-")
    replace(tmp_path / "bundle", "notes.txt", b"foreign")
    return tmp_path


def shuffle(bundle: Path) -> None:
    """Put the weights of a graph into another order, under the old identity and with checksums that hold."""
    name = Bundle.open(bundle).info.precisions["fp16"].graphs["pair_suffix"].weights
    weights = np.frombuffer((bundle / name).read_bytes(), "<f2").copy()
    np.random.default_rng(0).shuffle(weights)
    replace(bundle, name, weights.tobytes())


def call(command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(each) for each in arguments])


def build(home: Path, *more: object) -> Result:
    return call(pairvpr, "map", "build", home / "pictures", "--db", home / "map", "--model", home / "bundle", *more)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count the reference checks from now on."""
    checks: list[str] = []
    check = reference.check_reference
    monkeypatch.setattr(reference, "check_reference", lambda model: checks.append("") or check(model))
    return checks


def test_a_foreign_bundle_is_checked_at_its_first_opening(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = counted(monkeypatch)
    assert build(home).exit_code == 0
    assert len(checks) == 1
    for _ in range(2):
        answered = call(pairvpr_run, "--db", home / "map", "--query", home / "pictures/0.png")
        assert answered.exit_code == 0, answered.stderr
    assert len(checks) == 1
    digest = Bundle.open(home / "bundle").digest
    assert [each.name for each in (home / "cache/pairvpr/references").iterdir()] == [f"{digest}-fp16"]


def test_the_bundle_that_ships_is_not_foreign(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = counted(monkeypatch)
    assert call(pairvpr, "map", "build", home / "pictures", "--db", home / "map").exit_code == 0
    assert call(pairvpr_run, "--db", home / "map", "--query", home / "pictures/0.png").exit_code == 0
    assert not checks


def test_shuffled_weights_are_refused_by_every_opening(home: Path) -> None:
    assert build(home).exit_code == 0
    shuffle(home / "map/model")
    for _ in range(2):
        refused = call(pairvpr_run, "--db", home / "map", "--query", home / "pictures/0.png")
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "do not give the results of its reference check" in refused.stderr.splitlines()[-1]
    assert call(pairvpr, "map", "add", home / "pictures", "--db", home / "map").exit_code == 2
    verified = call(pairvpr, "map", "verify", "--db", home / "map")
    assert verified.exit_code == 2
    assert "its weights are not those of its reference check" in verified.stdout


@pytest.mark.parametrize("content", [b"", b"no safetensors"])
def test_a_reference_that_is_none(home: Path, content: bytes) -> None:
    replace(home / "bundle", REFERENCE, content)
    with pytest.raises(BundleError, match="not a reference check"):
        Reference.from_bundle(Bundle.open(home / "bundle"))


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda truth: {"images": truth["images"][:, :-1]}, "images for encoder are not 4 of 224 x 224 pixels"),
        (lambda truth: {"images": truth["images"][..., :1]}, "images for encoder are not 4 of 224 x 224 pixels"),
        (lambda truth: {"images": truth["images"].astype(np.float32)}, "images for encoder are not 4"),
        (lambda truth: {"images": np.zeros(7, np.uint8)}, "images for encoder are not 7 of 224 x 224 pixels"),
        (lambda truth: {name: values[:0] for name, values in truth.items()}, "it has no 1 to 1000 images"),
        (lambda truth: {"descriptors": truth["descriptors"][:, :7]}, r"descriptors are not .* of shape \(4, 1024\)"),
        (lambda truth: {"descriptors": truth["descriptors"].astype(np.int32)}, "descriptors are not finite numbers"),
        (lambda truth: {"tokens": truth["tokens"][:, :-1]}, r"tokens are not .* of shape \(4, 49, 192\)"),
        (lambda truth: {"tokens": truth["tokens"] * np.float32(3e38)}, "tokens are not finite numbers"),
        (lambda truth: {"scores": truth["scores"][:3]}, r"scores are not .* of shape \(4,\)"),
        (lambda truth: {"scores": truth["scores"][:0], "tokens": truth["tokens"][:, :0]}, "tokens are not"),
        (lambda truth: {"scores": np.full(4, np.nan, np.float32)}, "scores are not finite numbers"),
        (lambda truth: {"scores": np.full(4, 1.1e6, np.float32)}, "scores are not finite numbers"),
    ],
)
def test_a_reference_that_does_not_fit_the_graphs_is_refused(
    home: Path, edit: Callable[[dict[str, Any]], dict[str, Any]], told: str
) -> None:
    truth = load_file(home / "bundle" / REFERENCE)
    whole = {name: np.ascontiguousarray(values) for name, values in {**truth, **edit(truth)}.items()}
    replace(home / "bundle", REFERENCE, save(whole))
    with pytest.raises(BundleError, match=rf"{REFERENCE}: not a reference check .*{told}"):
        reference.check_foreign(load_model(home / "bundle", "cpu"))


def test_large_numbers_that_are_no_overflow_are_only_another_result(home: Path) -> None:
    truth = load_file(home / "bundle" / REFERENCE)
    replace(home / "bundle", REFERENCE, save({**truth, "scores": np.full(4, 1e6, np.float32)}))
    with pytest.raises(BundleError, match="do not give the results of its reference check"):
        reference.check_foreign(load_model(home / "bundle", "cpu"))


def test_a_result_that_cannot_be_remembered_is_logged(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (home / "cache").write_text("a file")
    model = load_model(home / "bundle", "cpu")
    with caplog.at_level(logging.INFO):
        reference.check_foreign(model)
    assert "the reference check runs at each start, because this cannot be written" in caplog.text


def test_the_digest_covers_all_but_calibration_results(home: Path) -> None:
    first = Bundle.open(home / "bundle")
    first.store_calibration("note", {"a": 1})
    assert Bundle.open(home / "bundle").digest == first.digest
    replace(home / "bundle", "notes.txt", b"changed")
    assert Bundle.open(home / "bundle").digest != first.digest


def test_a_pinned_digest_is_stored_shown_and_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = Bundle.open(home / "bundle").digest
    wrong = build(home, "--model-digest", "0" * 64)
    assert wrong.exit_code == 2
    assert f"its digest is {digest}, not {'0' * 64}" in wrong.stderr
    assert not (home / "map").exists()
    assert build(home, "--model-digest", digest).exit_code == 0
    assert build(home).exit_code == 0  # going on needs no option
    shown = json.loads(call(pairvpr, "map", "info", "--db", home / "map", "--format", "jsonl").stdout)
    assert (shown["model_digest"], shown["model_digest_pinned"]) == (digest, True)
    replace(home / "map/model", "notes.txt", b"changed")
    loaded: list[Path] = []
    monkeypatch.setattr(Bundle, "graph", lambda *_, **__: loaded.append(Path()))
    commands: tuple[tuple[Any, ...], ...] = (
        (pairvpr_run, "--db", home / "map", "--query", home / "pictures/0.png"),
        (pairvpr, "map", "add", home / "pictures", "--db", home / "map"),
        (pairvpr, "map", "loops", home / "pictures", "--db", home / "map", "--threshold", 1),
    )
    for command, *arguments in commands:
        refused = call(command, *arguments)
        assert refused.exit_code == 2
        assert f"not {digest}; take the bundle from where its digest comes from" in refused.stderr
    assert not loaded


def test_a_digest_can_be_asked_for_at_an_answer(home: Path) -> None:
    assert build(home).exit_code == 0
    digest = Bundle.open(home / "map/model").digest
    for asked, code in ((digest, 0), ("1" * 64, 2)):
        answered = call(pairvpr_run, "--db", home / "map", "--query", home / "pictures/0.png", "--model-digest", asked)
        assert answered.exit_code == code
    later = build(home, "--model-digest", digest)
    assert later.exit_code == 2
    assert "was made without --model-digest" in later.stderr


def test_a_digest_of_a_map_is_text(home: Path) -> None:
    from pairvpr.errors import MapError
    from pairvpr.runtime.map.meta import Meta

    meta = Meta("a" * 64, {"model_digest": 7}, 8, (4, 8), "0")
    with pytest.raises((MapError, ValueError), match="its digest of the model is not a text"):
        Meta.decode(meta.encode(), home)


def test_check_digest_names_both(home: Path) -> None:
    with pytest.raises(BundleError, match=r"not a b; take"):
        Bundle.open(home / "bundle").check_digest("a\nb")


def wide(rng: np.random.Generator) -> np.ndarray:
    """Descriptors of 12,288 numbers whose float32 lengths are off by 2e-6, as from sums of this length."""
    drawn = rng.standard_normal((3, 12_288))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * (1 - 2e-6)).astype(np.float32)


def test_lengths_of_wide_descriptors_may_be_rounded() -> None:
    descriptors = wide(np.random.default_rng(0))
    none = np.zeros(0, np.float32)
    alone = Features(descriptors, np.zeros((3, 0, 0), np.float32))
    truth = reference.Reference(np.zeros((3, 8, 8, 3), np.uint8), alone, none, None)
    errors = reference.measure(alone, none, truth, "fp32")
    assert errors.ok
    assert errors.cosine < 1e-9
    turned = descriptors.copy()
    turned[1, :4096] = np.roll(turned[1, :4096], 1) * 0.2 + turned[1, :4096] * 0.8
    assert not reference.measure(Features(turned, alone.tokens), none, truth, "fp32").ok
    empty = Features(np.zeros_like(descriptors), alone.tokens)
    assert reference.measure(empty, none, truth, "fp32").cosine == 1.0
