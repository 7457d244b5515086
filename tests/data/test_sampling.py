"""Test that the order and the random choices depend on seed and position alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from torch.utils.data import DataLoader  # noqa: E402

from pairvpr.data.samples import PairSamples, PlaceSamples, read_pictures  # noqa: E402
from pairvpr.data.sampling import VALIDATION, Draw, EpochOrder, StepBatches  # noqa: E402
from pairvpr.data.transforms import CropAndJitter, Squash, SquashAndAugment, seeded_torch  # noqa: E402
from pairvpr.errors import SourceError  # noqa: E402
from tests.training.support import Scenes, scene  # noqa: E402


def test_an_epoch_shows_every_place_once_group_by_group():
    groups = [3, 5, 2]
    order = EpochOrder(groups, seed=7)
    epochs = [[order.place(epoch * 10 + i) for i in range(10)] for epoch in range(3)]
    city = np.repeat([0, 1, 2], groups)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
        runs = [city[place] for place in epoch]
        assert sum(a != b for a, b in pairwise(runs)) == 2  # no city twice
    assert epochs[0] != epochs[1] != epochs[2]
    assert [EpochOrder(groups, seed=8).place(i) for i in range(10)] != epochs[0]


def test_any_position_can_be_asked_for_at_once():
    order = EpochOrder([11], seed=1)
    walked = [order.place(position) for position in range(50)]
    assert [EpochOrder([11], seed=1).place(position) for position in reversed(range(50))] == walked[::-1]


def batches(first=0, rank=0, processes=1, **more):
    return list(StepBatches(EpochOrder([6, 6], 3), 4, range(first, 8), rank=rank, processes=processes, **more))


def test_batches_resume_from_any_step():
    assert batches(5) == batches()[5:]
    seeds = [draw.seed for batch in batches() for draw in batch]
    assert len(set(seeds)) == len(seeds)
    assert not set(seeds) & {draw.seed for batch in batches(purpose=VALIDATION) for draw in batch}


def test_processes_share_what_one_would_see():
    shares = [batches(rank=rank, processes=2) for rank in (0, 1)]
    assert [one + two for one, two in zip(*shares, strict=True)] == batches()
    with pytest.raises(ValueError, match="cannot be shared"):
        batches(processes=3)


def loaded(samples, workers):
    loader = DataLoader(samples, batch_sampler=StepBatches(EpochOrder([6], 3), 3, range(2)), num_workers=workers,
                        collate_fn=samples.collate)  # fmt: skip
    return list(loader)


@pytest.mark.parametrize("kind", ["pairs", "places"])
def test_workers_change_nothing(kind):
    if kind == "pairs":
        samples = PairSamples(Scenes(6, broken=("2/1",)), CropAndJitter(28), 4, 0.75)
    else:
        samples = PlaceSamples(Scenes(6, broken=("2/1",)), SquashAndAugment(28), 3)
    for alone, helped in zip(loaded(samples, 0), loaded(samples, 2), strict=True):
        for one, two in zip(alone, helped, strict=True):
            assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def test_a_pair_is_two_pictures_and_a_mask():
    samples = PairSamples(Scenes(6), Squash(28), tokens=16, mask_ratio=0.9)
    masked, reference, mask, broken = samples[Draw(2, (0, 1, 5))]
    assert masked.shape == reference.shape == (28, 28, 3)
    assert masked.dtype == torch.uint8
    assert not torch.equal(masked, reference)
    assert (mask.sum(), mask.shape, broken) == (14, (16,), [])
    other = samples[Draw(2, (0, 1, 6))]
    assert not torch.equal(other.mask, mask)


def test_a_place_gives_different_pictures_of_its_own():
    images, labels, _ = PlaceSamples(Scenes(6), Squash(20), count=4)[Draw(3, (0, 1, 2))]
    expected = {Squash(20)(scene(3, visit)).numpy().tobytes() for visit in range(4)}
    assert {image.numpy().tobytes() for image in images} == expected
    assert labels.tolist() == [3, 3, 3, 3]


def test_broken_pictures_are_replaced_by_others_of_the_place():
    places = Scenes(6, broken=("2/0", "2/3"))
    for seed in range(10):
        found = read_pictures(places, 2, 2, np.random.default_rng(seed))
        assert found.place == 2
        assert {p.tobytes() for p in found.pictures} == {scene(2, 1).tobytes(), scene(2, 2).tobytes()}
        assert all(line.startswith(("2/0: ", "2/3: ")) for line in found.broken)


def test_a_place_without_enough_pictures_is_replaced_by_another():
    places = Scenes(6, broken=("2/0", "2/1", "2/3"))
    found = read_pictures(places, 2, 2, np.random.default_rng(0))
    assert found.place != 2
    assert len(found.pictures) == 2
    assert "place 2: 1 readable pictures, 2 needed; another place was taken" in found.broken


def test_data_without_readable_pictures_are_an_error():
    places = Scenes(2, visits=2, broken=("0/0", "0/1", "1/0", "1/1"))
    with pytest.raises(SourceError, match=r"100 places in a row lack 2 readable pictures.*is damaged"):
        read_pictures(places, 0, 2, np.random.default_rng(0))


@pytest.mark.parametrize("kind", [CropAndJitter, SquashAndAugment, Squash])
def test_transforms_give_pictures_of_the_size(kind):
    made = kind(42)(scene(0, 0))
    assert made.shape == (42, 42, 3)
    assert made.dtype == torch.uint8
    assert made.float().std() > 5  # a picture, not a plain colour


def test_seeding_leaves_the_generator_as_it_was():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with seeded_torch(1):
        first = torch.rand(2)
    with seeded_torch(1):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.rand(4), expected)
