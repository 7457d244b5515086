"""From a picture to an answer: encode, search, gather, re-rank."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairvpr.errors import BundleError, EngineError, MapError
from pairvpr.runtime.answer import Match, Recognition
from pairvpr.runtime.calibrated.acceptance import ScoreSetup
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.calibrated.judge import Judge
from pairvpr.runtime.calibrated.tuning import RuntimeSetting, open_tuned
from pairvpr.runtime.image import load_picture, resize
from pairvpr.runtime.map import Map, Record
from pairvpr.runtime.model import Model, Picture
from pairvpr.runtime.rerank import STAGES, Ranking, Reranker
from pairvpr.runtime.search import DescriptorIndex, FaissIndex
from pairvpr.runtime.sources import Frame
from pairvpr.runtime.stopwatch import Stopwatch

log = logging.getLogger(__name__)


class PlaceRecognizer:
    """Recognises the places of a map.

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
    ) -> None:
        """Put together what `open` opens; judged: whether answers are accepted or not, as the bundle's threshold says.

        Raises BundleError for a threshold that is damaged.
        """
        if budget_ms is not None and not 0 < budget_ms < math.inf:
            raise EngineError(f"budget of {budget_ms:g} ms: give more than 0, or none for no limit")
        self.model = model
        self.budget_ms = budget_ms
        self._wanted, self._cascade, self._judged = top_k, cascade, judged
        self._view = self._show(map_, index, Reranker(map_, model, cascade) if rerank else None)
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
        map_ = Map.open(path)
        try:
            count = len(map_.records)
            if count == 0:
                raise MapError(
                    f"{path}: the map holds no pictures yet; let its `pairvpr map build` finish, run it again if it "
                    "was interrupted, or add pictures with `pairvpr map add`"
                )
            if top_k is not None and not 1 <= top_k <= count:
                raise MapError(f"{path}: top-k {top_k} is outside 1 to {count}, the map's pictures; choose one inside")
            setting = RuntimeSetting(device, precision, threads, batch_size, exact)
            tuned = ""
            if model is None:
                loaded, setting, tuned = open_tuned(map_.model_path, setting)
            else:
                loaded = setting.load(Path(model))
            if loaded.bundle.identity != map_.identity:
                raise MapError(
                    f"{path}: made with model {map_.identity[:12]}, not with {loaded.bundle.identity[:12]} "
                    f"({loaded.bundle.path}); use the map's own model or build the map again"
                )
            k = loaded.bundle.info.top_k if top_k is None else top_k  # a map that grows has more
            cascade = Cascade.find_in(loaded.bundle) if rerank and not setting.exact else None
            if cascade is None and rerank and setting.exact is False:
                raise BundleError(
                    f"{loaded.bundle.path}: no cascade was calibrated; run `pairvpr calibrate` or ask for exact answers"
                )
            index = FaissIndex(map_.descriptors)
            recognizer = cls(map_, loaded, index, k, rerank, budget_ms, cascade, judged=True)
            log.info("%s", "; ".join(filter(None, (str(recognizer), tuned))))
            return recognizer
        except BaseException:
            map_.close()
            raise

    @property
    def map(self) -> Map:
        """The map, as it was opened or last refreshed."""
        return self._view.map

    @property
    def index(self) -> DescriptorIndex:
        """The search among its descriptors."""
        return self._view.index

    @property
    def top_k(self) -> int:
        """How many candidates are re-ranked: as asked for, at most the whole map."""
        return self._view.top_k

    def refresh(self) -> bool:
        """Take in what writers have committed since the map was opened or last refreshed; whether there was anything.

        Costs next to nothing where there was not. May be called in any thread beside `recognize`: an answer on its way
        ends with the map that it began with. The descriptors' index becomes a `FaissIndex`; a top_k that the map has
        become too small for is its size for the time being; model and cascade stay, a threshold that was calibrated for
        the map as it was is set aside. Raises
        MapError where the map cannot be read, holds no pictures any more or is another model's now; answers then go on
        from the map as it was.
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
                    raise MapError(f"{map_.path}: became a map of another model; open it again")
                reranker = None if old.reranker is None else old.reranker.on(map_)
                view = self._show(map_, FaissIndex(map_.descriptors), reranker)
            except BaseException:
                map_.close()
                raise
            told = "%s: refreshed, %d pictures in place of %d; decisions: %s"
            log.info(told, map_.path, len(map_), len(old.map), view.judge.brief)
            with self._switching:
                self._view = view
                old.leave()
        return True

    def recognize(self, picture: Picture) -> Recognition:
        """The answer for one picture: a path, a PIL picture or a uint8 array (H, W, 3) RGB. In any thread.

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

    def __str__(self) -> str:
        """What answers, under which licence, and how far answers may be acted on; figures are in `pairvpr map info`."""
        bundle = self.model.bundle
        parts = [
            f"model: {bundle.info.preset} {bundle.identity[:12]}, licence: {bundle.info.weights.licence}",
            f"engine: {self.model.engines.description}",
            *([] if self._cascade is None else [f"cascade: {self._cascade.kept:.0%} of candidates go on"]),
            f"decisions: {self._view.judge.brief}",
        ]
        return "; ".join(parts)

    def close(self) -> None:
        """Close the map's files."""
        self._view.map.close()

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
        with self.model.turn, clock.step("encode"):
            query = self.model.encode_prepared(image[None])
        with self._viewing() as view:
            with clock.step("search"):
                similarities, rows = view.index.search(query.descriptors, view.top_k)
            if view.reranker is None:
                ranking = Ranking.by_descriptor(len(rows))
            else:
                with self.model.turn:
                    ranking = view.reranker.rank(query, rows, clock, self.budget_ms)
        return view.judge.judge(
            replace(
                answer,
                matches=_matches(view.map.records, rows, similarities, ranking),
                compared=ranking.compared,
                complete=view.reranker is None or ranking.compared == len(rows),
                timings=clock.timings(),
            )
        )

    def _show(self, map_: Map, index: DescriptorIndex, reranker: Reranker | None) -> _View:
        """A state of the map, and what depends on it."""
        k = min(self._wanted, len(map_))
        if not self._judged:
            return _View(map_, index, k, reranker, Judge())
        setup = None if reranker is None else ScoreSetup.from_map(map_, k, self._cascade)
        return _View(map_, index, k, reranker, Judge.from_bundle(self.model.bundle, setup))

    @contextmanager
    def _viewing(self) -> Iterator[_View]:
        """The map as it is now, kept open until the block ends."""
        with self._switching:
            view = self._view
            view.users += 1
        try:
            yield view
        finally:
            with self._switching:
                view.leave()


@dataclass
class _View:
    """One state of the map, and all that depends on it.

    users: the recogniser that shows it, and the answers under way.
    """

    map: Map
    index: DescriptorIndex
    top_k: int
    reranker: Reranker | None
    judge: Judge
    users: int = 1

    def leave(self) -> None:
        """One user less; the last one closes the map's files."""
        self.users -= 1
        if not self.users:
            self.map.close()


def _matches(
    records: Sequence[Record],
    rows: npt.NDArray[np.int64],
    similarities: npt.NDArray[np.float32],
    ranking: Ranking,
) -> tuple[Match, ...]:
    matches = []
    for i in ranking.order():
        record, score = records[rows[i]], float(ranking.scores[i])
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
