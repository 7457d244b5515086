"""Pair-VPR on the edge: train, export, calibrate and run two-step visual place recognition.

Importing this package is light: the network (`pairvpr.model`) needs torch, the runtime
(`pairvpr.runtime`) does not.
"""

__version__ = "0.1.0"
