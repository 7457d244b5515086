"""Represent and read poses, GPS positions, rotations and trajectories."""
