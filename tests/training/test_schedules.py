"""Test rates against plain formulas, frozen parameters, and the rates of the others."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

from pairvpr.errors import TrainingError  # noqa: E402
from pairvpr.model import NetworkConfig  # noqa: E402
from pairvpr.training.initial import seeded_network  # noqa: E402
from pairvpr.training.schedules import (  # noqa: E402
    StageOneSchedule,
    StageTwoSchedule,
    apply_rates,
    freeze,
    parameter_groups,
)

CONFIG = NetworkConfig(
    preset="custom",
    encoder="vit_tiny_patch16_224",
    encoder_args={"patch_size": 14, "depth": 4},
    image_size=56,
    position_grid=4,
    descriptor_dim=32,
    decoder_dim=64,
    decoder_depth=1,
)


@pytest.fixture
def network():
    return seeded_network(CONFIG, 0)


def test_stage_one_warms_up_and_follows_half_a_cosine():
    schedule = StageOneSchedule(lr=1.0, min_lr=0.1, weight_decay=0.04, final_weight_decay=0.4, warmup=10, steps=110)
    assert [schedule(step).lr for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule(10).lr == pytest.approx(1.0)
    assert schedule(60).lr == pytest.approx(0.55)
    assert schedule(35).lr == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert schedule(110).lr == pytest.approx(0.1)
    assert schedule(0).weight_decay == pytest.approx(0.04)
    assert schedule(55).weight_decay == pytest.approx(0.22)
    assert schedule(110).weight_decay == pytest.approx(0.4)


def test_stage_two_falls_in_a_line_and_stays():
    schedule = StageTwoSchedule(lr=8e-5, weight_decay=0.05, decay_to=0.2, decay_steps=6225)
    weights = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(weights, lr=8e-5)
    published = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1, end_factor=0.2, total_iters=6225)
    for step in range(0, 7000):
        if step % 500 == 0:
            assert schedule(step).lr == pytest.approx(published.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        published.step()
    assert schedule(7000).lr == pytest.approx(1.6e-5)
    assert schedule(7000).weight_decay == 0.05
    warm = replace(schedule, warmup=4)
    assert [warm(step).lr / schedule(step).lr for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def rates_by_name(network, layer_decay, patch_embed):
    groups = parameter_groups(network, layer_decay, patch_embed)
    apply_rates(groups, StageTwoSchedule(lr=1.0, weight_decay=0.5, decay_to=1.0, decay_steps=1)(0))
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_rates_fall_layer_by_layer(network):
    freeze(network, "one", -1)
    rates = rates_by_name(network, 0.9, 0.2)
    expected = {
        "encoder.vit.patch_embed.proj.weight": (0.2 * 0.9**5, 0.5),
        "encoder.vit.patch_embed.proj.bias": (0.2 * 0.9**5, 0.0),
        "encoder.vit.pos_embed": (0.9**5, 0.0),
        "encoder.vit.cls_token": (0.9**5, 0.0),
        "encoder.mask_token": (0.9**5, 0.0),
        "encoder.vit.blocks.0.mlp.fc1.weight": (0.9**4, 0.5),
        "encoder.vit.blocks.3.mlp.fc1.weight": (0.9, 0.5),
        "encoder.vit.blocks.3.norm1.weight": (0.9, 0.0),
        "encoder.vit.norm.weight": (1.0, 0.0),
        "decoder.embed.weight": (1.0, 0.5),
        "decoder.blocks.0.attn.qkv.bias": (1.0, 0.0),
        "decoder.reconstruction.weight": (1.0, 0.5),
    }
    assert {name: rates[name] for name in expected} == {name: pytest.approx(pair) for name, pair in expected.items()}


def test_every_parameter_that_learns_is_in_one_group(network):
    freeze(network, "two", 2)
    names = [name for group in parameter_groups(network) for name in group["names"]]
    assert sorted(names) == sorted(name for name, p in network.named_parameters() if p.requires_grad)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("stage", "trained", "learning"), [("one", 2, {2, 3}), ("two", 1, {3}), ("two", 0, set())])
def test_blocks_before_the_trained_ones_are_frozen(network, stage, trained, learning):
    freeze(network, stage, trained)
    learns = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {int(name.split(".")[3]) for name in learns if name.startswith("encoder.vit.blocks.")} == learning
    assert not learns & {"encoder.vit.pos_embed", "encoder.vit.cls_token", "encoder.vit.patch_embed.proj.weight"}
    assert ("encoder.vit.norm.weight" in learns) == bool(trained)
    assert ("encoder.mask_token" in learns) == (stage == "one")
    assert ("decoder.reconstruction.weight" in learns) == (stage == "one")
    assert ("decoder.classifier.0.weight" in learns) == ("descriptor.weight" in learns) == (stage == "two")


def test_more_blocks_than_there_are_is_refused(network):
    with pytest.raises(TrainingError, match="is 5, but the encoder has 4 blocks"):
        freeze(network, "one", 5)


@pytest.mark.parametrize("stage", ["one", "two"])
def test_every_trained_parameter_gets_a_gradient(network, stage):
    """DDP waits for the gradient of every parameter that asks for one."""
    from pairvpr.data.samples import PairBatch, PlaceBatch
    from pairvpr.training.distributed import World
    from pairvpr.training.stage_one import StageOneObjective
    from pairvpr.training.stage_two import StageTwoObjective

    freeze(network, stage, -1)
    images = torch.randint(0, 255, (4, 56, 56, 3), dtype=torch.uint8)
    if stage == "one":
        outcome = StageOneObjective(network)(PairBatch(images, images.flip(0), torch.rand(4, 16) < 0.5, []))
    else:
        outcome = StageTwoObjective(network, World(), 2.0)(PlaceBatch(images, torch.tensor([0, 0, 1, 1]), []))
    outcome.loss.backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
