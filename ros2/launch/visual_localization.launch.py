"""ros2 launch pairvpr_ros visual_localization.launch.py map_dir:=/maps/site image:=/camera/image_raw.

Every parameter of the node is an argument, such as top_k:=50 or use_sim_time:=true; what is not given stands in
params_file.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare
from pairvpr_ros.parameters import Parameters, parse

IMAGE = "visual_localization/image_0"


def generate_launch_description() -> LaunchDescription:
    """Describe the node with its parameters file, and everything that may be set instead."""
    defaults = PathJoinSubstitution([FindPackageShare("pairvpr_ros"), "config", "visual_localization.yaml"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("params_file", default_value=defaults, description="File of parameters."),
            DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node."),
            DeclareLaunchArgument("use_sim_time", default_value="false", description="Take the time from /clock."),
            DeclareLaunchArgument("log_level", default_value="info", description="Least level that is logged."),
            DeclareLaunchArgument("image", default_value=IMAGE, description="Topic of the first camera's images."),
            DeclareLaunchArgument(
                "pose",
                default_value="visual_localization/pose",
                description="Topic of poses: initialpose sets the pose of AMCL.",
            ),
            *(
                DeclareLaunchArgument(name, default_value="", description=description.text)
                for name, (_, description) in Parameters.describe().items()
            ),
            OpaqueFunction(function=start),
        ]
    )


def start(context: LaunchContext) -> list[Node]:
    """Start the node with the arguments that were given."""

    def given(name: str) -> str:
        return str(LaunchConfiguration(name).perform(context))

    parameters = {
        name: parse(given(name), default) for name, (default, _) in Parameters.describe().items() if given(name)
    }
    image = given("image")
    return [
        Node(
            package="pairvpr_ros",
            executable="visual_localization",
            name="visual_localization",
            namespace=given("namespace"),
            output="screen",
            parameters=[given("params_file"), {**parameters, "use_sim_time": parse(given("use_sim_time"), False)}],
            remappings=[
                (IMAGE, image),
                (f"{IMAGE}/compressed", f"{image}/compressed"),
                ("visual_localization/pose", given("pose")),
            ],
            ros_arguments=["--log-level", given("log_level")],
        )
    ]
