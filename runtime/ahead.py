"""Read the next pictures in a thread while the present ones are encoded."""

from __future__ import annotations

import contextvars
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from time import perf_counter
from typing import TypeVar

from pairvpr.runtime.model import Model
from pairvpr.runtime.sources.base import Frame, Source

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    """The end of the items, and the exception that ended them."""

    error: BaseException | None


@contextmanager
def read_ahead(items: Iterator[T], depth: int = 1) -> Iterator[Iterator[T]]:
    """Iterate over items in order, while a thread gets the next ones, at most `depth`.

    At the end of the block the thread ends after the item in progress, and closes `items`. What `items` reads from must
    be closed later. An exception of `items` is raised after the items before it.
    """
    ready: SimpleQueue[T | _End] = SimpleQueue()
    room, stopped = Semaphore(depth), Event()

    def fill() -> None:
        error: BaseException | None = None
        try:
            while room.acquire() and not stopped.is_set():
                try:
                    ready.put(next(items))
                except StopIteration:
                    break
            if isinstance(items, Generator):
                items.close()
        except BaseException as fault:  # raised again where the item would have come
            error = fault
        ready.put(_End(error))

    def take() -> Iterator[T]:
        while not isinstance(item := ready.get(), _End):
            room.release()
            yield item
            del item  # or else a picture stays in memory while the next one is waited for
        if item.error is not None:
            raise item.error

    # The scope of remarks is a context variable.
    thread = Thread(target=contextvars.copy_context().run, args=(fill,), name="pairvpr pictures", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stopped.set()
        room.release()
        thread.join()


def fit_frame(frame: Frame, model: Model) -> Frame:
    """Return the frame with the pictures of all its cameras in the sizes of the model's graphs."""
    began = perf_counter()
    fitted = None if frame.picture is None else model.fit(frame.picture)
    spent = 1e3 * (perf_counter() - began)
    beside = tuple(fit_frame(each, model) for each in frame.beside)
    return replace(frame, fitted=fitted, fit_ms=spent, beside=beside)


@contextmanager
def fitted_frames(source: Source, model: Model, ahead: bool) -> Iterator[Iterator[Frame]]:
    """Iterate over the frames of a source, fitted to the model one frame ahead.

    ahead: False yields the frames as they are, when they are asked for. A live source is always read so, because only
    its newest frame counts.
    """
    if source.live or source.single or not ahead:
        yield iter(source)
    else:
        with read_ahead(fit_frame(frame, model) for frame in source) as frames:
            yield frames
