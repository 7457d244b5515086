"""Measure the time of answers on this machine, step by step, and project it to other boards."""
