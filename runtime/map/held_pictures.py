"""The pictures of a map by name, as its writer knows them."""

from __future__ import annotations

from collections.abc import Iterable

from pairvpr.runtime.map.record_list import RecordList
from pairvpr.runtime.map.records import Record


class HeldPictures:
    """The pictures that are not deleted: those of a list of records, and those added since."""

    def __init__(self, stored: RecordList) -> None:
        """Take over the committed records that are not deleted. They are made when they are asked for."""
        self.stored = stored
        self._rows = {name: row for row, name in enumerate(stored.names())}
        self._added: dict[str, Record] = {}  # those not yet committed have no id

    def __contains__(self, name: str) -> bool:
        return name in self._rows or name in self._added

    def __getitem__(self, name: str) -> Record:
        return self._added.get(name) or self.stored[self._rows[name]]

    @property
    def committed(self) -> int:
        """Return the number of committed pictures."""
        return len(self._rows) + sum(record.id > 0 for record in self._added.values())

    def records(self) -> dict[str, Record]:
        """Return the committed pictures by name."""
        held = {record.name: record for record in self.stored if record.name in self._rows}
        return held | {name: record for name, record in self._added.items() if record.id}

    def sources(self) -> dict[str, str]:
        """Return name and source of every picture."""
        return {name: record.source for name, record in (self.records() | self._added).items()}

    def add(self, records: Iterable[Record]) -> None:
        """Add pictures, or put their committed records in the place of those without an id."""
        self._added.update((record.name, record) for record in records)

    def remove(self, names: Iterable[str]) -> None:
        """Forget pictures."""
        for name in names:
            self._added.pop(name, None)
            self._rows.pop(name, None)
