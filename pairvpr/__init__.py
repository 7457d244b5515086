"""Pair-VPR on the edge: train, export, calibrate and run two-step visual place recognition.

Importing this package is light: the network (`pairvpr.model`) needs torch, the runtime
(`pairvpr.runtime`) does not.
"""

import os

# A robot tells nobody what it runs. ONNX Runtime's official builds do unless this is set before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.2.0"
