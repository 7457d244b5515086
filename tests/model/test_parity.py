"""Test that the network computes the same as the published one (seeded weights, golden outputs)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import PARITY, seeded, shared

torch = pytest.importorskip("torch")

from pairvpr.model import PairVPR  # noqa: E402
from pairvpr.runtime.image import load_picture, resize  # noqa: E402

DESCRIPTORS, LOGITS = 1e-4, 1e-3


def pictures(count: int, side: int):
    """Test pictures through the runtime's own preprocessing."""
    drawn = [resize(load_picture(seeded.seeded_image(i)), (side, side)) for i in range(count)]
    return torch.from_numpy(np.stack(drawn))


@pytest.mark.parametrize(
    "layout",
    ["tiny-decoder", pytest.param("vits", marks=pytest.mark.slow), pytest.param("vitb-speed", marks=pytest.mark.slow)],
)
def test_descriptors_tokens_and_logits_agree(layout, checkpoint_of):
    golden_file = PARITY / "golden" / f"{layout}.npz"
    golden = np.load(golden_file if golden_file.exists() else shared(f"parity/golden/{layout}.npz"))
    network = PairVPR.from_checkpoint(checkpoint_of(layout))
    images = pictures(4, int(golden["resolution"]))
    with torch.no_grad():
        _, dense = network.encoder(network.normalise(images))
        descriptors, tokens = network.encode(images)
        query = tokens[:1].expand(4, -1, -1)
        query_first = network.pair_logits(query, tokens)
        database_first = network.pair_logits(tokens, query)
        score = network.score(tokens[:1], tokens)
    np.testing.assert_allclose(descriptors, golden["descriptors"], atol=DESCRIPTORS, rtol=0)
    np.testing.assert_allclose(dense[:, ::97, ::31], golden["dense_head"], atol=DESCRIPTORS, rtol=0)
    np.testing.assert_allclose(dense.mean(dim=(1, 2)), golden["dense_mean"], atol=DESCRIPTORS, rtol=0)
    np.testing.assert_allclose(dense.std(dim=(1, 2)), golden["dense_std"], atol=DESCRIPTORS, rtol=0)
    np.testing.assert_allclose(query_first, golden["score_query_first"], atol=LOGITS, rtol=0)
    np.testing.assert_allclose(database_first, golden["score_database_first"], atol=LOGITS, rtol=0)
    np.testing.assert_allclose(score, golden["score_query_first"] + golden["score_database_first"], atol=LOGITS, rtol=0)


def test_reconstruction_of_stage_one_agrees(checkpoint_of):
    golden = np.load(PARITY / "golden" / "training.npz")
    network = PairVPR.from_checkpoint(checkpoint_of("tiny-decoder-stage-one"))
    images = pictures(6, 224)
    with torch.no_grad():
        prediction = network.reconstruct(images[0::2], torch.from_numpy(golden["stage_one_mask"]), images[1::2])
    np.testing.assert_allclose(prediction[:, ::37, ::29], golden["stage_one_prediction"], atol=1e-4, rtol=0)
