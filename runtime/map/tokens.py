"""Formats of stored tokens: float16 or int8 with a scale per token, all of them or merged to a share; or none."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.validation import check_mapping, check_real, check_text

KEY = "tokens"
"""The key of the token format in a map's settings."""
NO_TOKENS = "none"
"""Type of the maps of a model without a pair classifier, whose tokens have shape (0, 0)."""
STORED: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "int8": np.dtype("i1"), NO_TOKENS: np.dtype("<f2")}
"""Types of stored tokens, and their numbers in a segment."""
SCALE_TYPE = np.dtype("<f4")
LARGEST = 127
"""Largest magnitude in int8."""


@dataclass(frozen=True)
class TokenFormat:
    """A format of stored tokens.

    type: one of STORED.
    keep: share of a picture's tokens to store, above 0 and at most 1. The others are merged into them.
    """

    type: str = "float16"
    keep: float = 1.0

    def __post_init__(self) -> None:
        if self.type not in STORED or not 0 < self.keep <= 1:
            raise ValueError(f"invalid token format: type {self.type!r}, share {self.keep}")

    def __str__(self) -> str:
        return "no tokens" if self.type == NO_TOKENS else f"{self.keep:.0%} of the tokens as {self.type}"

    @staticmethod
    def from_settings(settings: Mapping[str, Any]) -> TokenFormat:
        """Read the format from a map's settings. Without one it is float16. Raises ValueError for an invalid one."""
        stored = check_mapping(settings.get(KEY, {}), "the token format", 100)
        return TokenFormat(
            check_text(stored.get("type", "float16"), "the type of tokens"),
            check_real(stored.get("keep", 1.0), "the share of tokens"),
        )

    def stored_shape(self, tokens: tuple[int, int]) -> tuple[int, int]:
        """Return the shape (M, D) of stored tokens for tokens of shape (T, D)."""
        return math.ceil(self.keep * tokens[0]), tokens[1]

    def store(self, tokens: npt.NDArray[np.floating]) -> StoredTokens:
        """Convert tokens (T, D) of one picture to the format, in new arrays."""
        merged = merge(tokens, self.stored_shape((tokens.shape[0], tokens.shape[1]))[0])
        if self.type == "int8":
            return quantize(merged)
        with np.errstate(over="ignore"):  # values too large for float16 become infinite, which the writer refuses
            return StoredTokens(merged.astype(STORED["float16"], order="C"), None)


@dataclass(frozen=True)
class StoredTokens:
    """Stored tokens of one picture: values (M, D) float16 or int8, and scales (M,) float32 for int8."""

    values: npt.NDArray[Any]
    scales: npt.NDArray[np.float32] | None

    @property
    def nbytes(self) -> int:
        """Number of bytes in the segment."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def crc(self) -> int:
        """Return the crc32 of the bytes of the values, followed by those of the scales."""
        crc = zlib.crc32(self.values.data)
        return crc if self.scales is None else zlib.crc32(self.scales.data, crc)

    def is_finite(self) -> bool:
        """Return whether all values are finite."""
        if self.scales is not None:
            return bool(np.isfinite(self.scales).all())
        # The bits of infinity and NaN, without the sign, are the largest. Comparing them is several times as fast.
        return bool((self.values.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00)

    def load(self) -> npt.NDArray[np.floating]:
        """Return the tokens (M, D): float16 as stored, float32 from int8."""
        return self.values if self.scales is None else self.values * self.scales[:, None]


def quantize(tokens: npt.NDArray[np.floating]) -> StoredTokens:
    """Quantize tokens (M, D) to int8, symmetrically, with a scale per token.

    A token's largest magnitude becomes 127. The rest is rounded to nearest. A token of zeros has scale 0. A token
    with a NaN or infinite value has a scale that is not finite.
    """
    tokens = tokens.astype(np.float32)
    scales = np.abs(tokens).max(axis=1) / np.float32(LARGEST)
    usable = np.isfinite(scales) & (scales > 0)
    ratios = np.divide(tokens, scales[:, None], out=np.zeros_like(tokens), where=usable[:, None])
    # The smallest scales are inexact, so that 127 of them may be less than the value.
    values = np.clip(np.rint(ratios), -LARGEST, LARGEST).astype(STORED["int8"])
    return StoredTokens(values, scales.astype(SCALE_TYPE))


def merge(tokens: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.floating]:
    """Merge tokens (T, D) to (count, D), the most similar ones first.

    Bipartite soft matching (Bolya et al., "Token Merging", ICLR 2023): for every second token the most similar one of
    the others (by cosine) is found. The best matches are merged into their mean, weighted by the number of tokens that
    each one stands for. This is repeated until `count` tokens are left; one round can halve them. Unlike in the paper,
    the tokens themselves are compared. They contain their positions, so that neighbours are preferred.

    count: 1 to T.
    """
    sizes = np.ones(len(tokens))
    while len(tokens) > count:
        tokens = tokens.astype(np.float32)
        unit = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-12)
        similarity = unit[0::2] @ unit[1::2].T
        nearest = 2 * similarity.argmax(axis=1) + 1
        best = np.argsort(-similarity.max(axis=1), kind="stable")[: min(len(tokens) - count, len(tokens) // 2)]
        gone, into = 2 * best, nearest[best]
        sums = tokens * sizes[:, None]
        np.add.at(sums, into, sums[gone])
        np.add.at(sizes, into, sizes[gone])
        left = np.delete(np.arange(len(tokens)), gone)
        sizes = sizes[left]
        tokens = (sums[left] / sizes[:, None]).astype(np.float32)
    return tokens
