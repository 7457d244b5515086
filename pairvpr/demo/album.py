"""The pictures of a demo: those a map is made of, and the queries whose places are known."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pairvpr.demo import TOWN
from pairvpr.errors import SourceError
from pairvpr.evaluation import load_folders
from pairvpr.runtime.image import MIN_SIDE, load_picture
from pairvpr.runtime.sources import list_pictures
from pairvpr.spread import spread

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many are done and of how many."""

MAX_PICTURES = 200  # of the user's own; more would take long and show no more
MAX_QUERIES = 100
MAX_SIDE = 640  # pixels of the copies of the user's own pictures
QUALITY = 90  # of JPEG files


@dataclass(frozen=True)
class Query:
    """A query picture and the place it shows: `truth` is the name of a picture of the map."""

    file: Path
    truth: str


@dataclass(frozen=True)
class Album:
    """The pictures of a demo.

    places: names of the map's pictures, in `map_folder`, with the titles they go by. notes: what a reader of
    the results should know about the pictures, a sentence each.
    """

    map_folder: Path
    places: Mapping[str, str]
    queries: tuple[Query, ...]
    notes: tuple[str, ...]


def town_album(folder: Path, places: int, visits: int, progress: Progress) -> Album:
    """The first places of the town that ships, with at most `visits` queries each, as files below `folder`."""
    maps, queries = _folders(folder)
    benchmark = load_folders(TOWN / "database", TOWN / "queries")
    asked: list[Query] = []
    chosen = benchmark.database[:places]
    for number, (name, file) in enumerate(chosen):
        progress("copying pictures", number, len(chosen))
        shutil.copyfile(file, maps / name)
        here = [query for query, right in zip(benchmark.queries, benchmark.positives, strict=True) if number in right]
        for query, picture in here[:visits]:
            copy = queries / query.replace("/", "-")
            shutil.copyfile(picture, copy)
            asked.append(Query(copy, name))
    progress("copying pictures", len(chosen), len(chosen))
    note = (
        f"The {len(chosen)} places are of a made-up town that the model never saw; each query shows one of them from "
        "another spot, on another day, in another light or weather and with other cars."
    )
    return Album(
        maps, {name: Path(name).stem.strip("@").replace("@", " ") for name, _ in chosen}, tuple(asked), (note,)
    )


def choose_pictures(images: Path, out: Path) -> tuple[list[tuple[str, Path]], int]:
    """At most MAX_PICTURES of a folder's pictures, evenly chosen, and how many there are.

    Those in `out` do not count. Raises SourceError where there are fewer than 2.
    """
    inside = out.resolve()
    if images.resolve().is_relative_to(inside):
        raise SourceError(f"{images} lies in {out}, where the demo writes: name another folder for either")
    found = [item for item in list_pictures(images) if not item[1].resolve().is_relative_to(inside)]
    if len(found) < 2:
        raise SourceError(f"{images} holds fewer than 2 pictures: name a folder with 2 or more places")
    return spread(found, MAX_PICTURES), len(found)


def copy_album(folder: Path, chosen: Sequence[tuple[str, Path]], found: int, visits: int, progress: Progress) -> Album:
    """The user's pictures as the map, and shifted and re-lit versions of them as queries, below `folder`.

    A picture that cannot be read is left out. Raises SourceError where fewer than 2 can be read.
    """
    maps, queries = _folders(folder)
    titles: dict[str, str] = {}
    unread: list[SourceError] = []
    for number, (title, path) in enumerate(chosen):
        progress("copying pictures", number, len(chosen))
        try:
            picture = load_picture(path)
        except SourceError as error:
            unread.append(error)
            continue
        name = f"{number:04d}.jpg"
        titles[name] = title
        _save(_scaled(picture), maps / name)
    progress("copying pictures", len(chosen), len(chosen))
    if len(titles) < 2:
        raise SourceError(f"{len(titles)} of {len(chosen)} pictures can be read, 2 are needed: {unread[0]}")
    wanted = spread([(name, visit) for name in titles for visit in range(1, visits + 1)], MAX_QUERIES)
    asked = []
    for number, (name, visit) in enumerate(wanted):
        progress("drawing queries", number, len(wanted))
        file = queries / f"{Path(name).stem}-visit-{visit}.jpg"
        _save(another_look(load_picture(maps / name), (number, visit)), file)
        asked.append(Query(file, name))
    progress("drawing queries", len(wanted), len(wanted))
    return Album(maps, titles, tuple(asked), _notes(len(titles), found, unread))


def another_look(picture: Image.Image, seed: tuple[int, int]) -> Image.Image:
    """Return a part of an RGB picture, shifted and in another light, as another visit would show it."""
    random = np.random.default_rng(seed)
    share = random.uniform(0.75, 0.9)
    width, height = (max(MIN_SIDE, int(side * share)) for side in picture.size)
    left = int((picture.width - width) * random.uniform())
    top = int((picture.height - height) * random.uniform(0.25, 0.75))
    part = np.asarray(picture.crop((left, top, left + width, top + height)), np.float32)
    warmth = 1 + random.uniform(-0.14, 0.18) * np.array([1, 0, -1])  # more red and less blue, or the reverse
    lit = part * random.uniform(0.62, 1.22) * warmth + random.normal(0, random.uniform(2, 6), part.shape)
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))


def _notes(used: int, found: int, unread: Sequence[SourceError]) -> tuple[str, ...]:
    notes = [
        f"The map is made of your own pictures, in copies of at most {MAX_SIDE} pixels a side. The queries "
        "are shifted, re-lit parts of them, which is easier than a real second visit; only the very picture "
        "that a query was cut from counts as right, so a neighbour that shows the same place counts as wrong."
    ]
    if used + len(unread) < found:
        notes.append(f"Of your {found} pictures {used + len(unread)} were taken, evenly chosen.")
    if unread:
        notes.append(f"Left out because they could not be read: {len(unread)}; the first: {unread[0]}.")
    return tuple(notes)


def _folders(folder: Path) -> tuple[Path, Path]:
    maps, queries = folder / "map", folder / "queries"
    for path in (maps, queries):
        path.mkdir(parents=True)
    return maps, queries


def _save(picture: Image.Image, file: Path) -> None:
    picture.save(file, "JPEG", quality=QUALITY)


def _scaled(picture: Image.Image) -> Image.Image:
    """A copy of at most MAX_SIDE pixels a side, without metadata; a very long one is squashed."""
    factor = min(1.0, MAX_SIDE / max(picture.size))
    width, height = (max(MIN_SIDE, round(side * factor)) for side in picture.size)
    copy = picture.resize((width, height), Image.Resampling.BILINEAR)
    copy.info.clear()
    return copy
