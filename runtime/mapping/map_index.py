"""Sort the descriptors of a map into inverted lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pairvpr.errors import MapError
from pairvpr.runtime.inverted_lists import DEPTH, LEAST, MOST_COMPARED, WANTED, sort_into_lists
from pairvpr.runtime.map import Map, MapWriter
from pairvpr.runtime.map.errors import refuse_tile
from pairvpr.runtime.map.list_file import ListEntry, StoredLists


def make_lists(db: str | Path) -> ListEntry:
    """Sort the descriptors of the map `db` into lists, of which searches then compare the nearest.

    Their recall is measured against the exact search, and stored in the map. The map can be changed meanwhile.
    Raises MapError if the map has too few pictures, its descriptors lie too evenly for lists, or it cannot be written.
    """
    refuse_tile(Path(db))
    with Map.open(db, descriptors=False) as map_:  # without its lists, which may be damaged
        if len(map_) < LEAST:
            raise MapError(
                f"{db}: has {len(map_)} pictures, and lists pay from {LEAST} on; leave --ivf out, comparing all is fast"
            )
        found = sort_into_lists(map_.descriptors)
        ids = map_.records.column("id").astype(np.int64)
    if found is None:
        raise MapError(
            f"{db}: its descriptors lie so evenly that finding {WANTED:.0%} takes comparing more than "
            f"{MOST_COMPARED:.0%} of them; leave --ivf out, because comparing all is as fast; nothing was changed"
        )
    lists, recall = found
    with MapWriter.edit(db) as writer:
        return writer.set_lists(StoredLists(ids, lists), recall)


def describe_lists(entry: ListEntry, unlisted: int) -> list[str]:
    """Return lines on the lists of a map.

    unlisted: number of pictures that were added later and are in no list.
    """
    lines = [
        f"{entry.lists} lists of {entry.pictures} pictures, float16; a search compares {entry.probes} lists",
        f"that is {entry.compared:.1%} of the descriptors; it finds {entry.at_100:.1%} of the nearest {DEPTH}, and the "
        f"nearest in {entry.at_1:.1%}",
        f"measured against the exact search with {entry.queries} descriptors of the map that were held out of training",
    ]
    later = f"{unlisted} pictures were added later; a search compares all of them"
    return [*lines, later] if unlisted else lines
