"""Read checkpoint files: published `.pth` files as they are, our own as safetensors beside JSON."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pairvpr.errors import CheckpointError, one_line
from pairvpr.files import read_member
from pairvpr.model import published
from pairvpr.model.presets import HEAD_DIM, NetworkConfig
from pairvpr.validation import (
    check_bool,
    check_int,
    check_keys,
    check_list,
    check_mapping,
    check_real,
    check_text,
    parse_json,
)

FORMAT = 1
ANCHOR = "encoder.model.cls_token"  # a tensor of every published checkpoint
_LONGEST_DESCRIPTION = 8 << 20  # bytes of the JSON file
_LARGEST_SIZE = 1 << 16
_SIZES = {
    "image_size": 4096,
    "position_grid": 1024,
    "descriptor_dim": _LARGEST_SIZE,
    "decoder_dim": _LARGEST_SIZE,
    "decoder_depth": 100,
    "classifier_dim": _LARGEST_SIZE,
    "top_k": 10**6,
}
"""The largest value of each size."""
_ENCODER = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_LOADING = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable"}
"""Arguments with which timm reads files or fetches."""
SHOWN = 3  # offending tensors that an error names


@dataclass(frozen=True)
class WeightsInfo:
    """Origin and licence of weights, and whether they were ever trained."""

    origin: str
    licence: str
    trained: bool = True


@dataclass(frozen=True)
class CheckpointContent:
    """The content of a checkpoint file.

    tensors: by our names. names: the file's own name of each tensor, for messages.
    """

    file: Path
    config: NetworkConfig
    weights: WeightsInfo
    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]

    def fill(self, network: nn.Module) -> None:
        """Put the tensors into a network built from `config`.

        Raises CheckpointError if a tensor is missing, unknown, of another shape or not finite.
        """
        expected = network.state_dict()
        swiglu = any(".mlp.w12." in name for name in self.names.values())
        own = self.file.suffix == ".safetensors"
        problems: dict[str, list[str]] = {
            "missing": [
                name if own else published.published_name(name, swiglu) for name in expected if name not in self.tensors
            ],
            "unexpected": [self.names[name] for name in self.tensors if name not in expected],
            "of another shape": [
                f"{self.names[name]} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
                for name, tensor in self.tensors.items()
                if name in expected and tensor.shape != expected[name].shape
            ],
        }
        found = "; ".join(
            f"{len(those)} {what}: {', '.join(those[:SHOWN])}{', ...' if len(those) > SHOWN else ''}"
            for what, those in problems.items()
            if those
        )
        if found:
            raise CheckpointError(
                f"{self.file}: does not fit {self.config.encoder} with its decoder: {found}; fetch it again"
            )
        bad = [self.names[name] for name, tensor in self.tensors.items() if not torch.isfinite(tensor).all()]
        if bad:
            raise CheckpointError(
                f"{self.file}: {len(bad)} tensors hold NaN or infinity: {', '.join(bad[:SHOWN])}; fetch it again"
            )
        network.load_state_dict(self.tensors, assign=True)


def read_checkpoint(path: str | Path) -> CheckpointContent:
    """Read a checkpoint: a published `.pth`, one of ours, or `hf:OWNER/REPO/FILE`, which is fetched and cached.

    Raises CheckpointError if the file is missing, damaged or not a checkpoint.
    """
    name = str(path)
    file = _fetch(name) if name.startswith("hf:") else Path(path)
    if not file.is_file():
        raise CheckpointError(f"{name}: no such file; give a .pth or .safetensors checkpoint, or hf:OWNER/REPO/FILE")
    if file.suffix == ".safetensors":
        return _read_own(file)
    return _read_published(file, origin=name if name.startswith("hf:") else file.name)


def _fetch(name: str) -> Path:
    """Return the local file of `hf:OWNER/REPO/FILE`, fetched and cached by huggingface_hub."""
    parts = name.removeprefix("hf:").split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise CheckpointError(f"{name}: not of the form hf:OWNER/REPO/FILE; correct it")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise CheckpointError(f'{name}: needs huggingface_hub; run pip install "pairvpr[export]"') from error
    try:
        return Path(hf_hub_download(repo_id=f"{parts[0]}/{parts[1]}", filename=parts[2]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name}: could not be fetched ({one_line(error)}); download the file elsewhere and give its path"
        ) from error


def _read_own(file: Path) -> CheckpointContent:
    sidecar = file.with_suffix(".json")
    try:
        text = read_member(sidecar.resolve().parent, sidecar.resolve().name, _LONGEST_DESCRIPTION)
        description = check_mapping(parse_json(text), "it", 100)
        number = check_int(description.get("format"), "format", 1, 2**31)
        if number > FORMAT:
            raise CheckpointError(f"{sidecar}: format {number} is newer than this pairvpr reads; upgrade")
        config = _decode_config(description.get("config"))
        weights = _decode_weights(description.get("weights"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{sidecar}: missing; copy it along with {file.name}") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{sidecar}: not a checkpoint description ({one_line(error)}); copy the checkpoint again"
        ) from error
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or truncated ({one_line(error)}); copy the checkpoint again") from error
    return CheckpointContent(file, config, weights, tensors, {name: name for name in tensors})


def _decode_weights(content: object) -> WeightsInfo:
    """Validate origin and licence of weights. Raises ValueError."""
    weights = check_keys(content, "weights", {"origin", "licence"}, {"trained"})
    return WeightsInfo(
        check_text(weights["origin"], "origin"),
        check_text(weights["licence"], "licence"),
        check_bool(weights.get("trained", True), "trained"),
    )


def _decode_config(content: object) -> NetworkConfig:
    """Validate the description of a network. Raises ValueError."""
    every = fields(NetworkConfig)
    required = {each.name for each in every if each.default is MISSING and each.default_factory is MISSING}
    config = dict(check_keys(content, "config", required, {each.name for each in every} - required))
    check_text(config["preset"], "preset", 200)
    # timm would fetch a name that begins with a scheme.
    if not _ENCODER.fullmatch(check_text(config["encoder"], "encoder", 200)):
        raise ValueError("encoder is not the name of a timm model")
    for name, largest in _SIZES.items():
        if name in config:
            check_int(config[name], name, 1, largest)
    if "decoder_dim" in config and config["decoder_dim"] % HEAD_DIM:
        raise ValueError(f"decoder_dim is not a multiple of {HEAD_DIM}")
    if "encoder_args" in config:
        for name, value in check_mapping(config["encoder_args"], "encoder_args", 50).items():
            if name in _LOADING or not isinstance(value, bool | int | float | str | None):
                raise ValueError(f"encoder_args has {name!r:.50}, which it must not have")
            if isinstance(value, int | float):
                check_real(value, name, -_LARGEST_SIZE, _LARGEST_SIZE)
    for channels in check_list(config.get("stem", []), "stem", 0, 16):
        check_int(channels, "stem", 1, _LARGEST_SIZE)
    if config.get("position_resize", "antialias") not in ("antialias", "offset"):
        raise ValueError("position_resize is neither antialias nor offset")
    for name in ("pair_classifier", "late_interaction"):
        if name in config:
            check_bool(config[name], name)
    for name, least in (("mean", -_LARGEST_SIZE), ("std", 1e-9)):
        for value in check_list(config.get(name, [1, 1, 1]), name, 3, 3):
            check_real(value, name, least, _LARGEST_SIZE)
    return NetworkConfig(**config)


def _read_published(file: Path, origin: str) -> CheckpointContent:
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
    return CheckpointContent(file, config, WeightsInfo(origin, published.LICENCE), ours, names)


def _fold_class_position(tensors: dict[str, Tensor]) -> None:
    """Add the class token's position to the class token, because timm's register models keep only the sum."""
    table, class_token = tensors["encoder.vit.pos_embed"], tensors["encoder.vit.cls_token"]
    tensors["encoder.vit.cls_token"] = class_token + table[:, :1]
    tensors["encoder.vit.pos_embed"] = table[:, 1:]


def _read_pickle(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.pth` file: a bare state dict (stage two), or one under a key, as "model" (stage one).

    A prefix that all names share is left out: wrappers add it, as "module." and "_orig_mod.".
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: not a file of plain tensors (it may hold code, which was not run); "
            "give a checkpoint saved as a state dict"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged, truncated or not a checkpoint; fetch it again") from error
    state = _state_dict(content, file)
    prefix = next((name[: -len(ANCHOR)] for name in state if name.endswith(ANCHOR)), "")
    if all(name.startswith(prefix) for name in state):
        state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _state_dict(content: object, file: Path) -> dict[str, Tensor]:
    """Return the state dict that a file holds, itself or one level deep."""
    named: Mapping[object, object] = content if isinstance(content, Mapping) else {}
    held = {str(key): value for key, value in named.items() if _is_state_dict(value)}
    if _is_state_dict(content):
        found: object = content
    elif "model" in held or len(held) == 1:
        found = held["model"] if "model" in held else next(iter(held.values()))
    elif held:
        raise CheckpointError(
            f"{file}: holds several state dicts ({', '.join(sorted(held))}); save the network's alone"
        )
    else:
        raise CheckpointError(f"{file}: holds no state dict; give a published stage-one or stage-two checkpoint")
    assert isinstance(found, Mapping)
    return {str(name): tensor for name, tensor in found.items()}


def _is_state_dict(content: object) -> bool:
    return isinstance(content, Mapping) and len(content) > 0 and all(isinstance(v, Tensor) for v in content.values())
