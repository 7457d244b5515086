"""What stands at a made-up place: facades, ground and things on the street, as flat textures in metres.

A texture is (rows, columns) of packed colours, row 0 at the bottom; 0 is nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairvpr.demo.dice import Dice

Texture = npt.NDArray[np.uint32]
Colour = tuple[int, int, int]

SCALE = 14  # texture pixels per metre
LENGTH = 56.0  # metres of street
WIDTH = 44.0  # metres across that ground and end of the street cover
TALLEST = 17.0  # metres

WALLS: tuple[Colour, ...] = (
    (172, 74, 58), (214, 168, 92), (236, 222, 190), (126, 134, 142), (84, 142, 142), (92, 116, 168),
    (216, 152, 150), (132, 158, 98), (238, 238, 232), (140, 104, 78), (196, 110, 62), (88, 82, 92),
    (230, 202, 110), (158, 186, 206), (120, 60, 66), (186, 196, 170),
)  # fmt: skip
SIGNS: tuple[Colour, ...] = (
    (212, 40, 44), (24, 98, 190), (26, 140, 74), (244, 196, 30), (126, 44, 142), (28, 28, 34), (236, 112, 26),
    (20, 160, 172),
)  # fmt: skip
GLASS: tuple[Colour, ...] = ((52, 66, 84), (84, 104, 124), (40, 46, 54), (236, 208, 138), (122, 146, 166))
ROADS: tuple[Colour, ...] = ((92, 92, 96), (112, 108, 104), (76, 80, 88), (138, 122, 104))
PAVEMENTS: tuple[Colour, ...] = ((176, 172, 164), (190, 176, 150), (154, 156, 160), (168, 144, 128))
LEAVES: tuple[Colour, ...] = ((62, 108, 48), (84, 128, 52), (44, 88, 58), (150, 120, 44), (168, 84, 44))


@dataclass(frozen=True)
class Thing:
    """Something flat that always faces the camera: its texture and where its foot stands, in metres."""

    texture: Texture
    x: float
    z: float


@dataclass(frozen=True)
class Street:
    """A place: a street between two rows of houses that ends at a third.

    left, right: x of the two rows (left below 0); `left_wall` and `right_wall` run along z from 0.
    end_wall runs along x from -WIDTH / 2, at z = LENGTH. ground is indexed by z and x. skyline: heights of
    what shows above the houses, as parts of a picture's width. yaw: tangent of half the angle that the
    camera is turned to the right.
    """

    left: float
    right: float
    left_wall: Texture
    right_wall: Texture
    end_wall: Texture
    ground: Texture
    things: tuple[Thing, ...]
    skyline: npt.NDArray[np.float64]
    skyline_colour: Colour
    yaw: float

    @staticmethod
    def draw(place: int) -> Street:
        """The street of a place number."""
        dice = Dice(place, 0)
        left, right = -dice.uniform(4.0, 10.0), dice.uniform(4.0, 10.0)
        kerbs = left + dice.uniform(1.6, 3.0), right - dice.uniform(1.6, 3.0)
        return Street(
            left=left,
            right=right,
            left_wall=_row_of_houses(dice, LENGTH, 0.86),
            right_wall=_row_of_houses(dice, LENGTH, 1.0),
            end_wall=_row_of_houses(dice, WIDTH, 0.94),
            ground=_ground(dice, kerbs),
            things=tuple(_street_furniture(dice, kerbs)),
            skyline=np.array([dice.uniform(0.02, 0.16) for _ in range(24)]),
            skyline_colour=dice.pick(((120, 132, 150), (104, 126, 112), (146, 132, 128))),
            yaw=dice.uniform(-0.2, 0.2),
        )


def pack(colour: Colour, shade: float = 1.0) -> np.uint32:
    """A colour, made darker or lighter by a factor, as one number."""
    r, g, b = (min(255, int(value * shade)) for value in colour)
    return np.uint32(r | g << 8 | b << 16 | 255 << 24)


def cars(dice: Dice, street: Street) -> list[Thing]:
    """Cars that stand by the kerbs at some visit."""
    parked = []
    for side, edge in ((1.0, street.left), (-1.0, street.right)):
        for _ in range(dice.integer(0, 2)):
            parked.append(Thing(_car(dice), edge + side * dice.uniform(3.2, 3.8), dice.uniform(9.0, 40.0)))
    return parked


def _px(metres: float) -> int:
    return int(metres * SCALE)


def _row_of_houses(dice: Dice, length: float, shade: float) -> Texture:
    wall = np.zeros((_px(TALLEST), _px(length)), np.uint32)
    at = dice.uniform(-4.0, 0.0)
    while at < length:
        if dice.chance(0.13):
            at += dice.uniform(3.0, 5.0)  # a side street
        width = dice.uniform(5.0, 11.0)
        house = _house(dice, width, shade)
        start, skipped = max(0, _px(at)), max(0, -_px(at))
        part = house[:, skipped : skipped + max(0, wall.shape[1] - start)]
        wall[: len(part), start : start + part.shape[1]] = part
        at += width
    return wall


def _house(dice: Dice, width: float, shade: float) -> Texture:
    storey, ground_floor, storeys = dice.uniform(2.7, 3.2), dice.uniform(3.2, 3.9), dice.integer(0, 3)
    eaves, columns = _px(ground_floor + storeys * storey), _px(width)
    gable = _px(dice.uniform(1.5, 3.0)) if dice.chance(0.4) and width < 9 else 0
    colour = dice.pick(WALLS)
    house = np.zeros((eaves + gable, columns), np.uint32)
    house[:eaves] = pack(colour, shade)
    if dice.chance(0.4):
        house[_px(ground_floor) : eaves : 5] = pack(colour, 0.9 * shade)  # courses of stone
    for row in range(gable):
        inset = columns * row // (2 * gable)
        house[eaves + row, inset : columns - inset] = pack(colour, 0.7 * shade)
    house[max(0, eaves - 4) : eaves] = pack(colour, 0.6 * shade)
    house[:, -2:][house[:, -2:] > 0] = pack(colour, 0.55 * shade)
    _windows(dice, house[_px(ground_floor) : eaves], storeys, _px(storey), shade)
    _ground_floor(dice, house[: _px(ground_floor)], colour, shade)
    return house


def _windows(dice: Dice, front: Texture, storeys: int, storey: int, shade: float) -> None:
    width, height = _px(dice.uniform(0.8, 1.8)), _px(dice.uniform(1.2, 1.9))
    step = width + _px(dice.uniform(0.7, 1.6))
    count = max(1, (front.shape[1] - _px(0.5)) // step)
    first = (front.shape[1] - count * step + step - width) // 2
    frame = pack(dice.pick(((242, 240, 234), (60, 56, 54), (150, 60, 50), (70, 96, 80))), shade)
    glass, shutters = dice.pick(GLASS), dice.chance(0.35)
    shutter = pack(dice.pick(SIGNS), 0.75 * shade)
    for floor in range(storeys):
        low = floor * storey + (storey - height) // 2
        for left in range(first, first + count * step, step):
            pane = dice.pick(GLASS) if dice.chance(0.2) else glass
            front[low - 2 : low + height + 2, max(0, left - 2) : left + width + 2] = frame
            front[low : low + height, max(0, left) : left + width] = pack(pane, shade)
            front[low : low + height // 2, max(0, left) : left + width] = pack(pane, 0.85 * shade)
            if shutters:
                front[low : low + height, max(0, left - 7) : max(0, left - 2)] = shutter
                front[low : low + height, left + width + 2 : left + width + 7] = shutter


def _ground_floor(dice: Dice, front: Texture, colour: Colour, shade: float) -> None:
    rows, columns = front.shape
    door, top = _px(dice.uniform(0.3, 1.0)), _px(2.3)
    if dice.chance(0.6):  # a shop: window, sign and perhaps an awning
        front[_px(0.4) : top, _px(0.4) : columns - _px(0.4)] = pack(dice.pick(GLASS), 1.1 * shade)
        for post in range(_px(0.4), columns - _px(0.4), _px(dice.uniform(1.2, 2.2))):
            front[_px(0.4) : top, post : post + 2] = pack(colour, 0.5 * shade)
        sign = dice.pick(SIGNS)
        front[top : top + _px(0.75), _px(0.2) : columns - _px(0.2)] = pack(sign, shade)
        at = _px(0.6)
        while at < columns - _px(0.9):  # letters, as far as one can read them from here
            wide = dice.integer(2, 6)
            front[top + 3 : top + 8, at : at + wide] = pack((250, 246, 230), shade)
            at += wide + dice.integer(2, 5)
        if dice.chance(0.5):
            stripe = np.arange(columns) // _px(0.45) % 2 == 0
            awning = np.where(stripe, pack(dice.pick(SIGNS), shade), pack((240, 238, 230), shade))
            front[top - _px(0.6) : top] = awning
    else:
        for left in range(_px(1.8), columns - _px(1.4), _px(2.2)):
            front[_px(0.9) : top, left : left + _px(1.1)] = pack(dice.pick(GLASS), shade)
    leaf = pack(dice.pick(SIGNS), 0.6 * shade)
    front[:top, door : door + _px(1.0)] = leaf
    front[rows - 2 :] = pack(colour, 0.7 * shade)


def _ground(dice: Dice, kerbs: tuple[float, float]) -> Texture:
    ground = np.full((_px(LENGTH), _px(WIDTH)), 0, np.uint32)
    pavement, road = dice.pick(PAVEMENTS), dice.pick(ROADS)
    ground[:] = pack(pavement)
    ground[:: _px(1.2)] = pack(pavement, 0.86)
    ground[:, :: _px(1.2)] = pack(pavement, 0.86)
    left, right = (_px(kerb + WIDTH / 2) for kerb in kerbs)
    ground[:, left:right] = pack(road)
    ground[:, left - 4 : left] = ground[:, right : right + 4] = pack(pavement, 1.2)
    middle = (left + right) // 2
    if dice.chance(0.7):
        on, period = _px(dice.uniform(1.5, 3.0)), _px(dice.uniform(4.0, 6.0))
        dashes = np.arange(ground.shape[0]) % period < on
        ground[dashes, middle - 2 : middle + 2] = pack((226, 224, 214))
    if dice.chance(0.5):
        start = _px(dice.uniform(3.0, 14.0))
        ground[start - 6 : start + _px(2.6) + 6, left:right] = pack(road)
        for stripe in range(left + 4, right - 6, _px(1.0)):
            ground[start : start + _px(2.6), stripe : stripe + _px(0.5)] = pack((228, 226, 220))
    return ground


def _street_furniture(dice: Dice, kerbs: tuple[float, float]) -> list[Thing]:
    things = []
    for side, kerb in ((-1.0, kerbs[0]), (1.0, kerbs[1])):
        kind, start, step = dice.integer(0, 3), dice.uniform(5.0, 12.0), dice.uniform(7.0, 13.0)
        for number in range(3):
            z = start + number * step
            if kind <= 1:
                things.append(Thing(_tree(dice), kerb + 0.7 * side, z))
            elif kind == 2:
                things.append(Thing(_lamp(), kerb + 0.5 * side, z))
    if dice.chance(0.5):
        things.append(Thing(_board(dice), dice.pick(kerbs), dice.uniform(6.0, 14.0)))
    return things


def _tree(dice: Dice) -> Texture:
    height = dice.uniform(4.5, 7.5)
    crown = height * dice.uniform(0.22, 0.32)
    tree = np.zeros((_px(height), _px(2 * crown)), np.uint32)
    trunk = dice.integer(1, 3)
    middle = tree.shape[1] // 2
    tree[: _px(height - crown), middle - trunk : middle + trunk] = pack((84, 64, 48))
    y, x = np.ogrid[: tree.shape[0], : tree.shape[1]]
    leaves = dice.pick(LEAVES)
    for _ in range(36):
        radius = crown * dice.uniform(0.16, 0.4)
        room = crown - radius
        right = dice.uniform(-1.0, 1.0) * room
        roundness = 1.0 - 0.55 * (right / crown) * (right / crown)
        up = dice.uniform(-1.0, 1.0) * (1.15 * crown - radius) * roundness
        off_x, off_y = x - _px(crown + right), y - _px(height - 1.15 * crown + up)
        light = 1.0 + 0.22 * up / crown + dice.uniform(-0.16, 0.16)  # from above
        tree[off_x * off_x + off_y * off_y < _px(radius) * _px(radius)] = pack(leaves, light)
    return tree


def _lamp() -> Texture:
    lamp = np.zeros((_px(5.0), _px(1.0)), np.uint32)
    middle = lamp.shape[1] // 2
    lamp[:, middle - 1 : middle + 1] = pack((58, 62, 66))
    lamp[-8:, middle - 5 : middle + 5] = pack((58, 62, 66))
    lamp[-7:-2, middle - 4 : middle + 4] = pack((246, 238, 200))
    return lamp


def _board(dice: Dice) -> Texture:
    board = np.zeros((_px(3.0), _px(1.3)), np.uint32)
    middle = board.shape[1] // 2
    board[:, middle - 1 : middle + 1] = pack((96, 98, 102))
    board[_px(1.7) :, :] = pack(dice.pick(SIGNS))
    board[_px(2.1) : _px(2.3), 3:-3] = board[_px(2.5) : _px(2.7), 3:-3] = pack((246, 244, 236))
    return board


def _car(dice: Dice) -> Texture:
    """A car from behind."""
    car = np.zeros((_px(1.5), _px(1.8)), np.uint32)
    colour = dice.pick((*SIGNS, (228, 228, 230), (150, 154, 160)))
    columns = car.shape[1]
    car[3 : _px(0.95), 1:-1] = pack(colour)
    car[_px(0.95) : _px(1.45), 4:-4] = pack(colour, 0.9)
    car[_px(1.0) : _px(1.35), 6:-6] = pack((54, 64, 76))
    car[: _px(0.35), 2:6] = car[: _px(0.35), columns - 6 : columns - 2] = pack((30, 30, 32))
    car[_px(0.6) : _px(0.8), 2:6] = car[_px(0.6) : _px(0.8), columns - 6 : columns - 2] = pack((206, 34, 32))
    car[_px(0.45) : _px(0.6), columns // 2 - 4 : columns // 2 + 4] = pack((240, 240, 232))
    return car
