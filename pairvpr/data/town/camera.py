"""Turn linear light into a picture as a small camera does: rain and snow, lens, exposure, noise and colour."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GAMMA = 2.2


class Sensor:
    """Cameras, one for each picture of a batch, drawn from a seed of its own.

    hardness (B,): 0 for a good camera held still, up to 1 for any camera.
    dark (B,): 0 to 1. In the dark, cameras amplify noise, and some see no colours.
    """

    def __init__(self, seeds: Sequence[int], hardness: Sequence[float], dark: Sequence[float]) -> None:
        self.rngs = [np.random.default_rng((seed, 5)) for seed in seeds]
        self.hardness = torch.tensor(list(hardness), dtype=torch.float32)
        self.dark = torch.tensor(list(dark), dtype=torch.float32)

    def chance(self, *shape: int) -> Tensor:
        """Return (B, *shape) numbers from 0 to 1, the next ones of each camera."""
        return torch.from_numpy(np.stack([rng.random(shape, np.float32) for rng in self.rngs]))

    def between(self, low: float, high: float) -> Tensor:
        """Return (B,) numbers from low to high."""
        return low + (high - low) * self.chance()

    def take(self, light: Tensor, rain: Tensor, flakes: Tensor, size: tuple[int, int], roll: Tensor) -> Tensor:
        """Turn linear light (B, H, W, 3) into pictures uint8 (B, *size, 3).

        rain, flakes, roll: (B,), as in visits.
        """
        device = light.device
        light = _falling(light.permute(0, 3, 1, 2), self, rain, flakes)
        light = _rolled(light, roll.to(device))
        light = F.interpolate(light, size=size, mode="bilinear", antialias=True)
        return self.expose(self.blurred(light)).permute(0, 2, 3, 1)

    def expose(self, light: Tensor) -> Tensor:
        """Turn linear light (B, 3, H, W) into uint8 pictures (B, 3, H, W): exposure, tone, colours, noise."""
        h, dark = self.hardness, self.dark

        def each(values: Tensor) -> Tensor:
            return values.view(-1, 1, 1, 1).to(light.device)

        # Exposure aims at a middle grey of the mean, in which burnt-out pixels are limited.
        aim = 0.26 * (2.0 ** (h * self.between(-1.1, 0.9))) * (1 - 0.35 * dark)
        level = light.clamp(max=3.0).mean(dim=(1, 2, 3)).cpu()
        gain = (aim / level.clamp(min=1e-4)).clamp(max=60.0)
        light = light * each(gain)
        warmth, tint = h * self.between(-0.22, 0.22), h * self.between(-0.08, 0.08)
        balance = torch.stack([1 + warmth, 1 + tint, 1 - warmth], dim=1).to(light.device)
        light = light * balance[..., None, None]
        # Corners get less light.
        rows, columns = (torch.linspace(-1, 1, n, device=light.device) for n in light.shape[-2:])
        light = light * (1 - each(h * self.between(0.0, 0.4)) * (rows[:, None] ** 2 + columns**2) / 2)
        # Noise of photons and of the amplifier.
        shot = (0.004 + 0.04 * h * self.chance() ** 2) * (1 + 3.0 * dark * self.chance())
        drawn = np.stack([rng.standard_normal(light.shape[1:], np.float32) for rng in self.rngs])
        noise = torch.from_numpy(drawn).to(light.device)
        mono = (self.chance() < 0.45 * dark).float()
        noise = torch.lerp(noise, noise[:, :1].expand_as(noise), each(mono))
        light = light + each(shot) * (0.25 + light.clamp(min=0).sqrt()) * noise
        toe = each(0.8 + 0.4 * h * self.between(-0.5, 1.0))
        tone = light.clamp(min=1e-5) ** (toe / GAMMA)
        tone = 1 - (1 - tone).clamp(min=0)
        contrast = each(1.15 + h * self.between(-0.35, 0.45))
        tone = (tone - 0.45) * contrast + 0.45
        grey = tone.mean(1, keepdim=True)
        saturation = each((1 + h * self.between(-0.5, 0.4)) * (1 - mono))
        tone = grey + (tone - grey) * saturation
        return (tone.clamp(0, 1) * 255).round().to(torch.uint8)

    def blurred(self, light: Tensor) -> Tensor:
        """Blur each picture with its own 5 x 5 kernel: out of focus, or moved."""
        amount = self.hardness * self.chance() ** 2 * 1.6
        angle, motion = self.chance() * math.pi, self.chance()
        steps = torch.arange(-2.0, 3.0)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        along = x * angle.cos()[:, None, None] + y * angle.sin()[:, None, None]
        aside = -x * angle.sin()[:, None, None] + y * angle.cos()[:, None, None]
        wide = (amount + 0.05)[:, None, None]
        thin = wide * (1 - 0.8 * motion)[:, None, None] + 0.02
        kernel = torch.exp(-0.5 * ((along / wide) ** 2 + (aside / thin) ** 2))
        return filtered(light, kernel / kernel.sum(dim=(1, 2), keepdim=True))


def filtered(pictures: Tensor, kernels: Tensor) -> Tensor:
    """Filter each picture of (B, C, H, W) with its own kernel (B, k, k)."""
    batch, channels, height, width = pictures.shape
    side = kernels.shape[-1]
    stacked = pictures.transpose(0, 1)  # (C, B, H, W): a group for each picture
    padded = F.pad(stacked, 4 * [side // 2], mode="replicate")
    result = F.conv2d(padded, kernels[:, None].to(pictures), groups=batch)
    return result.transpose(0, 1).reshape(batch, channels, height, width)


def _falling(light: Tensor, sensor: Sensor, rain: Tensor, flakes: Tensor) -> Tensor:
    """Add streaks of rain and flakes of snow in front of the scene."""
    drops, lean = sensor.chance(1, *light.shape[-2:]), sensor.between(-0.5, 0.5)
    if not bool(((rain + flakes) > 0).any()):
        return light
    steps = torch.arange(-6.0, 7.0)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    streak = ((x - lean[:, None, None] * y).abs() < 0.6).float()
    streak = streak / streak.sum(dim=(1, 2), keepdim=True)
    blob = (x**2 + y**2 < 3.2).float().expand_as(streak)
    device = light.device
    many = drops.to(device)
    streaks = filtered((many < 0.02 * rain.view(-1, 1, 1, 1).to(device)).float(), streak)
    blobs = filtered((many > 1 - 0.003 * flakes.view(-1, 1, 1, 1).to(device)).float(), blob).clamp(max=1)
    mean = light.mean(dim=(1, 2, 3), keepdim=True)
    return light + (2.0 * streaks + 1.2 * blobs) * mean * 1.5


def _rolled(light: Tensor, roll: Tensor) -> Tensor:
    """Turn pictures about the middle by `roll` radians, enlarged by just as much as leaves no corner empty."""
    height, width = light.shape[-2:]
    cos, sin, aspect = roll.cos(), roll.sin(), width / height
    shrink = 1 / (cos + sin.abs() * max(aspect, 1 / aspect))
    zero = torch.zeros_like(roll)
    theta = torch.stack(
        [
            torch.stack([cos * shrink, -sin * shrink / aspect, zero], 1),
            torch.stack([sin * shrink * aspect, cos * shrink, zero], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(light.shape), align_corners=False)
    return F.grid_sample(light, grid, align_corners=False, padding_mode="border")
