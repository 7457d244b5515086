"""The one protocol of training data: a data set yields places, a place yields pictures."""

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
    "town": "pairvpr.data.town:Town",
    "gsv-cities": "pairvpr.data.gsv_cities:GsvCities",
    "sf-xl": "pairvpr.data.sf_xl:SfXl",
    "google-landmarks": "pairvpr.data.google_landmarks:GoogleLandmarks",
}
"""Data sets of ours by the name that a configuration calls them."""
KINDS: Mapping[Any, str] = {int: "a whole number", float: "a number", str: "a text", Sequence: "a list"}
"""What their arguments may be."""


@dataclass(frozen=True)
class Picture:
    """A picture that has not been read yet.

    name: unique in its data set, for reports. load: reads or draws it; raises SourceError where it cannot.
    position: metres east and north in the data set's own frame. heading: degrees clockwise from north.
    time: seconds since 1970. Each is None where the data set does not know it.
    """

    name: str
    load: Callable[[], Image.Image]
    position: tuple[float, float] | None = None
    heading: float | None = None
    time: float | None = None


@dataclass(frozen=True)
class Place:
    """Pictures that show the same place: any two of them are a pair."""

    name: str
    pictures: Sequence[Picture]


class PlaceDataset(Protocol):
    """A data set. Workers hold copies of it: it must be picklable, small, and read nothing before it is asked."""

    def __len__(self) -> int:
        """How many places there are."""
        ...

    @property
    def groups(self) -> Sequence[int]:
        """Sizes of the runs of consecutive places that belong together (a city each); their sum is the length."""
        ...

    def place(self, index: int, rng: np.random.Generator) -> Place:
        """A place. Whatever the data set leaves to chance (a focal point, a visit) is drawn from `rng` alone."""
        ...


class JoinedPlaces:
    """Several data sets as one, one after the other."""

    def __init__(self, parts: Sequence[PlaceDataset]) -> None:
        self.parts = tuple(parts)
        self.ends = tuple(itertools.accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @property
    def groups(self) -> Sequence[int]:
        """The groups of all parts."""
        return [size for part in self.parts for size in part.groups]

    def place(self, index: int, rng: np.random.Generator) -> Place:
        """The place of the part that `index` falls into."""
        number = bisect.bisect_right(self.ends, index)
        start = self.ends[number - 1] if number else 0
        return self.parts[number].place(index - start, rng)


def _check_types(name: str, hints: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    for argument, value in arguments.items():
        kind = typing.get_origin(hints[argument]) or hints[argument]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise SourceError(f"data set {name!r}: {argument} must be {KINDS[kind]}, is {value!r}; correct it")


def open_places(name: str, arguments: Mapping[str, Any]) -> PlaceDataset:
    """The data set that a configuration names: one of ours, or `module:callable`, called with `arguments`.

    Raises SourceError where there is no such data set, the arguments do not fit it, or it holds no place.
    """
    module, _, attribute = SHORT_NAMES.get(name, name).partition(":")
    if not attribute:
        raise SourceError(f"data set {name!r}: unknown; name one of {', '.join(SHORT_NAMES)}, or module:callable")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SourceError(f"data set {name!r}: cannot be imported ({error}); check name and PYTHONPATH") from error
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise SourceError(f"data set {name!r}: its arguments do not fit ({error})") from error
    if name in SHORT_NAMES:  # annotations of others' may be anything
        _check_types(name, typing.get_type_hints(factory.__init__), arguments)
    places: PlaceDataset = factory(**arguments)
    if not len(places):
        raise SourceError(f"data set {name!r}: holds no place; check its arguments {dict(arguments)}")
    return places
