"""From a picture to an answer: encode, search, gather, re-rank."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairvpr.errors import BundleError, EngineError, MapError
from pairvpr.runtime.acceptance import Judge, Setup
from pairvpr.runtime.answer import Match, Recognition
from pairvpr.runtime.cascade import Cascade
from pairvpr.runtime.map import Map
from pairvpr.runtime.model import Model, Picture
from pairvpr.runtime.pictures import load_picture, resize
from pairvpr.runtime.rerank import STAGES, Ranking, Reranker
from pairvpr.runtime.search import DescriptorIndex, FaissIndex
from pairvpr.runtime.sources import Frame
from pairvpr.runtime.stopwatch import Stopwatch
from pairvpr.runtime.tuning import Setting, open_tuned

log = logging.getLogger(__name__)


class PlaceRecognizer:
    """Recognises the places of a map.

    vpr = PlaceRecognizer.open("map/")
    answer = vpr.recognize("query.jpg")
    answer.best.name, answer.best.score, answer.best.pose
    """

    def __init__(
        self,
        places: Map,
        model: Model,
        index: DescriptorIndex,
        top_k: int,
        rerank: bool = True,
        budget_ms: float | None = None,
        cascade: Cascade | None = None,
        judge: Judge | None = None,
    ) -> None:
        """Put together what `open` opens; without a judge no answer is accepted or not."""
        if budget_ms is not None and not 0 < budget_ms < math.inf:
            raise EngineError(f"budget of {budget_ms:g} ms: give more than 0, or none for no limit")
        self.map = places
        self.model = model
        self.index = index
        self.top_k = top_k
        self.budget_ms = budget_ms
        self._judge = judge or Judge()
        self._reranker = Reranker(places, model, cascade) if rerank else None

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
        budget_ms: float | None = None,
        exact: bool | None = None,
    ) -> PlaceRecognizer:
        """Open a map folder.

        model: another bundle of the same identity; None takes the map's own, with the setting that `pairvpr tune` found
        for it on this device for what is left open here: device, precision, threads, batch_size and exact.
        top_k: candidates to re-rank; None takes the model's default or the whole map, whichever is less.
        rerank: false answers by descriptors alone.
        budget_ms: milliseconds for a whole answer, from decoding on; candidates that do not fit in are not compared,
        and where encoding takes it all none is.
        exact: compare every candidate in full, as published; false: drop those on the way that the cascade sees no
        prospects for, which must have been calibrated; None: as tuned, else the cascade where there is one. The rest:
        see `load_model`.
        Raises MapError (also for an empty map and a top_k outside 1 to the map's size), BundleError, EngineError (also
        for a budget that is not above 0).
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
            setting = Setting(device, precision, threads, batch_size, exact)
            if model is None:
                loaded, setting = open_tuned(places.model_path, setting)
            else:
                loaded = setting.load(Path(model))
            if loaded.bundle.identity != places.identity:
                raise MapError(
                    f"{path}: made with model {places.identity[:12]}, not with {loaded.bundle.identity[:12]} "
                    f"({loaded.bundle.path}); use the map's own model or build the map again"
                )
            k = min(loaded.bundle.info.top_k, count) if top_k is None else top_k
            cascade = Cascade.of(loaded.bundle) if rerank and not setting.exact else None
            if cascade is not None:
                log.info("cascade: %s", cascade)
            elif rerank and setting.exact is False:
                raise BundleError(
                    f"{loaded.bundle.path}: no cascade was calibrated; run `pairvpr calibrate` or ask for exact answers"
                )
            judge = Judge.of(loaded.bundle, Setup.of(places, k, cascade) if rerank else None)
            log.info("decisions: %s", judge)
            return cls(places, loaded, FaissIndex(places.descriptors), k, rerank, budget_ms, cascade, judge)
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
        return self._answer(answer, frame.picture, Stopwatch(frame.decode_ms))

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
        if self._reranker is None:
            ranking = Ranking.by_descriptor(len(rows))
        else:
            ranking = self._reranker.rank(query, rows, clock, self.budget_ms)
        return self._judge(
            replace(
                answer,
                matches=self._matches(rows, similarities, ranking),
                compared=ranking.compared,
                complete=self._reranker is None or ranking.compared == len(rows),
                timings=clock.timings(),
            )
        )

    def _matches(
        self, rows: npt.NDArray[np.int64], similarities: npt.NDArray[np.float32], ranking: Ranking
    ) -> tuple[Match, ...]:
        matches = []
        for i in ranking.order():
            record, score = self.map.records[rows[i]], float(ranking.scores[i])
            matches.append(
                Match(
                    name=record.name,
                    score=None if math.isnan(score) else score,
                    similarity=float(similarities[i]),
                    stage=STAGES[ranking.stages[i]],
                    pose=record.pose or record.gps,
                )
            )
        return tuple(matches)
