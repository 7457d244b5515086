"""Keep answers to calibration pictures in the user's cache, so that another radius or target asks no picture again."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from PIL import Image

from pairvpr import __version__
from pairvpr.errors import one_line
from pairvpr.files import write_atomically
from pairvpr.machine import cache_folder
from pairvpr.printing import json_document
from pairvpr.runtime.answer import Match
from pairvpr.runtime.calibrated.acceptance import ScoreSetup
from pairvpr.runtime.calibrated.score_monitor import Reading
from pairvpr.runtime.measure import Measure
from pairvpr.runtime.model import Model
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.sources import Frame
from pairvpr.validation import check_list, check_mapping, check_real, check_text, parse_json

MOST = 10_000_000
"""Most answers of a file."""

Row: TypeAlias = "tuple[str, float, float | None, float, float]"
"""A stored answer: the best match's name, value, lead (None without a second match) and similarity, then the highest
similarity."""

log = logging.getLogger(__name__)


class Answered(NamedTuple):
    """Hold the parts of an answer that a calibration uses.

    best: the best match. reading: the numbers of the answer. highest: the highest similarity of all matches.
    """

    best: Match
    reading: Reading
    highest: float


class KeptAnswers(AbstractContextManager["KeptAnswers"]):
    """Ask pictures, and keep the answers in a file. A picture is known by its pixels, whatever its name.

    with KeptAnswers(recognizer, answers_file(model, setup)) as kept:
        answer = kept.ask(frame)

    The file is written when the block ends, also by an exception. Without a file every picture is asked.
    """

    def __init__(self, recognizer: PlaceRecognizer, file: Path | None = None) -> None:
        self._recognizer, self._file = recognizer, file
        self.measure = recognizer.model.bundle.info.measure
        """The number that ranks the answers."""
        self._records = {record.name: record for record in recognizer.map.records}
        self._known = {} if file is None else _load(file)
        self._before = len(self._known)
        self.reused = 0
        """Number of answers that were known."""

    def __exit__(self, *_: object) -> None:
        if self._file is None or len(self._known) == self._before:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(self._file) as partial:
                partial.write_text(json_document(self._known), encoding="utf-8")
        except OSError as fault:
            log.warning("%s: answers are not kept for the next calibration (%s)", self._file, one_line(fault))

    def ask(self, frame: Frame) -> Answered:
        """Return the answer to a frame that has a picture."""
        assert frame.picture is not None
        key = "" if self._file is None else _digest(frame.picture)
        if key in self._known and self._known[key][0] in self._records:
            self.reused += 1
            name, value, lead, similarity, highest = self._known[key]
            record, alone = self._records[name], self.measure is Measure.SIMILARITY
            place = record.pose or record.gps
            best = Match(name, None if alone else value, similarity, "descriptor" if alone else "full", place)
            return Answered(best, Reading(value, math.nan if lead is None else lead, similarity), highest)
        answer = self._recognizer.recognize_frame(frame)
        reading = Reading.from_matches(answer.matches, self.measure)
        highest = max(match.similarity for match in answer.matches)
        if key:
            lead = reading.lead if math.isfinite(reading.lead) else None
            self._known[key] = (answer.best.name, reading.value, lead, reading.similarity, highest)
        return Answered(answer.best, reading, highest)


def answers_file(model: Model, setup: ScoreSetup) -> Path:
    """Return the file of answers, whose name is unique to the map, the model, the engine and the setup."""
    key = [__version__, model.bundle.identity, model.engines.description, setup.places, setup.top_k, setup.cascade]
    return cache_folder() / f"answers-{hashlib.sha256(json.dumps(key, allow_nan=False).encode()).hexdigest()[:32]}.json"


def _digest(picture: Image.Image) -> str:
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def _load(file: Path) -> dict[str, Row]:
    """Load a file of answers. Return {} if it is missing or damaged: the pictures are then asked again."""
    try:
        content = check_mapping(parse_json(file.read_bytes()), "the file", MOST)
        return {key: _read_row(check_list(row, "an answer", 5, 5)) for key, row in content.items()}
    except (OSError, ValueError):
        return {}


def _read_row(row: list[Any]) -> Row:
    """Return a stored answer. Raises ValueError for a damaged one."""
    name, value, lead, similarity, highest = row
    return (
        check_text(name, "a name"),
        check_real(value, "a score"),
        None if lead is None else check_real(lead, "a lead"),
        check_real(similarity, "a similarity"),
        check_real(highest, "a similarity"),
    )
