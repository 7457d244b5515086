"""Test checkpoints: every published layout loads, and errors name the fault of a file."""

from __future__ import annotations

import json
import os
import pickle

import pytest

from tests.conftest import PARITY, shared

torch = pytest.importorskip("torch")

from pairvpr.errors import CheckpointError  # noqa: E402
from pairvpr.model import (  # noqa: E402
    PRESETS,
    PairVPR,
    default_checkpoint,
    load_checkpoint,
    save_checkpoint,
    seeded_checkpoint,
)


def hollow_checkpoint(layout: dict[str, list[int]], path, stage_one=False):
    """A file with a layout's names and shapes that takes no space: every tensor is one stored number."""
    state = {name: torch.full((1,), 0.01).expand(shape) for name, shape in layout.items()}
    torch.save({"model": state, "epoch": 3} if stage_one else state, path)
    return path


def tiny_layout() -> dict[str, list[int]]:
    return json.loads((PARITY / "layouts" / "tiny-decoder.json").read_text())["tensors"]


@pytest.mark.parametrize(
    ("name", "preset", "encoder", "depth"),
    [
        ("vits", "custom", "vit_small_patch14_reg4_dinov2", 12),
        ("vitb-speed", "speed", "vit_base_patch14_reg4_dinov2", 12),
        ("vitl", "custom", "vit_large_patch14_reg4_dinov2", 24),
        ("vitg-performance", "performance", "vit_giant_patch14_reg4_dinov2", 40),
    ],
)
def test_every_published_layout_loads(name, preset, encoder, depth, tmp_path):
    layout = json.loads(shared(f"parity/layouts/{name}.json").read_text())["tensors"]
    loaded = load_checkpoint(hollow_checkpoint(layout, tmp_path / "published.pth"))
    config = loaded.network.config
    assert (config.preset, config.encoder, config.image_size) == (preset, encoder, 322)
    assert len(loaded.network.encoder.vit.blocks) == depth
    assert "non-commercial" in loaded.weights.licence
    assert loaded.weights.origin == "published.pth"
    assert not loaded.network.training


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        (None, "module."),
        (None, "_orig_mod."),
        ("state_dict", "model."),
        ("model_state_dict", ""),
        ("model", "module."),
    ],
)
def test_checkpoints_of_wrapped_networks_load(key, prefix, tmp_path):
    path = hollow_checkpoint({prefix + name: shape for name, shape in tiny_layout().items()}, tmp_path / "a.pth")
    if key is not None:
        torch.save({key: torch.load(path, weights_only=True), "optimizer": {"state": {}}, "epoch": 3}, path)
    assert load_checkpoint(path).network.config.encoder == "vit_small_patch14_reg4_dinov2"


def test_several_state_dicts_are_not_guessed_from(tmp_path):
    path = hollow_checkpoint(tiny_layout(), tmp_path / "a.pth")
    state = torch.load(path, weights_only=True)
    torch.save({"student": state, "teacher": state}, path)
    with pytest.raises(CheckpointError, match=r"holds several state dicts \(student, teacher\)"):
        load_checkpoint(path)


def test_register_free_layout_loads(tmp_path):
    layout = {k: v for k, v in tiny_layout().items() if "register" not in k}
    network = PairVPR.from_checkpoint(hollow_checkpoint(layout, tmp_path / "free.pth"))
    assert network.config.encoder == "vit_small_patch14_dinov2"
    assert network.config.position_resize == "offset"
    assert network.encoder.vit.pos_embed.shape == (1, 1370, 384)


def test_stage_one_file_loads_without_a_class_token(tmp_path):
    layout = json.loads((PARITY / "layouts" / "tiny-decoder-stage-one.json").read_text())["tensors"]
    network = PairVPR.from_checkpoint(hollow_checkpoint(layout, tmp_path / "one.pth", stage_one=True))
    assert network.config.pair_classifier is False
    assert network.decoder.class_token is None


def test_own_format_round_trip(tmp_path):
    before = seeded_checkpoint("nano")
    save_checkpoint(before, tmp_path / "own.safetensors")
    after = load_checkpoint(tmp_path / "own.safetensors")
    assert after.network.config == before.network.config
    assert after.weights == before.weights
    expected = before.network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in after.network.state_dict().items())
    assert {file.name for file in tmp_path.iterdir()} == {"own.json", "own.safetensors"}
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1  # whoever reads one reads the other


def test_seeded_weights_are_the_same_each_time_and_differ_by_seed():
    first, second, other = (seeded_checkpoint("nano", seed).network.descriptor.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert seeded_checkpoint("nano").weights.trained is False


@pytest.mark.parametrize("preset", ["nano", "edge"])
def test_presets_build_and_answer(preset):
    network = seeded_checkpoint(preset).network
    side = PRESETS[preset].image_size
    with torch.no_grad():
        descriptors, tokens = network.encode(torch.randint(0, 255, (2, side, side, 3), dtype=torch.uint8))
        scores = network.score(tokens[:1], tokens)
    assert descriptors.shape == (2, PRESETS[preset].descriptor_dim)
    assert torch.isfinite(scores).all()


def broken(change):
    """The tiny layout with a change made to it."""
    layout = tiny_layout()
    change(layout)
    return layout


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("dec_blocks.1.norm_y.bias"), "1 missing: dec_blocks.1.norm_y.bias"),
        (lambda t: t.pop("encoder.model.norm.weight"), "encoder.model.norm.weight"),
        (lambda t: t.update(surprise=[3]), "1 unexpected: surprise"),
        (lambda t: t.update({"dec_norm.weight": [100]}), r"dec_norm.weight \(100,\) instead of \(192,\)"),
        (lambda t: t.pop("decoder_embed.weight"), "decoder_embed.weight is missing"),
        (lambda t: t.pop("encoder.model.cls_token"), "give a Pair-VPR checkpoint"),
        (lambda t: t.update({"encoder.model.cls_token": [1, 1, 500]}), "no DINOv2 encoder is 500 wide"),
        (lambda t: [t.pop(k) for k in list(t) if k.startswith("dec_blocks")], "no decoder blocks"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, told, tmp_path):
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(hollow_checkpoint(broken(change), tmp_path / "x.pth"))


def test_nan_weights_are_refused(tmp_path):
    state = {name: torch.zeros(1).expand(shape) for name, shape in tiny_layout().items()}
    state["dec_norm.bias"] = torch.full((192,), float("nan"))
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(CheckpointError, match=r"NaN.*dec_norm.bias"):
        load_checkpoint(tmp_path / "nan.pth")


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


def test_pickles_with_code_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Evil()}))
    torch.save({"model": Evil()}, tmp_path / "zip.pth")
    for name in ("plain.pth", "zip.pth"):
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_files_are_refused(share, checkpoint_of, tmp_path):
    content = checkpoint_of("tiny-decoder").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        load_checkpoint(tmp_path / "cut.pth")


@pytest.mark.parametrize("content", [{"model": 3}, [1, 2], {"a": "text"}, torch.zeros(3)])
def test_files_that_are_not_checkpoints_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "else.pth")
    with pytest.raises(CheckpointError, match=r"else\.pth"):
        load_checkpoint(tmp_path / "else.pth")


def test_damaged_own_files_are_refused(tmp_path):
    save_checkpoint(seeded_checkpoint("nano"), tmp_path / "own.safetensors")
    whole, described = (tmp_path / "own.safetensors").read_bytes(), (tmp_path / "own.json").read_text()

    (tmp_path / "own.safetensors").write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        load_checkpoint(tmp_path / "own.safetensors")
    (tmp_path / "own.safetensors").write_bytes(whole)

    newer = described.replace('"format": 1', '"format": 2')
    for text, told in [("{", "not a checkpoint description"), ("{}", "not a checkpoint"), (newer, "newer")]:
        (tmp_path / "own.json").write_text(text)
        with pytest.raises(CheckpointError, match=told):
            load_checkpoint(tmp_path / "own.safetensors")
    (tmp_path / "own.json").unlink()
    with pytest.raises(CheckpointError, match=r"own.json: missing"):
        load_checkpoint(tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder", "hf-hub:owner/model"), ("encoder", "local-dir:/tmp"), ("encoder", 5), ("preset", None),
        ("encoder_args", {"checkpoint_path": "/etc/passwd"}), ("encoder_args", {"pretrained": True}),
        ("encoder_args", {"depth": 10**9}), ("encoder_args", {"depth": [6]}), ("encoder_args", []), ("image_size", 0),
        ("decoder_depth", 0), ("decoder_dim", "192"), ("stem", [0]), ("stem", 7), ("position_resize", "none"),
        ("pair_classifier", 1), ("top_k", None), ("extra", 1), ("descriptor_dim", 1e999),
    ],
)  # fmt: skip
def test_values_of_a_description_have_types_and_ranges(key, value, tmp_path):
    save_checkpoint(seeded_checkpoint("nano"), tmp_path / "own.safetensors")
    description = json.loads((tmp_path / "own.json").read_text())
    description["config"][key] = value
    (tmp_path / "own.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="not a checkpoint description"):
        load_checkpoint(tmp_path / "own.safetensors")


@pytest.mark.parametrize("name", ["hf:", "hf:owner", "hf:owner/repo/"])
def test_malformed_hub_names_are_refused(name):
    with pytest.raises(CheckpointError, match="OWNER/REPO/FILE"):
        load_checkpoint(name)


def test_hub_file_is_read_from_the_cache(tmp_path, monkeypatch, checkpoint_of):
    """The hub's own cache layout, without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--CSIRORobotics--Pair-VPR"
    revision = "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(revision)
    (repo / "snapshots" / revision).mkdir(parents=True)
    (repo / "snapshots" / revision / "tiny.pth").symlink_to(checkpoint_of("tiny-decoder"))
    loaded = load_checkpoint("hf:CSIRORobotics/Pair-VPR/tiny.pth")
    assert loaded.weights.origin == "hf:CSIRORobotics/Pair-VPR/tiny.pth"
    with pytest.raises(CheckpointError, match="could not be fetched"):
        load_checkpoint("hf:CSIRORobotics/Pair-VPR/absent.pth")


def test_an_installed_package_says_where_its_checkpoint_is(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    with pytest.raises(CheckpointError) as error:
        default_checkpoint()
    message = str(error.value)
    assert "--checkpoint" in message
    assert "https://github.com/" in message
    assert "\n" not in message
