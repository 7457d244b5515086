"""Test both stages: initial weights from a checkpoint, a teacher or timm, and the files of a run."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

from pairvpr.errors import CheckpointError, TrainingError  # noqa: E402
from pairvpr.model import Checkpoint, WeightsInfo, load_checkpoint, save_checkpoint  # noqa: E402
from pairvpr.training.config import InitConfig, stage_two_config  # noqa: E402
from pairvpr.training.distributed import joined_world  # noqa: E402
from pairvpr.training.failures import source_errors  # noqa: E402
from pairvpr.training.initial import (  # noqa: E402
    initial_checkpoint,
    load_pretrained_encoder,
    resized_positions,
    seeded_network,
    take_over,
)
from pairvpr.training.stage_two import plan_stage_two  # noqa: E402
from pairvpr.training.teacher import Teacher  # noqa: E402
from tests.training.support import lines, train, write_config  # noqa: E402
from tests.training.test_schedules import CONFIG  # noqa: E402

INFO = WeightsInfo("a test", "a licence")


def test_stage_two_takes_over_from_stage_one(tmp_path):
    donor = seeded_network(dataclasses.replace(CONFIG, pair_classifier=False), seed=1)
    network = seeded_network(dataclasses.replace(CONFIG, image_size=84), seed=2)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    take_over(network, Checkpoint(donor, INFO), "donor")
    taken, given = network.state_dict(), donor.state_dict()
    fixed = ("decoder.positions", "decoder.class_positions")
    own = ("descriptor.", "decoder.classifier.", "decoder.class_token")
    for name, tensor in taken.items():
        if name not in fixed:
            assert torch.equal(tensor, fresh[name] if name.startswith(own) else given[name]), name
    square = given["decoder.positions"].T.reshape(1, 64, 4, 4)
    expected = torch.nn.functional.interpolate(square, size=(6, 6), mode="bicubic").reshape(64, 36).T
    assert torch.equal(taken["decoder.positions"], expected)
    assert torch.equal(taken["decoder.class_positions"], torch.cat([torch.zeros(1, 64), expected]))


def test_a_decoder_of_another_checkpoint(tmp_path):
    """An encoder that went on learning and a decoder that learned beside it, in another stage."""
    one, two = (
        seeded_network(dataclasses.replace(CONFIG, pair_classifier=kind), i) for i, kind in ((1, True), (2, False))
    )
    for name, network in (("one", one), ("two", two)):
        save_checkpoint(Checkpoint(network, WeightsInfo(name, name)), tmp_path / f"{name}.safetensors")
    init = InitConfig(checkpoint=str(tmp_path / "one.safetensors"), decoder=str(tmp_path / "two.safetensors"))
    config = dataclasses.replace(stage_two_config(write_config(tmp_path, "two")), network=CONFIG, init=init)
    start = initial_checkpoint(config)
    for name, tensor in start.network.state_dict().items():
        if name.startswith(("decoder.blocks.", "encoder.", "descriptor.")):
            assert torch.equal(tensor, (two if name.startswith("decoder.") else one).state_dict()[name]), name
    assert start.weights.licence == "one"
    assert "decoder from two (two)" in start.weights.origin


def test_a_fresh_decoder_finds_counterparts():
    """Every token of a picture looks at itself in a shuffled copy, and what it brings back cancels it."""
    for size in (64, 192):
        decoder = seeded_network(dataclasses.replace(CONFIG, decoder_dim=size), 0).decoder
        tokens = torch.randn(1, 49, size, generator=torch.Generator().manual_seed(0))
        tokens = torch.nn.functional.layer_norm(tokens, (size,))
        for block in decoder.blocks:
            found = block.cross_attn(tokens, *block.memory(tokens[:, torch.randperm(49)]))
            assert (tokens + found).norm() < 0.3 * tokens.norm()
            strange = block.cross_attn(tokens, *block.memory(tokens.flip(-1)))
            assert (tokens + strange).norm() > 0.7 * tokens.norm()


def test_positions_of_the_same_grid_stay():
    table = torch.rand(16, 8)
    assert torch.equal(resized_positions(table, 16), table)


def test_a_donor_that_does_not_fit_is_refused():
    network = seeded_network(CONFIG, 0)
    for change in ({"decoder_depth": 2}, {"decoder_dim": 128}, {"encoder_args": {"patch_size": 14, "depth": 2}}):
        donor = seeded_network(dataclasses.replace(CONFIG, **change), 0)
        with pytest.raises(CheckpointError, match="does not fit the configured network"):
            take_over(network, Checkpoint(donor, INFO), "donor")


def test_both_stages_one_after_the_other(tmp_path):
    first = train("one", write_config(tmp_path, "one", "first"), "run.pictures_every=4", "licence=Apache-2.0")
    with Image.open(tmp_path / "first" / "pictures" / "step-00000008.png") as shown:
        assert shown.size == (4 * 56, 4 * 56)  # four columns, a row for each of four pairs
    checkpoint = first.checkpoint / "network.safetensors"
    second = train(
        "two", write_config(tmp_path, "two", "second"), f"init.checkpoint={checkpoint}", "train.trained_blocks=1"
    )
    weights = load_checkpoint(second.checkpoint / "network.safetensors").weights
    assert weights.licence == "Apache-2.0"
    assert weights.origin == "pairvpr, seed 0, step 8; then pairvpr, seed 0, step 8"
    before, after = (load_checkpoint(run.checkpoint / "network.safetensors").network for run in (first, second))
    assert torch.equal(before.encoder.vit.blocks[0].attn.qkv.weight, after.encoder.vit.blocks[0].attn.qkv.weight)
    assert not torch.equal(before.encoder.vit.blocks[1].attn.qkv.weight, after.encoder.vit.blocks[1].attn.qkv.weight)


@pytest.mark.parametrize(("count", "labelled"), [(2, True), (1, False)])
def test_a_teacher_teaches_with_and_without_labels(tmp_path, count, labelled):
    larger = dataclasses.replace(CONFIG, image_size=70, decoder_depth=2, descriptor_dim=48)
    save_checkpoint(Checkpoint(seeded_network(larger, 3), INFO), tmp_path / "teacher.safetensors")
    settings = [f"teacher.checkpoint={tmp_path / 'teacher.safetensors'}", f"train.pictures_per_place={count}"]
    result = train("two", write_config(tmp_path, "two"), *settings, "train.places=6")
    found = lines(tmp_path / "run")
    assert ("pair_loss" in found[0]) is labelled
    assert all("score_distillation" in line and "similarity_distillation" in line for line in found)
    weights = load_checkpoint(result.checkpoint / "network.safetensors").weights
    assert weights.licence == "a licence"
    assert "taught by a test" in weights.origin


def test_a_teacher_sees_pictures_at_its_own_size(tmp_path):
    larger = dataclasses.replace(CONFIG, image_size=70)
    save_checkpoint(Checkpoint(seeded_network(larger, 3), INFO), tmp_path / "teacher.safetensors")
    config = stage_two_config(write_config(tmp_path, "two"), [f"teacher.checkpoint={tmp_path / 'teacher.safetensors'}"])
    with joined_world("cpu") as world:
        teacher = Teacher(config.teacher, world, CONFIG.descriptor_dim)
        plan = plan_stage_two(config, world, Checkpoint(seeded_network(CONFIG, 0), INFO), teacher)
        with contextlib.closing(plan.batches.training(0)) as batches:
            images = next(batches).images
        assert images.shape[1:3] == (70, 70)
        torch.testing.assert_close(teacher.look(images).descriptors, teacher.network.encode(images)[0])


def test_a_teacher_of_stage_one_is_refused(tmp_path):
    donor = seeded_network(dataclasses.replace(CONFIG, pair_classifier=False), seed=1)
    save_checkpoint(Checkpoint(donor, INFO), tmp_path / "one.safetensors")
    with pytest.raises(TrainingError, match="is a stage-one checkpoint and scores no pairs"):
        train("two", write_config(tmp_path, "two"), f"teacher.checkpoint={tmp_path / 'one.safetensors'}")


def test_a_pupil_learns_from_a_teacher_alone(tmp_path):
    """A few dozen steps on the same pictures bring the pupil closer to its teacher."""
    save_checkpoint(Checkpoint(seeded_network(CONFIG, 3), INFO), tmp_path / "teacher.safetensors")
    settings = [
        f"teacher.checkpoint={tmp_path / 'teacher.safetensors'}",
        "train.pictures_per_place=1",
        "train.places=12",
    ]
    train("two", write_config(tmp_path, "two"), *settings, "train.steps=40", "data.0.arguments.visits=1")
    first, last = (
        sum(line["loss"] for line in part) for part in (lines(tmp_path / "run")[:5], lines(tmp_path / "run")[-5:])
    )
    assert last < 0.7 * first


def test_broken_pictures_are_replaced_counted_and_told(tmp_path, caplog):
    broken = [f"{place}/{visit}" for place in range(12) for visit in (0, 1)]
    train("one", write_config(tmp_path, "one"), f"data.0.arguments.broken={broken}", "run.workers=1")
    told = lines(tmp_path / "run", "broken picture")
    assert 0 < len(told) <= len(broken)
    assert [line["count"] for line in told] == list(range(1, len(told) + 1))
    assert len({line["report"] for line in told}) == len(told)
    assert "is damaged" in caplog.text


def test_broken_pictures_of_the_validation_are_told_too(tmp_path):
    validation = '[[validation]]\nplaces = "tests.training.support:Scenes"\n'
    validation += 'arguments = {count = 6, first = 50, broken = ["50/0", "51/1", "52/2"]}\n'
    train("one", write_config(tmp_path, "one", extra=validation), "train.validate_every=4", "train.steps=4")
    told = lines(tmp_path / "run", "broken picture")
    assert told
    assert all(line["report"].startswith(("50/0", "51/1", "52/2")) for line in told)


def test_data_without_a_readable_picture_stop_the_run(tmp_path):
    broken = [f"{place}/{visit}" for place in range(12) for visit in range(4)]
    with pytest.raises(TrainingError, match="100 places in a row lack 2 readable pictures") as caught:
        train("one", write_config(tmp_path, "one"), f"data.0.arguments.broken={broken}", "run.workers=1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_while_it_hands_over_is_told(fault):
    def batches():
        yield 1
        raise fault

    given = source_errors(batches())
    assert next(given) == 1
    with pytest.raises(TrainingError, match=r"reads pictures died \(.*lower run\.workers"):
        next(given)


@pytest.mark.parametrize("validation", [False, True])
def test_a_worker_that_is_killed_is_told(tmp_path, validation):
    table = "validation" if validation else "data"
    extra = f'[[{table}]]\nplaces = "tests.training.support:Deadly"\narguments = {{count = 4}}\n'
    settings = ["run.workers=1", "train.batch=4", "train.validate_every=1"]
    with pytest.raises(TrainingError, match=r"reads pictures died \(.*lower run\.workers") as caught:
        train("one", write_config(tmp_path, "one", extra=extra), *settings)
    assert "\n" not in str(caught.value)


def test_freezing_what_never_learned_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="would freeze encoder blocks that never learned"):
        train("one", write_config(tmp_path, "one"), "train.trained_blocks=1")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("network.image_size=60", "setting network.image_size: must be a multiple of 14, .* is 60"),
        ("network.encoder_args={depht = 2}", "vit_tiny_patch16_224: timm does not take encoder_args .*'depht'"),
        ("network.encoder_args={num_heads = 5}", "vit_tiny_patch16_224: timm does not take encoder_args .*num_heads"),
        ("network.encoder=vit_of_mine", "encoder vit_of_mine: timm .* has no such model"),
    ],
)
def test_networks_that_cannot_be_made_are_told_in_one_line(tmp_path, override, told):
    with pytest.raises((TrainingError, CheckpointError), match=told) as caught:
        train("two", write_config(tmp_path, "two"), override)
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_fit_the_data_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="has 12 places, but a batch takes 20"):
        train("two", write_config(tmp_path, "two"), "train.places=20")
    with pytest.raises(TrainingError, match="warmup_epochs: are 30 steps, but the run has 8; lower it"):
        train("one", write_config(tmp_path, "one"), "train.warmup_epochs=10")


def test_weights_that_cannot_be_fetched_are_told(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"vit_tiny_patch16_224 could not be fetched.*HF_HOME"):
        load_pretrained_encoder(seeded_network(CONFIG, 0))


def test_pretrained_encoder_weights_are_taken(monkeypatch):
    """timm's own loading, with weights drawn here in place of fetched ones."""
    import timm

    create = timm.create_model

    def fetched(name, pretrained, **args):
        assert pretrained
        torch.manual_seed(9)
        return create(name, pretrained=False, **args)

    network = seeded_network(CONFIG, 0)
    before = network.encoder.vit.blocks[0].attn.qkv.weight.clone()
    monkeypatch.setattr("pairvpr.model.encoder.timm.create_model", fetched)
    load_pretrained_encoder(network)
    assert not torch.equal(network.encoder.vit.blocks[0].attn.qkv.weight, before)


def test_without_pairs_the_descriptor_learns_alone(tmp_path):
    train("two", write_config(tmp_path, "two", "alone"), "train.pair_weight=0", "train.augmentation=relight")
    (line, *_, last) = lines(tmp_path / "alone")
    assert "pair_loss" not in line
    assert line["loss"] == line["descriptor_loss"]
    assert last["step"] == 8
    before = seeded_network(stage_two_config(tmp_path / "alone.toml").network, 0).state_dict()
    after = load_checkpoint(tmp_path / "alone" / "last" / "network.safetensors").network.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert "descriptor.weight" in moved
    assert not any(name.startswith("decoder.") for name in moved)


@pytest.mark.parametrize(("order", "groups"), [("groups", 1), ("mixed", 2)])
def test_a_step_takes_places_of_one_group_or_of_all(tmp_path, order, groups):
    overrides = ["train.places=6", f"train.order={order}"]
    config = stage_two_config(write_config(tmp_path, "two"), overrides)
    with joined_world("cpu") as world:
        plan = plan_stage_two(config, world, Checkpoint(seeded_network(config.network, 0), INFO), None)
        first = next(plan.batches.training(0))
    assert len({int(place) // 6 for place in first.labels}) == groups


def test_the_choice_of_pairs_changes_the_pair_loss_alone(tmp_path):
    hard, easy = (
        train("two", write_config(tmp_path, "two", name), f"train.pairs={name}") for name in ("hardest", "easy")
    )
    assert hard.finished
    assert easy.finished
    first = [lines(tmp_path / name)[0] for name in ("hardest", "easy")]
    assert first[0]["descriptor_loss"] == first[1]["descriptor_loss"]
    assert first[0]["pair_loss"] != first[1]["pair_loss"]


def test_a_network_with_a_stem_learns_saves_and_loads(tmp_path):
    stem = ("network.stem=[8, 8, 16, 16]", "network.encoder_args={depth = 2}", "network.image_size=64")
    train("one", write_config(tmp_path, "one"), *stem)
    saved = tmp_path / "run" / "last" / "network.safetensors"
    assert load_checkpoint(saved).network.config.stem == (8, 8, 16, 16)
    train("two", write_config(tmp_path, "two", "two"), *stem, f"init.checkpoint={saved}")
    assert lines(tmp_path / "two", "finished")
    with pytest.raises(CheckpointError, match="stem"):
        train("two", write_config(tmp_path, "two", "three"), *stem, "init.pretrained=true")
