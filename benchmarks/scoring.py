"""Score the pairs of a benchmark's queries on several engines, with the same candidates, and keep the scores on disk.

Nothing is computed twice: an interrupted run goes on, and a run with more queries adds to the scores.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.evaluation import Benchmark
from pairvpr.files import write_atomically
from pairvpr.runtime import Features, Model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.calibrated.tuning import RuntimeSetting
from pairvpr.runtime.features import similarities_of
from pairvpr.runtime.map.tokens import TokenFormat

CHUNK = 16
"""Queries of a file: an interruption loses at most these, and a run with other queries computes at most these again."""


@dataclass(frozen=True)
class Way:
    """An engine, and the map's token storage; None for the encoder's own float32 tokens."""

    setting: RuntimeSetting
    tokens: TokenFormat | None = None

    def __str__(self) -> str:
        engine = f"{self.setting.device} {self.setting.precision}"
        return engine if self.tokens is None else f"{engine}, {self.tokens}"


@dataclass(frozen=True)
class Scores:
    """Results of n queries with k candidates.

    similarities: (n, k) of the descriptors.
    looks: (n, k, K), the first look. summaries: (n, k, 4 D), after the prefix.
    scores: (n, k), full scores.
    """

    similarities: npt.NDArray[np.float32]
    looks: npt.NDArray[np.float32]
    summaries: npt.NDArray[np.float16]
    scores: npt.NDArray[np.float32]

    def take(self, which: Sequence[int]) -> Scores:
        """Return the results of some of the queries."""
        rows = np.asarray(which)
        return Scores(*(array[rows] for array in self.arrays()))

    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """Return the arrays in the order of the fields."""
        return self.similarities, self.looks, self.summaries, self.scores

    @staticmethod
    def join(parts: Sequence[Scores], how: Callable[..., npt.NDArray[Any]] = np.concatenate) -> Scores:
        """Join results of several queries."""
        return Scores(*(how(arrays) for arrays in zip(*(part.arrays() for part in parts), strict=True)))


class Workload:
    """The scores of one benchmark and bundle, in a folder."""

    def __init__(self, benchmark: Benchmark, bundle: Bundle, top_k: int, folder: Path) -> None:
        self.benchmark, self.bundle, self.folder = benchmark, bundle, folder
        self.top_k = min(top_k, len(benchmark.database))
        self._candidates: dict[int, npt.NDArray[np.int64]] = {}
        self._about = [bundle.identity, self.top_k, _sizes(benchmark.database)]
        folder.mkdir(parents=True, exist_ok=True)

    def candidates(self, exact: Way, asked: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the database rows (n, k) to compare each query with, nearest by the exact way's descriptor first."""
        opened = _Opened(self, exact)
        for chunk in _chunks(asked):
            file = self._file("candidates", exact, chunk)
            if not file.exists():
                similarity = opened.queries(chunk).descriptors @ opened.database.descriptors.T
                _keep(file, candidates=np.argsort(-similarity, axis=1, kind="stable")[:, : self.top_k])
            with np.load(file) as kept:
                self._candidates.update(zip(chunk, kept["candidates"], strict=True))
        return np.stack([self._candidates[i] for i in asked])

    def score(self, way: Way, asked: Sequence[int]) -> Scores:
        """Return the way's scores of the queries with their candidates. Raises EngineError or BundleError."""
        opened = _Opened(self, way)
        found: list[Scores] = []
        for number, chunk in enumerate(_chunks(asked)):
            file = self._file("scores", way, chunk)
            if not file.exists():
                _keep(file, **vars(opened.compare(chunk, [self._candidates[i] for i in chunk])))
                print(f"{way}: query {number * CHUNK + len(chunk)} of {len(asked)}", file=sys.stderr)
            with np.load(file) as kept:
                found.append(Scores(**kept))
        return Scores.join(found)

    def _file(self, what: str, way: Way, chunk: Sequence[int]) -> Path:
        """Return a file name that depends on graphs, pictures, candidates, and the way."""
        info = self.bundle.info
        stored = info.precisions.get(str(way.setting.precision))  # bfloat16 is computed of the float graphs
        weights = [] if stored is None else [info.files[each.weights].sha256 for each in stored.graphs.values()]
        queries = _sizes([self.benchmark.queries[i] for i in chunk])
        text = repr((what, way.setting.device, way.setting.precision, way.tokens, weights, queries, self._about))
        return self.folder / f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"


class _Opened:
    """The model of a way and its features of the database, opened when first needed."""

    def __init__(self, work: Workload, way: Way) -> None:
        self.work, self.way = work, way
        self._model: Model | None = None
        self._database: Features | None = None

    @property
    def model(self) -> Model:
        if self._model is None:
            self._model = self.way.setting.load(self.work.bundle.path)
        return self._model

    @property
    def database(self) -> Features:
        """Return features of all database pictures, with tokens as the map returns them."""
        if self._database is None:
            made = self.model.encode([path for _, path in self.work.benchmark.database])
            how = self.way.tokens
            tokens = made.tokens if how is None else np.stack([how.store(each).load() for each in made.tokens])
            self._database = Features(made.descriptors, tokens)
        return self._database

    def queries(self, chunk: Sequence[int]) -> Features:
        return self.model.encode([self.work.benchmark.queries[i][1] for i in chunk])

    def compare(self, chunk: Sequence[int], candidates: Sequence[npt.NDArray[np.int64]]) -> Scores:
        """Return the results of the queries, computed in batches as on a robot."""
        queries = self.queries(chunk)
        return Scores.join([self._compare(queries[i], rows) for i, rows in enumerate(candidates)], np.stack)

    def _compare(self, query: Features, rows: npt.NDArray[np.int64]) -> Scores:
        """Return the results of one query, without the axis of queries."""
        parts = []
        for start in range(0, len(rows), self.model.batch_size):
            batch = rows[start : start + self.model.batch_size]
            tokens = self.database.tokens[batch]
            pairs = self.model.prefix(query.tokens, tokens)
            parts.append(
                Scores(
                    similarities_of(query.descriptors[0], self.database.descriptors[batch]),
                    self.model.look(query.tokens, tokens),
                    pairs.summaries.astype(np.float16),
                    self.model.suffix(pairs, np.arange(len(tokens))),
                )
            )
        return Scores.join(parts)


def _sizes(pictures: Sequence[tuple[str, Path]]) -> list[tuple[str, int]]:
    return [(name, path.stat().st_size) for name, path in pictures]


def _chunks(asked: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(asked), CHUNK):
        yield asked[start : start + CHUNK]


def _keep(file: Path, **arrays: npt.NDArray) -> None:
    """Write arrays, whole or not at all."""
    with write_atomically(file) as partial, partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
