"""Values of more than 8 bits become 8 bits by one rule, whatever their unit and range."""

from __future__ import annotations

import numpy as np
import pytest

from pairvpr.errors import SourceError
from pairvpr.runtime.bit_depth import BAND, scale_16_bit, scale_floats
from pairvpr.runtime.remarks import remark_scope

RAMP = np.linspace(0, 1, 40 * 50).reshape(40, 50)


def middle(shown: np.ndarray) -> np.ndarray:
    """Return the values that are neither black nor white."""
    return shown[(shown > 0) & (shown < 255)]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (-40, 120), (0.3, 8.2), (1e-30, 2e-30), (-3e38, 3e38)])
def test_floats_of_any_range_look_alike(kind: type[np.floating], low: float, high: float) -> None:
    shown = scale_floats((low + RAMP * (high - low)).astype(kind))
    expected = np.clip((RAMP - 0.005) / 0.99 * 255 + 0.5, 0, 255).astype(np.uint8)
    assert np.abs(shown.astype(int) - expected).max() <= 1
    assert (shown == 0).mean() == pytest.approx(0.006, abs=0.004)
    assert (shown == 255).mean() == pytest.approx(0.006, abs=0.004)


def test_small_differences_of_doubles_are_kept() -> None:
    assert len(np.unique(scale_floats(1e9 + RAMP))) == 256


def test_values_without_a_measurement_are_black_and_change_no_other() -> None:
    holes = RAMP.copy()
    holes[::4] = np.nan
    holes[1::8] = np.inf
    holes[5::8] = -np.inf
    shown = scale_floats(holes)
    whole = scale_floats(RAMP[np.isfinite(holes)].reshape(20, 50))
    assert not shown[~np.isfinite(holes)].any()
    assert np.array_equal(shown[np.isfinite(holes)], whole.ravel())


def test_a_few_outliers_do_not_darken_the_rest() -> None:
    values = RAMP.copy()
    values[0, :5], values[39, 45:] = -1e300, 1.7e308
    assert np.median(scale_floats(values)) == pytest.approx(127, abs=2)


@pytest.mark.parametrize("value", [0.0, -3.5, 1.7e308])
def test_equal_values_are_black(value: float) -> None:
    assert not scale_floats(np.full((20, 20), value)).any()


def test_a_picture_without_a_finite_value_is_refused() -> None:
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(SourceError, match="none of its floating-point values is finite"):
            scale_floats(np.full((20, 20), value))
    with remark_scope(strict=True), pytest.raises(SourceError, match="--strict stops here"):
        scale_floats(RAMP)


@pytest.mark.parametrize(
    ("most", "bits"), [(255, 8), (256, 10), (1023, 10), (1024, 12), (4095, 12), (4096, 14), (16383, 14), (16384, 16)]
)
def test_the_range_is_what_the_used_bits_hold(most: int, bits: int) -> None:
    values = np.round(RAMP * most).astype(np.uint16)
    expected = np.floor(values * (255 / (2**bits - 1)) + 0.5)
    assert np.abs(scale_16_bit(values) - expected).max() <= 1


@pytest.mark.parametrize(("significant", "white"), [(16, 255), (12, 16), (10, 64), (6, 255), (15, 2)])
def test_bits_that_a_file_names_count_if_its_values_fit(significant: int, white: int) -> None:
    assert scale_16_bit(np.round(RAMP * 255).astype(np.uint16), significant).max() == white


@pytest.mark.parametrize(("lowest", "stretched"), [(8_700, False), (8_900, True)])
def test_a_band_is_stretched_if_it_is_narrower_than_an_eighth_of_its_brightest(lowest: int, stretched: bool) -> None:
    shown = scale_16_bit(np.round(lowest + RAMP * (10_000 - lowest)).astype(np.uint16))
    assert (shown.min(), shown.max()) == ((0, 255) if stretched else (round(lowest / 16383 * 255), 156))


def test_all_rows_and_channels_are_scaled() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (2 * BAND + 3, 16, 3), np.uint16)
    values[-1, -1] = 65535
    assert np.abs(scale_16_bit(values).astype(int) - np.round(values / 257)).max() <= 1
