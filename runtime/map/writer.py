"""Write to a map. A crash at any moment leaves it as before or after a commit."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError
from pairvpr.runtime.features import Features
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.inverted_lists import ListRecall
from pairvpr.runtime.map import catalog, compaction
from pairvpr.runtime.map.creation import check_same, clean_map, create_map, describe_map, prepare_folder
from pairvpr.runtime.map.errors import reading, refuse_tile, writing
from pairvpr.runtime.map.held_pictures import HeldPictures
from pairvpr.runtime.map.list_file import ListEntry, StoredLists, next_number, write_lists
from pairvpr.runtime.map.lock import lock_map
from pairvpr.runtime.map.meta import PRECISIONS, Meta
from pairvpr.runtime.map.pending import Pending, write_pending
from pairvpr.runtime.map.record_list import RecordList, find_change
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.segments import FOLDER, SegmentEntry, remove_leftovers
from pairvpr.runtime.map.tokens import StoredTokens
from pairvpr.signals import hold_interrupts

# A commit follows after this number of pictures or bytes of tokens: the most that a crash can cost.
COMMIT_PICTURES = 256
COMMIT_BYTES = 64 * 2**20

log = logging.getLogger(__name__)


class MapWriter(AbstractContextManager["MapWriter"]):
    """The only writer of a map. Use it as a context manager in one thread.

    Leaving the context commits, even after an exception or Ctrl-C, because the pictures added so far are complete. A
    failed commit leaves the map as the commit before it. The writer cannot be used any more then.
    """

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        identity: str,
        descriptor_dim: int,
        token_shape: tuple[int, int],
        settings: Mapping[str, Any] | None = None,
        install_model: Callable[[Path], None] | None = None,
        known: catalog.Catalog | None = None,
    ) -> MapWriter:
        """Open the map in the folder `path` for adding, or create it there.

        identity, descriptor_dim (G), token_shape (T, D): properties of the bundle that makes the features. An existing
        map must have the same.
        settings: JSON values; see `TokenFormat` for the format of tokens. None takes those of an existing map, or none
        for a new one. Others must equal those of an existing map.
        install_model: writes the bundle into an empty folder; called only to create a map. None refuses to create one.
        known: an earlier state of the catalog, whose blocks are not read again.
        Raises MapError if there is no map and no `install_model`, the folder holds other things or cannot be written,
        another process writes to the map, or the map is of another identity, damaged or of a newer format.
        """
        path, given = Path(path), (token_shape[0], token_shape[1])
        wanted = describe_map(identity, descriptor_dim, given, settings or {})
        refuse_tile(path)
        if install_model is None:
            catalog.check_is_map(path)
        else:
            prepare_folder(path)
        with ExitStack() as stack:
            lock = lock_map(path)
            stack.callback(lock.close)
            if install_model is not None:
                prepare_folder(path)  # again, because another writer may have worked until the lock was free
                if not (path / catalog.FILE).exists():
                    create_map(path, wanted, install_model)
            writer = cls(path, lock, given, known)
            stack.callback(writer.close)
            if settings is None:
                wanted = describe_map(identity, descriptor_dim, given, writer._meta.settings)
            check_same(path, writer._meta, wanted)
            stack.pop_all()
        return writer

    @classmethod
    def edit(cls, path: str | Path) -> MapWriter:
        """Open the map in the folder `path` for changes other than adding pictures. It may be of any model.

        Raises MapError if there is no map, another process writes to it, it is damaged or of a newer format, or it
        cannot be written.
        """
        path = Path(path)
        refuse_tile(path)
        catalog.check_is_map(path)
        with ExitStack() as stack:
            lock = lock_map(path)
            stack.callback(lock.close)
            writer = cls(path, lock)
            stack.pop_all()
        return writer

    def __init__(
        self, path: Path, lock: FileIO, token_shape: tuple[int, int] | None = None, known: catalog.Catalog | None = None
    ):
        """Take over the folder of a map and its lock, and delete files left by a crash. Call `open` instead."""
        self.path = path
        self._token_shape = token_shape
        self._lock = lock
        self._pending: list[Pending] = []
        self._usable = True
        file = path / catalog.FILE
        with ExitStack() as stack:
            with writing(file):
                self._connection = catalog.connect(path)
            stack.callback(self._connection.close)
            with reading(file):
                state = catalog.read(self._connection, file, thorough=True, known=known)
            clean_map(path, state)
            stack.pop_all()
        self._meta, self._segments = state.meta, list(state.segments)
        self._last_id = state.records.blocks[-1].last_id if state.records.blocks else 0
        self._held = HeldPictures(state.records.live())

    @property
    def meta(self) -> Meta:
        """The map's properties, as of the last commit."""
        return self._meta

    def records(self) -> dict[str, Record]:
        """Return the committed pictures that are not deleted, by name."""
        return self._held.records()

    def names(self) -> dict[str, str]:
        """Return name and source of every picture that is not deleted, including those not committed yet."""
        return self._held.sources()

    def add(
        self,
        *,
        name: str,
        source: str,
        features: Features,
        timestamp: float | None = None,
        pose: Pose | None = None,
        gps: Gps | None = None,
        thumbnail: bytes | None = None,
    ) -> None:
        """Add one picture.

        features: descriptor (1, G) and tokens (1, T, D) of the picture.
        thumbnail: a JPEG for pages, of at most 256 KiB.
        Raises MapError if the name is taken, the features have other shapes or are not finite in the stored format, the
        descriptor does not have length 1, a text or number cannot be stored, or a commit fails.
        """
        self._check_usable()
        if name in self._held:
            raise MapError(f"{self.path} already holds {name!r}: remove it first, or give the picture another name")
        if self._token_shape is None:
            raise ValueError("a map opened with `edit` takes no new pictures")
        record = Record(0, name, source, timestamp, pose, gps, 0, 0, 0, 0)
        self._append(Pending.from_features(record, features, thumbnail, self._meta, self._token_shape, self.path))

    def adopt(
        self,
        record: Record,
        descriptor: npt.NDArray[np.float32],
        tokens: StoredTokens,
        thumbnail: bytes | None = None,
    ) -> None:
        """Add a picture as another map stores it: its record, descriptor (G,), tokens (M, D) and JPEG.

        The caller has checked that the other map's `Meta` fits this one's and that the name is free.
        Raises MapError if a commit fails.
        """
        self._check_usable()
        self._append(Pending(record, descriptor, tokens, thumbnail))

    def _append(self, picture: Pending) -> None:
        self._pending.append(picture)
        self._held.add([picture.record])
        waiting = len(self._pending)
        if waiting >= COMMIT_PICTURES or waiting * picture.tokens.nbytes >= COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Bring all pictures added so far to the disk for good. Raises MapError.

        Ctrl-C and SIGTERM take effect afterwards: the caller may have told of pictures, as of loops, that an
        interrupted commit would drop.
        """
        self._check_usable()
        if self._pending:
            with hold_interrupts():
                self._commit()

    def _commit(self) -> None:
        number = self._next_segment()
        added = [
            dataclasses.replace(pending.record, id=self._last_id + 1 + row, segment=number, row=row)
            for row, pending in enumerate(self._pending)
        ]
        held = self._upgraded()
        meta = dataclasses.replace(held, segments=held.segments + 1, records=held.records + len(added))
        with self._committing():
            segment = write_pending(self.path / FOLDER, number, self._pending, added)
            with writing(self.path / catalog.FILE):
                catalog.append(self._connection, meta, segment, added)
        self._meta, self._last_id = meta, added[-1].id
        self._segments.append(segment)
        self._held.add(added)
        self._pending.clear()

    def remove(self, names: Iterable[str]) -> int:
        """Remove pictures by name, in one commit, after committing those added so far. Return their number.

        Their bytes stay in the segments. Readers that have the map open keep them.
        Raises MapError for a name that the map does not hold. Nothing is removed then.
        """
        self._check_usable()
        wanted = dict.fromkeys(names)
        strange = next((name for name in wanted if name not in self._held), None)
        if strange is not None:
            raise MapError(f"{self.path} holds no picture {strange!r}: see `pairvpr map list`; nothing was removed")
        self.commit()
        held = [self._held[name] for name in wanted]
        if not held:
            return 0
        with self._committing(), writing(self.path / catalog.FILE):
            catalog.delete(self._connection, [dataclasses.replace(record, deleted=True) for record in held])
        self._meta = self._upgraded()
        self._held.remove(wanted)
        return len(held)

    def compact(self) -> int:
        """Rewrite the map in large segments without removed pictures. Return the number of bytes freed.

        This is one commit, after committing the pictures added so far. It needs room for the old and the new segments.
        Readers that have the map open go on with the old files.
        Raises MapError if a picture is damaged. The map is unchanged then.
        """
        self._check_usable()
        self.commit()
        live = sorted(self.records().values(), key=lambda record: record.id)
        batches = compaction.plan_batches(self._meta, self._segments, live)
        upgraded = self._upgraded()
        if len(live) == self._meta.records and len(self._segments) <= len(batches):
            if upgraded.format != self._meta.format:
                with self._committing(), writing(self.path / catalog.FILE):
                    catalog.update(self._connection, upgraded)
                self._meta = upgraded
            return 0
        old = self._segments
        with self._committing():
            segments, moved = compaction.rewrite(self.path, self._meta, old, batches, self._next_segment())
            meta = dataclasses.replace(upgraded, segments=len(segments), records=len(moved))
        self.replace(meta, segments, RecordList.of(moved))
        return sum(entry.bytes for entry in old) - sum(entry.bytes for entry in segments)

    def replace(self, meta: Meta, segments: Sequence[SegmentEntry], records: RecordList) -> None:
        """Commit these segments and records in place of all others, after committing the pictures added so far.

        The files of the segments must be in the map's folder. The files of other segments are deleted.
        meta: the map's properties, which count them. Inverted lists are dropped if ids now mean other pictures.
        Raises MapError if the commit fails.
        """
        self._check_usable()
        self.commit()
        if meta.lists is not None and find_change(self._held.stored, records.live()) is None:
            log.warning("%s: its lists are void, all pictures are compared; run `pairvpr map index --ivf`", self.path)
            meta = meta.searched(PRECISIONS[1])
        with self._committing():
            with writing(self.path / catalog.FILE):
                catalog.replace(self._connection, meta, segments, records)
            self._meta, self._segments = meta, list(segments)
            self._last_id = max(self._last_id, records.blocks[-1].last_id if records.blocks else 0)
            self._held = HeldPictures(records.live())
            remove_leftovers(self.path / FOLDER, {entry.file for entry in segments})

    def set_index_precision(self, precision: str) -> None:
        """Commit that all descriptors are compared, in "float32" or "float16", after the pictures added so far.

        Raises ValueError for another precision, and MapError if the commit fails.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r}")
        self._set_search(precision, None)

    def set_lists(self, lists: StoredLists, recall: ListRecall) -> ListEntry:
        """Commit that searches compare these inverted lists in float16, after the pictures added so far.

        recall: their measured recall, which the map keeps. Return the lists' entry in the map.
        Raises MapError if the file cannot be written or the commit fails.
        """
        self._check_usable()
        entry = write_lists(self.path, next_number(self.path), lists, recall)
        self._set_search(PRECISIONS[1], entry)
        return entry

    def _set_search(self, precision: str, lists: ListEntry | None) -> None:
        self._check_usable()
        self.commit()
        meta = self._upgraded().searched(precision, lists)
        with self._committing(), writing(self.path / catalog.FILE):
            catalog.update(self._connection, meta)
        self._meta = meta

    def _upgraded(self) -> Meta:
        """Return the properties of the map after a commit, which brings an older format to the present one."""
        return self._meta.upgraded(self._held.committed)

    def _next_segment(self) -> int:
        """Return an unused segment number. Segments are never replaced, because a reader may have them open."""
        return max((entry.number for entry in self._segments), default=0) + 1

    def close(self) -> None:
        """Release the map. Pictures that were not committed are dropped."""
        self._usable = False
        self._connection.close()
        self._lock.close()

    def __exit__(self, *_: object) -> None:
        try:
            if self._usable:
                self.commit()
        finally:
            self.close()

    @contextmanager
    def _committing(self) -> Iterator[None]:
        """Make the writer unusable if a commit fails, because only opening the map again can tell how far it came."""
        self._usable = False
        try:
            yield
        except BaseException:
            self._connection.close()
            raise
        self._usable = True

    def _check_usable(self) -> None:
        if not self._usable:
            raise MapError(f"{self.path} is no longer open for writing: open it again to go on")
