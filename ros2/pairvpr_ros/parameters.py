"""The node's parameters, with their descriptions and ranges, and their meaning to the runtime."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pairvpr.errors import PairVPRError
from pairvpr.runtime.geometry.transforms import Transform, parse_transforms
from pairvpr.runtime.map import Map
from pairvpr.runtime.outputs.covariance import Floor
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.sources.options import SourceOptions, read_crop

TRANSPORTS = ("raw", "compressed")
TURNS = (0, 90, 180, 270)
CAMERA_INFO = "camera_info"
TF = "tf"
MOST_CAMERAS = 8


class Description(NamedTuple):
    """What `ros2 param describe` says of a parameter.

    low, high: the range of a number, both included. settable: it may be changed while the node runs; the others are
    read once.
    """

    text: str
    low: float | None = None
    high: float | None = None
    settable: bool = False


def _parameter(default: Any, text: str, low: float | None = None, high: float | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"description": Description(text, low, high)})


def _settable(default: Any, text: str, low: float | None = None, high: float | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"description": Description(text, low, high, True)})


@dataclass(frozen=True)
class Parameters:
    """The parameters as ROS holds them, each with a value. 0 and "" leave the choice to the map and its model.

    Raises PairVPRError for a value that cannot be used.
    """

    map_dir: str = _parameter("", "Folder of the map, made by `pairvpr map build`. Must be set.")
    model_dir: str = _parameter("", "Folder of another bundle of the map's model.")
    device: str = _parameter("auto", "Device that the model runs on: auto, cpu, cuda and others of `pairvpr-run`.")
    precision: str = _parameter("", "Arithmetic of the model: fp32, fp16 or int8.")
    top_k: int = _parameter(0, "Number of map pictures that each image is compared with.", 0, 1_000_000)
    budget_ms: float = _parameter(0.0, "Milliseconds that an answer may take. 0 sets no limit.", 0.0, 1e6)
    matches: int = _parameter(10, "Number of matches listed in candidates and diagnostics.", 1, 1000)
    num_cameras: int = _parameter(1, "Number of cameras: topics image_0, image_1 and on.", 1, MOST_CAMERAS)
    image_transport: str = _parameter("raw", "raw (Image) or compressed (CompressedImage).")
    undistort: str = _parameter("", "Calibration file of the cameras, or camera_info to take it from that topic.")
    rotate: int = _parameter(0, "Degrees by which images are turned clockwise: 0, 90, 180 or 270.", 0, 270)
    crop: str = _parameter("", "Part of the turned image to keep: X,Y,WIDTH,HEIGHT in pixels.")
    camera_poses: str = _parameter("", "Cameras in base_frame: X,Y,Z,QX,QY,QZ,QW of each, separated by ';', or tf.")
    enable_continuous_localization: bool = _settable(True, "Answer every image. Else: until one answer is accepted.")
    max_rate: float = _settable(0.0, "Most answers a second. 0 sets no limit.", 0.0, 1000.0)
    map_frame: str = _parameter("map", "Name for the frame of the map's poses. Empty keeps the map's own name.")
    base_frame: str = _parameter("base_link", "Frame whose poses the map holds.")
    odom_frame: str = _parameter("odom", "Frame in which odometry moves base_frame.")
    publish_map_to_odom_tf: bool = _parameter(False, "Publish the transform from map_frame to odom_frame.")
    publish_map_to_base_tf: bool = _parameter(False, "Publish the transform from map_frame to base_frame.")
    transform_tolerance: float = _parameter(0.5, "Seconds that map to odom is dated into the future.", 0.0, 10.0)
    position_stddev: float = _parameter(0.0, "Metres, the least of a pose. 0: as the calibration has it.", 0.0, 1e6)
    rotation_stddev: float = _parameter(0.35, "Radians, the least of a pose.", 1e-6, math.pi)
    autostart: bool = _parameter(True, "Configure and activate the node at its start.")

    def __post_init__(self) -> None:
        if not self.map_dir:
            raise PairVPRError("the parameter map_dir is empty: name the folder that `pairvpr map build` made")
        for name, wrong, advice in (
            ("image_transport", self.image_transport not in TRANSPORTS, f"one of {', '.join(TRANSPORTS)}"),
            ("rotate", self.rotate not in TURNS, f"one of {', '.join(map(str, TURNS))}"),
            (
                "publish_map_to_base_tf",
                self.publish_map_to_base_tf and self.publish_map_to_odom_tf,
                "false, or publish_map_to_odom_tf: a frame has one parent",
            ),
        ):
            if wrong:
                raise PairVPRError(f"the parameter {name} is {getattr(self, name)!r}: set it to {advice}")

    @staticmethod
    def describe() -> dict[str, tuple[Any, Description]]:
        """Return the default and the description of every parameter by its name."""
        return {each.name: (each.default, each.metadata["description"]) for each in dataclasses.fields(Parameters)}

    @property
    def needs_tf(self) -> bool:
        """Return whether transforms are read or published."""
        return self.publish_map_to_odom_tf or self.publish_map_to_base_tf or self.camera_poses == TF

    @property
    def floor(self) -> Floor:
        """Return the least standard deviations of poses."""
        return Floor(self.position_stddev or None, self.rotation_stddev)

    @property
    def options(self) -> SourceOptions:
        """Return how images are changed before they are answered; raises SourceError for a crop that is none."""
        undistort = Path(self.undistort) if self.undistort not in ("", CAMERA_INFO) else None
        crop = read_crop(self.crop) if self.crop else None
        return SourceOptions(undistort=undistort, rotate=self.rotate, crop=crop)

    @property
    def mounts(self) -> list[Transform] | None:
        """Return the cameras' poses in base_frame; None if tf has them or every camera counts as the map's.

        Raises PairVPRError for a text that is not one pose a camera.
        """
        if self.camera_poses in ("", TF):
            return None
        try:
            poses = parse_transforms(self.camera_poses)
        except ValueError as fault:
            raise PairVPRError(f"the parameter camera_poses has {fault}") from fault
        if len(poses) != self.num_cameras:
            raise PairVPRError(
                f"the parameter camera_poses has {len(poses)} poses for {self.num_cameras} cameras (num_cameras): give "
                "one a camera"
            )
        return poses

    def open(self) -> PlaceRecognizer:
        """Open the map; raises what `PlaceRecognizer.open` raises."""
        return PlaceRecognizer.open(
            self.map_dir,
            model=self.model_dir or None,
            top_k=self.top_k or None,
            device=self.device,
            precision=self.precision or None,
            budget_ms=self.budget_ms or None,
        )

    def frames(self, map_: Map) -> dict[str, str]:
        """Return the robot's names for frames of the map's poses; raises PairVPRError if one name means several."""
        stored = {record.pose.frame for record in map_.records if record.pose is not None}
        if not self.map_frame or stored <= {self.map_frame}:
            return {}
        if len(stored) > 1:
            raise PairVPRError(
                f"{map_.path}: its poses are in several frames, {', '.join(sorted(stored))}, which cannot all be "
                f"map_frame {self.map_frame!r}: set map_frame to ''"
            )
        return {stored.pop(): self.map_frame}


def parse(text: str, default: Any) -> Any:
    """Return a launch argument's text as a value of the default's type; raises PairVPRError."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError):
        raise PairVPRError(f"{text!r} is not of the parameter's type, {type(default).__name__}") from None
