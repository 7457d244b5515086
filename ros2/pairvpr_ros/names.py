"""Names of the node, its topics and its services, before remapping."""

from __future__ import annotations

from pairvpr.runtime.outputs import ros_messages

NODE = "visual_localization"
TRIGGER = "visual_localization/trigger_localization"
DEBUG_IMAGE = "visual_localization/debug_image"
OUTPUTS = {**ros_messages.TOPICS, DEBUG_IMAGE: "sensor_msgs/msg/Image"}


def image_topic(camera: int, transport: str) -> str:
    """Return the topic of a camera's images."""
    base = f"visual_localization/image_{camera}"
    return base if transport == "raw" else f"{base}/{transport}"


def info_topic(camera: int) -> str:
    """Return the topic of a camera's calibration."""
    return f"visual_localization/camera_info_{camera}"
