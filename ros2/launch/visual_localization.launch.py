"""ros2 launch pairvpr_ros visual_localization.launch.py map_dir:=/maps/site image:=/camera/image_raw."""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare


def generate_launch_description() -> LaunchDescription:
    """The node with its parameters file, and what most robots set."""
    defaults = PathJoinSubstitution([FindPackageShare("pairvpr_ros"), "config", "visual_localization.yaml"])
    map_dir = ParameterValue(LaunchConfiguration("map_dir"), value_type=str)  # as text, whatever it looks like
    image = LaunchConfiguration("image")
    return LaunchDescription(
        [
            DeclareLaunchArgument("map_dir", description="The map's folder."),
            DeclareLaunchArgument("image", default_value="visual_localization/image_0", description="Images' topic."),
            DeclareLaunchArgument("params_file", default_value=defaults, description="The parameters."),
            Node(
                package="pairvpr_ros",
                executable="visual_localization",
                name="visual_localization",
                output="screen",
                parameters=[LaunchConfiguration("params_file"), {"map_dir": map_dir}],
                remappings=[
                    ("visual_localization/image_0", image),
                    ("visual_localization/image_0/compressed", [image, "/compressed"]),
                ],
            ),
        ]
    )
