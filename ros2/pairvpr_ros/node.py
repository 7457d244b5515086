"""The ROS 2 node: parameters, topics, a service and life cycle around `Localizer`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Empty
from std_srvs.srv import Trigger

from pairvpr.errors import PairVPRError
from pairvpr.runtime.outputs.ros_messages import DIAGNOSTICS
from pairvpr_ros import health, names
from pairvpr_ros.declarations import declare
from pairvpr_ros.localizer import Localizer
from pairvpr_ros.logs import RosLog, in_parameters
from pairvpr_ros.messages import QUEUE, Outlets, overridable
from pairvpr_ros.parameters import CAMERA_INFO, Parameters

CHECK = 1.0  # seconds between looks at the thread that answers and at the images that come in
BACKWARD = Duration(nanoseconds=-1)  # any jump of time to the past
Result: TypeAlias = TransitionCallbackReturn


class VisualLocalization(LifecycleNode):
    """Subscribes to images and publishes where they were taken; see the package's README for names.

    options: as those of `rclpy.node.Node`: context, namespace, parameter_overrides and others, with which the node
    takes its place beside others in one process. Raises PairVPRError for parameters of a wrong type or out of range.
    """

    def __init__(self, name: str = names.NODE, **options: Any) -> None:
        super().__init__(name, **options)
        self._full_name = str(self.get_fully_qualified_name()).lstrip("/")
        self._localizer: Localizer | None = None
        self._outlets: Outlets | None = None
        self._tf: Any = None
        self._entities: list[Any] = []  # what comes with activation and goes with deactivation
        self._throttle = health.Throttle()
        self._since = 0.0
        self.fault: Exception | None = None  # of the last transition, if it failed
        try:
            declare(self)
        except BaseException:
            self.destroy_node()
            raise
        self.add_on_set_parameters_callback(self._set)
        self._jump = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=BACKWARD, on_clock_change=True), post_callback=self._forget
        )
        self._log = RosLog(self.get_logger())

    def start(self) -> None:
        """Configure and activate; raises PairVPRError for parameters and maps that cannot be used."""
        for transition in (self.trigger_configure, self.trigger_activate):
            if transition() != Result.SUCCESS and self.fault is not None:
                raise self.fault

    def close(self) -> None:
        """Stop answering, and take the node out of ROS."""
        self._clean_up()
        self._log.close()
        self._jump.unregister()
        self.destroy_node()

    # Life cycle

    def on_configure(self, state: LifecycleState) -> Result:
        """Open the map and load the model."""
        return self._attempt(self._configure)

    def on_activate(self, state: LifecycleState) -> Result:
        """Subscribe to images."""
        return self._attempt(self._activate)

    def on_deactivate(self, state: LifecycleState) -> Result:
        """Unsubscribe, and drop images that wait."""
        return self._attempt(self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> Result:
        """Close the map."""
        return self._attempt(self._clean_up)

    def on_shutdown(self, state: LifecycleState) -> Result:
        """Stop for good."""
        return self._attempt(self._clean_up)

    def _attempt(self, step: Callable[[], None]) -> Result:
        """Take a step of the life cycle; what goes wrong is logged, kept in `fault` and makes the transition fail."""
        self.fault = None
        try:
            with self._log.of_this_thread():
                step()
        except Exception as error:  # rclpy would drop it without a word
            self.fault = PairVPRError(in_parameters(str(error))) if isinstance(error, PairVPRError) else error
            self.get_logger().fatal(f"{self.fault}")
            self._clean_up()
            return Result.FAILURE
        return Result.SUCCESS

    def _configure(self) -> None:
        self._settings = Parameters(**{each: self.get_parameter(each).value for each in Parameters.describe()})
        if self._settings.needs_tf:
            try:
                from pairvpr_ros.tf import TfFrames
            except ImportError as error:
                raise PairVPRError(f"transforms need tf2_ros ({error}): install the package tf2_ros_py") from error
            self._tf = TfFrames(self, self._settings)
        self._outlets = Outlets(self)
        topics = [self.resolve_topic_name(topic) for topic in self._topics]
        self._localizer = Localizer(self._settings, self._full_name, topics, self._outlets, self._tf, self._now)
        self._log.of_thread(self._localizer.thread)

    def _activate(self) -> None:
        assert self._localizer is not None
        cameras, kind = self._localizer.cameras, Image if self._settings.image_transport == "raw" else CompressedImage
        for i, topic in enumerate(self._topics):
            self._subscribe(kind, topic, partial(cameras.offer, i))
            if self._settings.undistort == CAMERA_INFO:
                self._subscribe(CameraInfo, names.info_topic(i), partial(cameras.offer_info, i))
        self._entities.append(self.create_subscription(Empty, names.TRIGGER, lambda _: self._localize(), QUEUE))
        self._entities.append(self.create_service(Trigger, names.TRIGGER, self._trigger))
        # Steady time: a robot whose clock stands still or jumps has to hear of faults as well.
        self._entities.append(self.create_timer(CHECK, self._check, clock=Clock(clock_type=ClockType.STEADY_TIME)))
        self._since = time.monotonic()

    def _deactivate(self) -> None:
        for each in self._entities:
            any(destroy(each) for destroy in (self.destroy_subscription, self.destroy_service, self.destroy_timer))
        self._entities.clear()
        if self._localizer is not None:
            self._localizer.cameras.forget()

    def _clean_up(self) -> None:
        self._deactivate()
        for each in (self._localizer, self._outlets, self._tf):
            if each is not None:
                each.close()
        self._localizer = self._outlets = self._tf = None

    # Callbacks

    def _subscribe(self, kind: Any, topic: str, callback: Callable[[Any], None]) -> None:
        options = overridable()
        self._entities.append(
            self.create_subscription(kind, topic, callback, qos_profile_sensor_data, qos_overriding_options=options)
        )

    def _localize(self) -> None:
        assert self._localizer is not None
        self._localizer.trigger()

    def _trigger(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._localize()
        response.success = True
        response.message = "the next images are localised until an answer is accepted"
        return response

    def _check(self) -> None:
        """Raise what has ended the thread that answers, and tell of the images that come in."""
        assert self._localizer is not None
        assert self._outlets is not None
        self._localizer.check()
        cameras = self._localizer.cameras.all
        silent = health.silent_cameras(cameras, self._since)
        self._outlets.publish(DIAGNOSTICS, health.input_status(self._full_name, cameras, silent, self._now()))
        for topic, seconds in silent.items():
            if self._throttle.allows(topic):
                self.get_logger().warning(f"no images for {seconds:.0f} s on {topic}")

    def _set(self, changed: list[Parameter]) -> SetParametersResult:
        if self._localizer is not None:
            for each in changed:
                self._localizer.set(each.name, each.value)
        return SetParametersResult(successful=True)

    def _forget(self, _: Any) -> None:
        """Forget images and transforms of a time that has not come yet: a recording has begun anew."""
        if self._localizer is not None:
            self._localizer.cameras.forget()
        if self._tf is not None:
            self._tf.forget()

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    @property
    def _topics(self) -> list[str]:
        transport = self._settings.image_transport
        return [names.image_topic(i, transport) for i in range(self._settings.num_cameras)]
