"""Paint textures: the surface of a face seen from straight ahead, without lighting.

All textures of a street are painted together as tensors. A texture has SIDE x SIDE texels, row 0 at the bottom, and
five channels from 0 to 1: red, green and blue of the surface, cover, and window. Cover is 1 for something solid, 0 for
nothing, and between them for leaves that a season may take. Window is 0 where it never shines. Any other value decides
at which visits a light is on behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pairvpr.data.town.plan import BOARD, BOX, CAR, FACADE, HEDGE, PERSON, POST, RAIL, TREE, WALL, Texture

SIDE = 160
CHANNELS = 5
LEVELS = 5
"""Mip levels: each texture is kept at SIDE, SIDE / 2, ... texels, so that distant faces do not flicker."""
STARTS = tuple(sum((SIDE >> level) ** 2 for level in range(n)) for n in range(LEVELS + 1))
"""First texel of each level. The last entry is the length of a texture."""

GROUND_TEXELS = (1024, 192)  # along and across the street
GROUND_METRES = (150.0, 30.0)


class Paint:
    """Random numbers for a batch of textures. Each texture has its own, independent of its neighbours."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.rngs = [np.random.default_rng((seed, 11)) for seed in seeds]

    def uniform(self, low: float = 0.0, high: float = 1.0, *shape: int) -> Tensor:
        """Return numbers from low to high, (S, *shape, 1, 1)."""
        shape = shape or (1,)
        rows = [torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32)) for rng in self.rngs]
        return torch.stack(rows)[..., None, None]

    def chance(self, probability: float) -> Tensor:
        """Return 0 or 1, (S, 1, 1, 1)."""
        return (self.uniform() < probability).float()

    def colour(self, grey: float = 0.5) -> Tensor:
        """Return colours (S, 3, 1, 1). A larger `grey` gives greyer ones."""
        value, tint = self.uniform(0.05, 0.92), self.uniform(-1.0, 1.0, 3)
        return (value * (1 + (1 - grey) * tint)).clamp(0.03, 0.95)

    def noise(self, cells: int, tall: int = 0) -> Tensor:
        """Return smooth noise from 0 to 1, (S, 1, SIDE, SIDE), with `cells` bumps across (and `tall` up)."""
        grid = [rng.random((1, 1, tall or cells, cells), np.float32) for rng in self.rngs]
        return _grow(torch.from_numpy(np.concatenate(grid)), (SIDE, SIDE))

    def rough(self) -> Tensor:
        """Return noise from -1 to 1 at all scales, (S, 1, SIDE, SIDE)."""
        total = sum(0.6**i * (self.noise(cells) - 0.5) for i, cells in enumerate((4, 9, 20, 45, 100)))
        return torch.as_tensor(total) * 1.1


def _grow(grid: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(grid, size=size, mode="bilinear", align_corners=True)


def paint(textures: Sequence[Texture], device: torch.device) -> Tensor:
    """Paint textures into an atlas, uint8 (S, texels of all levels, 5). See `STARTS` for its order."""
    atlas = torch.empty(len(textures), CHANNELS, SIDE, SIDE)
    for kind in sorted({texture.kind for texture in textures}):
        chosen = [i for i, texture in enumerate(textures) if texture.kind == kind]
        across = torch.tensor([textures[i].across for i in chosen]).view(-1, 1, 1, 1)
        up = torch.tensor([textures[i].up for i in chosen]).view(-1, 1, 1, 1)
        steps = (torch.arange(SIDE) + 0.5) / SIDE
        u, v = steps.view(1, 1, 1, -1) * across, steps.view(1, 1, -1, 1) * up
        colour, cover, window = PAINTERS[kind](Paint([textures[i].seed for i in chosen]), u, v, across, up)
        shape = (len(chosen), 1, SIDE, SIDE)
        atlas[chosen] = torch.cat([colour.expand(-1, 3, SIDE, SIDE), cover.expand(shape), window.expand(shape)], dim=1)
    return mipmaps(atlas.clamp_(0, 1)).to(device)


def mipmaps(atlas: Tensor) -> Tensor:
    """Turn (S, 5, SIDE, SIDE), 0 to 1, into uint8 (S, texels of all levels, 5)."""
    levels, level = [], atlas
    for _ in range(LEVELS):
        levels.append(level.flatten(2))
        level = F.avg_pool2d(level, 2)
    return (torch.cat(levels, dim=2).transpose(1, 2) * 255).round().to(torch.uint8).contiguous()


Painted = tuple[Tensor, Tensor, Tensor]
"""Colour (S, 3, ...), cover and window (S, 1, ...) of a batch of textures, each broadcast to SIDE x SIDE."""


def facade(p: Paint, u: Tensor, v: Tensor, across: Tensor, up: Tensor) -> Painted:
    """Paint a house front: masonry, rows of windows, a ground floor of its own, signs, stains and a roofline."""
    base, second = p.colour(0.75), p.colour(0.6)
    wall = _masonry(p, base, u, v) * (1 + 0.25 * p.uniform() * p.rough())
    wall = torch.where((v < p.uniform(0.0, 1.4)).expand_as(wall), second * 0.7, wall)  # the foot

    # A grid of windows. Some houses have vertical strips of another colour between them, or bands between floors.
    storey, ground = p.uniform(2.6, 3.9), p.uniform(2.8, 5.0)
    count = (across / p.uniform(1.4, 4.5)).round().clamp(min=1)
    bay = across / count
    floors = torch.floor((v - ground) / storey)
    row, column = (v - ground) / storey - floors, u / bay - torch.floor(u / bay)
    wide, tall = p.uniform(0.25, 0.95), p.uniform(0.3, 0.9)
    inside = ((row - 0.52).abs() < tall / 2) & ((column - 0.5).abs() < wide / 2) & (v > ground)
    frame = ((row - 0.52).abs() < tall / 2 + 0.04) & ((column - 0.5).abs() < wide / 2 + 0.05) & (v > ground)
    band = (row < p.uniform(0.02, 0.16)) & (v > ground) & (p.chance(0.45) > 0)
    pilaster = ((column - 0.5).abs() > 0.5 - p.uniform(0.02, 0.1)) & (p.chance(0.3) > 0)
    wall = torch.where(band | pilaster, second, wall)
    wall = torch.where(frame, p.colour(0.85), wall)
    number = _hash(floors * 17 + torch.floor(u / bay), p)
    pane = ((column * p.uniform(1, 4, 1).round()) % 1 < 0.08) | ((row * p.uniform(1, 3).round()) % 1 < 0.06)
    glass = p.colour(0.8) * (0.35 + 0.5 * number) * (0.8 + 0.5 * row)
    wall = torch.where(inside, torch.where(pane, p.colour(0.9), glass), wall)
    window = torch.where(inside, 0.1 + 0.9 * number, torch.zeros(()))

    # The ground floor: shop windows, doors and openings, each in a bay of its own.
    bays = across / (across / p.uniform(2.0, 5.0)).round().clamp(min=1)
    shop, place = _hash(torch.floor(u / bays) + 91, p), u / bays - torch.floor(u / bays)
    opening = (v > p.uniform(0.0, 0.9) * (shop > 0.4)) & (v < ground * (0.55 + 0.3 * shop)) & (v < ground - 0.3)
    opening = opening & ((place - 0.5).abs() < 0.2 + 0.25 * shop) & (p.chance(0.75) > 0)
    wall = torch.where(opening, p.colour(0.5) * (0.3 + 0.7 * shop), wall)
    window = torch.where(opening & (shop > 0.5), 0.1 + 0.9 * shop, window)
    wall, window = _shapes(p, wall, window, 7, u, v, across, ground)
    wall, window = _shapes(p, wall, window, 4, u, v, across, up)
    wall = wall * (1 - 0.35 * p.uniform() * p.noise(24, 2) * p.noise(6))  # stains of rain

    # The roofline: flat, a gable or steps.
    gable = (u / across - 0.5).abs() * 2 * p.uniform(0.05, 0.45) * p.chance(0.35)
    steps = torch.floor(p.noise(5, 1).mean(2, keepdim=True) * 3) / 3 * p.uniform(0.0, 0.3) * p.chance(0.4)
    roof = up * (1 - torch.maximum(gable, steps))
    wall = torch.where(v > roof - p.uniform(0.1, 0.6), second * 0.6, wall)
    return wall, (v <= roof).float(), window


def wall(p: Paint, u: Tensor, v: Tensor, across: Tensor, up: Tensor) -> Painted:
    """Paint a garden wall or a hoarding."""
    paint = _masonry(p, p.colour(0.7), u, v) * (1 + 0.4 * p.rough())
    window = torch.zeros_like(paint[:, :1])
    paint, window = _shapes(p, paint, window, 4, u, v, across, up)
    return torch.where(v > 0.92 * up, paint * 0.6, paint), torch.ones(()), 0 * window


def hedge(p: Paint, u: Tensor, v: Tensor, across: Tensor, up: Tensor) -> Painted:
    """Paint bushes with a ragged top."""
    leaves = _leaves(p)
    top = up * (0.75 + 0.25 * p.noise(12, 1).mean(2, keepdim=True))
    return leaves, (v < top * (0.9 + 0.1 * p.noise(40))).float() * (0.45 + 0.55 * p.noise(50)), torch.zeros(())


def tree(p: Paint, u: Tensor, v: Tensor, across: Tensor, up: Tensor) -> Painted:
    """Paint a trunk that forks, and leaves that a season may take."""
    x, y = u / across * 2 - 1, v / up
    fork = p.uniform(0.15, 0.55)
    lean = p.uniform(-0.15, 0.15) * y + 0.06 * (p.noise(1, 6) - 0.5)
    wood = (x - lean).abs() < p.uniform(0.02, 0.07) * (1.3 - y)
    for _ in range(7):
        start, slope = fork * p.uniform(0.8, 1.7), p.uniform(-0.9, 0.9)
        branch = (x - lean - slope * (y - start) * 1.6).abs() < 0.035 * (1.1 - y)
        wood = wood | (branch & (y > start) & (y < start + p.uniform(0.2, 0.5)))
    crown = ((x - lean) / p.uniform(0.7, 1.0)) ** 2 + ((y - 0.5 - fork / 2) / (0.56 - fork / 2)) ** 2
    density = 1.05 - crown + 1.1 * (p.noise(7) - 0.5) + 0.9 * (p.noise(18) - 0.5)
    leaf = (density > 0) & (p.noise(55) > 0.28)
    bark = p.colour(0.8) * 0.5 * (1 + 0.5 * p.rough())
    colour = torch.where(leaf, _leaves(p) * (0.6 + 0.7 * y), bark)
    return colour, torch.where(wood, torch.ones(()), leaf * (0.3 + 0.6 * p.noise(60))), torch.zeros(())


def post(p: Paint, u: Tensor, v: Tensor, across: Tensor, up: Tensor) -> Painted:
    """Paint a lamp post whose head shines at night."""
    head = (v > up - 0.35) & ((u - across / 2).abs() < p.uniform(0.12, 0.42))
    pole = (u - across / 2).abs() < p.uniform(0.03, 0.09)
    colour = torch.where(head, 0.5 + 0.5 * p.colour(0.9), p.colour(0.9) * 0.6)
    return colour, (head | pole).float(), head.float()


def board(p: Paint, u: Tensor, v: Tensor, across: Tensor, up: Tensor) -> Painted:
    """Paint a sign or notice board: shapes on a plain colour, perhaps on a leg."""
    panel = (v > up * p.uniform(0.0, 0.6)) | (p.chance(0.4) > 0)
    leg = (u - across / 2).abs() < 0.06 * across
    window = 0.05 * torch.ones_like(u * v)
    colour, window = _shapes(p, p.colour(0.1).expand(-1, 3, SIDE, SIDE), window, 9, u, v, across, up)
    return torch.where(panel, colour, 0.4 * p.colour(0.9)), (panel | leg).float(), 0 * window


def rail(p: Paint, u: Tensor, v: Tensor, across: Tensor, up: Tensor) -> Painted:
    """Paint a railing: bars and rails with gaps or panes between them."""
    gap = p.uniform(0.12, 1.2)
    bars = (u % gap) < 0.04 + 0.1 * gap
    rails = (v > up - 0.12) | ((v % (up / p.uniform(1.0, 5.0).round())) < 0.05)
    closed = p.chance(0.25) * (v < up)
    return p.colour(0.9) * (1 + 0.2 * p.rough()), torch.maximum((bars | rails).float(), closed), torch.zeros(())


def box(p: Paint, u: Tensor, v: Tensor, across: Tensor, up: Tensor) -> Painted:
    """Paint a bin, a cabinet or a pillar: something solid with marks."""
    window = torch.zeros_like(u * v)
    colour, window = _shapes(p, p.colour(0.3).expand(-1, 3, SIDE, SIDE), window, 5, u, v, across, up)
    return colour * (1 + 0.2 * p.rough()), torch.ones(()), 0 * window


def car(p: Paint, u: Tensor, v: Tensor, across: Tensor, up: Tensor) -> Painted:
    """Paint a car from the side, or from behind if it is narrow."""
    x, y = u / across, v / up
    body = (y > 0.18) & (y < 0.6) & (x > 0.02) & (x < 0.98)
    slope = 0.25 * (y - 0.55)
    cabin = (y >= 0.55) & (x > p.uniform(0.1, 0.25) + slope) & (x < p.uniform(0.7, 0.92) - slope)
    glass = cabin & (y > 0.62) & (y < 0.9) & ((x * 3) % 1 > 0.08)
    wheel = (((x - 0.2).abs() * across) ** 2 + (v - 0.3) ** 2 < 0.1) | (
        ((x - 0.8).abs() * across) ** 2 + (v - 0.3) ** 2 < 0.1
    )
    colour = torch.where(wheel, torch.full((), 0.06), torch.where(glass, 0.25 * p.colour(0.9), p.colour(0.2)))
    light = ((y - 0.45).abs() < 0.06) & ((x < 0.08) | (x > 0.92))
    colour = torch.where(light, 0.5 + 0.5 * p.colour(0.3), colour)
    return colour, (body | cabin | wheel).float(), light.float()


def person(p: Paint, u: Tensor, v: Tensor, across: Tensor, up: Tensor) -> Painted:
    """Paint a passer-by."""
    x, y = u / across - 0.5, v / up
    head = (x * across) ** 2 + (v - 0.92 * up) ** 2 < (0.07 * up) ** 2
    trunk = (y > 0.45) & (y < 0.84) & (x.abs() < 0.3)
    legs = (y <= 0.47) & ((x.abs() - 0.12 - p.uniform(0.0, 0.12) * (0.47 - y)).abs() < 0.09)
    colour = torch.where(head, p.colour(0.7), torch.where(trunk, p.colour(0.2), p.colour(0.5) * 0.7))
    return colour, (head | trunk | legs).float(), torch.zeros(())


PAINTERS = {
    FACADE: facade,
    WALL: wall,
    HEDGE: hedge,
    TREE: tree,
    POST: post,
    BOARD: board,
    RAIL: rail,
    BOX: box,
    CAR: car,
    PERSON: person,
}


def paint_ground(seed: int, half: float, device: torch.device) -> Tensor:
    """Paint the ground around the middle of the street: colours from 0 to 1 (along, across, 3).

    It measures GROUND_METRES.
    """
    p = Paint([seed])
    rng = p.rngs[0]
    rows, columns = GROUND_TEXELS
    z = ((torch.arange(rows) + 0.5) / rows * GROUND_METRES[0]).view(-1, 1, 1)
    x = (((torch.arange(columns) + 0.5) / columns - 0.5) * GROUND_METRES[1]).view(1, -1, 1)

    def colour(grey: float) -> Tensor:
        return p.colour(grey)[0, :, 0, 0]

    def lines(step: float, width: float) -> Tensor:
        return ((z % step) < width) | ((x % step) < width)

    ground = colour(0.85).expand(rows, columns, 3)
    joints = lines(float(rng.uniform(0.4, 2.5)), 0.1)
    ground = torch.where(joints, ground * float(rng.uniform(0.6, 1.0)), ground)
    road = half * float(rng.uniform(0.3, 0.8))
    if rng.random() < 0.65:
        ground = torch.where(x.abs() < road, colour(0.95) * 0.7, ground)
        ground = torch.where((x.abs() - road).abs() < 0.12, colour(0.9), ground)
        dashes = (x.abs() < 0.09) & (z % 4.0 < float(rng.uniform(1.0, 4.0)))
        ground = torch.where(dashes, torch.full((), 0.8), ground)
    if rng.random() < 0.5:
        lawn = (x * float(rng.choice([-1, 1])) > half * float(rng.uniform(0.5, 0.9))).expand(rows, columns, 1)
        ground = torch.where(lawn, torch.tensor([0.22, 0.36, 0.12]) * float(rng.uniform(0.6, 1.4)), ground)
    for _ in range(30):  # covers, patches, crossings
        zc, xc = float(rng.uniform(0, GROUND_METRES[0])), float(rng.uniform(-half, half))
        dz, dx = float(rng.uniform(0.2, 3.0)), float(rng.uniform(0.2, 3.0))
        patch = ((z - zc).abs() < dz) & ((x - xc).abs() < dx)
        ground = torch.where(patch, colour(0.85) * float(rng.uniform(0.6, 1.2)), ground)
    grains = [torch.from_numpy(rng.random((1, 1, rows // n, columns // n), np.float32)) for n in (2, 6, 24)]
    rough = sum(_grow(grain, GROUND_TEXELS)[0, 0] - 0.5 for grain in grains)
    return (ground * (1 + 0.35 * torch.as_tensor(rough)[..., None])).clamp(0.02, 1.0).to(device)


def _hash(cell: Tensor, p: Paint) -> Tensor:
    """Return a number from 0 to 1 for every cell."""
    return torch.frac((torch.sin(cell * 12.9898 + p.uniform(0.0, 99.0)) * 43758.5453).abs())


def _masonry(p: Paint, base: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Paint bricks, courses, panels or plaster. The random sizes decide which."""
    tall = p.uniform(0.15, 1.6)
    long = tall * p.uniform(1.0, 4.0)
    course = torch.floor(v / tall)
    along = u + 0.5 * long * (course % 2) * p.chance(0.6)
    joint = ((v / tall) % 1 < 0.12) | ((along / long) % 1 < 0.06)
    shade = 1 + p.uniform(0.0, 0.35) * (_hash(course * 31 + torch.floor(along / long), p) - 0.5)
    depth = p.uniform(0.0, 0.45) * p.chance(0.7)
    return base * torch.where(joint, 1 - depth, shade)


def _leaves(p: Paint) -> Tensor:
    """Paint foliage: mostly green, lighter where the sun gets in."""
    tint = torch.stack([p.uniform(0.10, 0.34), p.uniform(0.22, 0.45), p.uniform(0.04, 0.2)], dim=1)[:, :, 0]
    return tint * (0.45 + 1.1 * p.noise(30)) * (0.6 + 0.8 * p.noise(60))


def _shapes(
    p: Paint, colour: Tensor, window: Tensor, count: int, u: Tensor, v: Tensor, across: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    """Paint posters, pipes, plates and letters: rectangles and ellipses at random places below `up`.

    They hide windows.
    """
    for _ in range(count):
        x, y = (u - across * p.uniform()) / across, (v - up * p.uniform()) / up
        wide, tall = p.uniform(0.01, 0.2), p.uniform(0.01, 0.2)
        inside = torch.where(
            p.chance(0.7) > 0, torch.maximum(x.abs() / wide, y.abs() / tall), (x / wide) ** 2 + (y / tall) ** 2
        )
        inside = (inside < 1) & (p.chance(0.75) > 0)
        stripes = ((x / wide * p.uniform(0.5, 4.0)) % 1 < 0.4) & (p.chance(0.4) > 0)
        colour = torch.where(inside, torch.where(stripes, p.colour(0.3), p.colour(0.3)), colour)
        window = torch.where(inside, torch.zeros(()), window)
    return colour, window
