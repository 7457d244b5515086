"""The town as a data set: endless streets of three places each, with any number of visits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image

from pairvpr.data.places import TrainingPicture, TrainingPlace
from pairvpr.data.town.plan import PLACES, draw_street
from pairvpr.data.town.studio import take_pictures
from pairvpr.data.town.visits import CONDITIONS, Visit, draw_visit
from pairvpr.errors import SourceError

SIZE = (144, 192)
"""Height and width of a picture in pixels."""
STREETS_PER_TOWN = 1_000_000
APART = 1000.0
"""Metres between two streets of a town, so that places of different streets are never near each other."""


def street_seed(town: int, street: int) -> int:
    """Return the seed of a street. No two towns share a seed."""
    return town * STREETS_PER_TOWN + street


def position(visit: Visit) -> tuple[float, float]:
    """Return the metres east and north at which a visit's picture is taken."""
    x, z = visit.position
    return visit.street.seed % STREETS_PER_TOWN * APART + x, z


def heading(visit: Visit) -> float:
    """Return the direction of a visit's camera in degrees clockwise from north. Streets run north."""
    return float(np.degrees(visit.view.yaw) % 360)


class Town:
    """A made-up town. Each draw of a place gives other visits to it: another spot, hour, weather and season.

    Pictures are drawn when they are loaded, which takes about 0.05 s on one processor. `write_town` draws them in
    advance.
    """

    def __init__(self, streets: int, seed: int = 0, visits: int = 4, hardness: float = 1.0) -> None:
        """Set the town.

        streets: number of streets, with three places each.
        seed: number of the town. Towns of other seeds share no street.
        visits: pictures of a place in each draw.
        hardness: 0 for the same view in mild light, 1 for everything that happens in a year.
        Raises SourceError for values out of range.
        """
        if not 0 < streets <= STREETS_PER_TOWN or seed < 0 or visits < 1 or not 0 <= hardness <= 1:
            raise SourceError(
                f"data set 'town': streets must be from 1 to {STREETS_PER_TOWN}, seed at least 0, visits at least 1, "
                f"hardness from 0 to 1; they are {streets}, {seed}, {visits}, {hardness}"
            )
        self.streets, self.seed, self.visits, self.hardness = streets, seed, visits, hardness

    def __len__(self) -> int:
        return self.streets * len(PLACES)

    @property
    def groups(self) -> Sequence[int]:
        """Number of places of each street."""
        return [len(PLACES)] * self.streets

    def place(self, index: int, rng: np.random.Generator) -> TrainingPlace:
        """Return a place with several visits, drawn from `rng`."""
        number, place = divmod(index, len(PLACES))
        street = draw_street(street_seed(self.seed, number))
        name = f"town {self.seed}, street {number}, place {place}"
        pictures = []
        for i in range(self.visits):
            condition = str(rng.choice(CONDITIONS))
            visit = draw_visit(street, place, rng, condition, self.hardness)
            load = partial(_load, visit, self.hardness)
            pictures.append(TrainingPicture(f"{name}, {condition} {i}", load, position(visit), heading(visit)))
        return TrainingPlace(name, pictures)


def _load(visit: Visit, hardness: float) -> Image.Image:
    return Image.fromarray(take_pictures([visit], [hardness], SIZE)[0])
