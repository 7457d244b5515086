"""Poses, GPS positions, rotations and trajectories."""
