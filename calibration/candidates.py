"""List the settings that a bundle and the installed engines allow, and find the fastest threads and batch size."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pairvpr.errors import EngineError
from pairvpr.machine import usable_cores
from pairvpr.runtime.bundle import Bundle, has_plans
from pairvpr.runtime.calibrated.acceptance import AnswerDefaults
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.calibrated.tuning import RuntimeSetting
from pairvpr.runtime.engines.onnxruntime import working_devices
from pairvpr.runtime.map import Map
from pairvpr.runtime.model import Model
from pairvpr.runtime.recognizer import PlaceRecognizer
from pairvpr.runtime.search import FaissIndex

PRECISIONS = {
    "tensorrt": ("fp16", "fp32", "int8-fp16"),
    "cuda": ("fp16", "fp32"),
    "cpu": ("fp32", "fp16", "int8-dynamic", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8", "int8-bf16"),
}
"""Precisions worth trying on each device. ONNX Runtime's CUDA multiplies Q/DQ graphs in float."""
SMALL_BATCH = 8
"""Batch size tried beside the default of up to 32. Smaller batches may fit a processor's caches."""
CLEARLY = 0.95
"""A rival replaces the default if it takes less than this share of its time."""
RACED = 4
"""Number of pictures used to choose threads and batch size."""
VARIANTS = 5
"""Most variants of one device and precision that are raced."""


@dataclass
class Candidate:
    """Run a setting. Hold, by picture number, milliseconds of whole answers and whether the first match changed."""

    setting: RuntimeSetting
    vpr: PlaceRecognizer
    milliseconds: dict[int, float] = field(default_factory=dict)
    changed: dict[int, bool] = field(default_factory=dict)

    @property
    def engine(self) -> str:
        """Return the description of the engine."""
        return self.vpr.model.engines.description

    def median(self, pictures: Sequence[int]) -> float:
        """Return the median milliseconds of its answers to these pictures. Pictures it was not asked are ignored."""
        return statistics.median(self.milliseconds[i] for i in pictures if i in self.milliseconds)

    def p99(self) -> float:
        """Return the 99th percentile of all its answers in milliseconds."""
        return float(np.percentile(list(self.milliseconds.values()), 99))


@dataclass(frozen=True)
class Workshop:
    """Make candidates that share one map and its search index."""

    map_: Map
    index: FaissIndex
    bundle: Bundle
    cascade: Cascade | None

    @staticmethod
    def from_map(map_: Map) -> Workshop:
        """Open the map's own bundle and index the map. Raises BundleError."""
        bundle = Bundle.open(map_.model_path)
        exact = AnswerDefaults.from_bundle(bundle).exact
        return Workshop(
            map_, FaissIndex(map_.descriptors, map_.index_precision), bundle, None if exact else Cascade.find_in(bundle)
        )

    @property
    def top_k(self) -> int:
        """Return the number of database pictures that an answer compares."""
        return min(AnswerDefaults.from_bundle(self.bundle).top_k, len(self.map_))

    def open(self, setting: RuntimeSetting) -> Candidate:
        """Open a candidate. Raises EngineError if the setting cannot run here."""
        return self.candidate(setting, setting.load(self.bundle.path))

    def candidate(self, setting: RuntimeSetting, model: Model) -> Candidate:
        """Return a candidate on an opened model."""
        cascade = None if setting.exact else self.cascade
        return Candidate(setting, PlaceRecognizer(self.map_, model, self.index, self.top_k, cascade=cascade))

    def both(self, fastest: Candidate) -> list[Candidate]:
        """Return a candidate with the cascade, if there is one, and one without, on the same engine."""
        whole = self.candidate(replace(fastest.setting, exact=True), fastest.vpr.model)
        return [whole] if self.cascade is None else [fastest, whole]


def list_families(bundle: Bundle, exact: bool) -> Iterator[RuntimeSetting]:
    """Yield a setting for each device and precision that a bundle allows, with defaults for the rest.

    Some may fail when they are opened. On CPUs float16 weights are cast up and computed in float32, so they are tried
    only without float32 graphs. Raises EngineError without ONNX Runtime.
    """
    present = set(bundle.info.precisions)
    devices = [*(["tensorrt"] if has_plans(bundle) else []), *working_devices(), "openvino"]
    for device in devices:
        for precision in PRECISIONS[device]:
            if precision == "fp16" and device in ("cpu", "openvino") and "fp32" in present:
                continue
            needs = {"bf16": {"fp32", "fp16"}, "int8-bf16": {"int8"}}.get(precision, {precision})
            if needs & present:
                yield RuntimeSetting(device, precision, exact=exact)


def exact_setting(bundle: Bundle) -> RuntimeSetting:
    """Return the setting of exact answers: every candidate in full, in float32, on a GPU if there is one.

    Raises EngineError if the bundle holds no float graphs.
    """
    found = list(list_families(bundle, exact=True))
    for device, precision in (("cuda", "fp32"), ("cpu", "fp32"), ("cpu", "fp16")):
        if RuntimeSetting(device, precision, exact=True) in found:
            return RuntimeSetting(device, precision, exact=True)
    raise EngineError(f"{bundle.path}: no float graphs to compare with; export with --fp32 or --fp16")


def find_fastest(workshop: Workshop, family: RuntimeSetting, pictures: Sequence[Path]) -> Candidate:
    """Return the family's candidate with the fastest threads and batch size on the pictures. Raises EngineError."""
    best = workshop.open(family)
    for vary in (_vary_threads, _vary_batch):
        rivals = [workshop.open(setting) for setting in vary(best.setting)]
        if not rivals:
            continue
        before, *times = race([best, *rivals], pictures)
        if min(times) < CLEARLY * before:
            best = rivals[int(np.argmin(times))]
    return best


def race(candidates: Sequence[Candidate], pictures: Sequence[Path]) -> list[float]:
    """Return the median milliseconds of each candidate. Candidates answer in alternation, after one warm-up answer."""
    times: list[list[float]] = [[] for _ in candidates]
    for number, picture in enumerate([pictures[0], *pictures]):
        for candidate, found in zip(candidates, times, strict=True):
            answer = candidate.vpr.recognize(picture)
            if number:
                found.append(answer.timings["total"])
    return [statistics.median(found) for found in times]


def _vary_threads(setting: RuntimeSetting) -> list[RuntimeSetting]:
    """Return variants with all cores and with half of them, to compare with the engine's own choice."""
    cores = usable_cores()
    if cores == 1 or setting.device not in ("cpu", "openvino"):
        return []
    return [replace(setting, threads=threads) for threads in (cores, cores // 2)]


def _vary_batch(setting: RuntimeSetting) -> list[RuntimeSetting]:
    return [replace(setting, batch_size=SMALL_BATCH)]
