"""Write answers: text, JSON lines, ROS messages and MCAP files."""
