"""The node's parameters and what they mean to the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pairvpr.errors import PairVPRError
from pairvpr.runtime.map import Map
from pairvpr.runtime.outputs.covariance import Floor
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.sources.options import SourceOptions, read_crop

TRANSPORTS = ("raw", "compressed")
TURNS = (0, 90, 180, 270)


@dataclass(frozen=True)
class Parameters:
    """As ROS has them: each with a value. Those that are 0 or empty leave the choice to the runtime.

    map_dir: the map's folder. model_dir: another bundle of its model. device, precision, top_k, budget_ms, matches: as
    the options of `pairvpr-run`.
    image_transport: "raw" or "compressed". undistort, rotate, crop: as the options of `pairvpr map build`; a map and
    its queries should be seen through the same lens.
    enable_continuous_localization: localise every image that there is time for; else only until an answer is
    accepted, at the start and after each call of visual_localization/trigger_localization.
    map_frame: what the frame of the map's poses is called on the robot; empty: as in the map.
    base_frame: what the map's poses are poses of. odom_frame: what odometry moves it in. publish_map_to_odom_tf: the
    transform between map_frame and odom_frame that puts base_frame where it was recognised.
    position_stddev: metres, rotation_stddev: radians; see `Floor`.
    """

    map_dir: str = ""
    model_dir: str = ""
    device: str = "auto"
    precision: str = ""
    top_k: int = 0
    budget_ms: float = 0.0
    matches: int = 10
    image_transport: str = "raw"
    undistort: str = ""
    rotate: int = 0
    crop: str = ""
    enable_continuous_localization: bool = True
    map_frame: str = "map"
    base_frame: str = "base_link"
    odom_frame: str = "odom"
    publish_map_to_odom_tf: bool = False
    position_stddev: float = 0.0
    rotation_stddev: float = 0.35

    def __post_init__(self) -> None:
        if not self.map_dir:
            raise PairVPRError("the parameter map_dir is empty: name the folder that `pairvpr map build` made")
        for name, wrong, advice in (
            ("image_transport", self.image_transport not in TRANSPORTS, f"one of {', '.join(TRANSPORTS)}"),
            ("rotate", self.rotate not in TURNS, f"one of {', '.join(map(str, TURNS))}"),
            ("matches", self.matches < 1, "1 or more"),
            ("position_stddev", not 0 <= self.position_stddev < float("inf"), "metres, or 0"),
            ("rotation_stddev", not 0 < self.rotation_stddev < float("inf"), "radians above 0"),
        ):
            if wrong:
                raise PairVPRError(f"the parameter {name} is {getattr(self, name)!r}: set it to {advice}")

    @property
    def floor(self) -> Floor:
        """Of the covariances that are published."""
        return Floor(self.position_stddev or None, self.rotation_stddev)

    @property
    def options(self) -> SourceOptions:
        """How images are turned; raises SourceError for a crop that is none."""
        undistort = Path(self.undistort) if self.undistort else None
        crop = read_crop(self.crop) if self.crop else None
        return SourceOptions(undistort=undistort, rotate=self.rotate, crop=crop)

    def open(self) -> PlaceRecognizer:
        """The recogniser; raises what `PlaceRecognizer.open` does."""
        return PlaceRecognizer.open(
            self.map_dir,
            model=self.model_dir or None,
            top_k=self.top_k or None,
            device=self.device,
            precision=self.precision or None,
            budget_ms=self.budget_ms or None,
        )

    def frames(self, places: Map) -> dict[str, str]:
        """What frames of the map's poses are called on the robot; raises PairVPRError where one name means several."""
        stored = {record.pose.frame for record in places.records if record.pose is not None}
        if not self.map_frame or stored <= {self.map_frame}:
            return {}
        if len(stored) > 1:
            raise PairVPRError(
                f"{places.path}: its poses are in several frames, {', '.join(sorted(stored))}, which cannot all be "
                f"map_frame {self.map_frame!r}: set map_frame to ''"
            )
        return {stored.pop(): self.map_frame}
