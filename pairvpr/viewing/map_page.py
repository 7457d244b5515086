"""Show a map on one page: its numbers, the places of its pictures, and some of the pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from pairvpr.html.album import breakable, figure, group, strip
from pairvpr.html.document import check_page, document, table, write_page
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Map, Record
from pairvpr.runtime.mapping.token_storage import describe
from pairvpr.spread import spread
from pairvpr.viewing.calibration_results import CalibrationResults, cascade_rows, judge_rows, tuning_rows
from pairvpr.viewing.map_survey import FAR, WIDE, find_gaps, find_look_alikes
from pairvpr.viewing.plot import Mark, plots
from pairvpr.viewing.template import MAP, MISSING, SHOWN_PICTURE, STYLE, TABLE
from pairvpr.viewing.thumbnails import picture_file, recorded_thumbnail

PLOTTED = 10_000  # places on the plots; each is some 200 bytes of the page
SHOWN = 96  # thumbnails; each is some 10 kB of it
SOURCES = 8  # listed, those of most pictures


@dataclass(frozen=True)
class MapPage:
    """Numbers of a written page. pictures: of the map. plotted: with a mark on a plot. shown: thumbnails."""

    pictures: int
    plotted: int
    shown: int


def view_map(db: str | Path, out: str | Path) -> MapPage:
    """Write the page of the map `db` to the file `out`, whole or not at all.

    Its pictures are shown from the files that it was built from, or else as the thumbnails that it stores.
    Raises MapError or BundleError for a damaged map or another folder, PairVPRError if the page cannot be written.
    """
    check_page(Path(out))
    with Map.open(db) as map_:
        bundle = Bundle.open(map_.model_path)
        album = _choose(map_)
        plotted = _plotted(map_.records, set(album.shown))
        page = _render(map_, bundle, album, plotted)
    write_page(Path(out), page)
    return MapPage(len(map_), len(plotted), len(album.shown))


@dataclass(frozen=True)
class _Album:
    """Thumbnails of a map.

    shown: JPEG files by index of the record. there: pictures with a file or thumbnail. unreadable: chosen, but damaged.
    """

    shown: dict[int, bytes]
    there: int
    unreadable: int


def _choose(map_: Map) -> _Album:
    there = [
        i
        for i, record in enumerate(map_.records)
        if picture_file(record) is not None or map_.read_thumbnail(record) is not None
    ]
    chosen = spread(there, SHOWN)
    shown = {i: jpeg for i in chosen if (jpeg := recorded_thumbnail(map_, map_.records[i])) is not None}
    return _Album(shown, len(there), len(chosen) - len(shown))


def _plotted(records: Sequence[Record], shown: set[int]) -> list[int]:
    """Return the indices of the plotted records: all that have a place, or some, evenly chosen, and those shown."""
    placed = [i for i, record in enumerate(records) if _place(record) is not None]
    return sorted(set(spread(placed, PLOTTED)) | (shown & set(placed)))


def _render(map_: Map, bundle: Bundle, album: _Album, plotted: list[int]) -> str:
    records = map_.records
    number = {index: count for count, index in enumerate(album.shown, 1)}
    marks = [
        Mark(place, "shown" if index in number else "place", describe_record(records[index]), number.get(index))
        for index in sorted(plotted, key=lambda index: index in number)
        if (place := _place(records[index])) is not None
    ]
    info = map_.info()
    with_place = sum(_place(record) is not None for record in records)
    body = MAP.substitute(
        name=escape(str(map_.path)),
        pictures=len(records),
        with_place=with_place,
        tables="\n".join((_numbers(map_), _model(map_, bundle), _sources(records), *_calibrated(map_, bundle))),
        plotted=_say_plotted(len(plotted), with_place, info.pictures),
        plots=plots(marks),
        gaps=_gaps(records),
        look_alikes=_look_alikes(map_),
        shown=_say_shown(album, len(records)),
        album="\n".join(
            SHOWN_PICTURE.substitute(
                number=number[index], figure=figure(jpeg, "place", str(number[index]), describe_record(records[index]))
            )
            for index, jpeg in album.shown.items()
        ),
    )
    return document(f"Pair-VPR map {map_.path}", body, STYLE)


def describe_record(record: Record) -> str:
    """Return a picture's name, place and time in words."""
    place = _place(record)
    parts = [record.name, "no place" if place is None else str(place)]
    if record.pose is not None and record.pose.q is not None:
        parts.append("q " + " ".join(f"{value:.3f}" for value in record.pose.q))
    if record.timestamp is not None:
        parts.append(f"{record.timestamp:.3f} s")
    return ", ".join(parts)


def _say_plotted(plotted: int, with_place: int, pictures: int) -> str:
    if not with_place:
        return "No picture has a pose or GPS position, so there is nothing to plot."
    some = f"{plotted} of {with_place} places, evenly chosen" if plotted < with_place else f"All {with_place} places"
    without = f"; {pictures - with_place} pictures have none" if with_place < pictures else ""
    return (
        f"{some}{without}. Point at a mark, or tap it, for its name and pose. Numbers are links to the pictures below."
    )


def _say_shown(album: _Album, pictures: int) -> str:
    chosen = len(album.shown) + album.unreadable
    text = f"{len(album.shown)} of {pictures} pictures are shown" + (", evenly chosen" if chosen < album.there else "")
    if album.unreadable:
        text += f"; {album.unreadable} more could not be read"
    if album.there < pictures:
        text += (
            f". {pictures - album.there} have neither a thumbnail in the map (built with --thumbnails 0, or before "
            "version 0.2) nor a file: they came out of a video, bag or camera, or were moved or deleted since"
        )
    return text + "."


def _numbers(map_: Map) -> str:
    info = map_.info()
    return _table(
        "Map",
        {
            "pictures": str(info.pictures),
            "with a pose, with GPS": f"{info.with_pose}, {info.with_gps}",
            "removed, not compacted yet": str(info.deleted),
            "segments": str(info.segments),
            "size": f"{info.bytes / 1e6:.1f} MB, thumbnails {info.thumbnail_bytes / 1e6:.1f} MB, the model "
            f"{info.model_bytes / 1e6:.1f} MB",
            "a picture takes": f"{info.bytes_per_picture / 1e3:.1f} kB",
            "made by": f"pairvpr {info.created_by}",
        },
    )


def _model(map_: Map, bundle: Bundle) -> str:
    info, weights, cascade = map_.info(), bundle.info.weights, Cascade.find_in(bundle)
    return _table(
        "Model",
        {
            "preset": bundle.info.preset,
            "identity": info.identity[:12],
            "weights": bundle.info.origin + ("" if weights.trained else " (seeded, never trained)"),
            "licence": bundle.info.licence,
            "descriptor": f"{info.descriptor_dim} numbers",
            "tokens": f"{info.token_shape[0]} of {info.token_shape[1]} numbers",
            "stored as": describe(info.tokens),
            "cascade": "; ".join(text for _, text in cascade_rows(cascade)) if cascade else "not calibrated",
        },
    )


def _sources(records: Sequence[Record]) -> str:
    counts = Counter(record.source for record in records)
    rows = {source: f"{count} pictures" for source, count in counts.most_common(SOURCES)}
    if len(counts) > SOURCES:
        rows[f"and {len(counts) - SOURCES} more"] = f"{len(records) - sum(dict(counts.most_common(SOURCES)).values())}"
    return _table("Sources", rows)


def _calibrated(map_: Map, bundle: Bundle) -> Iterator[str]:
    """Yield the tables of the threshold and of the tuned setting."""
    found = CalibrationResults.from_map(map_, bundle)
    yield _table("Decisions", judge_rows(found.judge, found.acceptance))
    yield _table("Tuned setting", tuning_rows(found.tuning) if found.tuning else [("setting", "not tuned")])


def _gaps(records: Sequence[Record]) -> str:
    gaps = find_gaps(records)
    if not gaps:
        return ""
    rows = [("From", "to", "metres"), *((gap.first, gap.second, f"{gap.metres:,.1f}") for gap in gaps)]
    note = (
        f"The widest distances between consecutive pictures, above {WIDE:g} times the median of {gaps[0].step:,.1f} m. "
        "A place within a gap has no picture near it."
    )
    return table("Gaps", rows, note, wide=True)


def _look_alikes(map_: Map) -> str:
    """Return a section of pictures that are far apart and look alike."""
    strips = []
    for pair in find_look_alikes(map_):
        figures = [
            _shown(map_, map_.records[i], heading) for i, heading in ((pair.first, "One"), (pair.second, "Other"))
        ]
        apart = "" if pair.metres is None else f", {pair.metres:,.1f} m apart"
        strips.append(strip(figures, f"similarity {pair.similarity:.3f}{apart}"))
    if not strips:
        return ""
    explanation = (
        f"Pictures of highest similarity that lie further apart than {FAR:.0%} of the map's extent, or of its pictures "
        "where places are unknown. A robot is most likely to confuse them; without poses they may show one place twice."
    )
    return group("Places that look alike", f"{len(strips)} pairs", explanation, strips)


def _shown(map_: Map, record: Record, heading: str) -> str:
    jpeg, caption = recorded_thumbnail(map_, record), describe_record(record)
    if jpeg is None:
        return MISSING.substitute(state="place", heading=heading, caption=breakable(caption))
    return figure(jpeg, "place", heading, caption)


def _table(title: str, rows: Mapping[str, str] | Sequence[tuple[str, str]]) -> str:
    pairs = rows.items() if isinstance(rows, Mapping) else rows
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in pairs)
    return TABLE.substitute(title=title, rows=cells)


def _place(record: Record) -> Pose | Gps | None:
    return record.pose or record.gps
