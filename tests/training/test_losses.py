"""Test the losses of both stages against the published ones (seeded weights, golden values)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import PARITY

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

from pairvpr.data.samples import PairBatch, PlaceBatch  # noqa: E402
from pairvpr.model import PairVPR  # noqa: E402
from pairvpr.training import losses  # noqa: E402
from pairvpr.training.distributed import World  # noqa: E402
from pairvpr.training.stage_one import StageOneObjective  # noqa: E402
from pairvpr.training.stage_two import StageTwoObjective  # noqa: E402
from pairvpr.training.teacher import rotation  # noqa: E402
from tests.model.test_parity import pictures  # noqa: E402

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden():
    return np.load(PARITY / "golden" / "training.npz")


def test_stage_one_agrees(golden, checkpoint_of, monkeypatch):
    network = PairVPR.from_checkpoint(checkpoint_of("tiny-decoder-stage-one"))
    images, mask = pictures(6, 224), torch.from_numpy(golden["stage_one_mask"])
    with torch.no_grad():
        prediction = network.reconstruct(images[0::2], mask, images[1::2])
        monkeypatch.setattr(network, "reconstruct", lambda masked, hidden, reference: prediction)
        loss = StageOneObjective(network)(PairBatch(images[0::2], images[1::2], mask, [])).loss
        # The golden "target" is taken before it is normalised patch by patch; the loss is of the normalised one.
        pixels = losses.patches(network.normalise(images[0::2]), 14)
    np.testing.assert_allclose(prediction[:, ::37, ::29], golden["stage_one_prediction"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(pixels[:, ::37, ::29], golden["stage_one_target"], atol=TOLERANCE, rtol=0)
    assert float(loss) == pytest.approx(float(golden["stage_one_loss"]), abs=TOLERANCE)


def test_stage_two_agrees(golden, checkpoint_of, monkeypatch):
    network = PairVPR.from_checkpoint(checkpoint_of("tiny-decoder"))
    images, labels = pictures(12, network.config.image_size), torch.from_numpy(golden["stage_two_labels"])
    with torch.no_grad():
        descriptors, tokens = network.encode(images)
        monkeypatch.setattr(network, "encode", lambda images: (descriptors, tokens))
        outcome = StageTwoObjective(network, World(), pair_weight=2.0)(PlaceBatch(images, labels, []))
        pairs = losses.hardest_pairs(descriptors, labels)
        positive = network.pair_logits(tokens[pairs.anchors], tokens[pairs.positives])
        negative = network.pair_logits(tokens[pairs.anchors], tokens[pairs.negatives])
    for name, mined in pairs._asdict().items():
        np.testing.assert_array_equal(mined, golden[name], err_msg=name)
    np.testing.assert_allclose(descriptors, golden["stage_two_descriptors"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(positive, golden["positive_logits"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(negative, golden["negative_logits"], atol=TOLERANCE, rtol=0)
    expected = {name: float(golden[f"stage_two_{name}"]) for name in ("global_loss", "pair_loss", "total")}
    assert float(outcome.measures["descriptor_loss"]) == pytest.approx(expected["global_loss"], abs=TOLERANCE)
    assert float(outcome.measures["pair_loss"]) == pytest.approx(expected["pair_loss"], abs=TOLERANCE)
    assert float(outcome.loss) == pytest.approx(expected["total"], abs=TOLERANCE)


def test_unpatch_inverts_patches():
    images = torch.rand(2, 3, 28, 28)
    pixels = losses.patches(images, 14)
    assert torch.equal(losses.unpatch(pixels, 14), images)
    second = images[0, :, :14, 14:]  # the second patch: the first row's right one, colour last
    assert torch.equal(pixels[0, 1].reshape(14, 14, 3), second.permute(1, 2, 0))


def test_target_has_the_unbiased_variance():
    target = losses.reconstruction_target(torch.rand(1, 3, 28, 28), 14)
    assert torch.allclose(target.var(-1, unbiased=True), torch.ones(1, 4), atol=1e-4)


def test_only_hidden_patches_count():
    target, mask = torch.zeros(1, 4, 6), torch.tensor([[True, False, True, False]])
    prediction = torch.tensor([1.0, 100.0, 3.0, 100.0]).reshape(1, 4, 1).expand(1, 4, 6)
    assert float(losses.reconstruction_loss(prediction, target, mask)) == pytest.approx((1 + 9) / 2)


def test_easy_pairs_are_neighbours_of_the_same_place_and_of_another():
    labels = torch.tensor([7, 7, 7, 2, 2, 2, 9, 9, 9])
    anchors, positives, negatives = losses.easy_pairs(labels)
    assert anchors.tolist() == list(range(9))
    assert positives.tolist() == [1, 2, 0, 4, 5, 3, 7, 8, 6]
    assert (labels[negatives] != labels).all()
    assert sorted(negatives.tolist()) == list(range(9))


def test_ranked_negatives_are_of_all_ranks():
    labels = torch.arange(40).repeat_interleave(2)
    descriptors = torch.nn.functional.normalize(torch.randn(80, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    anchors, positives, negatives = losses.choose_pairs(descriptors, labels, "ranked")
    assert torch.equal(positives, losses.easy_pairs(labels).positives)
    similarities = descriptors @ descriptors.T
    ranks = []
    for anchor, negative in zip(anchors, negatives, strict=True):
        others = similarities[anchor][labels != labels[anchor]]
        assert labels[negative] != labels[anchor]
        ranks.append(int((others > similarities[anchor, negative]).sum()) + 1)
    shares = [sum(low <= rank < 2 * low for rank in ranks) / 80 for low in (1, 2, 4, 8, 16, 32)]
    assert all(share == pytest.approx(1 / np.log2(78), abs=0.04) for share in shares)
    assert max(ranks) > 64


def test_a_teacher_is_matched_where_it_is_copied():
    descriptors = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    other = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    assert float(losses.similarity_distillation(descriptors, descriptors)) == pytest.approx(0, abs=1e-6)
    assert float(losses.similarity_distillation(other, descriptors)) > 0.01
    assert float(losses.score_distillation(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 2.0]))) == pytest.approx(2.5)


def test_a_student_that_finds_all_pictures_alike_learns_to_tell_them_apart():
    taught = torch.nn.functional.normalize(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    alike = torch.ones(12, 8, requires_grad=True)
    losses.similarity_distillation(torch.nn.functional.normalize(alike, dim=1), taught).backward()
    step = torch.nn.functional.normalize(-alike.grad, dim=1)
    assert (step @ taught.T).argmax(dim=1).tolist() == list(range(12))


@pytest.mark.parametrize("learnt", [256, 384, 512])
def test_a_teachers_descriptors_fit_another_width(learnt):
    taught = torch.nn.functional.normalize(torch.randn(50, 384, generator=torch.Generator().manual_seed(1)), dim=1)
    turned = torch.nn.functional.normalize(taught @ rotation(384, learnt), dim=1)
    assert turned.shape == (50, learnt)
    error = (turned @ turned.T - taught @ taught.T).abs()
    assert float(error.max()) < (5 / 256**0.5 if learnt < 384 else 1e-5)
    assert torch.equal(rotation(384, learnt), rotation(384, learnt))


def test_accuracy_counts_the_nearest_other_picture():
    descriptors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 0.05]])
    # 0 -> 3 (right), 1 -> 3 or 0 (wrong), 2 -> 1 (right), 3 -> 0 (right)
    assert float(losses.nearest_is_same(descriptors, torch.tensor([0, 1, 1, 0]))) == pytest.approx(0.75)
