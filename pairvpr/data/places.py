"""The protocol of training data: a data set returns places, and a place holds pictures."""

from __future__ import annotations

import bisect
import importlib
import inspect
import itertools
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pairvpr.errors import SourceError

SHORT_NAMES: Mapping[str, str] = {
    "folders": "pairvpr.data.folders:FolderPlaces",
    "clips": "pairvpr.data.folders:ClipPlaces",
    "pictures": "pairvpr.data.folders:LoosePictures",
    "traverses": "pairvpr.data.traverses:Traverses",
    "town": "pairvpr.data.town:Town",
    "gsv-cities": "pairvpr.data.gsv_cities:GsvCities",
    "sf-xl": "pairvpr.data.sf_xl:SfXl",
    "google-landmarks": "pairvpr.data.google_landmarks:GoogleLandmarks",
}
"""Short names of our data sets in a configuration, with their classes."""
KINDS: Mapping[Any, str] = {int: "a whole number", float: "a number", str: "a text", Sequence: "a list"}
"""Types that arguments of our data sets may have, and their names in messages."""


@dataclass(frozen=True)
class TrainingPicture:
    """A picture that has not been read yet.

    name: unique in its data set, for messages.
    load: reads or draws the picture, and raises SourceError if it cannot.
    position: metres east and north in the data set's own frame.
    heading: degrees clockwise from north.
    time: seconds since 1970.

    position, heading and time are None if the data set does not know them.
    """

    name: str
    load: Callable[[], Image.Image]
    position: tuple[float, float] | None = None
    heading: float | None = None
    time: float | None = None


@dataclass(frozen=True)
class TrainingPlace:
    """Pictures that show the same place. Any two of them are a matching pair."""

    name: str
    pictures: Sequence[TrainingPicture]


class PlaceDataset(Protocol):
    """A data set of places.

    Worker processes hold copies of it. So it must be picklable and small, and must read no picture before it is asked.
    """

    def __len__(self) -> int:
        """Return the number of places."""
        ...

    @property
    def groups(self) -> Sequence[int]:
        """Sizes of the runs of consecutive places that belong together, for example a city's.

        Their sum is the length of the data set.
        """
        ...

    def place(self, index: int, rng: np.random.Generator) -> TrainingPlace:
        """Return a place.

        rng: the only source of randomness, for example for a focal point or a visit.
        """
        ...


class JoinedPlaces:
    """Several data sets in a row, used as one data set."""

    def __init__(self, parts: Sequence[PlaceDataset]) -> None:
        self.parts = tuple(parts)
        self.ends = tuple(itertools.accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @property
    def groups(self) -> Sequence[int]:
        """The groups of all parts."""
        return [size for part in self.parts for size in part.groups]

    def place(self, index: int, rng: np.random.Generator) -> TrainingPlace:
        """Return the place `index`, counted through all parts."""
        number = bisect.bisect_right(self.ends, index)
        start = self.ends[number - 1] if number else 0
        return self.parts[number].place(index - start, rng)


def _check_types(name: str, hints: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raise SourceError for an argument of another type than the data set's annotation."""
    for argument, value in arguments.items():
        kind = typing.get_origin(hints[argument]) or hints[argument]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise SourceError(
                f"data set {name!r}: {argument} must be {KINDS[kind]}, is {value!r}; correct it in the configuration"
            )


def open_places(name: str, arguments: Mapping[str, Any]) -> PlaceDataset:
    """Open the data set that a configuration names.

    name: one of SHORT_NAMES, or `module:callable`.
    arguments: passed to the data set.
    Raises SourceError if there is no such data set, if it does not take the arguments, or if it holds no place.
    """
    module, _, attribute = SHORT_NAMES.get(name, name).partition(":")
    if not attribute:
        raise SourceError(f"data set {name!r}: unknown; name one of {', '.join(SHORT_NAMES)}, or module:callable")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SourceError(f"data set {name!r}: cannot be imported ({error}); check the name and PYTHONPATH") from error
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise SourceError(
            f"data set {name!r}: does not take these arguments ({error}); correct them in the configuration"
        ) from error
    if name in SHORT_NAMES:  # annotations of other data sets may be anything
        _check_types(name, typing.get_type_hints(factory.__init__), arguments)
    places: PlaceDataset = factory(**arguments)
    if not len(places):
        raise SourceError(f"data set {name!r}: holds no place; check its arguments {dict(arguments)}")
    return places
