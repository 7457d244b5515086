"""Name the ways to bring a picture to the size that a graph reads."""

from __future__ import annotations

from dataclasses import dataclass

SQUASH = "squash, Pillow bilinear"
"""The rule of all Pair-VPR networks."""


@dataclass(frozen=True)
class ResizeRule:
    """Describe a rule.

    crop: keep the ratio of the sides, cover the size, and cut the middle out. Without it both sides are scaled.
    bicubic: interpolate with Pillow's bicubic filter, else with its bilinear one.
    """

    crop: bool = False
    bicubic: bool = False


RULES = {
    SQUASH: ResizeRule(),
    "squash, Pillow bicubic": ResizeRule(bicubic=True),
    "crop, Pillow bilinear": ResizeRule(crop=True),
    "crop, Pillow bicubic": ResizeRule(crop=True, bicubic=True),
}
"""The rules by the name that a bundle gives them."""
