"""Inverted lists find what they promise, and what they find is what the exact search in float16 finds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pairvpr.runtime.inverted_lists import WANTED, InvertedLists, ListRecall, sort_into_lists
from pairvpr.runtime.search import FaissIndex

Array = npt.NDArray[np.float32]
PLACES, VISITS, DIM = 60, 100, 32


def clusters(seed: int, places: int = PLACES, visits: int = VISITS) -> Array:
    """Descriptors of some places, each seen often."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((places, 1, DIM), np.float32)
    found = (centres + 0.3 * random.standard_normal((places, visits, DIM), np.float32)).reshape(-1, DIM)
    found = found[random.permutation(len(found))]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def descriptors() -> Array:
    return clusters(0)


@pytest.fixture(scope="module")
def sorted_(descriptors: Array) -> tuple[InvertedLists, ListRecall]:
    found = sort_into_lists(descriptors)
    assert found is not None
    return found


def test_the_recall_is_that_of_a_plain_search(descriptors: Array, sorted_: tuple[InvertedLists, ListRecall]) -> None:
    lists, recall = sorted_
    assert recall.at_100 >= WANTED - 0.02
    assert 0 < recall.compared < 0.5
    assert recall.queries == 250
    # By plain loops: all similarities, and the lists that are nearest to the query.
    shares, compared = [], []
    rows = np.linspace(0, len(descriptors) - 1, 500).round().astype(int)[1::2]
    for row in rows:
        similarities = descriptors @ descriptors[row]
        similarities[row] = -2
        probed = np.argsort(-(lists.centroids @ descriptors[row]))[: lists.probes]
        held = np.isin(lists.assigned, probed)
        nearest = np.argsort(-similarities)[:100]
        shares.append(held[nearest].mean())
        compared.append(held.mean())
    assert recall.at_100 == pytest.approx(np.mean(shares), abs=2e-3)
    assert recall.compared == pytest.approx(np.mean(compared), abs=1e-5)


def test_similarities_are_those_of_the_exact_float16_search(
    descriptors: Array, sorted_: tuple[InvertedLists, ListRecall]
) -> None:
    lists, _ = sorted_
    index, exact = FaissIndex(descriptors, "float16", lists), FaissIndex(descriptors, "float16")
    for query in clusters(0)[:20, None]:
        wanted = dict(zip(*reversed(exact.search(query, len(descriptors))), strict=True))
        similarities, rows = index.search(query, 50)
        assert [wanted[row] for row in rows] == similarities.tolist()
        assert rows.tolist() == sorted(rows.tolist(), key=lambda row: (-wanted[row], row))
    for found, right in zip(index.search(query, len(descriptors)), exact.search(query, len(descriptors)), strict=True):
        np.testing.assert_array_equal(found, right)  # more than the probed lists hold


def test_equal_descriptors_come_in_the_order_of_their_rows(sorted_: tuple[InvertedLists, ListRecall]) -> None:
    lists, _ = sorted_
    twice = np.tile(clusters(3, places=4, visits=1), (30, 1))  # each one 30 times
    assigned = np.argmax(twice @ lists.centroids.T, axis=1)
    index = FaissIndex(twice, "float16", InvertedLists(lists.centroids, assigned, 1))
    _, rows = index.search(twice[:1], 7)
    assert rows.tolist() == list(range(0, 28, 4))


def test_added_pictures_are_compared_and_removed_ones_are_not(
    descriptors: Array, sorted_: tuple[InvertedLists, ListRecall]
) -> None:
    lists, _ = sorted_
    index, new = FaissIndex(descriptors, "float16", lists), clusters(9, 8, 10)
    removed = np.array([0, 7, 4000])
    changed = index.updated(removed, new[:40]).updated(np.array([1]), new[40:])
    left = np.delete(np.concatenate([np.delete(descriptors, removed, axis=0), new[:40]]), 1, axis=0)
    left = np.concatenate([left, new[40:]])
    assert len(changed) == len(left)
    exact = FaissIndex(left, "float16")
    for query in (new[:1], new[60:61], descriptors[7:8]):
        for k in (30, len(left)):
            found = changed.search(query, k)
            assert len(set(found[1])) == k
            wanted = dict(zip(*reversed(exact.search(query, len(left))), strict=True))
            assert [wanted[row] for row in found[1]] == found[0].tolist()
        for each, right in zip(found, exact.search(query, len(left)), strict=True):
            np.testing.assert_array_equal(each, right)
    assert changed.search(new[60:61], 1)[1] == [len(left) - 20]
    assert index.search(descriptors[7:8], 1)[1] == [7]  # the index before is as it was


def test_lists_that_would_not_pay_are_not_made() -> None:
    random = np.random.default_rng(0).standard_normal((1000, 64), np.float32)
    assert sort_into_lists(random / np.linalg.norm(random, axis=1, keepdims=True)) is None


def test_pictures_that_are_all_alike_are_no_fault() -> None:
    same = np.zeros((1000, DIM), np.float32)
    same[:, 0] = 1
    found = sort_into_lists(same)
    assert found is None or found[1].at_100 == 1
