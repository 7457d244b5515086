"""Draw visits: find the nearest faces along each column of pixels, then light them.

The camera stands upright, so each column of pixels sees a face at a single distance. The cost of a picture is its
number of pixels times the few nearest faces, however many faces the street has. Everything is a tensor over all visits
of a batch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pairvpr.data.town.plan import HEDGE, TREE
from pairvpr.data.town.textures import GROUND_METRES, LEVELS, SIDE, STARTS
from pairvpr.data.town.visits import Visit

LAYERS = 9
"""Number of nearest faces that a column looks at. Railings and trees do not hide the faces behind them."""
NEAREST = 0.4  # metres: nearer faces are not drawn
TOP = 5  # column of the faces' tops in the table of faces
LAMPS = 5  # number of nearest lamps that light a picture


@dataclass(frozen=True)
class Scenery:
    """The scenery that the visits of a batch share, on the device.

    atlas: all textures (S, texels, 5): the street's own `shared` ones first, then those of each visit in turn.
    shared: number of the street's own textures.
    ground: colours (along, across, 3).
    """

    atlas: Tensor
    shared: int
    ground: Tensor


@dataclass
class Seen:
    """The surface at each pixel, (B, H, W), or with 3 channels last.

    colour: of the surface.
    depth: metres forward, infinite for the sky.
    x, y, z: position in the world, in metres.
    shade: 1 in sunlight, 0 in shadow.
    facing: share of sunlight that the surface catches.
    glow: of windows and lamps.
    up: 1 where snow can lie.
    """

    colour: Tensor
    depth: Tensor
    x: Tensor
    y: Tensor
    z: Tensor
    shade: Tensor
    facing: Tensor
    glow: Tensor
    up: Tensor


@dataclass(frozen=True)
class Faces:
    """A face for each column: numbers (B, W, 8) as in `Drawing._table`, the rest (B, W).

    texture: number in the atlas.
    kinds: as in `plan`.
    shadows: metres up to which the face is in shadow.
    facing: share of the sunlight that falls on it.
    """

    table: Tensor
    texture: Tensor
    kinds: Tensor
    shadows: Tensor
    facing: Tensor


class Drawing:
    """Draws the pictures of visits to one street, all of one size."""

    def __init__(self, visits: Sequence[Visit], scenery: Scenery, size: tuple[int, int]) -> None:
        """Set up the cameras. `size` is height and width in pixels."""
        self.visits, self.scenery = visits, scenery
        self.device = scenery.atlas.device
        self.height, self.width = size
        views = [visit.view for visit in visits]
        get = self._numbers
        self.eye, self.yaw = get([v.eye for v in views]), get([v.yaw for v in views])
        self.x0, self.z0 = get([v.x for v in views]), get([v.z for v in views])
        self.focal = get([v.focal for v in views]) * self.width
        columns = torch.arange(self.width, device=self.device) + 0.5 - self.width / 2
        rows = torch.arange(self.height, device=self.device) + 0.5
        horizon = get([v.horizon for v in views]) * self.height
        self.slope = ((horizon[:, None] - rows) / self.focal[:, None])[:, :, None]  # (B, H, 1): up per metre forward
        across = columns / self.focal[:, None]
        cos, sin = self.yaw.cos()[:, None], self.yaw.sin()[:, None]
        self.ray_x, self.ray_z = cos * across + sin, cos - sin * across  # (B, W), a metre forward

    def _numbers(self, values: Sequence[object] | np.ndarray) -> Tensor:
        return torch.tensor(np.array(values, np.float32), device=self.device)

    def _chance(self, what: str, *shape: int) -> Tensor:
        """Return (B, *shape) numbers from 0 to 1, drawn from each visit's own seed. `what` selects the stream."""
        stream = zlib.crc32(what.encode())
        drawn = np.stack([np.random.default_rng((v.seed, stream)).random(shape, np.float32) for v in self.visits])
        return torch.from_numpy(drawn).to(self.device)

    def draw(self) -> Tensor:
        """Return linear light (B, H, W, 3), in which 1 is white paper in sunlight."""
        seen = self._ground_and_roof()
        self._faces(seen)
        light = self._light(seen)
        return self._air(light, seen)

    def _ground_and_roof(self) -> Seen:
        """Return the surfaces behind all faces: the ground below the horizon, the sky or a roof above it."""
        shape = (len(self.visits), self.height, self.width)
        below = (self.slope < -1e-3).expand(shape)
        depth = torch.where(below, -self.eye[:, None, None] / self.slope.clamp(max=-1e-3), torch.inf)
        ceilings = self._numbers([visit.street.ceiling or 0.0 for visit in self.visits])[:, None, None]
        roofed = (ceilings > 0) & (self.slope > 1e-3).expand(shape)
        to_roof = (ceilings - self.eye[:, None, None]) / self.slope.clamp(min=1e-3)
        depth = torch.where(roofed & (to_roof < 60.0), to_roof, depth)
        finite = depth.clamp(max=400.0)
        x, z = self._at(finite)
        y = torch.where(roofed, ceilings, 0.0)
        rows, columns = self.scenery.ground.shape[:2]
        row = (z / GROUND_METRES[0] * rows).long() % rows
        column = ((x / GROUND_METRES[1] + 0.5) * columns).long().clamp(0, columns - 1)
        colour = self.scenery.ground[row, column]
        shade = self._ground_shadows(x, z)
        ones = torch.ones_like(x)
        facing = self._numbers([visit.weather.sun[1] for visit in self.visits])[:, None, None].expand(shape).clone()
        facing = torch.where(roofed, 0.0, facing)
        panels = roofed & (((x / 1.5).floor() + (z / 3.0).floor()) % 3 == 0)
        colour = torch.where(roofed[..., None], 0.4 + 0.5 * colour, colour)
        return Seen(colour, depth, x, y, z, shade, facing, 0.6 * panels.float(), torch.where(roofed, 0 * ones, ones))

    def _at(self, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and z in the world of pixels (B, H, W) at a depth."""
        return (
            self.x0[:, None, None] + depth * self.ray_x[:, None, :],
            self.z0[:, None, None] + depth * self.ray_z[:, None, :],
        )

    def _ground_shadows(self, x: Tensor, z: Tensor) -> Tensor:
        """Return 1 where the sun reaches the ground. Houses on one side cast shadows of random length."""
        cells = self._chance("shadows on the ground", 32)
        reach = (cells * 2.4 - 0.7) * self._numbers([visit.street.half for visit in self.visits])[:, None]
        cell = (z / 7.0).long() % 32
        edge = torch.gather(reach, 1, cell.flatten(1)).view_as(x)
        side = self._numbers([1.0 if visit.weather.sun[0] > 0 else -1.0 for visit in self.visits])[:, None, None]
        return (x * side < edge).float()

    def _faces(self, seen: Seen) -> None:
        """Put the nearest faces in front of those rendered so far."""
        table, texture, kinds = self._table()
        depths, along, order = self._meet(table)
        shadows = (self._chance("shadows on faces", table.shape[1]) * 1.6 - 0.3) * table[..., TOP]
        facing = self._facing(table, kinds)
        free = torch.ones_like(seen.depth, dtype=torch.bool)
        for layer in range(order.shape[1]):
            face, depth, u = order[:, layer], depths[:, layer], along[:, layer]  # (B, W)
            if bool(torch.isfinite(depth).any()):
                found = Faces(
                    torch.gather(table, 1, face[..., None].expand(*face.shape, table.shape[-1])),
                    *(torch.gather(values, 1, face) for values in (texture, kinds, shadows, facing)),
                )
                self._layer(seen, free, found, depth, u)

    def _facing(self, table: Tensor, kinds: Tensor) -> Tensor:
        """Return the share of sunlight that each face catches (B, N), on the side towards the camera."""
        sun = self._numbers([visit.weather.sun for visit in self.visits])
        x0, z0, x1, z1 = (table[..., i] for i in range(4))
        length = torch.hypot(x1 - x0, z1 - z0).clamp(min=1e-3)
        normal_x, normal_z = (z1 - z0) / length, -(x1 - x0) / length
        toward = torch.sign((self.x0[:, None] - x0) * normal_x + (self.z0[:, None] - z0) * normal_z)
        facing = ((normal_x * sun[:, :1] + normal_z * sun[:, 2:]) * toward).clamp(min=0.0)
        return torch.where(kinds == TREE, 0.6, facing)

    def _layer(self, seen: Seen, free: Tensor, faces: Faces, depth: Tensor, u: Tensor) -> None:
        """Put one face of each column in front of pixels that no nearer face covers.

        free: pixels (B, H, W) that no nearer face covers.
        depth, u: metres away, and along the face (B, W).
        """
        base, top, across, up = (faces.table[..., i] for i in range(4, 8))
        met = torch.isfinite(depth)
        depth = torch.where(met, depth, 1.0)
        y = self.eye[:, None, None] + depth[:, None, :] * self.slope
        here = free & met[:, None, :] & (y >= base[:, None]) & (y < top[:, None])
        where = here.nonzero(as_tuple=True)

        # Choose the mip level whose texels are about as large as a pixel, then the texel.
        texels = depth / self.focal[:, None] * SIDE / torch.minimum(across, up)
        level = texels.clamp(min=1.0).log2().round().long().clamp(max=LEVELS - 1)
        side = SIDE >> level
        column = ((u / across).clamp(0, 0.999) * side).long()
        row = (((y - base[:, None]) / up[:, None]).clamp(0, 0.999) * side[:, None]).long()
        first = faces.texture * STARTS[-1] + torch.tensor(STARTS, device=self.device)[level]
        index = first[:, None] + row * side[:, None] + column[:, None]
        texel = self.scenery.atlas.flatten(0, 1)[index[where]].float() / 255

        # Keep solid texels, and the leaves that the season has left.
        leaf = self._numbers([visit.weather.leaf for visit in self.visits])[:, None]
        tint = self._numbers([visit.weather.leaf_tint for visit in self.visits])
        leafy = (faces.kinds == TREE) | (faces.kinds == HEDGE)
        threshold = torch.where(leafy & (leaf < 0.99), 1 - leaf * 0.9, 0.2)
        solid = texel[:, 3] > threshold[where[0], where[2]]
        where, texel = tuple(part[solid] for part in where), texel[solid]
        b, _, w = where
        tinted = (texel[:, :3] * tint[b]).clamp(max=0.9)

        free[where] = False
        seen.colour[where] = torch.where(leafy[b, w][:, None], tinted, texel[:, :3])
        seen.depth[where] = depth[b, w]
        seen.x[where] = (self.x0[:, None] + depth * self.ray_x)[b, w]
        seen.y[where] = y[where]
        seen.z[where] = (self.z0[:, None] + depth * self.ray_z)[b, w]
        seen.facing[where] = faces.facing[b, w]
        seen.shade[where] = (y[where] > faces.shadows[b, w]).float()
        seen.glow[where] = texel[:, 4]
        seen.up[where] = 0.25 * leafy[b, w].float()

    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the faces as numbers (B, N, 8), and their textures and kinds (B, N).

        The numbers are x0, z0, x1, z1, base, top, across, up.
        """
        most = max(len(visit.street.faces) for visit in self.visits)
        table = np.zeros((len(self.visits), most, 8), np.float32)
        texture, kinds = np.zeros((2, len(self.visits), most), np.int64)
        shared, own = self.scenery.shared, 0
        for i, visit in enumerate(self.visits):
            right = np.array([math.cos(visit.view.yaw), -math.sin(visit.view.yaw)])
            for j, face in enumerate(visit.street.faces):
                ends = np.array([[face.x0, face.z0], [face.x1, face.z1]])
                if face.card:
                    ends = ends.mean(0) + np.array([[-0.5], [0.5]]) * (face.x1 - face.x0) * right
                table[i, j] = (*ends.ravel(), face.base, face.top, face.across, face.up)
                texture[i, j] = face.texture if face.texture < shared else own + face.texture
                kinds[i, j] = face.kind
            own += len(visit.street.textures) - shared
        return tuple(torch.from_numpy(a).to(self.device) for a in (table, texture, kinds))  # type: ignore[return-value]

    def _meet(self, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Intersect columns with faces, nearest first.

        Returns depths, metres along the face, and face numbers, each (B, LAYERS, W).
        """
        x0, z0, x1, z1 = (table[..., i, None] for i in range(4))  # (B, N, 1)
        ex, ez = x1 - x0, z1 - z0
        rx, rz = self.ray_x[:, None, :], self.ray_z[:, None, :]
        px, pz = x0 - self.x0[:, None, None], z0 - self.z0[:, None, None]
        cross = rx * ez - rz * ex
        cross = torch.where(cross.abs() < 1e-6, 1e-6, cross)
        depth = (px * ez - pz * ex) / cross
        part = (px * rz - pz * rx) / cross
        met = (part >= 0) & (part < 1) & (depth > NEAREST)
        depth = torch.where(met, depth, torch.inf)
        depths, order = depth.topk(min(LAYERS, depth.shape[1]), dim=1, largest=False)
        along = torch.gather(part * torch.hypot(ex, ez), 1, order)
        return depths, along, order

    def _light(self, seen: Seen) -> Tensor:
        """Return the light that leaves each surface towards the camera (B, H, W, 3)."""
        get = self._numbers
        weathers = [visit.weather for visit in self.visits]
        sunlight = get([w.sunlight for w in weathers])[:, None, None]
        sky = get([w.sky for w in weathers])[:, None, None]
        snow = get([w.snow for w in weathers])[:, None, None] * seen.up
        patchy = (snow * 1.6 - 0.4 * torch.frac((seen.x * 3.1 + seen.z * 1.7).sin().abs() * 9)).clamp(0, 1)
        colour = seen.colour + (0.85 - seen.colour) * patchy[..., None]
        wet = get([w.wet for w in weathers])[:, None, None] * (seen.up > 0.9)
        colour = colour * (1 - 0.45 * wet[..., None])
        ambient = sky * (0.55 + 0.45 * (seen.y / 6.0).clamp(0, 1))[..., None]
        roofs = [v.street.ceiling is not None for v in self.visits]
        roofed = get(roofs)[:, None, None, None]
        ambient = ambient * (1 - 0.6 * roofed) + 0.14 * roofed
        direct = sunlight * (seen.facing * seen.shade)[..., None] * (1 - roofed)
        total = ambient + direct + self._lamps(seen)[..., None] * torch.tensor([1.0, 0.85, 0.62], device=self.device)
        lit = get([w.lit for w in weathers])[:, None, None]
        salt = self._chance("windows", 1, 1)
        shines = (seen.glow > 0.09) & ((torch.frac(seen.glow * 37.7 + salt) < lit) | (seen.glow > 0.995))
        windows = get([w.windows for w in weathers])[:, None, None]
        tone = 0.7 + 0.5 * torch.frac(seen.glow * 91.3 + salt)
        warm = torch.tensor([1.0, 0.82, 0.55], device=self.device)
        return colour * total + (shines * windows * tone)[..., None] * warm

    def _lamps(self, seen: Seen) -> Tensor:
        """Return the light of the lamps nearest to each camera (B, H, W)."""
        total = torch.zeros_like(seen.x)
        power = self._numbers([visit.weather.lamps for visit in self.visits])
        if not bool((power > 0).any()):
            return total
        table = np.zeros((len(self.visits), LAMPS, 4), np.float32)
        chance = self._chance("lamps", LAMPS + 1).cpu().numpy()
        for i, visit in enumerate(self.visits):
            ahead = sorted(visit.street.lamps, key=lambda lamp: abs(lamp[2] - visit.view.z - 8.0))[:LAMPS]
            for j, lamp in enumerate(ahead):
                table[i, j] = (*lamp, visit.weather.lamps * (chance[i, j] > 0.2))
            if not ahead:  # one light, because the picture would be black without any
                table[i, 0] = (6.0 * chance[i, LAMPS] - 3.0, 5.0, visit.view.z + 8.0, visit.weather.lamps)
        lamps = torch.from_numpy(table).to(self.device)
        for j in range(LAMPS):
            x, y, z, strength = (lamps[:, j, i, None, None] for i in range(4))
            distance = (seen.x - x) ** 2 + (seen.y - y) ** 2 + (seen.z - z) ** 2
            total += strength * 3.0 / (1.5 + distance)
        return total

    def _air(self, light: Tensor, seen: Seen) -> Tensor:
        """Put fog in front of distant surfaces, and the sky behind them."""
        get = self._numbers
        weathers = [visit.weather for visit in self.visits]
        zenith, sky = get([w.zenith for w in weathers])[:, None, None], get([w.sky for w in weathers])[:, None, None]
        rise = (self.slope / 0.9).clamp(0, 1)[..., None]  # (B, H, 1, 1)
        pale = (sky * 1.5 + zenith) / 2
        above = torch.lerp(pale, zenith, rise.sqrt())
        clouds = F.interpolate(self._chance("clouds", 1, 5, 9), (self.height, self.width), mode="bicubic")[:, 0]
        clouds = (
            clouds
            + F.interpolate(self._chance("small clouds", 1, 14, 24) - 0.5, (self.height, self.width), mode="bilinear")[
                :, 0
            ]
            * 0.6
        )
        cover = ((clouds - 0.55) * 4).clamp(0, 1) * get([w.clouds for w in weathers])[:, None, None]
        above = torch.lerp(above.expand(*light.shape), pale * 1.25, cover[..., None])
        # The distant skyline around the horizon.
        angle = torch.atan2(self.ray_x, self.ray_z)
        skyline = get(np.stack([visit.street.skyline for visit in self.visits]))
        cell = ((angle / (2 * math.pi) + 0.5) * skyline.shape[1]).long() % skyline.shape[1]
        ridge = self.slope < torch.gather(skyline, 1, cell)[:, None, :] * 0.7
        above = torch.where(ridge[..., None], 0.45 * sky + 0.12 * pale, above)
        clear = torch.exp(-seen.depth.clamp(max=300.0) / get([w.fog for w in weathers])[:, None, None])
        clear = torch.where(torch.isinf(seen.depth), 0.0, clear)
        away = torch.where(torch.isinf(seen.depth)[..., None], above, pale)
        return torch.lerp(away, light, clear[..., None])
