"""From a picture to an answer: encode, search, gather, re-rank."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairvpr.errors import MapError
from pairvpr.runtime.answer import Match, Recognition, Stage
from pairvpr.runtime.features import Features
from pairvpr.runtime.map import Map
from pairvpr.runtime.model import Model, Picture, load_model
from pairvpr.runtime.pictures import load_picture, resize
from pairvpr.runtime.search import DescriptorIndex, FaissIndex
from pairvpr.runtime.sources import Frame


class PlaceRecognizer:
    """Recognises the places of a map.

    vpr = PlaceRecognizer.open("map/")
    answer = vpr.recognize("query.jpg")
    answer.best.name, answer.best.score, answer.best.pose
    """

    def __init__(self, places: Map, model: Model, index: DescriptorIndex, top_k: int, rerank: bool = True) -> None:
        self.map = places
        self.model = model
        self.index = index
        self.top_k = top_k
        self.rerank = rerank

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: str | Path | None = None,
        top_k: int | None = None,
        rerank: bool = True,
        device: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> PlaceRecognizer:
        """Open a map folder.

        model: another bundle of the same identity; None takes the map's own.
        top_k: candidates to re-rank; None takes the model's default or the whole map, whichever is less.
        rerank: false answers by descriptors alone. The rest: see `load_model`.
        Raises MapError (also for an empty map and a top_k outside 1 to the map's size), BundleError, EngineError.
        """
        places = Map.open(path)
        try:
            count = len(places.records)
            if count == 0:
                raise MapError(
                    f"{path}: the map holds no pictures yet; let its `pairvpr map build` finish, run it again if it "
                    "was interrupted, or add pictures with `pairvpr map add`"
                )
            if top_k is not None and not 1 <= top_k <= count:
                raise MapError(f"{path}: top-k {top_k} is outside 1 to {count}, the map's pictures; choose one inside")
            loaded = load_model(
                places.model_path if model is None else model, device, precision, threads=threads, batch_size=batch_size
            )
            if loaded.bundle.identity != places.identity:
                raise MapError(
                    f"{path}: made with model {places.identity[:12]}, not with {loaded.bundle.identity[:12]} "
                    f"({loaded.bundle.path}); use the map's own model or build the map again"
                )
            k = min(loaded.bundle.info.top_k, count) if top_k is None else top_k
            return cls(places, loaded, FaissIndex(places.descriptors), k, rerank)
        except BaseException:
            places.close()
            raise

    def recognize(self, picture: Picture) -> Recognition:
        """The answer for one picture: a path, a PIL picture or a uint8 array (H, W, 3) RGB.

        Raises SourceError where the picture cannot be read, MapError where the map turns out to be damaged.
        """
        clock = Stopwatch()
        name = Path(picture).name if isinstance(picture, str | Path) else ""
        with clock.step("decode"):
            decoded = load_picture(picture)
        return self._answer(Recognition(name), decoded, clock)

    def recognize_frame(self, frame: Frame) -> Recognition:
        """The answer for a frame of a source; one that could not be read gives an answer with `error`."""
        answer = Recognition(frame.name, frame.timestamp)
        if frame.picture is None:
            return replace(answer, reason="no picture", error=frame.error)
        return self._answer(answer, frame.picture, Stopwatch({"decode": frame.decode_ms}))

    def close(self) -> None:
        """Close the map's files."""
        self.map.close()

    def __enter__(self) -> PlaceRecognizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, answer: Recognition, picture: Image.Image, clock: Stopwatch) -> Recognition:
        """`answer` with all that follows from its picture (upright RGB)."""
        with clock.step("preprocess"):
            image = resize(picture, self.model.picture_size)
        with clock.step("encode"):
            query = self.model.encode_prepared(image[None])
        with clock.step("search"):
            similarities, rows = self.index.search(query.descriptors, self.top_k)
        scores = self._rerank(query, rows, clock) if self.rerank else None
        return replace(
            answer,
            matches=self._matches(rows, similarities, scores),
            compared=0 if scores is None else len(scores),
            complete=True,
            timings=clock.timings(),
        )

    def _rerank(self, query: Features, rows: npt.NDArray[np.int64], clock: Stopwatch) -> npt.NDArray[np.float32]:
        """Pair scores (k,) of the candidates, batch by batch, so that their tokens need not fit in memory."""
        parts = []
        for start in range(0, len(rows), self.model.batch_size):
            with clock.step("gather"):
                tokens = self.map.read_tokens(rows[start : start + self.model.batch_size])
            with clock.step("rerank"):
                parts.append(self.model.score_batch(query.tokens, tokens))
        return np.concatenate(parts)

    def _matches(
        self,
        rows: npt.NDArray[np.int64],
        similarities: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float32] | None,
    ) -> tuple[Match, ...]:
        order = range(len(rows)) if scores is None else np.argsort(-scores, kind="stable")
        matches = []
        for i in order:
            record = self.map.records[rows[i]]
            score = None if scores is None else float(scores[i])
            stage: Stage = "descriptor" if scores is None else "full"
            matches.append(Match(record.name, score, float(similarities[i]), stage, record.pose or record.gps))
        return tuple(matches)


@dataclass
class Stopwatch:
    """Milliseconds by step; steps entered more than once add up."""

    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the block under `name`."""
        start = time.perf_counter()
        yield
        self.spent[name] = self.spent.get(name, 0.0) + 1e3 * (time.perf_counter() - start)

    def timings(self) -> Mapping[str, float]:
        """Every step of an answer, 0 where it was not taken, and their total."""
        steps = {
            name: self.spent.get(name, 0.0) for name in ("decode", "preprocess", "encode", "search", "gather", "rerank")
        }
        return {**steps, "total": sum(steps.values())}
