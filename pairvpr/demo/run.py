"""Run the demo from pictures to page: copy, build a map, recognise, count, show."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pairvpr.demo.album import Album, Progress, choose_pictures, copy_album, town_album
from pairvpr.demo.outcome import DemoResult, Outcome, median_timings, recall
from pairvpr.demo.page import render
from pairvpr.errors import PairVPRError
from pairvpr.html.document import write_page
from pairvpr.runtime.mapping.builder import BuildOptions, add_pictures
from pairvpr.runtime.model import Model, load_model
from pairvpr.runtime.recognizer import PlaceRecognizer

MARKER = ".pairvpr-demo"  # in a folder that the next demo may replace
PICTURES, MAP, REPORT = "pictures", "map", "index.html"


def ignore_progress(step: str, done: int, total: int) -> None:
    """Take progress and show nothing."""


def run_demo(
    out: Path,
    images: Path | None = None,
    model: Path | None = None,
    *,
    places: int = 30,
    visits: int = 4,
    top_k: int = 10,
    device: str = "auto",
    precision: str | None = None,
    progress: Progress = ignore_progress,
) -> DemoResult:
    """Build a map in the folder `out`, recognise queries in it and write the page `out`/index.html.

    out: a new or empty folder, or the folder of an earlier demo, which is replaced.
    images: a folder of the user's own pictures for the map, its subfolders included; at most 200 are used. None takes
    the first `places` of the town that ships. visits: queries of each picture, at most 100 of the user's own in all.
    top_k: candidates to re-rank, at most all; 10 keep the demo short on two CPU cores.
    model: a bundle; None takes the default. device, precision: see `load_model`. progress: see `Progress`.

    Raises PairVPRError for another folder `out`, SourceError if fewer than 2 pictures can be read, BundleError,
    EngineError, MapError.
    """
    if places < 2 or visits < 1 or top_k < 1:
        raise ValueError(f"{places} places, {visits} visits, top-k {top_k}: a demo needs at least 2, 1 and 1")
    _check_replaceable(out)
    loaded = load_model(model, device, precision)
    chosen = None if images is None else choose_pictures(images, out)
    with _writing(out):
        _claim(out)
        if chosen is None:
            album = town_album(out / PICTURES, places, visits, progress)
        else:
            album = copy_album(out / PICTURES, *chosen, visits, progress)
    _build_map(album, out / MAP, loaded, progress)
    # The recognizer opens the map's own copy of the model, as on a robot.
    compared = min(top_k, len(album.places))
    with PlaceRecognizer.open(out / MAP, top_k=compared, device=device, precision=precision) as recognizer:
        outcomes = _recognize(album, recognizer, progress)
    result = _result(album, outcomes, loaded, compared, out)
    write_page(out / REPORT, render(result, album, outcomes))
    return result


def _build_map(album: Album, path: Path, model: Model, progress: Progress) -> None:
    """Build the map of the album's pictures."""
    add_pictures(
        album.map_folder,
        path,
        model,
        BuildOptions(strict=True),
        create=True,
        progress=lambda done, total: progress("building the map", done, total or done),
    )


def _recognize(album: Album, recognizer: PlaceRecognizer, progress: Progress) -> list[Outcome]:
    outcomes = []
    for number, query in enumerate(album.queries):
        progress("recognising", number, len(album.queries))
        outcomes.append(Outcome(query.file, query.truth, recognizer.recognize(query.file), query.title))
    progress("recognising", len(album.queries), len(album.queries))
    return outcomes


def _result(album: Album, outcomes: list[Outcome], model: Model, top_k: int, out: Path) -> DemoResult:
    timings = median_timings(outcomes)
    return DemoResult(
        places=len(album.places),
        queries=len(outcomes),
        top_k=top_k,
        recall_before=recall([outcome.right_before for outcome in outcomes]),
        recall_after=recall([outcome.right_after for outcome in outcomes]),
        milliseconds=timings["total"],
        timings=timings,
        trained=model.bundle.info.weights.trained,
        preset=model.bundle.info.preset,
        engine=model.engines.description,
        notes=album.notes,
        report=out / REPORT,
        map=out / MAP,
        measure=model.bundle.info.measure,
    )


def _check_replaceable(out: Path) -> None:
    """Check that the folder is new, empty, or holds an earlier demo. Raises PairVPRError."""
    with _writing(out):
        if out.exists() and not out.is_dir():
            raise PairVPRError(f"{out} is a file, not a folder; choose another folder for the demo with --out")
        if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
            raise PairVPRError(f"{out} is not empty and holds no demo; choose an empty or new folder with --out")


def _claim(out: Path) -> None:
    """Mark the folder as a demo's and delete the files of an earlier demo; other files in it stay."""
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("made by pairvpr demo; the next demo here replaces it\n", encoding="utf-8")
    for name in (REPORT, MAP, PICTURES):
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn a failure of the file system into a PairVPRError."""
    try:
        yield
    except OSError as error:
        where, reason = error.filename or out, error.strerror or type(error).__name__
        raise PairVPRError(
            f"{where} cannot be written ({reason}); choose another folder for the demo with --out"
        ) from error
