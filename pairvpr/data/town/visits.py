"""Draw a visit to a place: the camera's position, the weather, season and hour, and the passers-by."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pairvpr.data.town.plan import CAR, PERSON, PLACES, Street

CONDITIONS = ("day", "overcast", "dusk", "night", "rain", "fog", "snow")
"""Conditions that a visit can have."""
MAP_CONDITIONS = ("day", "overcast")
"""Conditions of a map's pictures."""


@dataclass(frozen=True)
class View:
    """A camera.

    x, z, eye: position and eye height in metres.
    yaw: radians to the right of the street.
    horizon: row of the horizon, as a share of the picture's height.
    focal: focal length, as a share of the picture's width.
    roll: radians.
    """

    x: float
    z: float
    eye: float
    yaw: float
    horizon: float
    focal: float
    roll: float


@dataclass(frozen=True)
class Weather:
    """The light and the air. Colours are linear, and 1 is white paper in sunlight.

    sun: unit vector towards it.
    sunlight, sky, zenith: colours of direct light, of light from all directions, and of the sky overhead.
    lamps, windows: brightness.
    lit: share of windows with a light.
    fog: metres after which a third of a colour is left.
    wet, snow, leaf: 0 to 1.
    leaf_tint: factors of the leaves' colour.
    rain, flakes: amount that falls.
    clouds: 0 to 1.
    """

    condition: str
    sun: tuple[float, float, float]
    sunlight: tuple[float, float, float]
    sky: tuple[float, float, float]
    zenith: tuple[float, float, float]
    lamps: float = 0.0
    windows: float = 0.0
    lit: float = 0.0
    fog: float = 1500.0
    wet: float = 0.0
    snow: float = 0.0
    leaf: float = 1.0
    leaf_tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rain: float = 0.0
    flakes: float = 0.0
    clouds: float = 0.3


@dataclass(frozen=True)
class Visit:
    """One picture to take.

    street: the street, with passers-by.
    place: number of the place along it.
    seed: for all later random choices.
    """

    street: Street
    place: int
    view: View
    weather: Weather
    seed: int

    @property
    def position(self) -> tuple[float, float]:
        """Metres to the right of the street's start, and along the street."""
        return self.view.x, self.view.z


def draw_visit(street: Street, place: int, rng: np.random.Generator, condition: str, hardness: float) -> Visit:
    """Draw a visit to the place number `place` of a street, in a condition.

    hardness: 0 for the place's own view and mild light, 1 for a view from up to 4 m away and any light.
    """
    h = float(hardness)
    z = PLACES[place] + h * float(rng.uniform(-3.5, 3.5))
    side = h * float(rng.uniform(-1.0, 1.0)) * min(3.0, 0.6 * street.half)
    view = View(
        x=street.middle(PLACES[place]) + side,
        z=z,
        eye=1.65 + h * float(rng.uniform(-0.35, 0.5)),
        yaw=street.looks[place] + h * float(rng.normal(0.0, 0.09)),
        horizon=0.55 + h * float(rng.normal(0.0, 0.035)),
        focal=0.76 * (1 + h * float(rng.uniform(-0.14, 0.14))),
        roll=h * float(rng.normal(0.0, 0.03)),
    )
    crowd = replace(street, faces=list(street.faces), textures=list(street.textures))
    _passers_by(crowd, rng, view, h)
    return Visit(crowd, place, view, draw_weather(rng, condition, h), int(rng.integers(2**31)))


def draw_weather(rng: np.random.Generator, condition: str, hardness: float) -> Weather:
    """Draw the weather of a condition, in some season. Raise ValueError for an unknown condition."""
    h = float(hardness)
    azimuth = float(rng.uniform(0.0, 2 * math.pi))
    height = float(rng.uniform(0.35, 1.1))
    sun = (math.cos(height) * math.sin(azimuth), math.sin(height), math.cos(height) * math.cos(azimuth))
    blue = float(rng.uniform(0.0, 1.0))
    clear = Weather(
        "day",
        sun,
        (1.25, 1.15, 1.0),
        (0.24, 0.28, 0.36),
        (0.25 + 0.4 * blue, 0.45 + 0.3 * blue, 0.85),
        clouds=float(rng.uniform(0.0, 0.8)),
    )
    grey = replace(
        clear, condition="overcast", sunlight=(0.06, 0.06, 0.06), sky=(0.62, 0.63, 0.66), zenith=(0.72, 0.74, 0.78)
    )
    if condition == "day":
        weather = clear
    elif condition == "overcast":
        weather = grey
    elif condition == "dusk":
        low = (sun[0], 0.12, sun[2])
        weather = replace(
            clear, sun=low, sunlight=(0.5, 0.27, 0.12), sky=(0.13, 0.12, 0.2), zenith=(0.25, 0.25, 0.45),
            lamps=float(rng.uniform(0.0, 1.5)), windows=0.7, lit=float(rng.uniform(0.05, 0.5)),
        )  # fmt: skip
    elif condition == "night":
        glow = float(rng.uniform(0.004, 0.05))
        weather = replace(
            clear, sunlight=(0.0, 0.0, 0.0), sky=(glow, glow, 1.2 * glow), zenith=(glow, 0.8 * glow, 0.7 * glow),
            lamps=float(rng.uniform(0.6, 3.0)), windows=float(rng.uniform(0.5, 1.5)), lit=float(rng.uniform(0.05, 0.7)),
        )  # fmt: skip
    elif condition == "rain":
        weather = replace(
            grey, sky=(0.36, 0.38, 0.42), zenith=(0.5, 0.52, 0.56), wet=1.0, rain=float(rng.uniform(0.3, 1.0))
        )
        weather = replace(weather, fog=float(rng.uniform(90.0, 500.0)))
    elif condition == "fog":
        weather = replace(grey, fog=float(rng.uniform(18.0, 70.0)))
    elif condition == "snow":
        weather = replace(
            grey, snow=float(rng.uniform(0.6, 1.0)), leaf=float(rng.uniform(0.0, 0.5)),
            flakes=float(rng.uniform(0.0, 1.0)), fog=float(rng.uniform(60.0, 600.0)),
        )  # fmt: skip
    else:
        raise ValueError(f"condition {condition!r}: unknown; give one of {', '.join(CONDITIONS)}")
    weather = replace(weather, condition=condition)
    return _in_season(weather, rng) if condition != "snow" and rng.random() < h else weather


def _in_season(weather: Weather, rng: np.random.Generator) -> Weather:
    """Change the weather to autumn, winter or spring."""
    season = rng.random()
    if season < 0.35:
        tint = (float(rng.uniform(1.5, 2.6)), float(rng.uniform(0.7, 1.1)), 0.5)
        return replace(weather, leaf_tint=tint, leaf=float(rng.uniform(0.5, 1.0)))
    if season < 0.65:
        return replace(weather, leaf=float(rng.uniform(0.0, 0.3)))
    return replace(weather, leaf_tint=(1.1, 1.3, 0.8), leaf=float(rng.uniform(0.6, 1.0)))


def _passers_by(street: Street, rng: np.random.Generator, view: View, hardness: float) -> None:
    """Add cars by the kerb and people, different at each visit."""
    for _ in range(int(rng.integers(0, 1 + round(6 * hardness)))):
        z = view.z + float(rng.uniform(4.0, 50.0))
        if rng.random() < 0.5 and street.half > 3.5 and street.ceiling is None:
            x = street.middle(z) + float(rng.choice([-1, 1])) * street.half * float(rng.uniform(0.35, 0.7))
            length = float(rng.choice([1.8, 4.2]))
            street.card(rng, CAR, (x, z), (length, float(rng.uniform(1.3, 1.9))))
        else:
            x = street.middle(z) + float(rng.uniform(-0.8, 0.8)) * street.half
            tall = float(rng.uniform(1.5, 1.95))
            street.card(rng, PERSON, (x, z), (0.4 * tall, tall))
