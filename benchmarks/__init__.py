"""Measurements; not tests, not installed."""
