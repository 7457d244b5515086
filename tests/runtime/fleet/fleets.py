"""Maps of made-up features for tests of fleets, with the model that ships."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import Dims
from pairvpr.runtime.features import Features
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import Map, MapWriter
from pairvpr.runtime.model import default_bundle

SPACING = 100.0  # metres between two pictures, to the north
PER_SEGMENT = 5


def gps_of(number: int) -> Gps:
    return Gps(48.0 + number * SPACING / 111_195, 11.0)


def features_of(number: int, dims: Dims) -> Features:
    random = np.random.default_rng(number)
    descriptor = random.standard_normal((1, dims.descriptor), np.float32)
    descriptor /= np.linalg.norm(descriptor)
    return Features(descriptor, random.standard_normal((1, dims.tokens, dims.token_dim), np.float32))


def build(
    path: Path,
    numbers: Iterable[int],
    *,
    drive: str = "a",
    settings=None,
    kind: str = "gps",
    same=None,
) -> Path:
    """Add pictures to a map, or make it.

    kind: of positions: "gps", "pose" or "none".
    same: the number whose features all pictures get. None gives each its own.
    """
    bundle = Bundle.open(default_bundle())
    dims = bundle.info.dims
    with MapWriter.open(
        path,
        identity=bundle.identity,
        descriptor_dim=dims.descriptor,
        token_shape=(dims.tokens, dims.token_dim),
        settings=settings,
        install_model=bundle.install,
    ) as writer:
        for count, number in enumerate(numbers, 1):
            writer.add(
                name=f"{drive}/{number:03d}.jpg",
                source=f"/{drive}",
                timestamp=float(number),
                gps=gps_of(number) if kind == "gps" else None,
                pose=Pose(number * SPACING, 0, 0, None, "odom") if kind == "pose" else None,
                features=features_of(number if same is None else same, dims),
                thumbnail=b"\xff\xd8" + bytes([number % 256]),
            )
            if count % PER_SEGMENT == 0:
                writer.commit()
    return path


def content_of(map_: Map) -> dict[str, tuple]:
    """Everything of a map's pictures but where they are stored, by name."""
    tokens = map_.read_tokens(range(len(map_)))
    return {
        record.name: (
            (record.source, record.timestamp, record.pose, record.gps, record.descriptor_crc, record.tokens_crc),
            map_.descriptors[i].tobytes(),
            tokens[i].tobytes(),
            map_.read_thumbnail(record),
        )
        for i, record in enumerate(map_.records)
    }


def content_at(path: Path) -> dict[str, tuple]:
    with Map.open(path) as map_:
        return content_of(map_)


def files_of(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "lock"
    }
