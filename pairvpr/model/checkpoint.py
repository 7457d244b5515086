"""Load, save and seed checkpoints."""

from __future__ import annotations

import dataclasses
import importlib.resources
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from pairvpr.errors import CheckpointError
from pairvpr.files import write_atomically
from pairvpr.model.checkpoint_files import FORMAT, WeightsInfo, read_checkpoint
from pairvpr.model.decoder import sincos_positions
from pairvpr.model.network import PairVPR
from pairvpr.model.presets import PRESETS, NetworkConfig
from pairvpr.printing import json_document

REPOSITORY = "https://github.com/pair-vpr-edge/pair-vpr-edge"


@dataclass(frozen=True)
class Checkpoint:
    """A network in evaluation mode, and the origin and licence of its weights."""

    network: PairVPR
    weights: WeightsInfo


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint: a published `.pth`, one of ours, or `hf:OWNER/REPO/FILE`.

    Raises CheckpointError naming the first missing, extra or mis-shaped tensors, or another fault.
    """
    content = read_checkpoint(path)
    return Checkpoint(PairVPR.from_content(content), content.weights)


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
        raise CheckpointError(f"{path}: a checkpoint's name must end in .safetensors; choose such a name")
    description = {
        "format": FORMAT,
        "config": dataclasses.asdict(checkpoint.network.config),
        "weights": dataclasses.asdict(checkpoint.weights),
    }
    state = {k: v.to(dtype).contiguous() for k, v in checkpoint.network.state_dict().items()}
    with write_atomically(path.with_suffix(".json")) as sidecar, write_atomically(path) as weights:
        sidecar.write_text(json_document(description))
        save_file(state, weights)
        weights.chmod(stat.S_IMODE(sidecar.stat().st_mode))  # safetensors' own mode lets nobody else read it


def seeded_checkpoint(preset: str, seed: int = 0) -> Checkpoint:
    """Return a preset's network with untrained weights drawn from a seed.

    numpy's generator alone draws them, so they are the same on every machine. Raises CheckpointError for an unknown
    preset.
    """
    config = PRESETS.get(preset)
    if config is None:
        raise CheckpointError(f"preset {preset}: unknown; choose one of {', '.join(PRESETS)}")
    return seeded(config, seed)


def seeded(config: NetworkConfig, seed: int = 0) -> Checkpoint:
    """Return a network of any configuration with untrained weights drawn from a seed, as `seeded_checkpoint`."""
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


def _seeded_tensor(name: str, shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Return one tensor, float32, drawn from a generator that its name and the seed determine."""
    rng = np.random.Generator(np.random.Philox(key=(zlib.crc32(name.encode()) << 16) + seed))
    noise: npt.NDArray[np.float32] = rng.standard_normal(shape, dtype=np.float32)
    leaf = name.rpartition(".")[2]
    if leaf == "weight" and len(shape) == 1:  # norms
        return np.ones(shape, np.float32)
    if leaf == "gamma":  # layer scale
        return np.full(shape, 0.5, np.float32)
    if leaf == "bias":
        return np.zeros(shape, np.float32)
    if leaf == "weight":
        noise /= np.float32(np.prod(shape[1:]) ** 0.5)
    else:
        noise *= np.float32(0.02)  # tokens and learned position tables, timm's own scale
    return noise
