"""Check every part of the installation on this computer, and try the engines and the model.

Each part is imported only when it is checked, so that a missing or broken part is a line of the report, not a crash.
"""

from __future__ import annotations

from pathlib import Path

from pairvpr.doctor.check import Check, tried
from pairvpr.doctor.computer import cameras, graphics, hardware
from pairvpr.doctor.engines import CUDA, ENGINE, OPENVINO, onnxruntime, openvino, tensorrt
from pairvpr.doctor.models import MODEL, TUNED, default_model, tuned_setting
from pairvpr.doctor.parts import dependencies, export_parts, library
from pairvpr.doctor.report import format_report, healthy

__all__ = ["Check", "examine", "format_report", "healthy"]


def examine(db: Path | None = None) -> list[Check]:
    """Check everything that recognition, export and cameras need. It takes some seconds and never raises.

    db: a map; the setting that was tuned for it is tried too.
    """
    gpus = graphics()
    return [
        *hardware(),
        *gpus,
        *dependencies(),
        *tried(ENGINE, lambda: onnxruntime(gpu=bool(gpus))),
        *tried(OPENVINO, openvino),
        *tried(MODEL, default_model),
        *([] if db is None else tried(TUNED, lambda: [tuned_setting(db)])),
        *tried(CUDA, lambda: tensorrt(gpu=bool(gpus))),
        library("PyAV", "av", "video", "for videos, cameras and streams"),
        library("rosbags", "rosbags", "bags", "for ROS bags"),
        library("h11", "h11", "serve", "for answering other programs over HTTP"),
        library("h5py", "h5py", "hloc", "for files of descriptors that hloc reads"),
        library("rerun-sdk", "rerun", "viz", "for recording runs for Rerun's viewer"),
        *export_parts(),
        cameras(),
    ]
