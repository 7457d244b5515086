"""Make the initial weights of a run: from the seed, timm's encoder weights, or a checkpoint of either stage."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pairvpr.errors import CheckpointError, TrainingError, one_line
from pairvpr.model import Checkpoint, NetworkConfig, PairVPR, WeightsInfo, load_checkpoint
from pairvpr.model.decoder import PairDecoder
from pairvpr.model.efficientnet_lite import LICENCE as BACKBONE_LICENCE
from pairvpr.model.efficientnet_lite import load_backbone
from pairvpr.model.encoder import Encoder, create_vit
from pairvpr.training.config import ALL_BLOCKS, StageOneConfig, StageTwoConfig

UNSTATED = "not stated by the run that trained it"
SHARPNESS = 2.5
"""Factor of a fresh cross-attention's queries and keys.

A head's logits are 8 * 2.5**2 = 50 times the cosine of two tokens, so a token looks at the few tokens that resemble it.
Of 1.3, 1.8, 2.5 and 3.5, each tried for 20,000 pairs of pictures, 2.5 re-ranked best.
"""


def initial_checkpoint(config: StageOneConfig | StageTwoConfig, teacher: WeightsInfo | None = None) -> Checkpoint:
    """Return the network that a run starts from, with the origin and licence of the weights to come.

    The licence is the configuration's, else the initial weights', else the `teacher`'s.
    Raises TrainingError and CheckpointError.
    """
    network, init = seeded_network(config.network, config.seed), config.init
    origin, licence = f"pairvpr, seed {config.seed}", teacher.licence if teacher else UNSTATED
    if init.checkpoint:
        donor = load_checkpoint(init.checkpoint)
        take_over(network, donor, init.checkpoint)
        origin, licence = f"{donor.weights.origin}; then {origin}", donor.weights.licence
    elif init.pretrained:
        load_pretrained_encoder(network)
        known = f"timm's weights of {config.network.encoder}"
        origin, licence = f"{origin}, encoder from {known}", f"the licence of {known}"
    elif init.backbone:
        load_backbone(network.encoder, config.network, init.backbone)
        origin = f"{origin}, encoder with ImageNet weights from {init.backbone} ({BACKBONE_LICENCE})"
        licence = BACKBONE_LICENCE
    elif config.train.trained_blocks != ALL_BLOCKS:
        raise TrainingError(
            "setting train.trained_blocks: would freeze encoder blocks that never learned; set it to -1, "
            "or start from init.pretrained, init.backbone or init.checkpoint"
        )
    if init.decoder:
        donor = load_checkpoint(init.decoder)
        take_over(network, donor, init.decoder, "decoder.")
        origin = f"{origin}, decoder from {donor.weights.origin} ({donor.weights.licence})"
    if teacher:
        origin = f"{origin}, taught by {teacher.origin} ({teacher.licence})"
    return Checkpoint(network, WeightsInfo(origin, config.licence or licence))


def seeded_network(config: NetworkConfig, seed: int) -> PairVPR:
    """Return a network with fresh weights: timm's initialization for the encoder, MAE's and CroCo's for the rest.

    That is Xavier-uniform matrices, zero biases, and tokens from a normal distribution of deviation 0.02. The decoder
    then starts with `start_matching`.
    Raises TrainingError if the encoder's patches do not fill the picture, CheckpointError if timm cannot make the
    encoder.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = PairVPR(config)
        if config.image_size % network.encoder.patch_size:
            raise TrainingError(
                f"setting network.image_size: must be a multiple of {network.encoder.patch_size}, the side of the "
                f"encoder's patches, is {config.image_size}"
            )
        for part in (network.descriptor, network.decoder):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        hidden = network.encoder.mask_token if isinstance(network.encoder, Encoder) else None
        for token in (hidden, network.decoder.mask_token, network.decoder.class_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        start_matching(network.decoder)
    return network


def start_matching(decoder: PairDecoder) -> None:
    """Initialize a fresh decoder so that each token finds similar tokens of the other picture from the first step.

    Cross-attention starts with keys equal to its queries, and subtracts the tokens that it finds. So tokens that have a
    counterpart cancel (after Trockman & Kolter, ICML 2023, who start self-attention in this way). From Xavier's
    initialization, a small decoder needs many times the pairs to learn to match at all.
    """
    nn.init.orthogonal_(decoder.embed.weight)
    for block in decoder.blocks:
        attention = block.cross_attn
        nn.init.orthogonal_(attention.projq.weight, gain=SHARPNESS)
        nn.init.orthogonal_(attention.projv.weight)
        with torch.no_grad():
            attention.projk.weight.copy_(attention.projq.weight)
            attention.proj.weight.copy_(-attention.projv.weight.T)


def load_pretrained_encoder(network: PairVPR) -> None:
    """Load timm's weights into a network's encoder. Raise CheckpointError if they cannot be fetched.

    timm fits patch embedding and position table to the configuration's sizes.
    """
    from huggingface_hub.errors import HfHubHTTPError

    config = network.config
    if not isinstance(network.encoder, Encoder):
        raise CheckpointError(f"setting init.pretrained: {config.encoder} starts from init.backbone; set that instead")
    if config.stem:
        raise CheckpointError(
            f"setting init.pretrained: timm has no weights of {config.encoder} with a stem; remove init.pretrained or "
            "network.stem"
        )
    try:
        donor = create_vit(config, pretrained=True)
    except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"setting init.pretrained: timm's weights of {config.encoder} could not be fetched ({one_line(error)}); "
            "fetch them on a machine that reaches the Hugging Face hub and copy its cache folder (HF_HOME) here, "
            "or set init.checkpoint"
        ) from error
    network.encoder.vit.load_state_dict(donor.state_dict())


def take_over(network: PairVPR, donor: Checkpoint, source: str, part: str = "") -> None:
    """Load a checkpoint of either stage into a network, or the `part` of it whose names begin with this text.

    The checkpoint may be for pictures of another size. Decoder positions are resized bicubically, and get a class row
    of zeros in front.
    Parameters that a stage-one checkpoint lacks or never trained (class token, classifier, descriptor) stay as they
    are. A class token that stage one does not use is left out.
    source: the checkpoint's name, for messages.
    Raises CheckpointError if encoder or decoder differ.
    """
    state = dict(donor.network.state_dict())
    if not donor.network.config.pair_classifier:
        state = {k: v for k, v in state.items() if not k.startswith(("descriptor.", "decoder.classifier."))}
    expected = network.state_dict()
    positions = resized_positions(state["decoder.positions"], len(expected["decoder.positions"]))
    state["decoder.positions"] = positions
    if "decoder.class_positions" in expected:
        state["decoder.class_positions"] = torch.cat([torch.zeros_like(positions[:1]), positions])
    if not network.config.pair_classifier:
        state = {k: v for k, v in state.items() if k not in ("decoder.class_token", "decoder.class_positions")}
    state = {name: tensor for name, tensor in state.items() if name.startswith(part)}
    needed = ("encoder.", "decoder.blocks.")
    lacking = [name for name in expected if name.startswith(part) and name.startswith(needed) and name not in state]
    wrong = [name for name, tensor in state.items() if name not in expected or expected[name].shape != tensor.shape]
    if wrong or lacking:
        raise CheckpointError(
            f"{source}: does not fit the configured network ({(wrong + lacking)[0]}); configure the same encoder "
            "and decoder"
        )
    network.load_state_dict(state, strict=False)


def resized_positions(table: Tensor, tokens: int) -> Tensor:
    """Resize a square table (T, D) bicubically to (tokens, D), as the published code does before stage two."""
    if len(table) == tokens:
        return table
    old, new = round(len(table) ** 0.5), round(tokens**0.5)
    square = table.T.reshape(1, -1, old, old)
    resized = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    return resized.reshape(-1, tokens).T.contiguous()
