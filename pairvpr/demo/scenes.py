"""Pictures of made-up places: the same place again from another spot and in another light.

For what needs pictures and may not bring any along. The same numbers give the same bytes on every machine:
textures are looked up by arithmetic alone, without a graphics library.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.demo.dice import Dice
from pairvpr.demo.light import Light
from pairvpr.demo.street import LENGTH, SCALE, WIDTH, Colour, Street, Texture, Thing, cars, pack

EYE = 1.7  # metres of the camera above the ground
HORIZON = 0.58  # of the picture's height, from the top
FOCAL = 0.74  # of the picture's width: a view 68 degrees wide
SUPERSAMPLING = 2
Metres = npt.NDArray[np.float32]

NEVER = np.float32(1e4)  # metres: further than anything that is drawn
HAZE = 90.0  # metres after which half of a colour is air

SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((96, 150, 214), (206, 224, 240)),
    ((150, 164, 180), (214, 216, 218)),
    ((122, 152, 200), (244, 206, 162)),
    ((176, 184, 190), (222, 222, 220)),
)  # fmt: skip


@dataclass(frozen=True)
class View:
    """Where the camera is: metres to the right and forward, tangent of half its turn to the right, zoom."""

    x: float
    z: float
    yaw: float
    zoom: float


class Canvas:
    """Packed colours (H, W) and their distances in metres, seen from a view."""

    def __init__(self, height: int, width: int, view: View) -> None:
        self.view = view
        self.focal = FOCAL * width * view.zoom
        self.across = ((np.arange(width) + 0.5 - width / 2) / self.focal).astype(np.float32)
        self.up = ((HORIZON * height - np.arange(height) - 0.5) / self.focal).astype(np.float32)
        self.colours: Texture = np.zeros((height, width), np.uint32)
        self.distances = np.full((height, width), NEVER, np.float32)
        # With t the tangent of half the angle, its cosine and sine need no libm.
        t = view.yaw
        self.cos, self.sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        # A column's ray, a metre forward: metres along x and z.
        self.ray_x = np.float32(self.cos) * self.across + np.float32(self.sin)
        self.ray_z = np.float32(self.cos) - np.float32(self.sin) * self.across

    def sky(self, street: Street, colours: tuple[Colour, Colour]) -> None:
        """Fill all with sky and the skyline that shows above the houses."""
        rows = len(self.colours)
        top, bottom = (np.array(colour, np.int64) for colour in colours)
        fall = np.clip(np.arange(rows)[:, None] * 256 // int(HORIZON * rows + 1), 0, 256)
        rgb = ((top * (256 - fall) + bottom * fall) // 256).astype(np.uint32)
        self.colours[:] = (rgb[:, 0] | rgb[:, 1] << 8 | rgb[:, 2] << 16 | np.uint32(255 << 24))[:, None]
        bearing = self.ray_x / np.maximum(self.ray_z, np.float32(0.05))
        block = np.floor((bearing + 4) * np.float32(9)).astype(np.int64) % len(street.skyline)
        below = self.up[:, None] < street.skyline[block].astype(np.float32)[None, :]
        self.colours[below] = pack(street.skyline_colour)

    def ground(self, texture: Texture) -> None:
        """Lay the ground."""
        first = int(np.count_nonzero(self.up >= -1e-3))
        distance = np.float32(EYE) / -self.up[first:, None]
        x = np.float32(self.view.x + WIDTH / 2) + distance * self.ray_x
        z = np.float32(self.view.z) + distance * self.ray_z
        self._paste((slice(first, None), slice(None)), texture, z, x, distance)

    def wall_along(self, texture: Texture, x: float) -> None:
        """Put up a wall beside the street, from z = 0 on."""
        with np.errstate(divide="ignore"):
            distance = np.float32(x - self.view.x) / self.ray_x
        distance = np.where((distance > 0) & (distance < NEVER), distance, NEVER)
        self._wall(texture, distance, np.float32(self.view.z) + distance * self.ray_z)

    def wall_across(self, texture: Texture) -> None:
        """Put up the wall at the street's end."""
        distance = np.float32(LENGTH - self.view.z) / self.ray_z
        self._wall(texture, distance, np.float32(self.view.x + WIDTH / 2) + distance * self.ray_x)

    def thing(self, thing: Thing) -> None:
        """Put up something that faces the camera, nothing if it is nearer than 2 metres."""
        x, z = thing.x - self.view.x, thing.z - self.view.z
        right, distance = x * self.cos - z * self.sin, x * self.sin + z * self.cos
        if distance < 2:
            return
        half = thing.texture.shape[1] / (2 * SCALE)
        columns = slice(*(self._left_of((right + side * half) / distance) for side in (-1, 1)))
        along = self.across[columns] * np.float32(distance) - np.float32(right - half)
        height = np.float32(EYE) + np.float32(distance) * self.up
        rows = slice(int(np.count_nonzero(height > thing.texture.shape[0] / SCALE)), int(np.count_nonzero(height > 0)))
        self._paste((rows, columns), thing.texture, height[rows, None], along[None], np.float32(distance))

    def _left_of(self, edge: float) -> int:
        return int(np.count_nonzero(self.across < edge))

    def _wall(self, texture: Texture, distance: Metres, along: Metres) -> None:
        """A wall from its distance and place along it in each of the columns."""
        met = np.flatnonzero((along >= 0) & (along < texture.shape[1] / SCALE))
        if len(met):  # a straight wall: all columns between its first and last
            columns = slice(met[0], met[-1] + 1)
            height = np.float32(EYE) + distance[columns] * self.up[:, None]
            self._paste((slice(None), columns), texture, height, along[None, columns], distance[columns])

    def _paste(
        self,
        part: tuple[slice, slice],
        texture: Texture,
        row: Metres,
        column: Metres,
        distance: Metres | np.float32,
    ) -> None:
        """Take on a texture's colours in a part of the picture, where it has some and is in front.

        row, column: metres up and along the texture, distance: metres from the camera; each (rows, columns)
        or (1, columns) or (rows, 1) of the part.
        """
        colours, distances = self.colours[part], self.distances[part]
        up, along = (np.floor(metres * np.float32(SCALE)).astype(np.int32) for metres in (row, column))
        nearer = (up >= 0) & (up < texture.shape[0]) & (along >= 0) & (along < texture.shape[1])
        nearer = nearer & (distance < distances)
        found = texture.ravel().take(up * np.int32(texture.shape[1]) + along, mode="clip")
        nearer &= found > 0
        np.copyto(colours, found, where=nearer)
        np.copyto(distances, distance, where=nearer)


def draw_scene(place: int, visit: int, size: tuple[int, int] = (240, 320)) -> npt.NDArray[np.uint8]:
    """A picture of a place: (height, width, 3) uint8 RGB, a function of the three arguments alone.

    place, visit: 0 or more. Visit 0 is the view that a map is made of; the others stand and look a little
    elsewhere, at another hour, under another sky and with other cars. size: height and width, from 16 on.
    """
    height, width = size
    if place < 0 or visit < 0 or min(size) < 16:
        raise ValueError(f"no scene for place {place}, visit {visit}, size {size}: 0 or more, 16 or more")
    street, dice = Street.draw(place), Dice(place, visit + 1)
    view, light, sky = _view(street, dice, visit), Light(), SKIES[0]
    if visit:
        light, sky = Light.draw(dice), dice.pick(SKIES)
    canvas = Canvas(SUPERSAMPLING * height, SUPERSAMPLING * width, view)
    canvas.sky(street, sky)
    canvas.ground(street.ground)
    canvas.wall_across(street.end_wall)
    canvas.wall_along(street.left_wall, street.left)
    canvas.wall_along(street.right_wall, street.right)
    for thing in (*street.things, *cars(dice, street)):
        canvas.thing(thing)
    return light.shine(_through_air(canvas, sky[1]), dice)


def _view(street: Street, dice: Dice, visit: int) -> View:
    """The place's own view, or for visits after the first one from nearby."""
    if visit == 0:
        return View(0.0, 1.0, street.yaw, 1.0)
    side = dice.pick((-1.0, 1.0))
    return View(
        x=side * dice.uniform(0.4, 1.8),
        z=1.0 + dice.uniform(-0.8, 2.0),
        yaw=street.yaw + dice.uniform(-0.05, 0.05),
        zoom=dice.uniform(0.93, 1.12),
    )


def _through_air(canvas: Canvas, air: Colour) -> npt.NDArray[np.float32]:
    """The canvas at the picture's size, what is far away paler: float32 (H, W, 3)."""
    step = SUPERSAMPLING
    channels = canvas.colours.astype("<u4").view(np.uint8).reshape(*canvas.colours.shape, 4)
    total = np.zeros((channels.shape[0] // step, channels.shape[1] // step, 4), np.uint16)
    for row in range(step):
        for column in range(step):
            total += channels[row::step, column::step]
    rgb = total[..., :3].astype(np.float32) / np.float32(step * step)
    distance = canvas.distances[::step, ::step, None]
    haze = distance / (distance + np.float32(HAZE))
    haze[distance == NEVER] = 0  # the sky has its colour already
    return rgb + (np.array(air, np.float32) - rgb) * haze
