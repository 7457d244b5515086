"""The records of a map as a sequence, over the blocks that store them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from pairvpr.runtime.map import blocks
from pairvpr.runtime.map.blocks import Block
from pairvpr.runtime.map.records import Record

_Ids = npt.NDArray[np.int64]


class RecordList(Sequence[Record]):
    """Records in the order of their ids. Each one is made when it is asked for.

    blocks: the blocks, in the order of their numbers. Snapshots of one map share those that did not change.
    """

    def __init__(self, blocks: Iterable[Block] = (), *, deleted: bool = True) -> None:
        """Take over blocks.

        deleted: include deleted records.
        """
        self.blocks: tuple[Block, ...] = tuple(blocks)
        self._deleted = deleted
        counts = [block.count if deleted else len(block.live) for block in self.blocks]
        self._ends: npt.NDArray[np.int64] = np.cumsum(counts, dtype=np.int64)

    @staticmethod
    def of(records: Iterable[Record]) -> RecordList:
        """Make a list of records, whose ids rise."""
        return RecordList(blocks.pack(records))

    def live(self) -> RecordList:
        """Return the records that are not deleted."""
        return RecordList(self.blocks, deleted=False)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, row, "right"))
        block = self.blocks[number]
        position = row - (int(self._ends[number - 1]) if number else 0)
        return block.record(position if self._deleted else int(block.live[position]))

    def __iter__(self) -> Iterator[Record]:
        for block in self.blocks:
            yield from block.records(deleted=self._deleted)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, RecordList) and self.same_blocks(other):
            return True
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def same_blocks(self, other: RecordList) -> bool:
        """Return whether the records are stored in the same blocks, by their checksums."""
        keys = [[(block.number, block.crc) for block in each.blocks] for each in (self, other)]
        return self._deleted == other._deleted and keys[0] == keys[1]

    def names(self) -> list[str]:
        """Return the names."""
        return [
            name
            for block in self.blocks
            for name in block.names(range(block.count) if self._deleted else block.live.tolist())
        ]

    def column(self, name: str, missing: npt.ArrayLike = np.nan) -> npt.NDArray[Any]:
        """Return a column of all records, see `Block.column`.

        missing: the row of blocks that lack the column.
        """
        width = np.shape(missing)
        parts = []
        for block in self.blocks:
            column = block.column(name)
            if column is None:
                column = np.broadcast_to(missing, (block.count, *width))
            parts.append(column if self._deleted else column[block.live])
        return np.concatenate(parts) if parts else np.zeros((0, *width))

    def tail(self, count: int) -> RecordList:
        """Return the last records, at least `count` of them, from the beginning of a block on."""
        first = int(np.searchsorted(self._ends, len(self) - count, "right"))
        return RecordList(self.blocks[first:] if count else (), deleted=self._deleted)

    def count(self, place: str) -> int:
        """Return the number of records that have a "position" or "gps"."""
        columns = [(block, column) for block in self.blocks if (column := block.column(place)) is not None]
        return sum(
            int(np.isfinite((column if self._deleted else column[block.live])[:, 0]).sum()) for block, column in columns
        )

    def has_repeated_names(self) -> bool:
        """Return whether two records that are not deleted have the same name."""
        hashes = np.sort(np.concatenate([np.zeros(0, np.int64), *(block.name_hashes for block in self.blocks)]))
        if (hashes[1:] != hashes[:-1]).all():
            return False
        names = self.live().names()
        return len(set(names)) != len(names)


@dataclass(frozen=True)
class Change:
    """The way from one snapshot of a map to a later one.

    removed: rows of the earlier snapshot that the later one lacks, ascending.
    added: number of rows at the end of the later snapshot that the earlier one lacks.
    """

    removed: npt.NDArray[np.int64]
    added: int


def find_change(earlier: RecordList, later: RecordList) -> Change | None:
    """Return the change between two lists of records that are not deleted. Only blocks that differ are compared.

    Return None if the later list is not the earlier one with some removed and others added, by ids and descriptors.
    """
    shared = set(map(id, earlier.blocks)) & set(map(id, later.blocks))
    rows, ids, crcs = _without(earlier, shared)
    _, later_ids, later_crcs = _without(later, shared)
    _, here, there = np.intersect1d(ids, later_ids, assume_unique=True, return_indices=True)
    added = np.delete(later_ids, there)
    last = earlier.blocks[-1].last_id if earlier.blocks else 0
    if (crcs[here] != later_crcs[there]).any() or (added <= last).any():
        return None
    return Change(np.delete(rows, here), len(added))


def _without(records: RecordList, shared: set[int]) -> tuple[npt.NDArray[np.int64], _Ids, _Ids]:
    """Return rows, ids and checksums of descriptors of the records outside the shared blocks."""
    rows, first = [np.zeros(0, np.int64)], 0
    others = [block for block in records.blocks if id(block) not in shared]
    for block in records.blocks:
        if id(block) not in shared:
            rows.append(np.arange(first, first + len(block.live)))
        first += len(block.live)
    left = RecordList(others, deleted=False)
    return np.concatenate(rows), left.column("id").astype(np.int64), left.column("descriptor_crc").astype(np.int64)
