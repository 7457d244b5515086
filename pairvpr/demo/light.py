"""The light a picture is taken in, and pictures in another light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.demo.dice import Dice


@dataclass(frozen=True)
class Light:
    """How a camera sees a place at some hour.

    brightness: factor on all values. warmth: above 0 more red and less blue, below 0 the reverse.
    contrast: factor on the distance from middle grey. slope, tilt: how much brighter the right and the top
    edge are than the left and the bottom one. noise: greatest deviation of a value, of 255.
    """

    brightness: float = 1.0
    warmth: float = 0.0
    contrast: float = 1.0
    slope: float = 0.0
    tilt: float = 0.0
    noise: float = 3.0

    @staticmethod
    def draw(dice: Dice) -> Light:
        """The light of another visit."""
        return Light(
            brightness=dice.uniform(0.62, 1.22),
            warmth=dice.uniform(-0.14, 0.18),
            contrast=dice.uniform(0.75, 1.15),
            slope=dice.uniform(-0.25, 0.25),
            tilt=dice.uniform(-0.15, 0.15),
            noise=dice.uniform(6.0, 16.0),
        )

    def shine(self, image: npt.NDArray[np.floating], dice: Dice) -> npt.NDArray[np.uint8]:
        """A picture (H, W, 3) of values 0 to 255 in this light: uint8, the same shape."""
        height, width, _ = image.shape
        across = (np.arange(width, dtype=np.float32) / np.float32(width) - np.float32(0.5))[None, :, None]
        down = (np.arange(height, dtype=np.float32) / np.float32(height) - np.float32(0.5))[:, None, None]
        gain = np.float32(1) + np.float32(self.slope) * across - np.float32(self.tilt) * down
        colour = np.array([1 + self.warmth, 1 + self.warmth / 8, 1 - self.warmth], np.float32)
        lit = image.astype(np.float32) - np.float32(118)
        lit = lit * np.float32(self.contrast) + np.float32(118)
        lit = lit * (gain * (colour * np.float32(self.brightness)))
        lit = lit + dice.noise(image.shape) * np.float32(self.noise)
        return np.rint(np.clip(lit, 0, 255)).astype(np.uint8)
