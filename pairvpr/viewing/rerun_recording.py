"""Record a run for Rerun's viewer while it goes on. This is the only module that imports rerun."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rerun
import rerun.blueprint as shown

from pairvpr.html.album import thumbnail
from pairvpr.html.document import check_page
from pairvpr.printing import printable
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Map, Record
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.sources import Frame, Source
from pairvpr.viewing.run_record import Answered
from pairvpr.viewing.thumbnails import recorded_thumbnail

PICTURE = (320, 240)  # pixels, at most
ANSWER, TIME = "answer", "time"  # the timelines: answers counted from 0, and the time stamps of the source
COLOURS = {"accepted": (21, 128, 61), "rejected": (185, 28, 28), "unjudged": (37, 99, 235)}
GREY = (148, 163, 184)
LEVELS = {"accepted": "INFO", "rejected": "WARN", "unjudged": "INFO"}

Place = Pose | Gps


@contextmanager
def recording(path: Path, query: str, source: Source, recognizer: PlaceRecognizer) -> Iterator[Recording]:
    """Yield a recording to add answers to. The file `path` is complete on leaving, also after an error.

    Raises PairVPRError if the file cannot be written.
    """
    check_page(path, "run.rrd")
    with rerun.RecordingStream("pairvpr") as stream:
        stream.save(path, default_blueprint=_blueprint(recognizer.map, source.live))
        stream.send_recording_name(printable(query))  # Rerun takes UTF-8 alone
        yield Recording(stream, source, recognizer)


class Recording:
    """Pictures, places, scores and times of a run, sent to the stream at once. Only the last place is kept."""

    def __init__(self, stream: rerun.RecordingStream, source: Source, recognizer: PlaceRecognizer) -> None:
        self._stream = stream
        self._source = source
        self._recognizer = recognizer
        self._map: Map | None = None
        self._records: Mapping[str, Record] = {}
        self._count = 0
        self._last: dict[str, Place] = {}

    def add(self, frame: Frame, answer: Recognition) -> None:
        """Add the answer for a frame."""
        self._stream.set_time(ANSWER, sequence=self._count)
        self._count += 1
        if frame.timestamp is not None:
            self._stream.set_time(TIME, timestamp=frame.timestamp)
        if frame.picture is None:
            self._say(str(answer.error), "ERROR")
            return
        if self._recognizer.map is not self._map:
            self._show_map(self._recognizer.map)
        seen = Answered.from_answer(frame, answer)
        self._say(f"{seen.query} -> {seen.best}, {seen.said}", LEVELS[seen.verdict])
        self._show_pictures(thumbnail(frame.picture, PICTURE), self._records.get(seen.best))
        self._show_places(seen)
        self._show_numbers(seen, answer)

    def _say(self, text: str, level: str) -> None:
        self._stream.log("log", rerun.TextLog(printable(text), level=level))

    def _show_map(self, map_: Map) -> None:
        """Show the map's places; called again after a writer has changed the map."""
        self._map, self._records = map_, {record.name: record for record in map_.records}
        for frame, places in _by_frame(map_).items():
            self._stream.log(_path(frame, "map"), _points(places, GREY), static=True)

    def _show_pictures(self, query: bytes, best: Record | None) -> None:
        self._stream.log("query", rerun.EncodedImage(contents=query, media_type="image/jpeg"))
        match = None if best is None else recorded_thumbnail(self._recognizer.map, best, PICTURE)
        shown = (
            rerun.Clear(recursive=False)
            if match is None
            else rerun.EncodedImage(contents=match, media_type="image/jpeg")
        )
        self._stream.log("match", shown)

    def _show_places(self, seen: Answered) -> None:
        """Show the place of the match, a line to it from the query's place, and one from the query before."""
        if seen.at is not None:
            colour, frame = COLOURS[seen.verdict], seen.at.frame
            self._stream.log(_path(frame, seen.verdict), _points([seen.at], colour))
            if seen.own is not None and seen.own.frame == frame:
                self._stream.log(_path(frame, f"{seen.verdict}_from"), _line([seen.own, seen.at], colour))
        if seen.own is not None:
            frame = seen.own.frame
            if frame in self._last:
                self._stream.log(_path(frame, "trajectory"), _line([self._last[frame], seen.own], GREY))
            self._last[frame] = seen.own

    def _show_numbers(self, seen: Answered, answer: Recognition) -> None:
        numbers = {"score/pair": seen.score, "score/similarity": seen.similarity, "score/confidence": answer.confidence}
        numbers |= {f"milliseconds/{step}": spent for step, spent in seen.timings.items()}
        if self._source.live:
            numbers["dropped/frames"] = self._source.dropped
        for path, value in numbers.items():
            if value is not None:
                self._stream.log(path, rerun.Scalars(value))


def _path(frame: str, name: str) -> list[object]:
    return ["places", printable(frame), name]


def _by_frame(map_: Map) -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for record in map_.records:
        if (place := record.pose or record.gps) is not None:
            found.setdefault(place.frame, []).append(place)
    return found


def _points(places: Sequence[Place], colour: tuple[int, int, int]) -> Any:
    if isinstance(places[0], Gps):
        return rerun.GeoPoints(lat_lon=_degrees(places), colors=colour, radii=rerun.Radius.ui_points(3.0))
    return rerun.Points3D(_metres(places), colors=colour, radii=rerun.Radius.ui_points(3.0))


def _line(places: Sequence[Place], colour: tuple[int, int, int]) -> Any:
    if isinstance(places[0], Gps):
        return rerun.GeoLineStrings(lat_lon=[_degrees(places)], colors=colour)
    return rerun.LineStrips3D([_metres(places)], colors=colour)


def _degrees(places: Sequence[Place]) -> list[tuple[float, float]]:
    return [(place.latitude, place.longitude) for place in places if isinstance(place, Gps)]


def _metres(places: Sequence[Place]) -> list[tuple[float, float, float]]:
    return [(place.x, place.y, place.z) for place in places if isinstance(place, Pose)]


def _blueprint(map_: Map, live: bool) -> shown.Blueprint:
    """Return the layout: pictures left, places up to the chosen moment in the middle, numbers right."""
    until_now = shown.VisibleTimeRange(
        ANSWER, start=shown.TimeRangeBoundary.infinite(), end=shown.TimeRangeBoundary.cursor_relative()
    )
    seen: list[shown.View] = []
    for frame in _by_frame(map_):
        origin = rerun.new_entity_path(["places", frame])
        if frame == "wgs84":
            seen.append(shown.MapView(origin=origin, name=frame))
        else:
            seen.append(shown.Spatial3DView(origin=origin, name=f"Frame {frame}", time_ranges=[until_now]))
    numbers = ["score", "milliseconds", *(["dropped"] if live else [])]
    return shown.Blueprint(
        shown.Horizontal(
            shown.Vertical(shown.Spatial2DView(origin="query"), shown.Spatial2DView(origin="match")),
            *([shown.Tabs(*seen)] if seen else []),
            shown.Vertical(*(shown.TimeSeriesView(origin=each) for each in numbers), shown.TextLogView(origin="log")),
        ),
        shown.TimePanel(timeline=ANSWER),
    )
