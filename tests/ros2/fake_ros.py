"""As much of ROS 2 as the node touches: messages by their real definitions, as strict as rclpy's; no middleware.

It shows that the node does what it should with them; it does not show that ROS does what is assumed here.
"""

from __future__ import annotations

import array
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rosbags.interfaces import Nodetype

TRIGGER = {"Request": {}, "Response": {"success": bool, "message": str}}  # of std_srvs, which rosbags does not have


def message_class(kind: str, store: Any) -> type:
    """A message class that takes fields by name and refuses other names and types, as those of rosidl do."""
    constants, fields = store.fielddefs[kind]

    def __init__(self: Any, **given: Any) -> None:  # noqa: N807
        assert set(given) <= {name for name, _ in fields}, (kind, given)
        for name, field in fields:
            value = given.get(name)
            assert value is None or is_valid(value, field), f"{kind}.{name} = {value!r}"
            setattr(self, name, value)

    held = {name: bytes([value]) if base == "byte" else value for name, base, value in constants}
    return type(kind.rpartition("/")[2], (), {"__init__": __init__, "kind": kind, **held})


def is_valid(value: Any, field: Any) -> bool:
    node, inner = field
    if node == Nodetype.NAME:
        return value.kind == inner
    if node == Nodetype.ARRAY:
        return isinstance(value, np.ndarray) and value.dtype == np.float64 and value.shape == (inner[1],)
    if node == Nodetype.SEQUENCE:
        if inner[0][1] == ("uint8", 0):
            return isinstance(value, array.array)
        return isinstance(value, list) and all(is_valid(each, inner[0]) for each in value)
    base = inner[0]
    if base == "byte":
        return isinstance(value, bytes) and len(value) == 1
    return type(value) is {"float64": float, "string": str, "bool": bool}.get(base, int)


class Ros:
    """Where all that the node does with ROS is noted, and what it is given."""

    def __init__(self, store: Any, parameters: dict[str, Any]) -> None:
        self.store, self.parameters = store, parameters
        self.declared: dict[str, Any] = {}
        self.published: dict[str, list[Any]] = {}
        self.subscriptions: dict[str, tuple[type, Any, Any]] = {}
        self.services: dict[str, tuple[type, Any]] = {}
        self.timers: list[Any] = []
        self.transforms: list[Any] = []
        self.lookups: list[tuple[Any, ...]] = []
        self.odometry: Any = None
        self.logged: list[tuple[str, str]] = []
        self.spin: Any = lambda node: None
        self.shut_down = False

    def logger(self, *_: Any) -> Any:
        levels = ("info", "warning", "error", "fatal")
        return SimpleNamespace(
            **{level: lambda text, level=level: self.logged.append((level, text)) for level in levels}
        )

    def image(self, kind: str, **fields: Any) -> Any:
        return message_class(f"sensor_msgs/msg/{kind}", self.store)(**fields)

    def new(self, kind: str, **fields: Any) -> Any:
        return message_class(kind, self.store)(**fields)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the modules where the node imports them."""
        for package in {kind.partition("/")[0] for kind in self.store.fielddefs}:
            of_package = [kind for kind in self.store.fielddefs if kind.startswith(f"{package}/msg/")]
            classes = {kind.rpartition("/")[2]: message_class(kind, self.store) for kind in of_package}
            self._module(monkeypatch, f"{package}.msg", **classes)
        trigger = {name: type(name, (), dict.fromkeys(fields)) for name, fields in TRIGGER.items()}
        self._module(monkeypatch, "std_srvs.srv", Trigger=type("Trigger", (), trigger))
        stopped = type("ExternalShutdownException", (Exception,), {})
        self._module(
            monkeypatch,
            "rclpy",
            init=lambda args=None: None,
            spin=lambda node: self.spin(node),
            try_shutdown=self._stop,
        )
        self._module(monkeypatch, "rclpy.logging", get_logger=self.logger)
        self._module(monkeypatch, "rclpy.time", Time=lambda *, nanoseconds: nanoseconds)
        self._module(monkeypatch, "rclpy.duration", Duration=lambda *, seconds: seconds)
        self._module(monkeypatch, "rclpy.executors", ExternalShutdownException=stopped)
        self._module(monkeypatch, "rclpy.qos", qos_profile_sensor_data="sensor data")
        self._module(monkeypatch, "rclpy.node", Node=node_class(self))
        absent = type("TransformException", (Exception,), {})

        class Buffer:
            def lookup_transform(_, target: str, source: str, time: Any, timeout: Any) -> Any:  # noqa: N805
                self.lookups.append((target, source, time))
                if self.odometry is None:
                    raise absent("nothing known")
                return self.odometry

        self._module(
            monkeypatch,
            "tf2_ros",
            Buffer=Buffer,
            TransformBroadcaster=lambda node: SimpleNamespace(sendTransform=self.transforms.append),
            TransformException=absent,
            TransformListener=lambda buffer, node: None,
        )

    def _stop(self) -> None:
        self.shut_down = True

    @staticmethod
    def _module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
            monkeypatch.setattr(sys.modules[parent], child, module, raising=False)


def node_class(ros: Ros) -> type:
    class Node:
        def __init__(self, name: str) -> None:
            self.name = name

        def declare_parameter(self, name: str, value: Any) -> Any:
            ros.declared[name] = value
            given = ros.parameters.get(name, value)
            assert type(given) is type(value), name
            return SimpleNamespace(value=given)

        def create_publisher(self, kind: Any, topic: str, qos: int) -> Any:
            ros.published[topic] = []

            def publish(message: Any) -> None:
                assert message.kind == kind.kind
                ros.published[topic].append(message)

            return SimpleNamespace(publish=publish)

        def create_subscription(self, kind: Any, topic: str, callback: Any, qos: Any) -> None:
            ros.subscriptions[topic] = (kind, callback, qos)

        def create_service(self, kind: Any, name: str, callback: Any) -> None:
            ros.services[name] = (kind, callback)

        def create_timer(self, seconds: float, callback: Any) -> None:
            ros.timers.append(callback)

        def get_logger(self) -> Any:
            return ros.logger()

        def destroy_node(self) -> None:
            pass

    return Node
