"""Write the reconstructions of stage one as a PNG."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pairvpr.files import write_atomically
from pairvpr.model import NetworkConfig
from pairvpr.training.failures import writing
from pairvpr.training.losses import patch_statistics, patches, unpatch

ROWS = 8
GREY = 0.5  # colour of hidden patches


def write_reconstructions(
    images: Tensor, reference: Tensor, mask: Tensor, prediction: Tensor, path: Path, config: NetworkConfig
) -> None:
    """Write a PNG of up to ROWS rows: the network's input, its reconstruction, the picture, and the reference picture.

    images, reference: normalised pictures (B, 3, S, S).
    mask: (B, T), true where hidden.
    prediction: normalised pixels of each patch (B, T, P). Mean and deviation come from the true patches (as in MAE's
        figures).
    path: of the PNG.
    config: of the network, for its pictures' mean and deviation.
    Raises TrainingError if it cannot be written.
    """
    images, reference, mask, prediction = (x[:ROWS].float() for x in (images, reference, mask, prediction))
    patch = round((prediction.shape[-1] / 3) ** 0.5)
    pixels = patches(_colours(images, config), patch)
    hidden = mask.unsqueeze(-1)
    mean, deviation = patch_statistics(patches(images, patch))
    made = patches(_colours(unpatch(prediction * deviation + mean, patch), config), patch)
    columns = [
        unpatch(pixels * (1 - hidden) + GREY * hidden, patch),
        unpatch(pixels * (1 - hidden) + made * hidden, patch),
        _colours(images, config),
        _colours(reference, config),
    ]
    grid = torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2)  # (3, rows * S, 4 * S)
    array = (grid.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as partial:
            Image.fromarray(array).save(partial, format="PNG")


def _colours(images: Tensor, config: NetworkConfig) -> Tensor:
    """Turn normalised pictures (B, 3, H, W) into colours from 0 to 1."""
    mean = torch.tensor(config.mean, device=images.device).view(3, 1, 1)
    deviation = torch.tensor(config.std, device=images.device).view(3, 1, 1)
    return images * deviation + mean
