"""Turn a draw into tensors: read pictures, replace broken ones, transform and collate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pairvpr.data.places import PlaceDataset
from pairvpr.data.sampling import Draw
from pairvpr.data.transforms import Transform, seeded_torch
from pairvpr.errors import SourceError
from pairvpr.runtime.image import load_picture

MOST_PLACES = 100
"""Number of places tried before a draw fails. As many places without readable pictures are no accident."""


class Found(NamedTuple):
    """Readable pictures of one place.

    place: its number.
    broken: a line for each picture that could not be read.
    """

    place: int
    pictures: list[Image.Image]
    broken: list[str]


class PairBatch(NamedTuple):
    """A batch of stage one.

    masked, reference: pictures uint8 (B, S, S, 3).
    mask: bool (B, T), true for the hidden patches of the first picture.
    broken: a line for each picture that could not be read.
    """

    masked: Tensor
    reference: Tensor
    mask: Tensor
    broken: list[str]

    def to(self, device: torch.device) -> PairBatch:
        """Return the batch on a device."""
        masked, reference, mask = (x.to(device, non_blocking=True) for x in (self.masked, self.reference, self.mask))
        return PairBatch(masked, reference, mask, self.broken)


class PlaceBatch(NamedTuple):
    """A batch of stage two.

    images: pictures uint8 (P * K, S, S, 3), place by place.
    labels: numbers of their places (P * K,).
    broken: a line for each picture that could not be read.
    """

    images: Tensor
    labels: Tensor
    broken: list[str]

    def to(self, device: torch.device) -> PlaceBatch:
        """Return the batch on a device."""
        images, labels = (x.to(device, non_blocking=True) for x in (self.images, self.labels))
        return PlaceBatch(images, labels, self.broken)


def read_pictures(places: PlaceDataset, index: int, count: int, rng: np.random.Generator) -> Found:
    """Read `count` different pictures of a place, in random order.

    A broken picture is replaced by another of the same place. A place with too few readable pictures is replaced by
    another place. Raises SourceError after MOST_PLACES places without success.
    """
    broken: list[str] = []
    for _ in range(MOST_PLACES):
        place = places.place(index, rng)
        pictures: list[Image.Image] = []
        for choice in rng.permutation(len(place.pictures)):
            picture = place.pictures[choice]
            try:
                pictures.append(load_picture(picture.load()))
            except SourceError as error:
                broken.append(f"{picture.name}: {error}")
            if len(pictures) == count:
                return Found(index, pictures, broken)
        broken.append(f"place {place.name}: {len(pictures)} readable pictures, {count} needed; another place was taken")
        index = int(rng.integers(len(places)))
    raise SourceError(
        f"{MOST_PLACES} places in a row lack {count} readable pictures; check the data, beginning with {broken[0]}"
    )


class PairSamples(Dataset[PairBatch]):
    """Samples of stage one, indexed by `Draw`: two pictures of a place and a mask of the first."""

    def __init__(self, places: PlaceDataset, transform: Transform, tokens: int, mask_ratio: float) -> None:
        """Set the data set and the content of a sample.

        transform: applied to each picture.
        tokens: patches of a picture.
        mask_ratio: share of the patches that is hidden, rounded down.
        """
        self.places, self.transform, self.tokens = places, transform, tokens
        self.hidden = int(mask_ratio * tokens)

    def __getitem__(self, draw: Draw) -> PairBatch:
        rng = draw.rng()
        found = read_pictures(self.places, draw.place, 2, rng)
        with seeded_torch(int(rng.integers(2**63))):
            masked, reference = (self.transform(picture) for picture in found.pictures)
        mask = torch.from_numpy(rng.permutation(self.tokens) < self.hidden)
        return PairBatch(masked, reference, mask, found.broken)

    @staticmethod
    def collate(items: Sequence[PairBatch]) -> PairBatch:
        """Join samples into a batch."""
        return PairBatch(
            masked=torch.stack([item.masked for item in items]),
            reference=torch.stack([item.reference for item in items]),
            mask=torch.stack([item.mask for item in items]),
            broken=[line for item in items for line in item.broken],
        )


class PlaceSamples(Dataset[PlaceBatch]):
    """Samples of stage two, indexed by `Draw`: `count` pictures of a place."""

    def __init__(self, places: PlaceDataset, transform: Transform, count: int) -> None:
        self.places, self.transform, self.count = places, transform, count

    def __getitem__(self, draw: Draw) -> PlaceBatch:
        rng = draw.rng()
        found = read_pictures(self.places, draw.place, self.count, rng)
        with seeded_torch(int(rng.integers(2**63))):
            images = torch.stack([self.transform(picture) for picture in found.pictures])
        return PlaceBatch(images, torch.full((self.count,), found.place), found.broken)

    @staticmethod
    def collate(items: Sequence[PlaceBatch]) -> PlaceBatch:
        """Join samples into a batch."""
        images, labels = torch.cat([item.images for item in items]), torch.cat([item.labels for item in items])
        return PlaceBatch(images, labels, [line for item in items for line in item.broken])
