"""Prepare the pictures of a demo: map pictures, and queries whose places are known."""

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
"""Called with the step, the number of things done in it, and their total."""

MAX_PICTURES = 200  # of the user's own; more would take longer and show nothing else
MAX_QUERIES = 100
MAX_SIDE = 640  # pixels of the copies of the user's own pictures
QUALITY = 90  # of JPEG files


@dataclass(frozen=True)
class Query:
    """A query picture. truth: the name of the map's picture that shows the same place. title: shown on the page."""

    file: Path
    truth: str
    title: str


@dataclass(frozen=True)
class Album:
    """The pictures of a demo.

    map_folder: the folder of the map's pictures. places: titles of the map's pictures by file name.
    notes: sentences about the pictures for readers of the results.
    """

    map_folder: Path
    places: Mapping[str, str]
    queries: tuple[Query, ...]
    notes: tuple[str, ...]


def town_album(folder: Path, places: int, visits: int, progress: Progress) -> Album:
    """Copy the first places of the town that ships below `folder`, with at most `visits` queries each."""
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
            asked.append(Query(copy, name, f"place {number + 1}, {picture.parent.name}"))
    progress("copying pictures", len(chosen), len(chosen))
    note = (
        f"The {len(chosen)} places are in a made-up town that the model was not trained on. Each query shows a place "
        "from another spot, on another day, in another light or weather and with other cars."
    )
    titles = {name: f"place {number}, {name.split('@')[4]}" for number, (name, _) in enumerate(chosen, 1)}
    return Album(maps, titles, tuple(asked), (note,))


def choose_pictures(images: Path, out: Path) -> tuple[list[tuple[str, Path]], int]:
    """Return at most MAX_PICTURES of a folder's pictures, evenly chosen, and the number of all its pictures.

    Pictures in `out` do not count. Raises SourceError if there are fewer than 2.
    """
    inside = out.resolve()
    if images.resolve().is_relative_to(inside):
        raise SourceError(f"{images} lies in {out}, where the demo writes; choose another folder for --images or --out")
    found = [item for item in list_pictures(images) if not item[1].resolve().is_relative_to(inside)]
    if len(found) < 2:
        raise SourceError(f"{images} holds fewer than 2 pictures; give --images a folder with 2 or more places")
    return spread(found, MAX_PICTURES), len(found)


def copy_album(folder: Path, chosen: Sequence[tuple[str, Path]], found: int, visits: int, progress: Progress) -> Album:
    """Copy the user's pictures below `folder`, and make queries of shifted and re-lit parts of them.

    chosen, found: from `choose_pictures`. visits: queries of each picture, at most MAX_QUERIES in all.
    A picture that cannot be read is left out. Raises SourceError if fewer than 2 can be read.
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
        asked.append(Query(file, name, f"a part of {titles[name]}"))
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
        "are shifted, re-lit parts of them, which is easier than a real second visit. Only the picture that a query "
        "was cut from counts as right; a neighbour that shows the same place counts as wrong."
    ]
    if used + len(unread) < found:
        notes.append(f"{used + len(unread)} of your {found} pictures were used, evenly chosen.")
    if unread:
        notes.append(f"{len(unread)} pictures could not be read and were left out; the first: {unread[0]}.")
    return tuple(notes)


def _folders(folder: Path) -> tuple[Path, Path]:
    maps, queries = folder / "map", folder / "queries"
    for path in (maps, queries):
        path.mkdir(parents=True)
    return maps, queries


def _save(picture: Image.Image, file: Path) -> None:
    picture.save(file, "JPEG", quality=QUALITY)


def _scaled(picture: Image.Image) -> Image.Image:
    """Return a copy of at most MAX_SIDE pixels a side, without metadata; a very long picture is squashed."""
    factor = min(1.0, MAX_SIDE / max(picture.size))
    width, height = (max(MIN_SIDE, round(side * factor)) for side in picture.size)
    copy = picture.resize((width, height), Image.Resampling.BILINEAR)
    copy.info.clear()
    return copy
