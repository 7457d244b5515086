"""Measure speed, memory and accuracy. These programs are not tests and are not installed."""
