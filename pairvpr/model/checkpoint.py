"""Checkpoints: published `.pth` files as they are, our own as safetensors beside JSON."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import pickle
import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pairvpr.errors import CheckpointError
from pairvpr.model import published
from pairvpr.model.decoder import sincos_positions
from pairvpr.model.network import PairVPR
from pairvpr.model.presets import PRESETS, NetworkConfig

REPOSITORY = "https://github.com/pair-vpr-edge/pair-vpr-edge"
FORMAT = 1
SHOWN = 3  # offending tensors that an error names


@dataclass(frozen=True)
class WeightsInfo:
    """Where weights come from, under which terms, and whether they were ever trained."""

    origin: str
    licence: str
    trained: bool = True


@dataclass(frozen=True)
class Checkpoint:
    """A network in evaluation mode and what is known of its weights."""

    network: PairVPR
    weights: WeightsInfo


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint: a published `.pth`, one of ours, or `hf:OWNER/REPO/FILE`.

    Raises CheckpointError naming the first missing, extra or mis-shaped tensors, or what else is wrong.
    """
    name = str(path)
    file = _fetch(name) if name.startswith("hf:") else Path(path)
    if not file.is_file():
        raise CheckpointError(f"{name}: no such file; give a .pth or .safetensors checkpoint, or hf:OWNER/REPO/FILE")
    if file.suffix == ".safetensors":
        return _load_own(file)
    return _load_published(file, origin=name if name.startswith("hf:") else file.name)


def default_checkpoint() -> Path:
    """Return the path of the checkpoint that the default bundle was exported from.

    An installed wheel leaves this file out, because only PyTorch reads it. Raises CheckpointError there.
    """
    path = Path(str(importlib.resources.files("pairvpr.weights"))) / "nano.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"{path.name}: not part of an installed package; give --checkpoint, or download it and nano.json from "
            f"{REPOSITORY}/tree/main/pairvpr/weights"
        )
    return path


def save_checkpoint(checkpoint: Checkpoint, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `path` (.safetensors), weights in `dtype`, and the JSON beside it, each replaced in one step."""
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: our checkpoints end in .safetensors; choose such a name")
    description = {
        "format": FORMAT,
        "config": dataclasses.asdict(checkpoint.network.config),
        "weights": dataclasses.asdict(checkpoint.weights),
    }
    partial, sidecar = path.with_suffix(".partial"), path.with_suffix(".json.partial")
    state = {k: v.to(dtype).contiguous() for k, v in checkpoint.network.state_dict().items()}
    sidecar.write_text(json.dumps(description, indent=1) + "\n")
    save_file(state, partial)
    partial.chmod(stat.S_IMODE(sidecar.stat().st_mode))  # safetensors' own mode lets nobody else read it
    partial.replace(path)
    sidecar.replace(path.with_suffix(".json"))


def seeded_checkpoint(preset: str, seed: int = 0) -> Checkpoint:
    """A preset's network with seeded, untrained weights: the same everywhere, numpy's generator alone."""
    config = PRESETS.get(preset)
    if config is None:
        raise CheckpointError(f"preset {preset}: unknown; choose one of {', '.join(PRESETS)}")
    return seeded(config, seed)


def seeded(config: NetworkConfig, seed: int = 0) -> Checkpoint:
    """A network of any size with seeded, untrained weights, as `seeded_checkpoint` makes a preset's."""
    with torch.device("meta"):
        network = PairVPR(config)
    state = {
        name: torch.from_numpy(_seeded_tensor(name, tuple(like.shape), seed))
        for name, like in network.state_dict().items()
    }
    positions = sincos_positions(config.decoder_dim, len(state["decoder.positions"]))
    state["decoder.positions"] = positions
    state["decoder.class_positions"] = torch.cat([torch.zeros_like(positions[:1]), positions])
    network.load_state_dict(state, assign=True)
    weights = WeightsInfo(f"seeded, preset {config.preset}, seed {seed}", "Apache-2.0", trained=False)
    return Checkpoint(network.eval(), weights)


def _seeded_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """One tensor, float32, drawn from a generator of its own that its name and the seed decide."""
    rng = np.random.Generator(np.random.Philox(key=(zlib.crc32(name.encode()) << 16) + seed))
    noise = rng.standard_normal(shape, dtype=np.float32)
    leaf = name.rpartition(".")[2]
    if leaf == "weight" and len(shape) == 1:  # norms
        return np.ones(shape, np.float32)
    if leaf == "gamma":  # layer scale
        return np.full(shape, 0.5, np.float32)
    if leaf == "bias":
        return np.zeros(shape, np.float32)
    if leaf == "weight":
        return noise / np.float32(np.prod(shape[1:]) ** 0.5)
    return noise * np.float32(0.02)  # tokens and learned position tables, timm's own scale


def _fetch(name: str) -> Path:
    """The local file of `hf:OWNER/REPO/FILE`, fetched and cached by huggingface_hub."""
    parts = name.removeprefix("hf:").split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise CheckpointError(f"{name}: not of the form hf:OWNER/REPO/FILE")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise CheckpointError(f'{name}: needs huggingface_hub; run pip install "pairvpr[export]"') from error
    try:
        return Path(hf_hub_download(repo_id=f"{parts[0]}/{parts[1]}", filename=parts[2]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name}: could not be fetched ({reason}); download the file elsewhere and give its path"
        ) from error


def _load_own(file: Path) -> Checkpoint:
    sidecar = file.with_suffix(".json")
    try:
        description = json.loads(sidecar.read_text())
        if description["format"] > FORMAT:
            raise CheckpointError(
                f"{sidecar}: format {description['format']} is newer than this pairvpr reads; upgrade"
            )
        config = NetworkConfig(**description["config"])
        weights = WeightsInfo(**description["weights"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{sidecar}: missing; copy it along with {file.name}") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{sidecar}: not a checkpoint description ({error}); copy the checkpoint again"
        ) from error
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or truncated ({error}); copy the checkpoint again") from error
    return Checkpoint(_build(config, tensors, {name: name for name in tensors}, file), weights)


def _load_published(file: Path, origin: str) -> Checkpoint:
    tensors = _read_pickle(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    config = published.infer_config(shapes, str(file))
    names = {published.our_name(name): name for name in tensors}
    if not config.pair_classifier:
        # A stage-one file may still carry an (untrained) class row of the position table.
        names.pop("decoder.class_positions", None)
    ours = {our: tensors[name] for our, name in names.items()}
    if config.position_resize == "antialias":
        _fold_class_position(ours)
    network = _build(config, ours, names, file)
    return Checkpoint(network, WeightsInfo(origin, published.LICENCE))


def _fold_class_position(tensors: dict[str, Tensor]) -> None:
    """Add the class token's position to the class token: timm's register models keep only the sum."""
    table, class_token = tensors["encoder.vit.pos_embed"], tensors["encoder.vit.cls_token"]
    tensors["encoder.vit.cls_token"] = class_token + table[:, :1]
    tensors["encoder.vit.pos_embed"] = table[:, 1:]


def _read_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file: a bare state dict (stage two), or one under "model" (stage one)."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: not a file of plain tensors (it may hold code, and was not run); "
            "give a checkpoint saved as a state dict"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged, truncated or not a checkpoint; fetch it again") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{file}: holds no state dict; give a published stage-one or stage-two checkpoint")
    return {str(name): tensor.float() if tensor.is_floating_point() else tensor for name, tensor in content.items()}


def _build(config: NetworkConfig, tensors: dict[str, Tensor], names: dict[str, str], file: Path) -> PairVPR:
    """The network of `config` holding `tensors` (by our names; `names` gives the file's, for messages)."""
    with torch.device("meta"):
        network = PairVPR(config)
    expected = network.state_dict()
    swiglu = any(".mlp.w12." in name for name in names.values())
    own = file.suffix == ".safetensors"
    problems: dict[str, list[str]] = {
        "missing": [
            name if own else published.published_name(name, swiglu) for name in expected if name not in tensors
        ],
        "unexpected": [names[name] for name in tensors if name not in expected],
        "of another shape": [
            f"{names[name]} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
            for name, tensor in tensors.items()
            if name in expected and tensor.shape != expected[name].shape
        ],
    }
    found = "; ".join(
        f"{len(those)} {what}: {', '.join(those[:SHOWN])}{', ...' if len(those) > SHOWN else ''}"
        for what, those in problems.items()
        if those
    )
    if found:
        raise CheckpointError(f"{file}: does not fit {config.encoder} with its decoder: {found}; fetch it again")
    bad = [names[name] for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise CheckpointError(
            f"{file}: {len(bad)} tensors hold NaN or infinity: {', '.join(bad[:SHOWN])}; fetch it again"
        )
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def network_tensors(network: PairVPR) -> dict[str, Any]:
    """The network's tensors as numpy arrays by name, sorted: what its identity is made of."""
    return {name: tensor.numpy() for name, tensor in sorted(network.state_dict().items())}
