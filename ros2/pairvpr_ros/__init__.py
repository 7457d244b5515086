"""Place recognition as a ROS 2 node; only `node` needs ROS."""
