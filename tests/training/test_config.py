"""Test configurations: reading, overrides, errors of one line, and writing."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

from pairvpr.errors import TrainingError
from pairvpr.training.config import stage_one_config, stage_two_config
from pairvpr.training.settings import write_toml
from tests.training.support import write_config

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python reads TOML from 3.11 on")

MINIMAL = 'out = "run"\n[network]\npreset = "nano"\n[[data]]\nplaces = "folders"\narguments = {root = "x"}\n'


@pytest.fixture
def minimal(tmp_path):
    file = tmp_path / "minimal.toml"
    file.write_text(MINIMAL)
    return file


def test_defaults_are_the_recipe(minimal):
    one, two = stage_one_config(minimal).train, stage_two_config(minimal).train
    assert (one.lr, one.min_lr, one.weight_decay, one.final_weight_decay) == (3e-4, 1e-6, 0.04, 0.4)
    assert (one.epochs, one.warmup_epochs, one.layer_decay, one.patch_embed_lr, one.mask_ratio) == (
        500,
        10,
        0.9,
        0.2,
        0.9,
    )
    assert (two.lr, two.weight_decay, two.decay_to, two.decay_steps, two.epochs) == (8e-5, 0.05, 0.2, 6225, 10)
    assert (two.places, two.pictures_per_place, two.pair_weight) == (100, 4, 2.0)
    assert one.trained_blocks == two.trained_blocks == 6


def test_stages_make_their_own_kind_of_network(minimal):
    assert stage_one_config(minimal).network.pair_classifier is False
    assert stage_one_config(minimal).network.preset == "nano"
    assert stage_two_config(minimal).network.pair_classifier is True
    changed = stage_two_config(minimal, ["network.image_size=192"]).network
    assert (changed.preset, changed.image_size, changed.decoder_dim) == ("custom", 192, 192)


def test_overrides_reach_everywhere(minimal):
    config = stage_one_config(
        minimal,
        [
            "train.lr=1e-3",
            "train.batch = 64",
            "data.0.arguments.root=/data/a b",
            "run.device=cpu",
            "init.pretrained=true",
        ],
    )
    assert (config.train.lr, config.train.batch, config.run.device) == (1e-3, 64, "cpu")
    assert config.data[0].arguments == {"root": "/data/a b"}
    assert config.init.pretrained is True
    assert stage_one_config(minimal, ["train.epochs=5"]).train.epochs == 5.0


@pytest.mark.parametrize("stage", ["one", "two"])
def test_written_and_read_again_is_the_same(stage, tmp_path):
    read = stage_one_config if stage == "one" else stage_two_config
    odd = r"""licence = 'quotes " and \ and ü and 😀'""" + "\n"
    file = write_config(tmp_path, stage)
    file.write_text(odd + file.read_text())
    config = read(file)
    file.write_text(write_toml(config))
    assert read(file) == config


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.batch=many", "setting train.batch: must be a whole number, is 'many'"),
        ("train.batch=1.5", "setting train.batch: must be a whole number, is 1.5"),
        ("train.batch=true", "setting train.batch: must be a whole number, is True"),
        ("train.batch=0", "setting train.batch: must be at least 1, is 0"),
        ("train.lr=fast", "setting train.lr: must be a number, is 'fast'"),
        ("train.lr=nan", "setting train.lr: must be above 0, is nan"),
        ("train.mask_ratio=1.2", "setting train.mask_ratio: must be above 0 and at most 1"),
        ("train.learning=1", "setting train.learning: unknown; .*"),
        ("train.bach=1", "setting train.bach: unknown; did you mean batch"),
        ("trian.batch=1", "setting trian: unknown; did you mean train"),
        ("run.device=tpu", "setting run.device: 'tpu' is unknown; set one of 'auto', 'cpu', 'cuda'"),
        ("run.workers=-1", "setting run.workers: must be at least 0"),
        ("network.preset=huge", "setting network.preset: 'huge' is unknown; set one of nano"),
        ("network.image_size=0", "setting network.image_size: must be at least 1, is 0"),
        ("network.position_grid=0", "setting network.position_grid: must be at least 1"),
        ("network.descriptor_dim=0", "setting network.descriptor_dim: must be at least 1"),
        ("network.decoder_depth=0", "setting network.decoder_depth: must be at least 1"),
        ("network.decoder_dim=100", "setting network.decoder_dim: must be a multiple of 64, .* is 100"),
        ("network.stem=[8, 0]", "setting network.stem.1: must be at least 1"),
        ("network=nano", "setting network: must be a table, is 'nano'"),
        ("data=x", "setting data: must be a list"),
        ("data=[]", "setting data: no data set is given"),
        ("data.1.places=x", "1 is not an index of a list of 1 items"),
        ("data.0.places.x=1", "data.0.places.x is not in a table"),
        ("out=3", "setting out: must be a path, is 3"),
        ("batch", "--set batch: not of the form a.b=value"),
        ("a..b=1", "not of the form"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(minimal, override, told):
    with pytest.raises(TrainingError, match=told) as caught:
        stage_one_config(minimal, [override])
    assert "\n" not in str(caught.value)


def test_bad_files_are_told(tmp_path):
    with pytest.raises(TrainingError, match=r"absent\.toml: cannot be read"):
        stage_one_config(tmp_path / "absent.toml")
    for text, told in [("out = ", "not valid TOML"), ("out = 'x'", "setting network: missing")]:
        (tmp_path / "x.toml").write_text(text)
        with pytest.raises(TrainingError, match=told):
            stage_one_config(tmp_path / "x.toml")


def test_contradictions_are_refused(minimal):
    with pytest.raises(TrainingError, match="exclude each other"):
        stage_one_config(minimal, ["init.pretrained=true", "init.checkpoint=a.pth"])
    with pytest.raises(TrainingError, match=r"set it to 2 or more, or set teacher\.checkpoint"):
        stage_two_config(minimal, ["train.pictures_per_place=1"])
