"""Fine-tune a small checkpoint with the recipe of the examples, and export the result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

from pairvpr.cli.main import main  # noqa: E402
from pairvpr.model import Checkpoint, WeightsInfo, load_checkpoint, save_checkpoint  # noqa: E402
from pairvpr.training import stage_two_config  # noqa: E402
from pairvpr.training.initial import seeded_network  # noqa: E402
from tests.scenes import draw_scene  # noqa: E402
from tests.training.support import lines  # noqa: E402

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python reads TOML from 3.11 on")

RECIPE = Path(__file__).resolve().parents[2] / "examples" / "fine_tuning.toml"
SMALL = (
    'network={encoder="vit_tiny_patch16_224", encoder_args={patch_size=14, depth=2}, image_size=56, position_grid=4, '
    "descriptor_dim=32, decoder_dim=64, decoder_depth=2, classifier_dim=32, late_interaction=true}"
)


def settings(*others: str) -> list[str]:
    """Return the options that make the recipe small, and those of `others`."""
    small = ["train.steps=4", "train.validate_every=2", "train.validate_steps=1", "train.places=2", "run.workers=0"]
    return [word for setting in (SMALL, *small, *others) for word in ("--set", setting)]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Drives along 20 places, 20 m from each other, where the recipe has them."""
    monkeypatch.chdir(tmp_path)
    for drive, name in enumerate(("monday", "friday")):
        (tmp_path / "site" / name).mkdir(parents=True)
        poses = ["name,x,y,z,qx,qy,qz,qw"]
        for place in range(20):
            Image.fromarray(draw_scene(place, drive, (60, 80))).save(tmp_path / "site" / name / f"{place}.png")
            poses.append(f"{place}.png,{20 * place},{drive},0,0,0,0,1")
        (tmp_path / "site" / f"{name}.csv").write_text("\n".join(poses))
    return tmp_path


def test_a_checkpoint_is_tuned_on_two_drives_and_exported(site):
    config = stage_two_config(RECIPE, settings()[1::2])
    start = Checkpoint(seeded_network(config.network, 3), WeightsInfo("a start", "a licence"))
    save_checkpoint(start, site / "start.safetensors")
    command = ["train", "stage-two", "--config", str(RECIPE), *settings("init.checkpoint=start.safetensors")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert done.stdout == "runs/site/last/network.safetensors: step 4, finished\n"
    assert [line["step"] for line in lines(site / "runs/site", "validation")] == [2, 4]
    tuned = load_checkpoint(site / "runs/site/best/network.safetensors")
    assert tuned.weights.origin.startswith("a start; then ")
    before, after = start.network.state_dict(), tuned.network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"descriptor.weight", "decoder.embed.weight", "decoder.late.proj.weight"} <= moved
    assert not any(name.startswith("encoder.vit.") for name in moved)  # trained_blocks = 0

    exported = CliRunner().invoke(
        main, ["export", "--checkpoint", "runs/site/best/network.safetensors", "--out", "models/site"]
    )
    assert exported.exit_code == 0, exported.output
    assert json.loads((site / "models/site/bundle.json").read_text())


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ('data.0.arguments.folders=["site/monday"]', "folders must be two or more different folders"),
        ("train.places=5", "setting validation: has 4 places, but a batch takes 5; add pictures or lower train.places"),
        ("train.places=17", "setting data: has 16 places, but a batch takes 17; add pictures or lower train.places"),
    ],
)
def test_a_site_that_does_not_suffice_is_refused_in_one_line(site, setting, told):
    config = stage_two_config(RECIPE, settings()[1::2])
    save_checkpoint(
        Checkpoint(seeded_network(config.network, 3), WeightsInfo("a start", "a licence")), site / "start.safetensors"
    )
    command = ["train", "stage-two", "--config", str(RECIPE)]
    done = CliRunner().invoke(main, [*command, *settings("init.checkpoint=start.safetensors", setting)])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert told in done.stderr
