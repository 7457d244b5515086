"""The late interaction: what it is by hand, and what a picture scores with itself."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

import torch.nn.functional as F  # noqa: E402

from pairvpr.model import PRESETS  # noqa: E402
from pairvpr.model.checkpoint import seeded  # noqa: E402


def late_network(weight: float):
    network = seeded(PRESETS["nano"], seed=3).network
    with torch.no_grad():
        network.decoder.late.weight.fill_(weight)
    return network


def test_late_interaction_is_the_mean_of_the_best_cosines() -> None:
    late = late_network(7.0).decoder.late
    assert late is not None
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(1, 5, 192, generator=generator), torch.randn(3, 4, 192, generator=generator)
    with torch.no_grad():
        a, b = late.proj(first), late.proj(second)
        for pair in range(3):
            cosines = torch.stack([F.cosine_similarity(a[0, i : i + 1], b[pair]) for i in range(5)])
            forth, back = cosines.amax(dim=1).mean(), cosines.amax(dim=0).mean()
            torch.testing.assert_close(late(first, second)[pair], 7.0 * forth)
            torch.testing.assert_close(late.both(first, second)[pair], 7.0 * (forth + back))


def test_no_picture_is_more_similar_to_a_picture_than_itself() -> None:
    late = late_network(1.0).decoder.late
    assert late is not None
    tokens = torch.randn(40, 49, 192, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = late.both(tokens[:1], tokens)
    torch.testing.assert_close(scores[0], torch.tensor(2.0))
    assert (scores[1:] < 1.9).all()


def test_the_score_is_the_decoders_and_the_late_interactions() -> None:
    without, with_late = late_network(0.0), late_network(4.0)
    tokens = torch.randn(3, 49, 192, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        late = with_late.decoder.late.both(tokens[:1], tokens)
        torch.testing.assert_close(with_late.score(tokens[:1], tokens), without.score(tokens[:1], tokens) + late)


def test_published_networks_have_no_late_interaction() -> None:
    assert not any(config.late_interaction for name, config in PRESETS.items() if name != "nano")
    plain = seeded(dataclasses.replace(PRESETS["nano"], late_interaction=False)).network
    assert plain.decoder.late is None
    assert not any(name.startswith("decoder.late") for name in plain.state_dict())
