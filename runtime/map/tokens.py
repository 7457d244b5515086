"""How a map stores tokens: as float16 or as int8 with a scale per token, all of them or merged to a share."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

KEY = "tokens"
"""Their name among a map's settings."""
STORED: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "int8": np.dtype("i1")}
"""The types there are, and what lies in the segment."""
SCALE_TYPE = np.dtype("<f4")
LARGEST = 127
"""Of int8, both ways."""


@dataclass(frozen=True)
class TokenFormat:
    """type: one of STORED. keep: the share of a picture's tokens to store, above 0 to 1; the others are merged."""

    type: str = "float16"
    keep: float = 1.0

    def __post_init__(self) -> None:
        if self.type not in STORED or not 0 < self.keep <= 1:
            raise ValueError(f"no map stores tokens as {self.type!r}, a share of {self.keep}")

    def __str__(self) -> str:
        return f"{self.keep:.0%} of the tokens as {self.type}"

    @staticmethod
    def of(settings: Mapping[str, Any]) -> TokenFormat:
        """That of a map's settings; raises ValueError where it is none. Maps without one hold float16."""
        stored = settings.get(KEY, {})
        return TokenFormat(stored.get("type", "float16"), stored.get("keep", 1.0))

    def shape(self, tokens: tuple[int, int]) -> tuple[int, int]:
        """(M, D) of what is stored of tokens (T, D)."""
        return math.ceil(self.keep * tokens[0]), tokens[1]

    def store(self, tokens: npt.NDArray[np.floating]) -> StoredTokens:
        """Tokens (T, D) of one picture as they are stored, in arrays of their own."""
        merged = merge(tokens, self.shape((tokens.shape[0], tokens.shape[1]))[0])
        if self.type == "int8":
            return quantize(merged)
        with np.errstate(over="ignore"):  # too large for float16: not finite, which the writer refuses
            return StoredTokens(merged.astype(STORED["float16"], order="C"), None)


@dataclass(frozen=True)
class StoredTokens:
    """One picture's tokens in the map: values (M, D) float16 or int8, and for int8 scales (M,) float32."""

    values: npt.NDArray[Any]
    scales: npt.NDArray[np.float32] | None

    @property
    def nbytes(self) -> int:
        """Bytes in the segment."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def crc(self) -> int:
        """crc32 of the values' bytes, and of the scales' after them."""
        crc = zlib.crc32(self.values.data)
        return crc if self.scales is None else zlib.crc32(self.scales.data, crc)

    def finite(self) -> bool:
        """Whether all of them are numbers."""
        return bool(np.isfinite(self.values if self.scales is None else self.scales).all())

    def load(self) -> npt.NDArray[np.floating]:
        """The tokens (M, D): float16 as they are, float32 from int8."""
        return self.values if self.scales is None else self.values * self.scales[:, None]


def quantize(tokens: npt.NDArray[np.floating]) -> StoredTokens:
    """Tokens (M, D) as int8, symmetric: a token's largest magnitude is 127 of its scale, the rest rounds to nearest.

    A token of zeros has scale 0; one with a value that is no number has such a scale.
    """
    tokens = tokens.astype(np.float32)
    scales = np.abs(tokens).max(axis=1) / np.float32(LARGEST)
    usable = np.isfinite(scales) & (scales > 0)
    ratios = np.divide(tokens, scales[:, None], out=np.zeros_like(tokens), where=usable[:, None])
    # The least scales there are, are inexact: 127 of them may fall short of the value.
    values = np.clip(np.rint(ratios), -LARGEST, LARGEST).astype(STORED["int8"])
    return StoredTokens(values, scales.astype(SCALE_TYPE))


def merge(tokens: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.floating]:
    """Tokens (T, D) merged to (count, D), the most similar ones first; `count` is 1 to T.

    Bipartite soft matching (Bolya et al., Token Merging, ICLR 2023): every second token looks for the most similar of
    the others (cosine), the best matches are merged into their mean, weighted by how many tokens each stands for, and
    so on until few enough are left; a round can halve them. Here the tokens themselves are compared, with their
    positions: neighbours are preferred.
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
