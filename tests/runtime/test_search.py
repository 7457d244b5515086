"""Descriptor search against sorting all similarities."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from pairvpr.runtime import search
from pairvpr.runtime.search import FaissIndex

COUNT, DIM = 500, 64


def unit(seed: int, count: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, DIM), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(params=["float32", "float16"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "float16":
        monkeypatch.setattr(search, "HALF_PRECISION_FROM", 1)
    return request.param


def stored(descriptors: np.ndarray, precision: str) -> np.ndarray:
    """The descriptors as the index holds them."""
    return descriptors.astype(precision).astype(np.float32)


@pytest.mark.parametrize("k", [1, 7, 100, COUNT])
def test_the_same_as_sorting_all(precision: str, k: int) -> None:
    descriptors = unit(0, COUNT)
    index = FaissIndex(descriptors)
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
    _, rows = FaissIndex(descriptors).search(query, 40)
    np.testing.assert_array_equal(rows, np.argsort(angles))


@pytest.mark.parametrize("k", [3, 10, 200, COUNT])
def test_ties_stand_together_and_none_is_lost_or_doubled(precision: str, k: int) -> None:
    different = unit(3, COUNT // 5)
    index, query = FaissIndex(np.repeat(different, 5, axis=0)), unit(4, 1)  # every picture five times
    similarities, rows = index.search(query, k)
    order = np.argsort(-(stored(different, precision) @ query[0]))
    np.testing.assert_array_equal(rows // 5, np.repeat(order, 5)[:k])
    assert len(set(rows.tolist())) == k
    assert len(set(similarities.tolist())) == -(-k // 5)  # the same picture, the same similarity to the bit
    np.testing.assert_array_equal(index.search(query, k)[1], rows)


def test_a_single_descriptor(precision: str) -> None:
    descriptors = unit(5, 1)
    similarities, rows = FaissIndex(descriptors).search(descriptors, 1)
    assert rows.tolist() == [0]
    np.testing.assert_allclose(similarities, 1, atol=1e-3)


def test_a_picture_finds_itself(precision: str) -> None:
    descriptors = unit(6, COUNT)
    index = FaissIndex(descriptors)
    for row in range(0, COUNT, 37):
        similarities, rows = index.search(descriptors[row : row + 1], 2)
        assert rows[0] == row
        assert similarities[0] == pytest.approx(1, abs=1e-3)
        assert similarities[1] < 0.9


def test_half_precision_takes_half_the_memory_and_only_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "HALF_PRECISION_FROM", COUNT)
    few, many = FaissIndex(unit(7, COUNT - 1))._index, FaissIndex(unit(7, COUNT))._index
    assert isinstance(few, faiss.IndexFlatIP)
    assert isinstance(many, faiss.IndexScalarQuantizer)
    assert many.code_size == 2 * DIM
    assert (few.ntotal, many.ntotal) == (COUNT - 1, COUNT)
