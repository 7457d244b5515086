"""Formats of stored tokens: limits of their settings, and what is stored can be read and checked."""

from __future__ import annotations

import numpy as np
import pytest

from pairvpr.runtime.map.tokens import LARGEST, NO_TOKENS, StoredTokens, TokenFormat, merge, quantize

TOKENS = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.001])
def test_the_share_of_tokens_has_limits(keep: float) -> None:
    assert (TokenFormat("int8", 1.0).keep, TokenFormat("int8", 1e-9).keep) == (1.0, 1e-9)
    for make in (lambda: TokenFormat("int8", keep), lambda: TokenFormat.from_settings({"tokens": {"keep": keep}})):
        with pytest.raises(ValueError, match="invalid token format"):
            make()


def test_settings_that_name_no_format_mean_float16() -> None:
    for settings in ({}, {"tokens": {}}, {"tokens": {"type": "float16", "keep": 1.0}}):
        assert TokenFormat.from_settings(settings) == TokenFormat("float16", 1.0)
    assert TokenFormat.from_settings({"tokens": {"type": "int8", "keep": 0.5}}) == TokenFormat("int8", 0.5)
    with pytest.raises(ValueError, match="invalid token format: type 'int4'"):
        TokenFormat.from_settings({"tokens": {"type": "int4"}})


@pytest.mark.parametrize(("keep", "count"), [(1.0, 10), (0.91, 10), (0.9, 9), (0.01, 1), (0.5, 5), (0.51, 6)])
def test_the_number_of_stored_tokens_is_rounded_up(keep: float, count: int) -> None:
    assert TokenFormat("float16", keep).stored_shape((10, 4)) == (count, 4)


def test_formats_say_what_they_are() -> None:
    said = [str(TokenFormat("int8", 0.5)), str(TokenFormat()), str(TokenFormat(NO_TOKENS))]
    assert said == ["50% of the tokens as int8", "100% of the tokens as float16", "no tokens"]


def test_quantized_tokens_are_close_and_their_largest_is_127() -> None:
    stored = quantize(TOKENS)
    assert stored.scales is not None
    assert np.abs(stored.values).max(axis=1).tolist() == [LARGEST] * 6
    assert np.abs(stored.load() - TOKENS).max() <= stored.scales.max() / 2 + 1e-6
    assert (stored.values.dtype, stored.scales.dtype, stored.nbytes) == (np.int8, np.float32, 24 + 24)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_tokens_that_are_not_finite_are_seen(value: float) -> None:
    spoilt = TOKENS.copy()
    spoilt[2, 1] = value
    for kind in ("float16", "int8"):
        assert TokenFormat(kind).store(TOKENS).is_finite()
        assert not TokenFormat(kind).store(spoilt).is_finite()
    assert not TokenFormat("float16").store(np.full((2, 2), 7e4, np.float32)).is_finite()  # beyond float16
    largest = TokenFormat("float16").store(np.full((2, 2), -65504, np.float32))
    assert largest.is_finite()
    assert largest.load().tolist() == [[-65504, -65504]] * 2


def test_tokens_of_zeros_stay_zeros() -> None:
    stored = quantize(np.zeros((2, 4), np.float32))
    assert stored.is_finite()
    assert not stored.load().any()
    tiny = quantize(np.full((1, 4), 1e-45, np.float32))  # the smallest number there is
    assert tiny.is_finite()
    assert np.abs(tiny.values).max() <= LARGEST


def test_the_checksum_covers_values_and_scales() -> None:
    stored = quantize(TOKENS)
    assert stored.scales is not None
    for values, scales in ((stored.values * -1, stored.scales), (stored.values, stored.scales * 2)):
        assert StoredTokens(values, scales).crc() != stored.crc()
    assert StoredTokens(stored.values, None).crc() != stored.crc()
    assert StoredTokens(stored.values.copy(), stored.scales.copy()).crc() == stored.crc()


def test_merging_keeps_means() -> None:
    assert merge(TOKENS, 6) is TOKENS
    pair = np.array([[1, 0], [1, 0.1], [0, 1], [-1, 0]], np.float32)
    three = merge(pair, 3)
    assert three.shape == (3, 2)
    np.testing.assert_allclose(sorted(three.tolist()), [[-1, 0], [0, 1], [1, 0.05]], atol=1e-6)
    for count in range(1, 7):
        merged = merge(TOKENS, count)
        assert merged.shape == (count, 4)
    np.testing.assert_allclose(merge(TOKENS, 1)[0], TOKENS.mean(axis=0), atol=1e-6)
