"""Read the cameras of a rig together: each frame has the other cameras' frames of the same moment."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import PurePath

from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.transforms import Transform
from pairvpr.runtime.sources import open_source
from pairvpr.runtime.sources.base import Frame, Source, Wanted, every_frame
from pairvpr.runtime.sources.options import DEFAULT, SourceOptions

TOGETHER = 0.05
"""Seconds after the first picture of a moment in which the pictures of the other live cameras join it."""


def open_rig(
    queries: Sequence[str], options: SourceOptions = DEFAULT, mounts: Sequence[Transform] | None = None
) -> Source:
    """Open the sources of a robot's cameras as one source. A single one is opened as it is.

    queries: see `open_source`. The first one names the frames' positions.
    options: for all of them. Several image topics with commas between them are cameras of the only query, a bag.
    mounts: the cameras' poses in the robot's base, or None.
    Raises SourceError as `open_source` does, for another number of mounts, and for cameras that do not belong together.
    """
    topics = [] if options.topic is None else options.topic.split(",")
    if len(topics) > 1:
        if len(queries) > 1:
            raise SourceError(f"--topic {options.topic} names several cameras: give one --query with it, a bag")
        queries = [queries[0]] * len(topics)
    if mounts is not None and len(mounts) != len(queries):
        raise SourceError(f"--camera-poses has {len(mounts)} poses for {len(queries)} cameras: give one for each")
    with ExitStack() as stack:
        each = [replace(options, topic=topic) for topic in topics] if len(topics) > 1 else [options] * len(queries)
        sources = [stack.enter_context(open_source(*named)) for named in zip(queries, each, strict=True)]
        if len(sources) == 1:
            source = sources[0]
        elif len(topics) > 1:
            source = TopicsSource(sources, topics, mounts)
        else:
            source = RigSource(sources, queries, mounts)
        stack.pop_all()
        return source


class RigSource(Source):
    """Provide the pictures of several cameras, moment by moment.

    The pictures of recordings with the same number belong together. A moment of live cameras begins with the picture
    that comes first. A camera without a picture in time has an error in place of it.
    Frames are named after their camera: `left/Image042.jpg`.
    """

    def __init__(self, sources: Sequence[Source], queries: Sequence[str], mounts: Sequence[Transform] | None) -> None:
        """Combine opened sources. Raises SourceError for cameras of two kinds or with unequal numbers of pictures."""
        self._sources, self._queries = sources, queries
        self._mounts: Sequence[Transform | None] = [None] * len(sources) if mounts is None else mounts
        labels = [PurePath(query).name or query for query in queries]
        self._ended: set[int] = set()
        self._labels = labels if len(set(labels)) == len(labels) else list(queries)
        for source, query in zip(sources, queries, strict=True):
            self._check(source, query)
        self.live, self.single = sources[0].live, all(source.single for source in sources)
        self.length, self.origin = sources[0].length, ", ".join(source.origin for source in sources)
        names = sources[0].names
        self.names = None if names is None else [f"{self._labels[0]}/{name}" for name in names]

    def frames(self, wanted: Wanted = every_frame) -> Iterator[Frame]:
        """Yield the first camera's frame of each moment, with the others beside it."""
        feeds = [iter(source) for source in self._sources]
        for number in itertools.count():
            moment = self._next_live(feeds) if self.live else self._next_recorded(feeds, number)
            self.dropped = sum(source.dropped for source in self._sources)
            if moment is None:
                return
            first, *others = moment
            if wanted(number, first.name, first.timestamp):
                yield replace(first, beside=tuple(others))

    def ready(self, seconds: float) -> bool:
        """See `Source`. A camera that has ended is not waited for."""
        open_ = [source for i, source in enumerate(self._sources) if i not in self._ended]
        return not open_ or any(source.ready(seconds / len(open_)) for source in open_)

    def close(self) -> None:
        """Close all sources."""
        with ExitStack() as stack:
            for source in self._sources:
                stack.callback(source.close)

    def _check(self, source: Source, query: str) -> None:
        first, begin = self._sources[0], self._queries[0]
        if source.live != first.live:
            live, recorded = (query, begin) if source.live else (begin, query)
            raise SourceError(
                f"{live} is live and {recorded} a recording: cameras of a rig are either all live or none"
            )
        if source.length is not None and first.length is not None and source.length != first.length:
            only = sorted(set(source.names or ()) ^ set(first.names or ()))
            hint = f" (only one of them has {only[0]})" if only else ""
            raise SourceError(
                f"{begin} has {first.length} pictures and {query} has {source.length}{hint}: a rig needs a picture of "
                "each camera at each moment; remove those without a counterpart"
            )

    def _next_recorded(self, feeds: Sequence[Iterator[Frame]], number: int) -> list[Frame] | None:
        """Return the frames of a moment, None at the end. Raises SourceError if some end before the others."""
        frames = [next(feed, None) for feed in feeds]
        if all(frame is None for frame in frames):
            return None
        if None in frames:
            ended = self._queries[frames.index(None)]
            other = next(query for query, frame in zip(self._queries, frames, strict=True) if frame is not None)
            raise SourceError(f"{ended} ends after {number} pictures and {other} goes on: cut it to the same pictures")
        return [self._named(i, frame) for i, frame in enumerate(frames) if frame is not None]

    def _next_live(self, feeds: Sequence[Iterator[Frame]]) -> list[Frame] | None:
        """Return the newest frames, None if all cameras have ended."""
        while not self.ready(TOGETHER):
            pass
        end, moment = time.monotonic() + TOGETHER, []
        for i, (source, feed) in enumerate(zip(self._sources, feeds, strict=True)):
            frame = None
            if i not in self._ended and source.ready(max(0.0, end - time.monotonic())):
                frame = next(feed, None)
                if frame is None:
                    self._ended.add(i)
            late = f"{self._queries[i]} has no picture at this moment"
            moment.append(self._named(i, frame or Frame("-", time.time(), None, late, 0.0)))
        return None if len(self._ended) == len(feeds) else moment

    def _named(self, i: int, frame: Frame) -> Frame:
        return replace(frame, name=f"{self._labels[i]}/{frame.name}", mount=self._mounts[i])


class TopicsSource(RigSource):
    """Provide the pictures of several topics of a bag, by their time stamps.

    Each picture of the first topic is a moment. The nearest picture of another topic belongs to it if their time stamps
    are at most TOGETHER apart. Frames keep their names, which hold the topic.
    """

    def __init__(self, sources: Sequence[Source], topics: Sequence[str], mounts: Sequence[Transform] | None) -> None:
        super().__init__(sources, topics, mounts)
        self.names = None
        self._held: list[deque[Frame]] = [deque() for _ in sources]

    def _check(self, source: Source, query: str) -> None:
        """Accept all topics: they may have unequal numbers of pictures."""

    def _next_recorded(self, feeds: Sequence[Iterator[Frame]], number: int) -> list[Frame] | None:
        first = next(feeds[0], None)
        if first is None:
            return None
        return [
            self._named(i, first if i == 0 else self._nearest(i, feed, first.timestamp or 0.0))
            for i, feed in enumerate(feeds)
        ]

    def _nearest(self, i: int, feed: Iterator[Frame], stamp: float) -> Frame:
        """Return the frame of a topic that is nearest in time. Later ones are held for the next moment."""
        held, best, apart = self._held[i], None, math.inf
        while (frame := held.popleft() if held else next(feed, None)) is not None:
            distance = abs((frame.timestamp or 0.0) - stamp)
            if distance >= apart:
                held.appendleft(frame)
                break
            best, apart = frame, distance
        if best is not None and apart <= TOGETHER:
            return best
        if best is not None and (best.timestamp or 0.0) > stamp:
            held.appendleft(best)
        return Frame(self._queries[i], stamp, None, f"{self._queries[i]} has no picture at this moment", 0.0)

    def _named(self, i: int, frame: Frame) -> Frame:
        return replace(frame, mount=self._mounts[i])
