"""Where odom lies in the map."""

from __future__ import annotations

from pairvpr.runtime.geometry.transforms import Transform


def map_to_odom(base_in_map: Transform, base_in_odom: Transform) -> Transform:
    """Return the pose of odom in the map, from a base that is known in both."""
    return base_in_map.then(base_in_odom.inverse)
