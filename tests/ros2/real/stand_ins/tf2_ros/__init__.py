"""What the node uses of tf2_ros, which no wheel has, on two topics of its own; look-ups are as strict as tf2's.

It shows what the node asks and sends, and that a look-up of it succeeds; it shows nothing of tf2 itself.
"""

from __future__ import annotations

import time
from typing import Any

from geometry_msgs.msg import TransformStamped

SENT, TOLD = "/stand_in/tf_sent", "/stand_in/tf_told"


class TransformException(Exception):  # noqa: N818  its name in tf2
    pass


class LookupException(TransformException):
    pass


class ExtrapolationException(TransformException):
    pass


def nanoseconds(message: TransformStamped) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


class Buffer:
    def __init__(self, **options: Any) -> None:
        assert "node" not in options, "it fails when time jumps back (0.36.4)"
        self._known: dict[tuple[str, str], list[TransformStamped]] = {}

    def set_transform(self, message: TransformStamped, authority: str = "") -> None:
        known = self._known.setdefault((message.header.frame_id, message.child_frame_id), [])
        if known and nanoseconds(message) < nanoseconds(known[-1]):
            return  # tf2 ignores transforms of the past, with a warning, until it is cleared
        known.append(message)

    def lookup_transform(self, target: str, source: str, time_: Any, timeout: Any = None) -> TransformStamped:
        deadline = time.monotonic() + (0 if timeout is None else timeout.nanoseconds / 1e9)
        while True:
            try:
                return self._find(target, source, time_.nanoseconds)
            except TransformException:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.01)

    def clear(self) -> None:
        self._known.clear()

    def _find(self, target: str, source: str, at: int) -> TransformStamped:
        known = list(self._known.get((target, source), []))
        if not known:
            raise LookupException(f"{source} is not known in {target}")
        if at == 0:
            return known[-1]
        if not nanoseconds(known[0]) <= at <= nanoseconds(known[-1]):
            raise ExtrapolationException(f"{source} in {target} is not known at {at}")
        return min(known, key=lambda each: abs(nanoseconds(each) - at))


class TransformListener:
    def __init__(self, buffer: Buffer, node: Any) -> None:
        self._node = node
        self._subscription = node.create_subscription(TransformStamped, TOLD, buffer.set_transform, 100)

    def unregister(self) -> None:
        self._node.destroy_subscription(self._subscription)


class TransformBroadcaster:
    def __init__(self, node: Any) -> None:
        self._publisher = node.create_publisher(TransformStamped, SENT, 100)

    def sendTransform(self, message: TransformStamped) -> None:  # noqa: N802  tf2's name
        self._publisher.publish(message)
