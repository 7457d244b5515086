"""Messages held against the definitions of ROS distributions, as rosbags has them, and as strictly as rclpy does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_typestore

from pairvpr.runtime import PlaceRecognizer, load_model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.calibrated.acceptance import KEY, Acceptance, ScoreSetup, Traverse
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.mapping.builder import BuildOptions, add_pictures
from pairvpr.runtime.outputs.ros_messages import Constant, Message
from tests.runtime.sources.bag_writer import scene

DISTRIBUTIONS = {
    store.name.removeprefix("ROS2_").lower(): get_typestore(store)
    for store in Stores
    if store.name in ("ROS2_HUMBLE", "ROS2_JAZZY", "ROS2_KILTED", "ROS2_LYRICAL")  # older rosbags lack the newest
}
RANGES = {f"{sign}int{bits}": (bits, sign) for bits in (8, 16, 32, 64) for sign in ("", "u")}


def check(message: Message, store: Any) -> None:
    """Every field is there, none besides, each of its type: rclpy takes neither an int for a float nor the reverse."""
    constants, fields = store.fielddefs[message.type]
    assert set(message.fields) == {name for name, _ in fields}, message.type
    for name, kind in fields:
        value = message.fields[name]
        if isinstance(value, Constant):
            (definition,) = [each for each in constants if each[0] == value]
            assert kind == (Nodetype.BASE, (definition[1], 0)), (message.type, name)
        else:
            check_value(value, kind, store, f"{message.type} {name}")


def check_value(value: Any, kind: Any, store: Any, where: str) -> None:
    node, inner = kind
    if node == Nodetype.NAME:
        assert (type(value), value.type) == (Message, inner), where
        check(value, store)
    elif node == Nodetype.SEQUENCE:
        assert type(value) is list, where
        for each in value:
            check_value(each, inner[0], store, where)
    elif node == Nodetype.ARRAY:
        assert inner[0] == (Nodetype.BASE, ("float64", 0)), where
        assert (value.dtype, value.shape) == (np.float64, (inner[1],)), where
    elif inner[0] in RANGES:
        bits, sign = RANGES[inner[0]]
        low, high = (0, 2**bits) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        assert type(value) is int, where
        assert low <= value < high, where
    else:
        assert type(value) is {"float64": float, "string": str, "bool": bool}[inner[0]], where


def acceptance(threshold: float = 2.0, radius: float = 5.0, precision: float = 0.95) -> Acceptance:
    """A calibration with these figures."""
    counts = {"fitted": 30, "checked": 70, "right": 60, "outside": 5, "expected": 60.0, "accepted": 60}
    return Acceptance(
        identity="0" * 64, engine="a test", setup=ScoreSetup("", 6, None), threshold=threshold, slope=1.0, bias=0.0,
        radius=radius, precision=precision, delta=0.1, accepted_right=60,
        traverses=(Traverse("drive1", 70, 60, 60),), own=0, **counts,
    )  # fmt: skip


def write_accepting_map(home: Path, count: int) -> Path:
    """A map of `count` pictures at x = 0, 1, ... and y = 2, whose answers to these pictures are accepted.

    The threshold lies halfway between the scores of right and of wrong matches, whatever the scores of the model are.
    """
    (home / "db").mkdir()
    lines = ["name,x,y,z,qx,qy,qz,qw"]
    for place in range(count):
        Image.fromarray(scene(place)).save(home / "db" / f"p{place}.png")
        lines.append(f"p{place}.png,{place},2,0,0,0,0,1")
    (home / "poses.csv").write_text("\n".join(lines))
    add_pictures(home / "db", home / "map", load_model(), BuildOptions(poses=home / "poses.csv"), create=True)
    with PlaceRecognizer.open(home / "map") as vpr:
        right, wrong = [], []
        for place in range(count):
            for match in vpr.recognize(home / "db" / f"p{place}.png").matches:
                (right if match.name == f"p{place}.png" else wrong).append(float(match.score or 0))
        assert max(wrong) < min(right)
        threshold = (max(wrong) + min(right)) / 2
        setup = ScoreSetup.from_map(vpr.map, vpr.top_k, Cascade.find_in(vpr.model.bundle))
        calibrated = {**acceptance(threshold).to_json(), "identity": vpr.map.identity, "setup": vars(setup)}
        Bundle.open(vpr.map.model_path).store_calibration(KEY, calibrated)
    return home / "map"
