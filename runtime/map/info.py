"""The figures of a map, as `pairvpr map info` shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class MapInfo:
    """Counts and sizes of a map.

    pictures: pictures that are not deleted; `with_pose` and `with_gps` of them have a place.
    tokens: the token format, and its measured effect on scores.
    bytes: size of catalog and segments. model_bytes: size of the bundle. thumbnail_bytes: size of the thumbnails.
    bytes_per_picture: bytes / (pictures + deleted), 0 for an empty map.
    index_precision: precision of the search.
    lists: the entry of the inverted lists, see `ListEntry`, and `unlisted`, the number of later pictures. None without.
    """

    path: Path
    identity: str
    created_by: str
    pictures: int
    with_pose: int
    with_gps: int
    deleted: int
    segments: int
    descriptor_dim: int
    token_shape: tuple[int, int]
    tokens: dict[str, Any]
    bytes: int
    model_bytes: int
    thumbnail_bytes: int
    bytes_per_picture: float
    index_precision: str
    lists: dict[str, Any] | None = None
