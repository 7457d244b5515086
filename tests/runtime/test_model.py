"""The model on its engine: shapes, batches, the order within a pair, the reference check."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pairvpr.errors import BundleError, EngineError, SourceError
from pairvpr.runtime import Features, Model, load_model
from pairvpr.runtime.bundle import REFERENCE, Bundle, sha256
from pairvpr.runtime.bundle_info import FileInfo
from pairvpr.runtime.model import MAX_BATCH, MEMORY_SHARE, available_memory, default_bundle, pair_batch
from pairvpr.runtime.reference import TOLERANCES, Reference, check_reference, measure
from tests.scenes import draw_scene

CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model()


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [draw_scene(place, 0, (96, 128)) for place in range(5)]


@pytest.fixture(scope="module")
def features(model: Model, images: list[np.ndarray]) -> Features:
    return model.encode(images)


def with_batch(model: Model, size: int) -> Model:
    return Model(model.bundle, model.engines, size)


def test_encode_gives_normalised_float32(model: Model, features: Features) -> None:
    dims = model.bundle.info.dims
    assert features.descriptors.shape == (5, dims.descriptor)
    assert features.tokens.shape == (5, dims.tokens, dims.token_dim)
    assert features.descriptors.dtype == features.tokens.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, **CLOSE)
    assert np.isfinite(features.tokens).all()


def test_every_kind_of_picture_is_the_same_picture(model: Model, images: list[np.ndarray], tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    picture = Image.fromarray(images[0])
    picture.save(file)
    found = model.encode([file, str(file), picture, images[0]])
    for i in range(1, 4):
        np.testing.assert_array_equal(found.descriptors[i], found.descriptors[0])
    np.testing.assert_array_equal(model.prepare(file), model.prepare(images[0]))
    assert model.prepare(file).shape == (*model.picture_size, 3)


def test_nothing_encoded_is_no_features(model: Model, features: Features) -> None:
    nothing = model.encode([])
    assert len(nothing) == 0
    assert nothing.descriptors.shape[1:] == features.descriptors.shape[1:]
    assert nothing.tokens.shape[1:] == features.tokens.shape[1:]
    assert model.score(features[0], nothing).shape == (0,)


def test_a_picture_that_cannot_be_read_raises(model: Model, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"missing\.jpg"):
        model.encode([tmp_path / "missing.jpg"])
    with pytest.raises(SourceError, match="float64"):
        model.encode([np.zeros((50, 50, 3))])


def test_features_are_cut_like_lists(features: Features) -> None:
    for i in (0, 3, -1):
        assert isinstance(features[i], Features)
        assert len(features[i]) == 1
        np.testing.assert_array_equal(features[i].tokens[0], features.tokens[i])
        np.testing.assert_array_equal(features[i].descriptors[0], features.descriptors[i])
    assert len(features[1:3]) == 2
    np.testing.assert_array_equal(features[1:3].tokens, features.tokens[1:3])
    assert len(features[5:]) == 0
    assert len(list(features)) == 5
    with pytest.raises(IndexError):
        features[5]
    joined = Features.concatenate([features[:2], features[2], features[3:]])
    np.testing.assert_array_equal(joined.tokens, features.tokens)
    np.testing.assert_array_equal(joined.descriptors, features.descriptors)


@pytest.mark.parametrize("size", [1, 3])
def test_the_batch_size_changes_nothing(model: Model, features: Features, images: list[np.ndarray], size: int) -> None:
    small, large = with_batch(model, size), with_batch(model, 32)
    np.testing.assert_allclose(small.encode(images).descriptors, large.encode(images).descriptors, **CLOSE)
    np.testing.assert_allclose(small.encode(images).tokens, large.encode(images).tokens, **CLOSE)
    scores = large.score(features[0], features)
    np.testing.assert_allclose(small.score(features[0], features), scores, **CLOSE)
    assert np.ptp(scores) > 0.01  # else agreement would say nothing


def test_one_query_with_several_pictures_is_each_pair_by_itself(model: Model, features: Features) -> None:
    scores = model.score(features[2], features)
    assert scores.shape == (5,)
    assert scores.dtype == np.float32
    alone = [model.score(features[2], features[i])[0] for i in range(5)]
    np.testing.assert_allclose(scores, alone, **CLOSE)
    backwards = Features(features.descriptors[::-1], features.tokens[::-1])
    np.testing.assert_allclose(model.score(features[2], backwards), scores[::-1], **CLOSE)


def test_the_order_within_a_pair_does_not_matter(model: Model, features: Features) -> None:
    for i, j in ((0, 1), (2, 4), (3, 3)):
        there, back = model.score(features[i], features[j]), model.score(features[j], features[i])
        np.testing.assert_allclose(there, back, **CLOSE)


def test_tokens_of_half_precision_are_taken(model: Model, features: Features) -> None:
    half = Features(features.descriptors, features.tokens.astype(np.float16))
    scores = model.score(features[0], half)
    np.testing.assert_allclose(scores, model.score(features[0], features), atol=0.02)


def test_a_query_is_one_picture(model: Model, features: Features) -> None:
    for query in (features, features[:0]):
        with pytest.raises(ValueError, match="one picture, not of"):
            model.score(query, features)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_holds_at_least_one(size: int) -> None:
    with pytest.raises(EngineError, match=f"--batch-size {size}"):
        load_model(batch_size=size)
    assert load_model(batch_size=2).batch_size == 2


def test_pairs_per_pass_follow_the_memory(model: Model) -> None:
    dims = model.bundle.info.dims
    sizes = [pair_batch(dims, memory) for memory in (0, 1, 2**23, 2**24, 2**28, 2**50)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, MAX_BATCH)
    assert 1 < pair_batch(dims, 2**24) < MAX_BATCH / 2
    assert pair_batch(dims, 2 * 2**24) in (2 * sizes[3], 2 * sizes[3] + 1)
    # A model of published size: 529 tokens, 1536 wide.
    large = dataclasses.replace(dims, tokens=529, token_dim=1536, heads=12)
    assert pair_batch(large, 4 * 2**30) < pair_batch(dims, 4 * 2**30)
    pair = 2 * 4 * 529 * 1536  # the two pictures' tokens alone
    assert pair_batch(large, 4 * 2**30) * pair < 4 * 2**30 / MEMORY_SHARE
    assert 2**20 < available_memory() < 2**50


def test_the_reference_check_passes(model: Model) -> None:
    errors = check_reference(model)
    assert errors.ok
    assert errors.cosine < 1e-4
    assert errors.scores < TOLERANCES["fp16"].scores


def altered(truth: Reference, what: str) -> Reference:
    if what == "scores":
        scores = truth.scores.copy()
        scores[-1] += 0.1 + 0.02 * abs(scores[-1])  # beyond what half precision may change
        return dataclasses.replace(truth, scores=scores)
    if what == "scores are NaN":
        return dataclasses.replace(truth, scores=np.full_like(truth.scores, np.nan))
    descriptors = truth.features.descriptors.copy()
    descriptors[0] = np.nan if what == "descriptors are NaN" else np.roll(descriptors[0], 1)
    return dataclasses.replace(truth, features=Features(descriptors, truth.features.tokens))


def with_reference(model: Model, folder: Path, what: str) -> Model:
    """Return the model with an altered reference check whose checksum holds."""
    truth = altered(Reference.from_bundle(model.bundle), what)
    model.bundle.install(folder)
    file = folder / REFERENCE
    file.unlink()
    truth.save(file)
    info = dataclasses.replace(
        model.bundle.info,
        files={**model.bundle.info.files, REFERENCE: FileInfo(file.stat().st_size, sha256(file))},
    )
    return Model(Bundle(folder, info), model.engines)


@pytest.mark.parametrize("what", ["scores", "descriptors"])
def test_the_reference_check_fails_where_the_model_differs(model: Model, tmp_path: Path, what: str) -> None:
    assert not check_reference(with_reference(model, tmp_path, what)).ok


@pytest.mark.parametrize("what", ["scores are NaN", "descriptors are NaN"])
def test_a_reference_that_is_not_finite_is_refused(model: Model, tmp_path: Path, what: str) -> None:
    with pytest.raises(BundleError, match="finite"):
        check_reference(with_reference(model, tmp_path, what))


def test_the_network_itself_has_no_error(model: Model) -> None:
    truth = Reference.from_bundle(model.bundle)
    for precision in TOLERANCES:
        errors = measure(truth.features, truth.scores, truth, precision)
        assert errors.ok
        assert errors.descriptors == errors.scores == 0


def test_the_default_bundle_is_the_one_of_no_name(model: Model) -> None:
    assert model.bundle.path == default_bundle()


def test_scores_that_are_no_numbers_are_refused(model: Model, features: Features) -> None:
    overflown = Features(features.descriptors, np.full_like(features.tokens, np.inf))
    with pytest.raises(EngineError, match="not numbers"):
        model.score(features[0], overflown)


def test_a_single_picture_is_not_taken_for_a_list(model: Model) -> None:
    with pytest.raises(TypeError, match="list of pictures"):
        model.encode("a.jpg")


def test_features_print_short(features: Features) -> None:
    assert repr(features).startswith("Features(descriptors (")
    assert len(repr(features)) < 80
