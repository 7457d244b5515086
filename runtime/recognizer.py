"""Answer a picture: encode it, search the map, gather candidates, re-rank them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from pairvpr.errors import EngineError, MapError
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.calibrated.judge import Judge
from pairvpr.runtime.calibrated.tuning import RuntimeSetting
from pairvpr.runtime.geometry.transforms import Transform
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.map import Map
from pairvpr.runtime.measure import DESCRIPTOR_ALONE
from pairvpr.runtime.model import Fitted, Model, Picture
from pairvpr.runtime.prior import Prior
from pairvpr.runtime.recognizer_parts import load_parts
from pairvpr.runtime.rerank import Ranking, Reranker
from pairvpr.runtime.rig import answer_cameras, make_frame
from pairvpr.runtime.search import DescriptorIndex
from pairvpr.runtime.sources import Frame
from pairvpr.runtime.stopwatch import Stopwatch
from pairvpr.runtime.view import View, follow_index, open_index

log = logging.getLogger(__name__)


class PlaceRecognizer(AbstractContextManager["PlaceRecognizer"]):
    """Recognize the places of a map.

    vpr = PlaceRecognizer.open("map/")
    answer = vpr.recognize("query.jpg")
    answer.best.name, answer.best.score, answer.best.pose
    """

    def __init__(
        self,
        map_: Map,
        model: Model,
        index: DescriptorIndex,
        top_k: int,
        rerank: bool = True,
        budget_ms: float | None = None,
        cascade: Cascade | None = None,
        judged: bool = False,
        strict: bool = False,
    ) -> None:
        """Combine an opened map, model and index. `open` does all this for a map folder.

        top_k: number of candidates to re-rank.
        rerank: whether to re-rank. A model without a pair classifier never does.
        judged: whether the bundle's threshold accepts or rejects answers.
        For the rest see `open`.
        Raises EngineError for a budget that is not above 0, and BundleError for a damaged threshold.
        """
        if budget_ms is not None and not 0 < budget_ms < math.inf:
            raise EngineError(
                f"budget of {budget_ms:g} ms: give more than 0 with --budget-ms, or leave it out for no limit"
            )
        self.model = model
        self.budget_ms = budget_ms
        self._wanted, self._cascade, self._judged = top_k, cascade, judged
        compared = rerank and model.bundle.info.pair_classifier
        self._view = self._show(map_, index, Reranker(map_, model, cascade, strict) if compared else None)
        self._switching, self._refreshing = Lock(), Lock()

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
        strict: bool = False,
        model_digest: str | None = None,
    ) -> PlaceRecognizer:
        """Open a map folder.

        model: another bundle of the same identity. None takes the map's own bundle. With it, the setting that
        `pairvpr tune` found for this device fills the fields left open: device, precision, threads, batch_size, exact.
        top_k: number of candidates to re-rank. None takes the number that the map's threshold was calibrated with, else
        the model's default; at most the whole map.
        rerank: whether to re-rank. False answers by descriptors alone, and so does a model without a pair classifier.
        budget_ms: milliseconds for a whole answer, from decoding on. Candidates that do not fit in are not compared,
        and none is if encoding takes the whole budget.
        exact: True compares every candidate in full, as published. False drops candidates by the cascade, which must
        have been calibrated. None follows the calibrated threshold, else the tuned setting, else uses the cascade if
        there is one.
        strict: raise MapError at a candidate whose tokens are damaged. Otherwise it is left out of the answer, which is
        then not complete, and logged once.
        model_digest: the digest that the model must have. None takes the map's, or any if the map has none.
        device, precision, threads, batch_size: see `load_model`.
        Raises MapError (also for an empty map and a top_k outside 1 to the map's size), BundleError, and EngineError
        (also for a budget that is not above 0).
        """
        map_ = Map.open(path)
        try:
            setting = RuntimeSetting(device, precision, threads, batch_size, exact)
            parts = load_parts(map_, setting, model, top_k, rerank, model_digest)
            index = open_index(map_)
            recognizer = cls(
                map_, parts.model, index, parts.top_k, rerank, budget_ms, parts.cascade, judged=True, strict=strict
            )
            log.info("%s", recognizer._describe(parts.note))
            return recognizer
        except BaseException:
            map_.close()
            raise

    @property
    def map(self) -> Map:
        """Return the map, as it was opened or last refreshed."""
        return self._view.map

    @property
    def index(self) -> DescriptorIndex:
        """Return the index of the map's descriptors."""
        return self._view.index

    @property
    def top_k(self) -> int:
        """Return the number of candidates to re-rank: as given, at most the whole map."""
        return self._view.top_k

    def refresh(self) -> bool:
        """Reload the map if a writer has committed to it since it was opened or last refreshed. Return whether it was.

        Without a commit this costs next to nothing. It may run in any thread beside `recognize`: an answer in progress
        ends with the map that it began with. The index becomes a `FaissIndex`. A top_k above the new size is limited
        to it. Model and cascade stay. The threshold is checked anew, see `Judge`.
        Raises MapError if the map cannot be read, holds no pictures any more, or belongs to another model now. Answers
        then go on from the old map.
        """
        with self._refreshing:
            old = self._view
            map_ = old.map.open_newer()
            if map_ is None:
                return False
            try:
                if not len(map_):
                    raise MapError(f"{map_.path}: the map holds no pictures any more; add some with `pairvpr map add`")
                if map_.identity != self.model.bundle.identity:
                    raise MapError(f"{map_.path}: is now a map of another model; open it again")
                reranker = None if old.reranker is None else old.reranker.on(map_)
                view = self._show(map_, follow_index(old.index, map_), reranker)
            except BaseException:
                map_.close()
                raise
            log.info(
                "%s: refreshed, %d pictures instead of %d; decisions: %s",
                map_.path,
                len(map_),
                len(old.map),
                _describe_decisions(view.judge),
            )
            with self._switching:
                self._view = view
                old.leave()
        return True

    def recognize(self, picture: Picture, prior: Prior | None = None) -> Recognition:
        """Answer one picture: a path, a PIL picture or a uint8 array (H, W, 3) RGB. May run in any thread.

        prior: compare only the map pictures that it allows. A map of these pictures alone would give the same answer.
        The answer has an `error` if there is none.
        Raises SourceError if the picture cannot be read, and MapError if the map proves to be damaged or no picture of
        it has the kind of place or time that the prior gives.
        """
        clock = Stopwatch()
        name = Path(picture).name if isinstance(picture, str | Path) else ""
        with clock.step("decode"):
            decoded = load_picture(picture)
        with clock.step("preprocess"):
            fitted = self.model.fit(decoded)
        return self._answer(Recognition(name), fitted, clock, prior, self.budget_ms)

    def recognize_frame(self, frame: Frame, prior: Prior | None = None) -> Recognition:
        """Answer a frame of a source. A frame that could not be read gives an answer with `error`.

        prior: see `recognize`.
        """
        if not frame.beside:
            return self._answer_frame(frame, prior, self.budget_ms)
        return answer_cameras(frame, prior, self.budget_ms, self._answer_frame)

    def recognize_rig(
        self, pictures: Sequence[Picture | None], prior: Prior | None = None, mounts: Sequence[Transform] = ()
    ) -> Recognition:
        """Answer the pictures of a robot's cameras at one moment, as one query. May run in any thread.

        pictures: as `recognize` takes them, in the order of the cameras; None for a camera that has none.
        prior: of the robot's base; see `recognize`.
        mounts: the cameras' poses in the robot's base. With them, poses of answers are those of the base, if the first
        camera took the map's pictures. Without them, every camera counts as the first.
        Return the answer of the camera that speaks for the robot (see `pairvpr.runtime.rig.fuse`), with all answers in
        its `cameras`. The budget is shared by the cameras.
        Raises ValueError for no pictures and for another number of mounts, and SourceError and MapError as `recognize`.
        """
        frame = make_frame(pictures, mounts)
        return answer_cameras(frame, prior, self.budget_ms, self._answer_frame)

    def find_allowed(self, prior: Prior) -> npt.NDArray[np.int64]:
        """Return the rows of the map (m,) that a prior allows, ascending.

        Raises MapError if no picture of the map has the kind of place or time that the prior gives.
        """
        return self._view.find_allowed(prior)

    def finish_run(self) -> str | None:
        """Compare the scores of the last answers with those of the calibration, at the end of a run.

        Return a warning if they are unlike, or None. An answer's `warning` says the same while a run goes on.
        """
        monitor = self._view.judge.monitor
        return None if monitor is None else monitor.finish()

    @property
    def score_warning(self) -> str | None:
        """Return the latest warning of scores that are unlike those of the calibration, or None."""
        monitor = self._view.judge.monitor
        return None if monitor is None else monitor.warning

    def _describe(self, tuned: str) -> str:
        """Return the log line on model, licence, engine, cascade and threshold. `pairvpr map info` has the figures."""
        bundle = self.model.bundle
        parts = [
            f"model: {bundle.info.preset} {bundle.identity[:12]}, licence: {bundle.info.licence}",
            f"engine: {self.model.engines.description}",
            *([] if bundle.info.pair_classifier else [DESCRIPTOR_ALONE]),
            *([] if self._cascade is None else [f"cascade: keeps {self._cascade.kept:.0%} of candidates"]),
            f"decisions: {_describe_decisions(self._view.judge)}",
            *([tuned] if tuned else []),
        ]
        return "; ".join(parts)

    def close(self) -> None:
        """Close the map's files."""
        self._view.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer_frame(self, frame: Frame, prior: Prior | None, budget_ms: float | None) -> Recognition:
        """Answer the frame of one camera."""
        answer = Recognition(frame.name, frame.timestamp)
        if frame.picture is None:
            return replace(answer, reason="no picture", error=frame.error)
        clock = Stopwatch(frame.decode_ms)
        if (fitted := frame.fitted) is None:
            with clock.step("preprocess"):
                fitted = self.model.fit(frame.picture)
        else:
            clock.add("preprocess", frame.fit_ms)
        return self._answer(answer, fitted, clock, prior, budget_ms)

    def _answer(
        self,
        answer: Recognition,
        fitted: Fitted,
        clock: Stopwatch,
        prior: Prior | None,
        budget_ms: float | None,
    ) -> Recognition:
        """Fill in `answer` for its picture."""
        with self.model.turn, clock.step("encode"):
            query = self.model.encode_fitted([fitted])
        with self._viewing() as view:
            with clock.step("search"):
                found = view.search(query.descriptors, prior, clock, self.budget_ms)
            rows = found.rows
            if prior is not None and not len(rows) and not found.missing:
                fault = f"no picture of the map is {prior}"
                return replace(answer, reason="no candidates", error=fault, timings=clock.timings())
            if view.reranker is None:
                ranking = Ranking.by_descriptor(len(rows))
            else:
                with self.model.turn:
                    ranking = view.rank(view.reranker, query, rows, clock, budget_ms)
        matches = view.make_matches(found, ranking)
        if not matches:
            fault = f"{view.map.path}: all candidates are damaged; see `pairvpr map verify`"
            return replace(answer, reason="no candidates", error=fault, timings=clock.timings())
        answer = replace(
            answer,
            matches=matches,
            compared=ranking.compared,
            complete=view.reranker is None or ranking.compared == len(rows),
            timings=clock.timings(),
        )
        return view.decide(answer, found, ranking, monitored=prior is None)  # fewer candidates have other scores

    def _show(self, map_: Map, index: DescriptorIndex, reranker: Reranker | None) -> View:
        """Return a view of one state of the map."""
        k = min(self._wanted, len(map_))
        return View(map_, index, k, reranker, self._make_judge(map_, k, reranker is not None))

    def _make_judge(self, map_: Map, top_k: int, reranked: bool) -> Judge:
        if not self._judged:
            return Judge()
        if not reranked and self.model.bundle.info.pair_classifier:  # a threshold on scores says nothing
            return Judge.from_bundle(self.model.bundle, None)
        return Judge.from_map(self.model.bundle, map_, top_k, self._cascade)

    @contextmanager
    def _viewing(self) -> Iterator[View]:
        """Keep the current state of the map open until the block ends."""
        with self._switching:
            view = self._view
            view.users += 1
        try:
            yield view
        finally:
            with self._switching:
                view.leave()


def _describe_decisions(judge: Judge) -> str:
    acceptance = judge.acceptance
    if acceptance is None:
        return judge.reason
    number = acceptance.measure.value
    text = f"accepted from {number} {acceptance.threshold:.3f} (precision {acceptance.precision:g})"
    if judge.added:
        text += f", without {judge.added} pictures added later"
    return f"{text} (OPTIMISTIC: calibrated on the map's own traverse)" if acceptance.own else text
