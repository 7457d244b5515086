"""Bags of every kind, written by rosbags' own writers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_typestore

from tests.scenes import draw_scene

KINDS = ["drive.bag", "lz4.bag", "sqlite", "mcap", "lone.mcap"]
START = 1_700_000_000_000_000_000  # nanoseconds
SIZE = (48, 64)


class BagWriter:
    """Writes messages of either ROS into a bag of the kind that its name says."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.ros1 = kind.endswith(".bag")
        self.store = get_typestore(Stores.ROS1_NOETIC if self.ros1 else Stores.ROS2_HUMBLE)
        self.path = folder / kind
        self.kind = kind
        self._writer: Any
        if self.ros1:
            self._writer = rosbag1.Writer(self.path)
            if kind.startswith("lz4"):
                self._writer.set_compression(rosbag1.Writer.CompressionFormat.LZ4)
        else:
            plugin = rosbag2.StoragePlugin.SQLITE3 if kind == "sqlite" else rosbag2.StoragePlugin.MCAP
            self._writer = rosbag2.Writer(folder / kind.partition(".")[0], version=9, storage_plugin=plugin)
            self.path = folder / kind.partition(".")[0]
        self._connections: dict[str, Any] = {}
        self._count = 0

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        if self.kind == "lone.mcap":
            (self.path / "lone.mcap").rename(self.path.parent / "alone.mcap")
            self.path = self.path.parent / "alone.mcap"

    def new(self, kind: str, *fields: Any, **more: Any) -> Any:
        return self.store.types[kind](*fields, **more)

    def header(self, stamp: int | None, frame: str = "") -> Any:
        seconds, rest = divmod(0 if stamp is None else stamp, 10**9)
        time = self.new("builtin_interfaces/msg/Time", sec=seconds, nanosec=rest)
        counter = {"seq": 0} if self.ros1 else {}
        return self.new("std_msgs/msg/Header", stamp=time, frame_id=frame, **counter)

    def write(self, topic: str, message: Any, logged: int) -> None:
        kind = message.__msgtype__
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, kind, typestore=self.store)
        serialize = self.store.serialize_ros1 if self.ros1 else self.store.serialize_cdr
        self._writer.write(self._connections[topic], logged, serialize(message, kind))

    def image(
        self,
        topic: str,
        stamp: int | None,
        pixels: np.ndarray,
        encoding: str = "rgb8",
        logged: int = 0,
        frame: str = "",
    ) -> None:
        height, width = pixels.shape[:2]
        rows = pixels.reshape(height, -1).view(np.uint8)
        message = self.new(
            "sensor_msgs/msg/Image", self.header(stamp, frame), height, width, encoding, 0, rows.shape[1], rows.ravel()
        )
        self.write(topic, message, logged or stamp or START)

    def compressed(self, topic: str, stamp: int, content: bytes, form: str = "jpeg") -> None:
        data = np.frombuffer(content, np.uint8)
        self.write(topic, self.new("sensor_msgs/msg/CompressedImage", self.header(stamp), form, data), stamp)

    def pose(self, kind: str, topic: str, stamp: int, x: float, q: tuple = (0, 0, 0, 2), frame: str = "odom") -> None:
        geometry = "geometry_msgs/msg/"
        point = self.new(geometry + "Point", x, 2.0, 3.0)
        pose = self.new(geometry + "Pose", point, self.new(geometry + "Quaternion", *map(float, q)))
        header, covariance = self.header(stamp, frame), np.zeros(36)
        if kind == "PoseStamped":
            message = self.new(geometry + kind, header, pose)
        elif kind == "PoseWithCovarianceStamped":
            inner = self.new(geometry + "PoseWithCovariance", pose, covariance)
            message = self.new(geometry + kind, header, inner)
        else:
            zero = self.new(geometry + "Vector3", 0.0, 0.0, 0.0)
            twist = self.new(geometry + "TwistWithCovariance", self.new(geometry + "Twist", zero, zero), covariance)
            inner = self.new(geometry + "PoseWithCovariance", pose, covariance)
            message = self.new("nav_msgs/msg/Odometry", header, "base_link", inner, twist)
        self.write(topic, message, stamp + 40_000_000)  # a filter's poses come late

    def fix(self, topic: str, stamp: int, latitude: float, status: int = 0, longitude: float = 8.5) -> None:
        state = self.new("sensor_msgs/msg/NavSatStatus", status, 1)
        message = self.new(
            "sensor_msgs/msg/NavSatFix", self.header(stamp, "gps"), state, latitude, longitude, 400.0, np.zeros(9), 0
        )
        self.write(topic, message, stamp)


def scene(place: int) -> np.ndarray:
    return draw_scene(place, 0, SIZE)


def stamp(i: int) -> int:
    return START + i * 100_000_000


def write_drive(folder: Path, kind: str, frames: int = 5) -> Path:
    """Ten images a second along x at 10 m/s, with odometry at 20 Hz from the second image on."""
    with BagWriter(folder, kind) as bag:
        for i in range(frames):
            bag.image("/cam/image_raw", stamp(i), scene(i), frame="lens")
            for half in (0, 50_000_000):
                if i:
                    bag.pose("Odometry", "/odom", stamp(i) + half - 10_000_000, i + half * 1e-8 - 0.1)
    return bag.path
