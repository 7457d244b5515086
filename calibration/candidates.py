"""The settings that a device can answer with: every device and precision that a bundle and its engines allow."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pairvpr.errors import EngineError
from pairvpr.machine import usable_cores
from pairvpr.runtime.bundle import Bundle, has_plans
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
"""What is worth trying on each device. ONNX Runtime's CUDA multiplies Q/DQ graphs in float."""
SMALL_BATCH = 8
"""Beside the default of up to 32: smaller batches may fit a processor's caches."""
CLEARLY = 0.95
"""Another number of threads or pairs is taken where it needs at most this share of the default's time."""
RACED = 4
"""Pictures that threads and batches are chosen on."""
VARIANTS = 5
"""Of a device and precision that are raced for that."""


@dataclass
class Candidate:
    """A setting at work: milliseconds of whole answers and whether the first match changed, by picture number."""

    setting: RuntimeSetting
    vpr: PlaceRecognizer
    milliseconds: dict[int, float] = field(default_factory=dict)
    changed: dict[int, bool] = field(default_factory=dict)

    @property
    def engine(self) -> str:
        """What runs it."""
        return self.vpr.model.engines.description

    def median(self, pictures: Sequence[int]) -> float:
        """Median milliseconds of those of the pictures that it was asked."""
        return statistics.median(self.milliseconds[i] for i in pictures if i in self.milliseconds)

    def p99(self) -> float:
        """99th percentile of all its answers."""
        return float(np.percentile(list(self.milliseconds.values()), 99))


@dataclass(frozen=True)
class Workshop:
    """Makes candidates on one map, which they share with its search index."""

    map_: Map
    index: FaissIndex
    bundle: Bundle
    cascade: Cascade | None

    @staticmethod
    def from_map(map_: Map) -> Workshop:
        """For a map and its own bundle; raises BundleError."""
        bundle = Bundle.open(map_.model_path)
        return Workshop(map_, FaissIndex(map_.descriptors), bundle, Cascade.find_in(bundle))

    @property
    def top_k(self) -> int:
        """Candidates of an answer."""
        return min(self.bundle.info.top_k, len(self.map_))

    def open(self, setting: RuntimeSetting) -> Candidate:
        """A candidate; raises EngineError where it cannot be had."""
        return self.candidate(setting, setting.load(self.bundle.path))

    def candidate(self, setting: RuntimeSetting, model: Model) -> Candidate:
        """A candidate on a model that is open."""
        cascade = None if setting.exact else self.cascade
        return Candidate(setting, PlaceRecognizer(self.map_, model, self.index, self.top_k, cascade=cascade))

    def both(self, fastest: Candidate) -> list[Candidate]:
        """With the cascade, where there is one, and without, on the same engine."""
        whole = self.candidate(replace(fastest.setting, exact=True), fastest.vpr.model)
        return [whole] if self.cascade is None else [fastest, whole]


def families(bundle: Bundle, exact: bool) -> Iterator[RuntimeSetting]:
    """A setting for each device and precision that a bundle allows, with the defaults for the rest.

    Which of them can be had shows when they are opened. On CPUs float16 weights are cast up and computed with in
    float32: they are tried where there are no float32 ones. Raises EngineError without ONNX Runtime.
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
    """What agreement is measured against: every candidate in full, in float32, on a GPU where there is one.

    Raises EngineError where the bundle holds no float graphs.
    """
    found = list(families(bundle, exact=True))
    for device, precision in (("cuda", "fp32"), ("cpu", "fp32"), ("cpu", "fp16")):
        if RuntimeSetting(device, precision, exact=True) in found:
            return RuntimeSetting(device, precision, exact=True)
    raise EngineError(f"{bundle.path}: no float graphs to compare with; export with --fp32 or --fp16")


def fastest(workshop: Workshop, family: RuntimeSetting, pictures: Sequence[Path]) -> Candidate:
    """The family with the threads and the batch that answer the pictures in the least time. Raises EngineError."""
    best = workshop.open(family)
    for vary in (_threads, _batches):
        rivals = [workshop.open(setting) for setting in vary(best.setting)]
        if not rivals:
            continue
        before, *times = race([best, *rivals], pictures)
        if min(times) < CLEARLY * before:
            best = rivals[int(np.argmin(times))]
    return best


def race(candidates: Sequence[Candidate], pictures: Sequence[Path]) -> list[float]:
    """Median milliseconds of each candidate's answers to the pictures, in alternation, after one to warm up."""
    times: list[list[float]] = [[] for _ in candidates]
    for number, picture in enumerate([pictures[0], *pictures]):
        for candidate, found in zip(candidates, times, strict=True):
            answer = candidate.vpr.recognize(picture)
            if number:
                found.append(answer.timings["total"])
    return [statistics.median(found) for found in times]


def _threads(setting: RuntimeSetting) -> list[RuntimeSetting]:
    """With all cores and with half of them, beside the engine's own choice."""
    cores = usable_cores()
    if cores == 1 or setting.device not in ("cpu", "openvino"):
        return []
    return [replace(setting, threads=threads) for threads in (cores, cores // 2)]


def _batches(setting: RuntimeSetting) -> list[RuntimeSetting]:
    return [replace(setting, batch_size=SMALL_BATCH)]
