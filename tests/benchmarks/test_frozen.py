"""What is fitted to cached features: main components, tokens that keep cosines, a faster way to the same logits."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("pytorch_metric_learning")

import torch.nn.functional as F  # noqa: E402

from benchmarks.frozen import (  # noqa: E402
    fit_descriptor,
    fit_tokens,
    list_loss,
    pair_logits,
    principal,
    spherical_k_means,
)
from pairvpr.model import PRESETS, seeded_checkpoint  # noqa: E402
from pairvpr.model.checkpoint import seeded  # noqa: E402


def test_the_descriptor_is_the_main_components_half_whitened() -> None:
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(30, 30, generator=generator)).Q
    scales = torch.linspace(4.0, 0.1, 30)
    aggregates = torch.randn(4000, 30, generator=generator) * scales @ turn + 7.0
    descriptor = torch.nn.Linear(30, 5)
    fit_descriptor(descriptor, aggregates, torch.ones(4000))
    projected = descriptor(aggregates)
    covariance = projected.T @ projected / len(projected)
    torch.testing.assert_close(projected.mean(dim=0), torch.zeros(5), atol=1e-3, rtol=0)
    # Half whitened: the variance of a component is the square root of what it was.
    torch.testing.assert_close(covariance.diagonal(), scales[:5], rtol=0.1, atol=0)
    off = covariance - covariance.diagonal().diag()
    assert off.abs().max() < 1e-2


def test_a_sample_of_twice_the_weight_counts_as_two() -> None:
    generator = torch.Generator().manual_seed(1)
    aggregates = torch.randn(20, 6, generator=generator)
    weights = torch.ones(20)
    weights[:5] = 2.0
    weighted, repeated = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)
    fit_descriptor(weighted, aggregates, weights)
    fit_descriptor(repeated, torch.cat([aggregates, aggregates[:5]]), torch.ones(25))
    signs = (weighted.weight * repeated.weight).sum(dim=1).sign()
    torch.testing.assert_close(weighted.weight * signs[:, None], repeated.weight, atol=1e-4, rtol=1e-4)


def test_too_few_pictures_for_a_descriptor_are_refused() -> None:
    with pytest.raises(ValueError, match="5 pictures do not decide 8 components"):
        fit_descriptor(torch.nn.Linear(20, 8), torch.randn(5, 20), torch.ones(5))


def test_embedded_tokens_keep_cosines_and_late_interaction_prefers_near_counterparts() -> None:
    decoder = seeded_checkpoint("nano").network.decoder
    assert decoder.late is not None
    generator = torch.Generator().manual_seed(2)
    basis = torch.randn(150, decoder.embed.in_features, generator=generator)  # fewer directions than are kept
    tokens = F.normalize(torch.randn(500, 150, generator=generator) @ basis, dim=-1)
    fit_tokens(decoder, tokens, torch.ones(500))
    ready = decoder.tokens(tokens[:49][None])
    same_place = decoder.late.similarities(ready, ready)[0].diagonal()
    torch.testing.assert_close(same_place, torch.ones(49))
    # What a token shows does not depend on where it stands, but for the wave of its position.
    alone = decoder.embed(tokens[:1]) + decoder.positions
    by_distance = decoder.late.similarities(alone[None], alone[None])[0, 0, :7].detach()
    assert (by_distance.diff() < 0).all()
    assert 0.97 < float(by_distance[3]) < 0.99


def test_fast_logits_are_the_networks() -> None:
    config = dataclasses.replace(PRESETS["nano"], decoder_depth=3)
    network = seeded(config).network
    assert network.decoder.late is not None
    query, candidates = torch.randn(2, 49, 192), torch.randn(2, 3, 49, 192)
    with torch.no_grad():
        network.decoder.late.weight.fill_(5.0)
        for query_first in (True, False):
            fast = pair_logits(network.decoder, query, candidates, query_first)
            for i in range(2):
                asked = query[i : i + 1].expand(3, -1, -1)
                pair = (asked, candidates[i]) if query_first else (candidates[i], asked)
                torch.testing.assert_close(fast[i], network.pair_logits(*pair), atol=1e-4, rtol=1e-4)


def test_list_loss_is_least_for_the_order_of_relevance() -> None:
    relevance = torch.tensor([[1.0, 0.6, 0.0, 0.0]])
    good, swapped = torch.tensor([[3.0, 2.5, -4.0, -4.0]]), torch.tensor([[2.5, -4.0, 3.0, -4.0]])
    assert list_loss(good, relevance) < list_loss(swapped, relevance)


def test_k_means_finds_groups_and_leaves_no_centre_empty() -> None:
    generator = torch.Generator().manual_seed(3)
    groups = torch.eye(4)
    samples = F.normalize(groups.repeat(50, 1) + 0.05 * torch.randn(200, 4, generator=generator), dim=-1)
    centres = spherical_k_means(samples, 16, generator)
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(16))
    assert {int(row.argmax()) for row in centres} == {0, 1, 2, 3}
    assert (samples @ centres.T).amax(dim=1).mean() > 0.98
    directions, variances = principal(samples, 2)
    assert directions.shape == (2, 4)
    assert variances[0] >= variances[1]
