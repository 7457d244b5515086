"""Write answers to an MCAP file with rosbags."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pairvpr.errors import PairVPRError, SourceError
from pairvpr.files import sync
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.outputs.ros_messages import TOPICS, AnswerMessages, Message, build, header_of_frame
from pairvpr.runtime.sources import Frame

EXTENSION = ".mcap"

log = logging.getLogger(__name__)


@contextmanager
def open_mcap(path: Path, messages: AnswerMessages) -> Iterator[McapFile]:
    """Open a file for answers. It is finished and takes the name `path` at the end of the block, even on an exception.

    Until then it lies in a folder beside `path`. A run that fails before its first answer leaves nothing. MCAP files
    cannot be appended to: an earlier file is kept, and the new one gets a numbered name, which is logged.
    Raises SourceError if rosbags is missing or the file cannot be written. If the block itself fails, that error is
    only logged and the block's exception goes on.
    """
    free = _free_name(path)
    if free != path:
        log.info("%s exists and is kept: the answers go to %s", path, free)
    file = McapFile(free, messages)
    try:
        yield file
    except BaseException:
        try:
            file.close(or_empty=False)
        except PairVPRError as fault:  # the block's own exception goes on
            log.warning("%s", fault)
        raise
    file.close(or_empty=True)


def _free_name(path: Path) -> Path:
    """Return the path, or the first of `name-2.mcap`, `name-3.mcap`, ... that does not exist."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not os.path.lexists(each))


class McapFile:
    """An unfinished MCAP file; see `open_mcap`.

    A separate thread writes it. Ctrl-C and SIGTERM interrupt the main thread only, so they cannot leave half a record.
    """

    def __init__(self, path: Path, messages: AnswerMessages) -> None:
        try:
            from rosbags import rosbag2
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise SourceError(f'{path}: needs rosbags ({error}); run pip install "pairvpr[bags]"') from error
        self._answers = self._accepted = 0  # written
        self._path = path
        self._messages = messages
        self._store = get_typestore(Stores.ROS2_HUMBLE)  # the oldest in use, with the same definitions as later ones
        self._connections: dict[str, Any] = {}
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        except OSError as error:
            raise SourceError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
        # rosbags writes a bag, which is a folder. The bag has the final name, because the file repeats it inside.
        bag = self._folder / path.stem
        self._unfinished = bag / f"{path.stem}{EXTENSION}"
        self._writer = rosbag2.Writer(bag, version=9, storage_plugin=rosbag2.StoragePlugin.MCAP)
        self._failed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pairvpr mcap")
        self._run(self._writer.open)

    def add(self, frame: Frame, answer: Recognition) -> None:
        """Write the answer for a frame, logged at the frame's time, or now if it has none. Raises SourceError."""
        header = header_of_frame(frame)
        logged = time.time_ns() if frame.header is None and frame.timestamp is None else header.stamp
        messages = list(self._messages.compose(header, answer))
        self._run(lambda: self._write(messages, logged, answer.accepted is True))

    def close(self, or_empty: bool) -> None:
        """Finish the file and give it its name. Without answers, keep it only if `or_empty`. Raises SourceError."""
        if not self._failed:
            self._run(lambda: self._finish(or_empty))
        if self._accepted < self._answers:
            log.info(
                "%s: %d of %d answers were accepted; the file has the others' places among the candidates only",
                self._path,
                self._accepted,
                self._answers,
            )
        self._thread.shutdown()

    def _run(self, step: Callable[[], None]) -> None:
        """Run a step in the writing thread. After a failure, close the file and keep it in its folder."""
        try:
            self._thread.submit(step).result()
        except OSError as error:
            self._failed = True
            with suppress(OSError):  # its buffer cannot be written either
                self._writer.abort()
            left = f"; `mcap recover` restores {self._unfinished} except its last MiB" if self._answers else ""
            if not left:
                shutil.rmtree(self._folder)
            raise SourceError(
                f"{self._path}: cannot be written ({error.strerror}){left}; make room or choose another --out"
            ) from error

    def _write(self, messages: list[tuple[str, Message]], logged: int, accepted: bool) -> None:
        for topic, message in messages:
            if topic not in self._connections:
                name = topic if topic.startswith("/") else f"/{topic}"
                self._connections[topic] = self._writer.add_connection(name, TOPICS[topic], typestore=self._store)
            built = build(message, self._store.types.__getitem__)
            self._writer.write(self._connections[topic], logged, self._store.serialize_cdr(built, message.type))
        self._answers += 1
        self._accepted += accepted

    def _finish(self, or_empty: bool) -> None:
        if self._answers or or_empty:
            self._writer.close()
            sync(self._unfinished)
            free = _free_name(self._path)
            if free != self._path:  # another run has taken the name
                log.info("%s exists and is kept: the answers go to %s", self._path, free)
            self._path = free
            self._unfinished.replace(self._path)
            sync(self._path.parent)
        else:
            self._writer.abort()
        shutil.rmtree(self._folder)
