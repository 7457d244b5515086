"""Answer every query of a benchmark once, with all candidates compared in full, and keep the answers on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from pairvpr.evaluation import load_folders
from pairvpr.evaluation.benchmark import Benchmark
from pairvpr.evaluation.run import evaluate, ignore_progress
from pairvpr.runtime.geometry.utm_names import utm_pose
from pairvpr.runtime.model import Model


@dataclass(frozen=True)
class AnswerTable:
    """Answers to m queries with k candidates each, in the order of the descriptor search.

    conditions: (m,) the folder of each query. where: (m, 2) its position in metres or frames.
    places: (m, k, 2) positions of the candidates. similarities, scores: (m, k), of the candidates.
    right: (m, k) the candidate is a right answer. answerable: (m,) the database has a right answer.
    """

    conditions: npt.NDArray[np.str_]
    where: npt.NDArray[np.float64]
    places: npt.NDArray[np.float64]
    similarities: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    right: npt.NDArray[np.bool_]
    answerable: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.where)

    def known(self, top_k: int) -> AnswerTable:
        """Return the answers of the map with `top_k` candidates."""
        return self._candidates(np.arange(top_k) + np.zeros((len(self), 1), np.int64))

    def unknown(self, top_k: int) -> AnswerTable:
        """Return the answers of the map without the query's own place, all of which are wrong."""
        return self._candidates(np.argsort(self.right, axis=1, kind="stable")[:, :top_k])

    def best(self) -> npt.NDArray[np.int64]:
        """Return each query's candidate with the highest pair score, (m,)."""
        return np.argmax(self.scores, axis=1)

    def _candidates(self, columns: npt.NDArray[np.int64]) -> AnswerTable:
        rows = np.arange(len(self))[:, None]
        return dataclasses.replace(
            self,
            places=self.places[rows, columns],
            similarities=self.similarities[rows, columns],
            scores=self.scores[rows, columns],
            right=self.right[rows, columns],
        )


def answer(
    model: Model,
    database: Path,
    folders: Sequence[Path],
    tolerance: int | None,
    every: int,
    top_k: int,
    cache: Path | None,
) -> AnswerTable:
    """Answer one query in `every` of each folder, with `top_k` candidates and the further ones that `unknown` needs.

    cache: a folder that keeps the answers and the map for the next time.
    """
    benchmarks = [_thinned(load_folders(database, folder, tolerance), every) for folder in folders]
    most = max(len(right) for benchmark in benchmarks for right in benchmark.positives)
    depth = min(top_k + most, len(benchmarks[0].database))
    parts = [
        _kept(model, benchmark, folder.name, tolerance, depth, cache)
        for benchmark, folder in zip(benchmarks, folders, strict=True)
    ]
    return AnswerTable(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(AnswerTable)
        }
    )


def _thinned(benchmark: Benchmark, every: int) -> Benchmark:
    queries, positives = benchmark.queries[::every], benchmark.positives[::every]
    return dataclasses.replace(benchmark, queries=queries, positives=positives, positions=None)


def _kept(
    model: Model, benchmark: Benchmark, folder: str, tolerance: int | None, depth: int, cache: Path | None
) -> AnswerTable:
    if cache is None:
        return _answer(model, benchmark, folder, tolerance, depth, None)
    database, queries = ([str(file.resolve()) for _, file in side] for side in (benchmark.database, benchmark.queries))
    kept = cache / f"answers-{_key(model.engines.description, model.bundle.identity, depth, database, queries)}.npz"
    if kept.exists():
        with np.load(kept) as stored:
            return AnswerTable(**stored)
    work = cache / _key(model.engines.description, model.bundle.identity, database)
    answers = _answer(model, benchmark, folder, tolerance, depth, work)
    np.savez_compressed(kept, **vars(answers))
    return answers


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, allow_nan=False).encode()).hexdigest()[:16]


def _answer(
    model: Model, benchmark: Benchmark, folder: str, tolerance: int | None, depth: int, work: Path | None
) -> AnswerTable:
    found = evaluate(benchmark, model, top_k=depth, exact=True, progress=ignore_progress, work_dir=work)
    rows = found.by_descriptor[:, :depth]
    # Scores come in the order of the answers: both sides by database index bring them into that of the search.
    answered = np.argsort(found.re_ranked[:, :depth], axis=1)
    scores = np.empty(rows.shape, np.float32)
    np.put_along_axis(scores, np.argsort(rows, axis=1), np.take_along_axis(found.scores[:, :depth], answered, 1), 1)
    places = np.array([_position(name, tolerance) for name, _ in benchmark.database])
    return AnswerTable(
        conditions=np.array([PurePosixPath(name).parent.name or folder for name, _ in benchmark.queries]),
        where=np.array([_position(name, tolerance) for name, _ in benchmark.queries]),
        places=places[rows],
        similarities=found.similarities[:, :depth],
        scores=scores,
        right=np.array([np.isin(row, right) for row, right in zip(rows, benchmark.positives, strict=True)]),
        answerable=np.array([len(right) > 0 for right in benchmark.positives]),
    )


def _position(name: str, tolerance: int | None) -> tuple[float, float]:
    """Return a position in metres, or the frame number of a traverse's picture."""
    if tolerance is not None:
        return float(re.findall(r"\d+", PurePosixPath(name).stem)[-1]), 0.0
    pose = utm_pose(name)
    assert pose is not None  # `load_folders` has read it
    return pose.x, pose.y
