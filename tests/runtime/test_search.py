"""Descriptor search against sorting all similarities."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from pairvpr.runtime.search import FaissIndex, search_among

COUNT, DIM = 500, 64


def unit(seed: int, count: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, DIM), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(params=["float32", "float16"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


def stored(descriptors: np.ndarray, precision: str) -> np.ndarray:
    """The descriptors as the index holds them."""
    return descriptors.astype(precision).astype(np.float32)


@pytest.mark.parametrize("k", [1, 7, 100, COUNT])
def test_the_same_as_sorting_all(precision: str, k: int) -> None:
    descriptors = unit(0, COUNT)
    index = FaissIndex(descriptors, precision)
    for query in unit(1, 20):
        similarities, rows = index.search(query[None], k)
        expected = stored(descriptors, precision) @ query
        assert similarities.shape == rows.shape == (k,)
        assert (similarities.dtype, rows.dtype) == (np.float32, np.int64)
        assert len(set(rows.tolist())) == k
        # Rounding may swap what is nearly equal, and nothing else.
        np.testing.assert_allclose(similarities, np.sort(expected)[::-1][:k], atol=1e-5)
        np.testing.assert_allclose(expected[rows], similarities, atol=1e-5)
        assert (np.diff(similarities) <= 0).all()


def test_rows_where_nothing_is_nearly_equal(precision: str) -> None:
    angles = np.random.default_rng(2).permutation(np.linspace(0, np.pi, 40))
    descriptors = np.zeros((40, DIM), np.float32)
    descriptors[:, 0], descriptors[:, 1] = np.cos(angles), np.sin(angles)
    query = np.eye(1, DIM, dtype=np.float32)
    _, rows = FaissIndex(descriptors, precision).search(query, 40)
    np.testing.assert_array_equal(rows, np.argsort(angles))


@pytest.mark.parametrize("k", [3, 10, 200, COUNT])
def test_ties_stand_together_and_none_is_lost_or_doubled(precision: str, k: int) -> None:
    different = unit(3, COUNT // 5)
    index, query = FaissIndex(np.repeat(different, 5, axis=0), precision), unit(4, 1)  # every picture five times
    similarities, rows = index.search(query, k)
    order = np.argsort(-(stored(different, precision) @ query[0]))
    np.testing.assert_array_equal(rows // 5, np.repeat(order, 5)[:k])
    assert len(set(rows.tolist())) == k
    assert len(set(similarities.tolist())) == -(-k // 5)  # the same picture, the same similarity to the bit
    np.testing.assert_array_equal(index.search(query, k)[1], rows)


def test_a_single_descriptor(precision: str) -> None:
    descriptors = unit(5, 1)
    similarities, rows = FaissIndex(descriptors, precision).search(descriptors, 1)
    assert rows.tolist() == [0]
    np.testing.assert_allclose(similarities, 1, atol=1e-3)


def test_a_picture_finds_itself(precision: str) -> None:
    descriptors = unit(6, COUNT)
    index = FaissIndex(descriptors, precision)
    for row in range(0, COUNT, 37):
        similarities, rows = index.search(descriptors[row : row + 1], 2)
        assert rows[0] == row
        assert similarities[0] == pytest.approx(1, abs=1e-3)
        assert similarities[1] < 0.9


def test_half_precision_takes_half_the_memory_and_only_when_asked_for() -> None:
    full, half = FaissIndex(unit(7, COUNT))._parts[0].index, FaissIndex(unit(7, COUNT), "float16")._parts[0].index
    assert isinstance(full, faiss.IndexFlatIP)
    assert isinstance(half, faiss.IndexScalarQuantizer)
    assert half.code_size == 2 * DIM
    with pytest.raises(ValueError, match="precision 'float8'"):
        FaissIndex(unit(7, COUNT), "float8")


@pytest.mark.parametrize("k", [1, 3, 10, 99, 100, 101, 250, COUNT])
def test_ties_are_in_the_order_of_rows_also_at_the_edge(precision: str, k: int) -> None:
    chance = np.random.default_rng(8)
    descriptors = unit(8, 7)[chance.integers(0, 7, COUNT)]  # seven pictures, each some seventy times
    index = FaissIndex(descriptors, precision)
    for query in unit(9, 5):
        everything, every = index.search(query[None], COUNT)
        order = np.lexsort((np.argsort(every), -everything[np.argsort(every)]))
        np.testing.assert_array_equal(every, order)
        similarities, rows = index.search(query[None], k)
        np.testing.assert_array_equal(rows, order[:k])
        np.testing.assert_array_equal(similarities, everything[:k])


def test_a_changed_index_answers_as_a_new_one(precision: str) -> None:
    chance = np.random.default_rng(10)
    pool = unit(11, 40)  # most descriptors are there several times
    descriptors = pool[chance.integers(0, 40, 300)]
    index = FaissIndex(descriptors, precision)
    for step in range(60):
        before, held = index, descriptors
        count = int(chance.choice([0, 0, 1, 5, len(descriptors) // 2 if step % 20 == 19 else 2]))
        removed = np.sort(chance.choice(len(descriptors), count, replace=False))
        added = pool[chance.integers(0, 40, int(chance.choice([0, 1, 3, 30])))]
        descriptors = np.concatenate([np.delete(descriptors, removed, axis=0), added])
        index = index.updated(removed, added)
        new = FaissIndex(descriptors, precision)
        assert len(index) == len(new) == len(descriptors)
        for query in unit(100 + step, 3):
            for k in (1, 10, len(descriptors)):
                for found, wanted in zip(index.search(query[None], k), new.search(query[None], k), strict=True):
                    np.testing.assert_array_equal(found, wanted)
        query = unit(7, 1)
        np.testing.assert_array_equal(before.search(query, 9)[1], FaissIndex(held, precision).search(query, 9)[1])
    assert len(index._parts) < 8


def test_an_index_can_lose_everything(precision: str) -> None:
    index = FaissIndex(unit(12, 5), precision).updated(np.arange(5), unit(13, 3)).updated(np.array([1]), unit(1, 0))
    _, rows = index.search(unit(13, 3)[2:], 2)
    assert rows[0] == 1
    nothing = index.updated(np.arange(2), unit(1, 0))
    assert len(nothing) == 0
    assert nothing.updated(np.arange(0), unit(14, 1)).search(unit(14, 1), 1)[1].tolist() == [0]


def test_a_search_among_some_rows_is_that_of_an_index_of_them(precision: str) -> None:
    descriptors, rows = np.repeat(unit(15, 50), 3, axis=0), np.arange(3, 140, 2)
    similarities, found = search_among(descriptors[rows], rows, unit(16, 1), 20, precision)
    whole = dict(zip(*reversed(FaissIndex(descriptors, precision).search(unit(16, 1), 150)), strict=True))
    assert [whole[row] for row in found] == similarities.tolist()
    allowed = [row for row in whole if row in set(rows.tolist())]
    assert allowed[:20] == found.tolist()
    assert len(search_among(descriptors[rows[:4]], rows[:4], unit(16, 1), 20, precision)[1]) == 4
