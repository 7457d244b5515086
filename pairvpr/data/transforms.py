"""Pictures as training sees them: cropped, re-lit, squashed; uint8 (side, side, 3).

torchvision draws from torch's own generator: callers seed it with `seeded_torch` so that a picture depends
on its draw alone, not on the worker that happens to make it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from pairvpr.runtime.pictures import resize

Transform = Callable[[Image.Image], Tensor]

CROP = (0.7, 1.0)  # share of the picture's area that a stage-one crop keeps (recipe)
JITTER = (0.6, 1.4)  # factors of brightness, contrast and saturation in stage one (recipe)
OPERATIONS = 3  # of RandAugment in stage two (recipe), at torchvision's own strength


class CropAndJitter:
    """Stage one: a random-resized crop, and a colour jitter of its own for every picture."""

    def __init__(self, side: int) -> None:
        crop = v2.RandomResizedCrop(side, scale=CROP, interpolation=InterpolationMode.BILINEAR)
        jitter = v2.ColorJitter(brightness=JITTER, contrast=JITTER, saturation=JITTER)
        self.steps = v2.Compose([crop, jitter])

    def __call__(self, picture: Image.Image) -> Tensor:
        """An RGB picture of any size -> uint8 (side, side, 3)."""
        return to_tensor(self.steps(picture))


class SquashAndAugment:
    """Stage two: the runtime's own squashing, then RandAugment."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.augment = v2.RandAugment(num_ops=OPERATIONS, interpolation=InterpolationMode.BILINEAR)

    def __call__(self, picture: Image.Image) -> Tensor:
        """An RGB picture of any size -> uint8 (side, side, 3)."""
        return to_tensor(self.augment(Image.fromarray(resize(picture, (self.side, self.side)))))


class Squash:
    """Validation: the runtime's own squashing, nothing else."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, picture: Image.Image) -> Tensor:
        """An RGB picture of any size -> uint8 (side, side, 3)."""
        return torch.from_numpy(resize(picture, (self.side, self.side)))


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture -> uint8 (H, W, 3)."""
    return torch.from_numpy(np.array(picture))


@contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Within, torch's CPU generator starts from `seed`; afterwards it goes on as if nothing had been drawn.

    Not `torch.manual_seed`: that would reseed the accelerator as well.
    """
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
