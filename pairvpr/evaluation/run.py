"""Run a benchmark as a robot would: build a map of the database and answer each query."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError
from pairvpr.evaluation.benchmark import Benchmark
from pairvpr.evaluation.recall import RECALL_AT
from pairvpr.evaluation.results import Evaluation, ModelInfo
from pairvpr.runtime.ahead import fit_frame, read_ahead
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.calibrated.judge import Judge
from pairvpr.runtime.map import Map
from pairvpr.runtime.mapping.builder import ENCODE_BATCH, open_writer
from pairvpr.runtime.model import Model
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.search import DescriptorIndex, FaissIndex
from pairvpr.runtime.sequence.filter import SequenceFilter
from pairvpr.runtime.sequence.topology import Topology
from pairvpr.runtime.sources.base import Frame
from pairvpr.runtime.sources.folder import PictureSource

Progress = Callable[[str, int, int], None]
"""Called with the step, the number of things done in it, and their total."""
MAP = "map"


def ignore_progress(step: str, done: int, total: int) -> None:
    """Take progress and show nothing."""


def evaluate(
    benchmark: Benchmark,
    model: Model,
    *,
    top_k: int | None = None,
    exact: bool = False,
    sequence: bool = False,
    progress: Progress = ignore_progress,
    work_dir: str | Path | None = None,
) -> Evaluation:
    """Build a map of the benchmark's database and recognise all its queries in it.

    top_k: candidates to re-rank; None takes the model's default, at most the whole database.
    exact: compare every candidate in full, without the model's cascade.
    sequence: also filter the answers; both sides of the benchmark must be traverses in order.
    work_dir: a folder for the map; the map of an interrupted run there is continued. None uses a temporary folder,
    which must have room for the map (see TMPDIR).

    Raises MapError for a top_k outside 1 to the database's size and for a folder with another map. Raises SourceError
    for a picture that cannot be read: without it the benchmark would be another one.
    """
    k = _choose_top_k(benchmark, model, top_k)
    with ExitStack() as stack:
        path = _map_path(stack, work_dir)
        start = time.perf_counter()
        built = _build_map(benchmark, path, model, progress)
        seconds = time.perf_counter() - start
        map_ = stack.enter_context(Map.open(path))
        count = len(map_)
        index = DeepIndex(FaissIndex(map_.descriptors, map_.index_precision), min(count, max(k, *RECALL_AT)))
        answers = _Answers(benchmark, map_, index.depth)
        cascade = None if exact else Cascade.find_in(model.bundle)
        recognizer = PlaceRecognizer(map_, model, index, k, cascade=cascade)
        follow = SequenceFilter(map_.records, Topology.from_order([answers.in_order()], count)) if sequence else None
        queries = stack.enter_context(read_ahead(_read(file, model) for _, file in benchmark.queries))
        for number, frame in enumerate(queries, 1):
            answer = recognizer.recognize_frame(frame)
            answers.add(answer, *index.last)
            if follow is not None:
                answers.follow(follow, answer)
            progress("recognising", number, len(benchmark.queries))
        info = model.bundle.info
        judge = Judge.from_map(model.bundle, map_, k, cascade)
        return Evaluation(
            benchmark=benchmark,
            model=ModelInfo(info.preset, info.identity, info.weights, model.engines.description),
            top_k=k,
            by_descriptor=np.stack(answers.by_descriptor),
            re_ranked=np.stack(answers.re_ranked),
            similarities=np.stack(answers.similarities),
            scores=np.stack(answers.scores),
            timings={step: np.array(spent) for step, spent in answers.timings.items()},
            built=built,
            build_seconds=seconds,
            bytes_per_picture=map_.info().bytes_per_picture,
            cascade=cascade,
            filtered=np.array(answers.filtered) if sequence else None,
            off_map=np.array(answers.off_map) if sequence else None,
            acceptance=None if judge.added else judge.acceptance,
            measure=info.measure,
        )


def _choose_top_k(benchmark: Benchmark, model: Model, top_k: int | None) -> int:
    count = len(benchmark.database)
    k = min(model.bundle.info.top_k, count) if top_k is None else top_k
    if not 1 <= k <= count:
        raise MapError(f"{benchmark.name}: top-k {k} is outside 1 to {count}, its database's pictures; choose another")
    return k


def _map_path(stack: ExitStack, work_dir: str | Path | None) -> Path:
    """Return the folder for the evaluation's map. Raises MapError if `work_dir` itself is a map."""
    if work_dir is None:
        work_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="pairvpr-eval-"))
    if (Path(work_dir) / "map.sqlite").exists():
        raise MapError(f"{work_dir}: is a map; choose another folder for the evaluation's own map")
    return Path(work_dir) / MAP


def _build_map(benchmark: Benchmark, path: Path, model: Model, progress: Progress) -> int:
    """Build or complete a map of exactly the benchmark's database; return the number of pictures added."""
    with open_writer(path, model, create=True) as writer:
        present = writer.names()
        files = {name: str(file.resolve()) for name, file in benchmark.database}
        strange = next((name for name, source in present.items() if files.get(name) != source), None)
        if strange is not None:
            raise MapError(
                f"{path}: holds {strange!r}, which is no database picture of {benchmark.name}; choose another folder"
            )
        todo = [(name, file) for name, file in benchmark.database if name not in present]
        with read_ahead((model.fit(file) for _, file in todo), ENCODE_BATCH) as fitted:
            for start in range(0, len(todo), ENCODE_BATCH):
                batch = todo[start : start + ENCODE_BATCH]
                features = model.encode_fitted(list(islice(fitted, len(batch))))
                for i, (name, _) in enumerate(batch):
                    writer.add(name=name, source=files[name], features=features[i])
                progress("building the map", start + len(batch), len(todo))
    return len(todo)


def _read(file: Path, model: Model) -> Frame:
    """Read a query and resize it for the model. Raises SourceError."""
    return fit_frame(next(PictureSource(file).frames()), model)


class DeepIndex:
    """A descriptor index that searches deeper than the candidates, for Recall@100 with a small top-k.

    last: similarities and rows, (depth,) each, of the last search.
    """

    def __init__(self, index: DescriptorIndex, depth: int) -> None:
        self.depth = depth
        self.last: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] = (
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
        )
        self._index = index

    def search(
        self, descriptor: npt.NDArray[np.float32], k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Search as `DescriptorIndex` does; k must not exceed `depth`."""
        similarities, rows = self.last = self._index.search(descriptor, self.depth)
        return similarities[:k], rows[:k]


class _Answers:
    """The answers to the queries so far, in database indices of the benchmark."""

    def __init__(self, benchmark: Benchmark, map_: Map, depth: int) -> None:
        self._index_of = {name: i for i, (name, _) in enumerate(benchmark.database)}
        # An interrupted build may have left the map's rows in another order.
        self._of_row = np.array([self._index_of[record.name] for record in map_.records], np.int64)
        self._depth = depth
        self.by_descriptor: list[npt.NDArray[np.int64]] = []
        self.re_ranked: list[npt.NDArray[np.int64]] = []
        self.similarities: list[npt.NDArray[np.float32]] = []
        self.scores: list[npt.NDArray[np.float32]] = []
        self.timings: dict[str, list[float]] = {}
        self.filtered: list[int] = []
        self.off_map: list[float] = []

    def in_order(self) -> list[int]:
        """Return the map's rows in the order of the benchmark's database."""
        rows: list[int] = np.argsort(self._of_row).tolist()
        return rows

    def add(self, answer: Recognition, similarities: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> None:
        """Add an answer, with the similarities and rows (depth,) of its search."""
        found = self._of_row[rows]
        ranked = found.copy()
        scores = np.full(self._depth, np.nan, np.float32)
        for rank, match in enumerate(answer.matches):
            ranked[rank] = self._index_of[match.name]
            if match.stage == "full" and match.score is not None:
                scores[rank] = match.score
        self.by_descriptor.append(found)
        self.re_ranked.append(ranked)
        self.similarities.append(similarities)
        self.scores.append(scores)
        for step, spent in answer.timings.items():
            self.timings.setdefault(step, []).append(spent)

    def follow(self, sequence: SequenceFilter, answer: Recognition) -> None:
        """Filter the answer that was added last, and add the result."""
        start = time.perf_counter()
        place = sequence.update(answer).sequence
        self.timings.setdefault("sequence", []).append(1e3 * (time.perf_counter() - start))
        assert place is not None  # the answer has a picture
        self.filtered.append(self._index_of[place.name])
        self.off_map.append(place.off_map)
