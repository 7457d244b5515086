"""What a run is told: one dataclass per stage. Defaults are the published recipe's for ViT-B.

Where the recipe is silent the docstring says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pairvpr.errors import TrainingError
from pairvpr.model.presets import HEAD_DIM, PRESETS, NetworkConfig
from pairvpr.training.losses import PairChoice
from pairvpr.training.settings import Table, above, at_least, between, build, read_table

ALL_BLOCKS = -1


@dataclass(frozen=True)
class SourceConfig:
    """A data set: `places` names it (see `pairvpr.data.open_places`), `arguments` go to it."""

    places: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InitConfig:
    """Where weights start. Without either they are drawn from the seed.

    pretrained: timm's weights for the encoder (DINOv2's for DINOv2 encoders).
    checkpoint: a checkpoint of either stage, ours or published; stage two takes encoder and decoder over from it.
    decoder: another checkpoint, which the decoder is taken from instead.
    """

    pretrained: bool = False
    checkpoint: str = ""
    decoder: str = ""


@dataclass(frozen=True)
class RunConfig:
    """How a run is carried out: nothing here changes what is learnt, so all of it may differ on resuming.

    device: "auto" takes CUDA where there is some. workers: processes that read pictures, for each process that learns,
    at most one for each core.
    *_every: in steps, 0 for never. keep_every: checkpoints that stay beside last and best.
    deterministic: the same bits on a GPU too, at some cost in speed; a CPU needs no asking.
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
        at_least("run.workers", self.workers, 0)
        at_least("run.log_every", self.log_every, 1)
        at_least("run.save_every", self.save_every, 1)
        at_least("run.keep_every", self.keep_every, 0)
        at_least("run.pictures_every", self.pictures_every, 0)


@dataclass(frozen=True)
class OptimizerConfig:
    """What both stages share.

    steps: length of the run; 0 for `epochs` times the places. trained_blocks: how many of the encoder's last
    blocks learn (12 for ViT-L, 20 for ViT-G); what lies before them is frozen; -1 for all of the encoder.
    clip: largest norm of the gradient, 0 for any (3.0 for ViT-L and G). precision: of activations; weights are float32.
    validate_every: steps between validations, of `validate_steps` batches each.
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
        at_least("train.weight_decay", self.weight_decay, 0)
        at_least("train.steps", self.steps, 0)
        at_least("train.trained_blocks", self.trained_blocks, ALL_BLOCKS)
        at_least("train.clip", self.clip, 0)
        at_least("train.validate_every", self.validate_every, 1)
        at_least("train.validate_steps", self.validate_steps, 1)


@dataclass(frozen=True)
class StageOneTrain(OptimizerConfig):
    """Stage one. batch: pairs of a step over all processes (the recipe states none).

    lr: for a batch of 1024, scaled by sqrt(batch / 1024). layer_decay: 0.95 for ViT-L and G, with epochs = 1000.
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
        at_least("train.batch", self.batch, 1)
        at_least("train.warmup_epochs", self.warmup_epochs, 0)
        between("train.layer_decay", self.layer_decay)
        between("train.mask_ratio", self.mask_ratio)


@dataclass(frozen=True)
class StageTwoTrain(OptimizerConfig):
    """Stage two. places: of a step over all processes; each gives `pictures_per_place` pictures.

    decay_steps, decay_to: the learning rate falls linearly to `decay_to` of itself over so many steps.
    warmup_steps: over which it first rises. The recipe, whose encoder has learned before, has none.
    pair_weight: of the pair loss beside the descriptor loss; with 0 the descriptor learns alone, several times as fast.
    pairs: "hardest" (recipe: batch-hard); "easy": any other picture of the place and of another one, from which a
    decoder learns that cannot compare yet; "ranked": any of the place and others of all ranks of similarity, the
    first ones more often, as re-ranking meets them.
    augmentation: "randaugment" (recipe), or "relight" (ours): crops and changes of light and of the camera, for
    learning from scratch, as strong as `strength` says: 0 to 1.
    order: of places. "groups" (recipe): one group (city, street) after the other, so that a step's places are alike;
    "mixed": from everywhere, which a network needs that cannot tell places apart yet.
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
    augmentation: Literal["randaugment", "relight"] = "randaugment"
    strength: float = 1.0
    order: Literal["groups", "mixed"] = "groups"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("train.places", self.places, 2)
        at_least("train.pictures_per_place", self.pictures_per_place, 1)
        at_least("train.decay_steps", self.decay_steps, 1)
        between("train.decay_to", self.decay_to)
        at_least("train.warmup_steps", self.warmup_steps, 0)
        at_least("train.pair_weight", self.pair_weight, 0)
        if not 0 <= self.strength <= 1:
            raise TrainingError(f"setting train.strength: must be from 0 to 1, is {self.strength}")


@dataclass(frozen=True)
class TeacherConfig:
    """Distillation: a checkpoint to learn from, and the weight of what it teaches beside the labels' losses."""

    checkpoint: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class _Common:
    """What both stages are told. out: the run's folder. licence: of the weights; "" takes over the initial weights'."""

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
            raise TrainingError("setting data: names no data set; add a [[data]] table")
        at_least("seed", self.seed, 0)
        if self.init.pretrained and self.init.checkpoint:
            raise TrainingError("settings init.pretrained and init.checkpoint exclude each other")


@dataclass(frozen=True)
class StageOneConfig(_Common):
    """Stage one: masked image modelling of pairs."""

    train: StageOneTrain = StageOneTrain()


@dataclass(frozen=True)
class StageTwoConfig(_Common):
    """Stage two: descriptor and pair classifier."""

    train: StageTwoTrain = StageTwoTrain()
    teacher: TeacherConfig = TeacherConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train.pictures_per_place == 1 and not self.teacher.checkpoint:
            raise TrainingError("setting train.pictures_per_place: 1 gives no pairs to learn from without a teacher")


def stage_one_config(file: Path, overrides: Sequence[str] = ()) -> StageOneConfig:
    """A stage-one configuration from a TOML file and `a.b=c` overrides; raises TrainingError."""
    return _read(StageOneConfig, file, overrides, pair_classifier=False)


def stage_two_config(file: Path, overrides: Sequence[str] = ()) -> StageTwoConfig:
    """A stage-two configuration from a TOML file and `a.b=c` overrides; raises TrainingError."""
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
    """Raises TrainingError for sizes that make no network; whether patches fit the picture, its encoder knows."""
    for name in (
        "image_size",
        "position_grid",
        "descriptor_dim",
        "decoder_dim",
        "decoder_depth",
        "classifier_dim",
        "top_k",
    ):
        at_least(f"network.{name}", getattr(network, name), 1)
    for number, channels in enumerate(network.stem):
        at_least(f"network.stem.{number}", channels, 1)
    if network.decoder_dim % HEAD_DIM:
        raise TrainingError(
            f"setting network.decoder_dim: must be a multiple of {HEAD_DIM}, the width of a head, "
            f"is {network.decoder_dim}"
        )


def _network_table(table: Table, pair_classifier: bool) -> Table:
    """A preset's settings under those that are given, for the stage's own kind of network."""
    name = table.get("preset", "custom")
    if name not in (*PRESETS, "custom"):
        raise TrainingError(f"setting network.preset: {name!r} is none of {', '.join(PRESETS)}, custom")
    defaults = asdict(PRESETS[name]) if name in PRESETS else {}
    return {"preset": name, **defaults, **table, "pair_classifier": pair_classifier}
