"""Draw a town in advance, into plain folders of pictures that training and evaluation read.

OUT/<street>/<place>/@east@north@heading@condition@number@.jpg       `pairvpr train`, data set "folders"
OUT/database/...jpg and OUT/queries/<condition>/...jpg               `pairvpr eval`
OUT/town.txt                                                         options of `pairvpr town` that describe the town
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pairvpr.data.town.dataset import SIZE, heading, position, street_seed
from pairvpr.data.town.plan import PLACES, draw_street
from pairvpr.data.town.studio import take_pictures
from pairvpr.data.town.visits import CONDITIONS, MAP_CONDITIONS, Visit, draw_visit
from pairvpr.errors import SourceError
from pairvpr.files import find_partials, remove, write_atomically

QUALITY = 88  # of JPEG files
QUERIES = 4  # query pictures of each place in an evaluation
NOTE = "town.txt"
Progress = Callable[[int, int], None]
"""Called with the number of streets drawn so far and of all streets."""


def write_town(out: Path, streets: int, seed: int, visits: int, progress: Progress) -> None:
    """Draw a town for training: `visits` pictures of each place, from a map's (number 0) to the hardest.

    A second call continues with the streets that are missing.
    Raises SourceError if `out` cannot be written, or holds another town or more streets of this one.
    """
    _claim(out, streets, f"--seed {seed} --visits {visits}")
    _write(partial(_training_street, out, seed, visits), out, streets, progress)


def write_evaluation(out: Path, streets: int, seed: int, progress: Progress) -> None:
    """Draw a town for evaluation: a map picture of each place, and QUERIES others of it in other conditions.

    A second call continues with the streets that are missing. Raises SourceError as `write_town` does.
    """
    _claim(out, streets, f"--seed {seed} --evaluation")
    _write(partial(_evaluation_street, out, seed), out, streets, progress)


def _claim(out: Path, streets: int, town: str) -> None:
    """Record in the folder which town it holds, so that no other town is mixed into it."""
    note = out / NOTE
    try:
        out.mkdir(parents=True, exist_ok=True)
        begun = re.fullmatch(r"--streets (\d+) (.*)\n", note.read_text(encoding="utf-8")) if note.exists() else None
        if begun is not None and (begun[2] != town or int(begun[1]) > streets):
            raise SourceError(
                f"{out}: holds a town of --streets {begun[1]} {begun[2]}; "
                "give these options, delete it or choose another folder"
            )
        with write_atomically(note) as new:
            new.write_text(f"--streets {streets} {town}\n", encoding="utf-8")
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> SourceError:
    return SourceError(
        f"{out}: cannot be written ({error.strerror or error}); free space, or allow writing to the folder"
    )


def _write(job: Callable[[int], None], out: Path, streets: int, progress: Progress) -> None:
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(os.cpu_count(), context, _prepare) as pool:
            futures = [pool.submit(job, street) for street in range(streets)]
            try:
                for done, future in enumerate(as_completed(futures)):
                    future.result()
                    progress(done + 1, streets)
            finally:
                pool.shutdown(cancel_futures=True)
    except OSError as error:
        raise _unwritable(out, error) from error


def _prepare() -> None:
    """Draw with one thread, and let Ctrl-C stop only the streets that have not been begun."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _training_street(out: Path, town: int, visits: int, number: int) -> None:
    final = out / f"{number:06d}"
    if final.exists():
        return
    street, rng = draw_street(street_seed(town, number)), np.random.default_rng((town, number, visits))
    for leftover in find_partials(out, final.name):
        remove(leftover)
    with write_atomically(final) as folder:
        for place in range(len(PLACES)):
            hard = [i / (visits - 1) for i in range(visits)]
            conditions = [rng.choice(CONDITIONS if i else MAP_CONDITIONS) for i in range(visits)]
            taken = [draw_visit(street, place, rng, str(c), h) for c, h in zip(conditions, hard, strict=True)]
            pictures = take_pictures(taken, hard, SIZE)
            (folder / str(place)).mkdir(parents=True)
            for i, visit in enumerate(taken):
                _save(pictures[i], folder / str(place) / _name(visit, i))


def _evaluation_street(out: Path, town: int, number: int) -> None:
    """Draw a street whose pictures are not all there yet."""
    street, rng = draw_street(street_seed(town, number)), np.random.default_rng((town, number))
    for place in range(len(PLACES)):
        conditions = [str(rng.choice(MAP_CONDITIONS)), *map(str, rng.permutation(CONDITIONS)[:QUERIES])]
        hard = [0.3, *QUERIES * [1.0]]
        taken = [draw_visit(street, place, rng, c, h) for c, h in zip(conditions, hard, strict=True)]
        folders: Sequence[Path] = [out / "database", *(out / "queries" / c for c in conditions[1:])]
        files = [folder / _name(visit, i) for i, (folder, visit) in enumerate(zip(folders, taken, strict=True))]
        if not all(file.exists() for file in files):
            for picture, file in zip(take_pictures(taken, hard, SIZE), files, strict=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                with write_atomically(file) as new:
                    _save(picture, new)


def _name(visit: Visit, number: int) -> str:
    east, north = position(visit)
    return f"@{east:.2f}@{north:.2f}@{heading(visit):.0f}@{visit.weather.condition}@{number}@.jpg"


def _save(picture: npt.NDArray[np.uint8], file: Path) -> None:
    Image.fromarray(picture).save(file, "JPEG", quality=QUALITY)
