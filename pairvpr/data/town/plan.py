"""Plan the objects along a made-up street: upright faces in metres, each with a texture.

x runs to the right, z along the street, y up. A face is a rectangle above a line on the ground, or a card that turns
towards the camera (trees, posts). A street is a function of its seed alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

LENGTH = 130.0
"""Length in metres of the built-up part of a street."""
PLACES = (18.0, 48.0, 78.0)
"""Positions of a street's places along it, in metres. They are further apart than a match may be (25 m)."""

FACADE, WALL, HEDGE, TREE, POST, BOARD, RAIL, BOX, CAR, PERSON = range(10)
"""Kinds of textures."""


@dataclass(frozen=True)
class Face:
    """An upright rectangle: from (x0, z0) to (x1, z1) on the ground, from `base` up to `top` metres.

    kind: kind of its texture.
    texture: number of the texture in the street.
    across, up: metres that the texture covers.
    card: the face turns towards the camera about its middle.
    """

    kind: int
    x0: float
    z0: float
    x1: float
    z1: float
    base: float
    top: float
    texture: int
    across: float
    up: float
    card: bool = False


@dataclass(frozen=True)
class Texture:
    """A texture to be painted.

    kind: see above.
    across, up: metres that it covers.
    seed: decides everything else.
    """

    kind: int
    across: float
    up: float
    seed: int


@dataclass
class Street:
    """A street: its faces, textures and lamps.

    half: metres from the middle to the nearest houses.
    built: share of lots with a house. The others have gardens.
    ceiling: height in metres of the roof of a covered passage, or None.
    bend: amplitude in metres and scale of the curve of the street's middle.
    looks: heading of the camera at each place, in radians to the right of the street.
    skyline: (64,) tangents of the elevation of distant objects around the horizon.
    lamps: x, y, z of each lamp in metres.
    """

    seed: int
    half: float
    built: float
    ceiling: float | None
    bend: tuple[float, float]
    looks: tuple[float, ...]
    skyline: npt.NDArray[np.float32]
    faces: list[Face] = field(default_factory=list)
    textures: list[Texture] = field(default_factory=list)
    lamps: list[tuple[float, float, float]] = field(default_factory=list)

    def middle(self, z: float) -> float:
        """Return x of the street's middle."""
        return self.bend[0] * math.sin(z / self.bend[1])

    def texture(self, rng: np.random.Generator, kind: int, across: float, up: float) -> int:
        """Add a texture and return its number."""
        self.textures.append(Texture(kind, across, up, int(rng.integers(2**31))))
        return len(self.textures) - 1

    def card(self, rng: np.random.Generator, kind: int, at: tuple[float, float], size: tuple[float, float]) -> None:
        """Add a card of a width and height whose foot has its middle at (x, z)."""
        (x, z), (width, height) = at, size
        number = self.texture(rng, kind, width, height)
        self.faces.append(Face(kind, x - width / 2, z, x + width / 2, z, 0.0, height, number, width, height, card=True))


def draw_street(seed: int) -> Street:
    """Draw the street of a seed."""
    rng = np.random.default_rng((seed, 7))
    looks = [float(rng.choice([-1, 1]) * rng.uniform(0.9, 1.7)) if rng.random() < 0.2 else 0.0 for _ in PLACES]
    street = Street(
        seed=seed,
        half=float(rng.choice([rng.uniform(2.2, 5.0), rng.uniform(5.0, 12.0)])),
        built=float(rng.uniform(0.15, 0.95)),
        ceiling=float(rng.uniform(2.8, 5.0)) if rng.random() < 0.15 else None,
        bend=(float(rng.uniform(-5.0, 5.0)), float(rng.uniform(12.0, 40.0))),
        looks=tuple(float(look + rng.normal(0.0, 0.25)) for look in looks),
        skyline=np.repeat(rng.uniform(0.0, 0.35, 16) * rng.random(16), 4).astype(np.float32),
    )
    for side in (-1, 1):
        _row(street, rng, side)
        _skyline_row(street, rng, side)
        _furniture(street, rng, side)
    _end(street, rng)
    return street


def _row(street: Street, rng: np.random.Generator, side: int) -> None:
    """Build the lots of one side, one after the other."""
    z, setback = -12.0, 0.0
    tall = rng.uniform(4.0, 22.0)
    while z < LENGTH:
        setback = abs(setback + float(rng.normal(0.0, 1.2)))
        width = float(rng.uniform(4.0, 18.0))
        x = street.middle(z + width / 2) + side * (street.half + min(setback, 6.0))
        if rng.random() < street.built:
            height = float(np.clip(tall * rng.uniform(0.6, 1.5), 3.0, 34.0))
            _building(street, rng, side, (x, z), width, height)
        elif rng.random() < 0.7:
            _garden(street, rng, side, (x, z), width)
        z += width + (float(rng.uniform(2.0, 7.0)) if rng.random() < 0.15 else 0.0)


def _building(
    street: Street, rng: np.random.Generator, side: int, at: tuple[float, float], width: float, height: float
) -> None:
    x, z = at
    number = street.texture(rng, FACADE, width, height)
    depth = float(rng.uniform(5.0, 12.0))
    back = x + side * depth
    for x0, z0, x1, z1 in ((x, z, x, z + width), (x, z, back, z), (x, z + width, back, z + width)):
        street.faces.append(Face(FACADE, x0, z0, x1, z1, 0.0, height, number, width, height))
    if rng.random() < 0.3:  # something that juts out: a sign above the pavement or the front of an awning
        low = float(rng.uniform(2.2, 3.2))
        z_sign = z + float(rng.uniform(0.2, 0.8)) * width
        size = (float(rng.uniform(0.6, 1.8)), float(rng.uniform(0.6, 2.5)))
        sign = street.texture(rng, BOARD, *size)
        street.faces.append(Face(BOARD, x, z_sign, x - side * size[0], z_sign, low, low + size[1], sign, *size))


def _garden(street: Street, rng: np.random.Generator, side: int, at: tuple[float, float], width: float) -> None:
    x, z = at
    kind = int(rng.choice([WALL, HEDGE, RAIL]))
    height = float(rng.uniform(0.8, 2.4))
    number = street.texture(rng, kind, width, height)
    street.faces.append(Face(kind, x, z, x, z + width, 0.0, height, number, width, height))
    for _ in range(int(rng.integers(1, 5))):
        tree = (x + side * float(rng.uniform(1.0, 6.0)), z + float(rng.uniform(0.0, 1.0)) * width)
        _tree(street, rng, tree)


def _tree(street: Street, rng: np.random.Generator, at: tuple[float, float]) -> None:
    height = float(rng.uniform(2.5, 11.0))
    street.card(rng, TREE, at, (height * float(rng.uniform(0.4, 0.9)), height))


def _skyline_row(street: Street, rng: np.random.Generator, side: int) -> None:
    """Build taller houses in the second row, seen above and between those of the first."""
    z = -20.0
    while z < LENGTH + 30.0:
        width, height = float(rng.uniform(10.0, 30.0)), float(rng.uniform(8.0, 60.0))
        if rng.random() < 0.55:
            x = street.middle(z) + side * (street.half + float(rng.uniform(14.0, 45.0)))
            number = street.texture(rng, FACADE, width, height)
            for x1, z1 in ((x, z + width), (x + side * 15.0, z)):
                street.faces.append(Face(FACADE, x, z, x1, z1, 0.0, height, number, width, height))
        z += width


def _furniture(street: Street, rng: np.random.Generator, side: int) -> None:
    """Put objects on the pavement: trees, lamps, a railing, boards and boxes."""
    kerb = street.half - float(rng.uniform(0.3, 1.6))
    step, z = float(rng.uniform(7.0, 20.0)), float(rng.uniform(-5.0, 8.0))
    avenue = rng.random() < 0.3
    while z < LENGTH:
        x = street.middle(z) + side * kerb
        if avenue and street.ceiling is None:
            _tree(street, rng, (x, z))
        if rng.random() < 0.5:
            lamp = float(rng.uniform(2.6, 5.5))
            street.card(rng, POST, (x, z + 2.0), (0.9, lamp))
            street.lamps.append((x, lamp - 0.2, z + 2.0))
        z += step
    if rng.random() < 0.3:
        start, run = float(rng.uniform(0.0, 60.0)), float(rng.uniform(10.0, 60.0))
        number = street.texture(rng, RAIL, 8.0, 1.1)
        while run > 0:
            x0, x1 = (street.middle(at) + side * (kerb - 0.4) for at in (start, start + 8.0))
            street.faces.append(Face(RAIL, x0, start, x1, start + 8.0, 0.0, 1.1, number, 8.0, 1.1))
            start, run = start + 8.0, run - 8.0
    for _ in range(int(rng.integers(2, 8))):
        z = float(rng.uniform(0.0, LENGTH))
        kind = int(rng.choice([BOARD, BOX, HEDGE]))
        size = (float(rng.uniform(0.5, 1.6)), float(rng.uniform(0.7, 2.6)))
        street.card(rng, kind, (street.middle(z) + side * kerb * float(rng.uniform(0.8, 1.0)), z), size)


def _end(street: Street, rng: np.random.Generator) -> None:
    """Close the far end of the street with houses, or leave it open."""
    if rng.random() < 0.3:
        return
    x = street.middle(LENGTH) - 40.0
    while x < street.middle(LENGTH) + 40.0:
        width, height = float(rng.uniform(6.0, 20.0)), float(rng.uniform(4.0, 30.0))
        z = LENGTH + float(rng.uniform(0.0, 4.0))
        number = street.texture(rng, FACADE, width, height)
        street.faces.append(Face(FACADE, x, z, x + width, z, 0.0, height, number, width, height))
        x += width
