"""Compare quaternion arithmetic with scipy's rotations."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from pairvpr.runtime.geometry.rotations import IDENTITY, Quaternion, inverse, multiply, normalize, rotate
from pairvpr.runtime.geometry.rotations import rotation_vector as vector_of
from pairvpr.runtime.geometry.trajectory import slerp

spatial = pytest.importorskip("scipy.spatial.transform")


def random_quaternions(seed: int, count: int = 50) -> list[Quaternion]:
    values = np.random.default_rng(seed).normal(size=(count, 4))
    return [(x, y, z, w) for x, y, z, w in (values / np.linalg.norm(values, axis=1, keepdims=True)).tolist()]


def matrix(q: npt.ArrayLike) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = spatial.Rotation.from_quat(q).as_matrix()
    return result


def test_multiply_composes_rotations_like_scipy() -> None:
    for first, second in zip(random_quaternions(0), random_quaternions(1), strict=True):
        np.testing.assert_allclose(matrix(multiply(first, second)), matrix(first) @ matrix(second), atol=1e-12)


def test_inverse_is_the_transposed_matrix() -> None:
    for q in random_quaternions(2):
        np.testing.assert_allclose(matrix(inverse(q)), matrix(q).T, atol=1e-12)


def test_rotate_turns_points_like_scipy() -> None:
    points = np.random.default_rng(3).normal(size=(50, 3))
    for q, point in zip(random_quaternions(4), points, strict=True):
        np.testing.assert_allclose(rotate(q, point), spatial.Rotation.from_quat(q).apply(point), atol=1e-12)


def test_rotation_vector_is_that_of_scipy() -> None:
    small = spatial.Rotation.from_rotvec([[1e-9, 0, 0], [0, 1e-14, 0]]).as_quat().tolist()
    for q in [*random_quaternions(5), *map(tuple, small), IDENTITY]:
        np.testing.assert_allclose(vector_of(q), spatial.Rotation.from_quat(q).as_rotvec(), atol=1e-12)


def test_slerp_follows_scipy() -> None:
    shares = np.linspace(0, 1, 7)
    for first, second in zip(random_quaternions(6), random_quaternions(7), strict=True):
        expected = spatial.Slerp([0, 1], spatial.Rotation.from_quat([first, second]))(shares).as_matrix()
        found = matrix([slerp(np.array(first), np.array(second), share) for share in shares.tolist()])
        np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("q", [(0.0, 0.0, 0.0, 0.0), (math.nan, 0.0, 0.0, 1.0)])
def test_a_quaternion_without_a_direction_cannot_be_normalized(q: Quaternion) -> None:
    assert normalize(q) is None


def test_normalize_keeps_the_direction() -> None:
    assert normalize((0.0, 0.0, 2.0, 0.0)) == (0.0, 0.0, 1.0, 0.0)
