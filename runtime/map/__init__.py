"""The map on disk: descriptor, tokens and place of every database picture, and the bundle that made them."""

from pairvpr.runtime.map.info import MapInfo
from pairvpr.runtime.map.merging import MergeReport, merge_maps
from pairvpr.runtime.map.reader import Map
from pairvpr.runtime.map.records import Record
from pairvpr.runtime.map.repair import RepairReport, repair_map
from pairvpr.runtime.map.verify import verify_map
from pairvpr.runtime.map.writer import MapWriter

__all__ = [
    "Map",
    "MapInfo",
    "MapWriter",
    "MergeReport",
    "Record",
    "RepairReport",
    "merge_maps",
    "repair_map",
    "verify_map",
]
