"""The town as a data set: streets without end, three places each, any number of visits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image

from pairvpr.data.places import Picture, Place
from pairvpr.data.town.plan import PLACES, draw_street
from pairvpr.data.town.studio import take_pictures
from pairvpr.data.town.visits import CONDITIONS, Visit, draw_visit
from pairvpr.errors import SourceError

SIZE = (144, 192)
"""Height and width in pixels of a picture."""
STREETS_PER_TOWN = 1_000_000
APART = 1000.0
"""Metres between two streets of a town, so that no two places of different streets are near."""


def street_seed(town: int, street: int) -> int:
    """The seed of a town's street: no two towns share one."""
    return town * STREETS_PER_TOWN + street


def position(visit: Visit) -> tuple[float, float]:
    """Metres east and north of where a visit's picture is taken."""
    x, z = visit.position
    return visit.street.seed % STREETS_PER_TOWN * APART + x, z


def heading(visit: Visit) -> float:
    """Degrees clockwise from north (streets run north) in which a visit's camera looks."""
    return float(np.degrees(visit.view.yaw) % 360)


class Town:
    """A made-up town. Each draw of a place is other visits to it: another spot, hour, weather and season.

    Drawn when asked for, about 0.05 s a picture on one processor: `write_town` draws ahead.
    """

    def __init__(self, streets: int, seed: int = 0, visits: int = 4, hardness: float = 1.0) -> None:
        """`seed`: the town; towns of other seeds share no street.

        `visits`: pictures of a place in each draw. `hardness`: 0 for the same view in mild light, 1 for all that
        happens in a year.
        """
        if not 0 < streets <= STREETS_PER_TOWN or seed < 0 or visits < 1 or not 0 <= hardness <= 1:
            raise SourceError(
                f"town of {streets} streets, seed {seed}, {visits} visits, hardness {hardness}: "
                f"1 to {STREETS_PER_TOWN}, 0 or more, 1 or more, 0 to 1"
            )
        self.streets, self.seed, self.visits, self.hardness = streets, seed, visits, hardness

    def __len__(self) -> int:
        return self.streets * len(PLACES)

    @property
    def groups(self) -> Sequence[int]:
        """A street's places belong together."""
        return [len(PLACES)] * self.streets

    def place(self, index: int, rng: np.random.Generator) -> Place:
        """A place in as many visits; what they are like is drawn from `rng`."""
        number, place = divmod(index, len(PLACES))
        street = draw_street(street_seed(self.seed, number))
        name = f"town {self.seed}, street {number}, place {place}"
        pictures = []
        for i in range(self.visits):
            condition = str(rng.choice(CONDITIONS))
            visit = draw_visit(street, place, rng, condition, self.hardness)
            load = partial(_load, visit, self.hardness)
            pictures.append(Picture(f"{name}, {condition} {i}", load, position(visit), heading(visit)))
        return Place(name, pictures)


def _load(visit: Visit, hardness: float) -> Image.Image:
    return Image.fromarray(take_pictures([visit], [hardness], SIZE)[0])
