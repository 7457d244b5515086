"""Transform pictures for training: crop, change the light, squash. The results are uint8 (side, side, 3).

torchvision draws from torch's global generator. Callers seed it with `seeded_torch`, so that a picture depends on its
draw alone, and not on the worker that makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from pairvpr.data.town.camera import GAMMA, Sensor
from pairvpr.runtime.image import resize

Transform = Callable[[Image.Image], Tensor]

CROP = (0.7, 1.0)  # share of the picture's area that a stage-one crop keeps (recipe)
JITTER = (0.6, 1.4)  # factors of brightness, contrast and saturation in stage one (recipe)
LOST, STRETCH = 0.5, 4 / 3  # of the relighting's crop: largest share of the area lost, largest change of aspect
NIGHT = 1 / 3  # share of relit pictures seen at night
REVERSED = 1 / 2  # share of the night pictures whose tones are reordered
TONES = 4  # points of the curve that reorders tones
SHIFT = 0.16  # largest move of a corner when the camera stands elsewhere, as a share of the side
FISHEYE = 0.25  # share of pictures seen through a wide lens
COARSE = 0.35  # share of pictures from a small sensor
ROWS = 44  # fewest rows of such a sensor
SNOW = 0.25  # share of pictures in snow
GREY = 0.2  # share of pictures without colours
OPERATIONS = 3  # of RandAugment in stage two (recipe), at torchvision's default strength


class CropAndJitter:
    """Stage one: a random-resized crop, then colour jitter, drawn anew for each picture."""

    def __init__(self, side: int) -> None:
        crop = v2.RandomResizedCrop(side, scale=CROP, interpolation=InterpolationMode.BILINEAR)
        jitter = v2.ColorJitter(brightness=JITTER, contrast=JITTER, saturation=JITTER)
        self.steps = v2.Compose([crop, jitter])

    def __call__(self, picture: Image.Image) -> Tensor:
        """Transform an RGB picture of any size into uint8 (side, side, 3)."""
        return to_tensor(self.steps(picture))


class SquashAndAugment:
    """Stage two: the runtime's resizing, then RandAugment."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.augment = v2.RandAugment(num_ops=OPERATIONS, interpolation=InterpolationMode.BILINEAR)

    def __call__(self, picture: Image.Image) -> Tensor:
        """Transform an RGB picture of any size into uint8 (side, side, 3)."""
        return to_tensor(self.augment(Image.fromarray(resize(picture, (self.side, self.side)))))


class CropAndRelight:
    """Stage two from scratch: a crop, the light of another hour, and another camera (our choice).

    By day, light comes from all directions. At most one picture in three is taken at night, lit by a few lamps. In half
    of the night pictures the tones are reordered: a bright sky may become dark, and a dark window may shine. The
    made-up town's camera takes the picture.
    """

    def __init__(self, side: int, strength: float) -> None:
        """Set the size and the strength.

        strength: from 0 (the whole picture in its own light, by a good camera) to 1.
        """
        self.side, self.strength = side, strength

    def __call__(self, picture: Image.Image) -> Tensor:
        """Transform an RGB picture of any size into uint8 (side, side, 3)."""
        light = (to_tensor(self._crop(picture)).permute(2, 0, 1)[None] / 255.0) ** GAMMA
        return self.lit(light)[0].permute(1, 2, 0)

    def lit(self, light: Tensor) -> Tensor:
        """Turn linear light (1, 3, side, side) of 0 to 1 into a picture at another hour, uint8 of the same shape."""
        hard = self.strength
        night = float(torch.rand(())) < NIGHT * hard
        if night and float(torch.rand(())) < REVERSED:
            light = reversed_tones(light)
        light = light * (lamplight(self.side) if night else 1 + hard * (0.8 * smooth_field(self.side) - 0.4))
        sensor = Sensor([int(torch.randint(2**31, ()))], [hard * float(torch.rand(()))], [float(night)])
        return sensor.expose(sensor.blurred(light))

    def _crop(self, picture: Image.Image) -> Image.Image:
        """Crop a part of nearly the picture's aspect, and squash it as the runtime squashes a whole picture."""
        across, down, share, shape = torch.rand(4).tolist()
        area, stretch = 1 - self.strength * LOST * share, STRETCH ** (self.strength * (2 * shape - 1))
        width, height = (
            picture.width * min(1, (area * stretch) ** 0.5),
            picture.height * min(1, (area / stretch) ** 0.5),
        )
        left, top = across * (picture.width - width), down * (picture.height - height)
        box = (left, top, left + width, top + height)
        return picture.resize((self.side, self.side), Image.Resampling.BILINEAR, box=box)


class Revisit:
    """Show the same place on another visit, for stage two from pretrained weights (our choice).

    The camera stands elsewhere, or has another lens or a smaller sensor. Snow may lie on the ground and on green
    things, and colours may be missing. The light changes as in `CropAndRelight`.
    """

    def __init__(self, side: int, strength: float) -> None:
        """strength: 0 keeps view and light, 1 changes them most."""
        self.side, self.strength = side, strength
        self.relight = CropAndRelight(side, strength)

    def __call__(self, picture: Image.Image) -> Tensor:
        """Transform an RGB picture of any size into uint8 (side, side, 3)."""
        hard = self.strength
        squashed = torch.from_numpy(resize(picture, (self.side, self.side))).permute(2, 0, 1)[None] / 255.0
        seen = F.grid_sample(squashed, self._view(), mode="bilinear", padding_mode="reflection", align_corners=False)
        if chance(COARSE * hard):
            rows = round(ROWS * (self.side / ROWS) ** float(torch.rand(())))
            seen = F.interpolate(seen, (rows, rows), mode="bilinear", antialias=True)
            seen = F.interpolate(seen, (self.side, self.side), mode="bilinear")
        light = seen.clamp(0, 1) ** GAMMA
        if chance(SNOW * hard):
            light = snowed(light)
        light = self.relight.lit(light)
        if chance(GREY * hard):
            light = light.float().mean(dim=1, keepdim=True).expand_as(light).round().byte()
        return light[0].permute(1, 2, 0)

    def _view(self) -> Tensor:
        """Return the origin of each pixel (1, side, side, 2) after moved corners and a lens."""
        across = (torch.arange(self.side) + 0.5) / self.side * 2 - 1
        y, x = torch.meshgrid(across, across, indexing="ij")
        if chance(FISHEYE * self.strength):
            bend = 0.35 * float(torch.rand(()))
            squared = x**2 + y**2
            x, y = (axis * (1 - bend + bend * squared) for axis in (x, y))
        moved = self.strength * SHIFT * (2 * torch.rand(4, 2) - 1) * 2
        zoom = 1 - 0.5 * self.strength * SHIFT * float(torch.rand(()))
        corners = zoom * torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]) + moved
        right, below = ((x + 1) / 2)[..., None], ((y + 1) / 2)[..., None]
        top = torch.lerp(corners[0].expand(self.side, self.side, 2), corners[1].expand(self.side, self.side, 2), right)
        bottom = torch.lerp(
            corners[2].expand(self.side, self.side, 2), corners[3].expand(self.side, self.side, 2), right
        )
        return torch.lerp(top, bottom, below)[None]


def chance(share: float) -> bool:
    """Return true with a probability of `share`."""
    return float(torch.rand(())) < share


def snowed(light: Tensor) -> Tensor:
    """Return `light` (1, 3, H, W) of 0 to 1 with snow on the ground and on green things, and faded colours."""
    side = light.shape[-1]
    rows = torch.linspace(0, 1, side)[:, None]
    horizon, depth, amount = torch.rand(3).tolist()
    ground = ((rows - 0.35 - 0.35 * horizon) * 8).sigmoid() * (0.5 + 0.5 * depth)
    patchy = (4 * smooth_field(side) - 1).clamp(0, 1) * (0.6 + 0.4 * amount)
    green = ((light[:, 1:2] - light[:, [0, 2]].mean(1, keepdim=True)) * 12).clamp(0, 1)
    bright = light.mean(1, keepdim=True)
    faded = torch.lerp(bright, light, 0.5 * float(torch.rand(())))
    covered = (ground * patchy + green * float(torch.rand(()))).clamp(0, 1)
    white = 0.55 + 0.4 * float(torch.rand(())) + 0.4 * (bright - bright.mean())
    return torch.lerp(faded, white.clamp(0, 1).expand_as(faded), covered)


def smooth_field(side: int) -> Tensor:
    """Return (side, side) random numbers from 0 to 1 that change slowly."""
    return F.interpolate(torch.rand(1, 1, 3, 3), (side, side), mode="bilinear", align_corners=True)[0, 0]


def reversed_tones(light: Tensor) -> Tensor:
    """Map the brightness of `light` (1, 3, H, W), 0 to 1, along a random curve that may rise and fall. Colours stay."""
    bright = light.mean(1, keepdim=True)
    place = bright.clamp(0, 1) ** (1 / GAMMA) * (TONES - 1)
    before = place.floor().clamp(max=TONES - 2).long()
    curve = torch.rand(TONES) ** GAMMA
    tone = torch.lerp(curve[before], curve[before + 1], place - before)
    return light * (tone / bright.clamp(min=1 / 255)).clamp(max=8)


def lamplight(side: int) -> Tensor:
    """Return the light (side, side) of 1 to 4 lamps at random places, with a little light from all directions."""
    steps = torch.linspace(0, 1, side)
    total = torch.full((side, side), 0.02 + 0.1 * float(torch.rand(())))
    for _ in range(1 + int(torch.randint(4, ()))):
        x, y, reach = torch.rand(3)
        total += 1 / (1 + ((steps[:, None] - y) ** 2 + (steps - x) ** 2) / (0.03 + 0.2 * reach) ** 2)
    return total


class Squash:
    """Validation: the runtime's resizing alone."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, picture: Image.Image) -> Tensor:
        """Transform an RGB picture of any size into uint8 (side, side, 3)."""
        return torch.from_numpy(resize(picture, (self.side, self.side)))


def to_tensor(picture: Image.Image) -> Tensor:
    """Convert an RGB picture to uint8 (H, W, 3)."""
    return torch.from_numpy(np.array(picture))


@contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block, and restore its state afterwards.

    `torch.manual_seed` is not used, because it would reseed the accelerator as well.
    """
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
