"""Take the pictures of visits: paint a street's textures once, and draw its visits together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pairvpr.data.town.camera import Sensor
from pairvpr.data.town.plan import Street, draw_street
from pairvpr.data.town.render import Drawing, Scenery
from pairvpr.data.town.textures import paint, paint_ground
from pairvpr.data.town.visits import Visit

SUPERSAMPLING = 1.5
DARK = {"dusk": 0.25, "night": 1.0}


@lru_cache(maxsize=4)
def _painted(seed: int, device: str) -> tuple[Street, Tensor, Tensor]:
    street = draw_street(seed)
    return (
        street,
        paint(street.textures, torch.device(device)),
        paint_ground(seed, street.half, torch.device(device)),
    )


@torch.no_grad()
def take_pictures(
    visits: Sequence[Visit], hardness: Sequence[float], size: tuple[int, int], device: str = "cpu"
) -> npt.NDArray[np.uint8]:
    """Turn visits to one street into pictures uint8 (B, height, width, 3). Each picture depends on its visit alone.

    hardness: of each visit's camera, 0 to 1.
    size: height and width in pixels.
    """
    street, atlas, ground = _painted(visits[0].street.seed, device)
    shared = len(street.textures)
    own = [texture for visit in visits for texture in visit.street.textures[shared:]]
    if own:
        atlas = torch.cat([atlas, paint(own, torch.device(device))])
    large = (round(SUPERSAMPLING * size[0]), round(SUPERSAMPLING * size[1]))
    light = Drawing(visits, Scenery(atlas, shared, ground), large).draw()
    weathers = [visit.weather for visit in visits]
    sensor = Sensor([visit.seed for visit in visits], hardness, [DARK.get(w.condition, 0.0) for w in weathers])
    rain, flakes = torch.tensor([w.rain for w in weathers]), torch.tensor([w.flakes for w in weathers])
    roll = torch.tensor([visit.view.roll for visit in visits])
    pictures = sensor.take(light, rain, flakes, size, roll)
    return pictures.cpu().numpy()
