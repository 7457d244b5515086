"""Make the INT8 graphs of a network: measure ranges, keep the worst layers in float, and check the result."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pairvpr.calibration.gate import LIMITS, Answers, answer_pictures, measure_agreement
from pairvpr.errors import ExportError
from pairvpr.export.int8 import (
    MIN_WIDTH,
    Arrays,
    FloatGraph,
    layer_errors,
    measure_ranges,
    needs_narrow_weights,
    write_int8,
)
from pairvpr.export.int8_cache import Measured, cache_file, load, store
from pairvpr.export.onnx_descriptor import main_opset
from pairvpr.export.verification import Progress
from pairvpr.machine import int8_class
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import DESCRIPTOR, ENCODER, GraphFiles, PrecisionInfo
from pairvpr.runtime.engines.onnxruntime import OnnxRuntimeEngine
from pairvpr.runtime.engines.open import PROCESSOR, Engines
from pairvpr.runtime.model import Model
from pairvpr.runtime.reference import Reference, measure

CALIBRATION_CANDIDATES = 4
GATE_CANDIDATES = 10
LOOKED_AT = 4
"""Number of pictures on which the errors of single layers are measured."""
FLOAT_SHARES = (0.0, 1 / 16, 1 / 8, 1 / 4)
"""Shares of the layers, the worst first, that stay in float, tried in this order. With more, INT8 is not worth it."""
NAMED = 5
HALF_OPSET = 19
"""Lowest operator set in which 8-bit values are scaled to float16."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """The user's pictures.

    calibration: used to calibrate.
    held_out: used to judge the result.
    """

    calibration: list[Path]
    held_out: list[Path]


class Int8Export:
    """Makes the INT8 graphs of a network in `folder` from its float graphs, a verified fp32 and fp16 bundle."""

    def __init__(self, floats: Bundle, folder: Path, pictures: Pictures, progress: Progress) -> None:
        self.floats, self.folder, self.pictures, self.progress = floats, folder, pictures, progress
        self.names = floats.info.graphs
        self.model = self._model({name: floats.graph("fp32", name, cpu=True) for name in self.names}, "fp32")
        progress("float32: answers on the calibration pictures")
        self.seen = answer_pictures(self.model, pictures.calibration, CALIBRATION_CANDIDATES, progress)
        self.ranges, errors = self._calibrate()
        self.ranking = sorted(errors, key=lambda name: -errors[name])
        self.errors = errors

    def write(self, truth: Reference) -> tuple[dict[str, PrecisionInfo], dict[str, object]]:
        """Write the graphs in all three precisions. Return their description and the measurements.

        A precision that is not accurate enough is left out and logged. Raises ExportError if all are.
        """
        left = {kind: self._choose(kind) for kind in ("int8", "int8-dynamic")}
        left["int8-fp16"] = left["int8"]
        self.progress("float32: answers on the held-out pictures")
        held_out = answer_pictures(self.model, self.pictures.held_out, GATE_CANDIDATES, self.progress)
        precisions: dict[str, PrecisionInfo] = {}
        faults: list[ExportError] = []
        for kind, names in left.items():
            graphs: dict[str, GraphFiles] = {}
            try:
                graphs = self._graphs(kind, names)
                precisions[kind] = PrecisionInfo(graphs, self._judge(kind, graphs, held_out, truth))
            except ExportError as fault:
                faults.append(fault)
                self._remove(graphs)
        if not precisions:
            raise faults[0]
        for each in faults:
            log.warning("%s; the bundle has %s", each, ", ".join(precisions))
        return precisions, {
            "pictures": len(self.pictures.calibration),
            "held_out": len(self.pictures.held_out),
            "left_float": {kind: sorted(left[kind]) for kind in precisions},
            PROCESSOR: int8_class(),
        }

    def _calibrate(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the range of the input and the error of the output of each layer, by name.

        Measurements of an earlier export are used if pictures, model, preprocessing and exporter were the same.
        """
        ranges: dict[str, float] = {}
        errors: dict[str, float] = {}
        for name in self.names:
            graph = FloatGraph(self.floats.graph("fp32", name, cpu=False))
            if not graph.layers:
                raise ExportError(
                    f"the graph {name} has no linear layers of {MIN_WIDTH} numbers or more, which alone are quantized; "
                    "use --fp16"
                )
            file = cache_file(self.floats.info, name, self.pictures.calibration, CALIBRATION_CANDIDATES, LOOKED_AT)
            found = load(file, [layer.name for layer in graph.layers])
            if found is not None:
                self.progress(f"{name}: using ranges and errors measured before with these pictures ({file})")
            else:
                found = self._measure(name, graph, file)
            ranges |= found.ranges
            errors |= found.errors
        return ranges, errors

    def _measure(self, name: str, graph: FloatGraph, file: Path) -> Measured:
        """Measure ranges and errors of a graph, and try to keep them in `file` for other exports."""
        self.progress(f"{name}: measuring ranges and errors of its linear layers")
        ranges = measure_ranges(graph, self._feeds(name, len(self.pictures.calibration)))
        found = Measured(ranges, layer_errors(graph, ranges, self._feeds(name, LOOKED_AT)))
        try:
            store(file, found)
        except OSError as error:
            self.progress(f"{file}: ranges cannot be kept for other exports ({error.strerror or error})")
        return found

    def _feeds(self, name: str, count: int) -> Iterator[Arrays]:
        """Yield a graph's inputs while the first `count` calibration pictures are recognised."""
        for i, path in enumerate(self.pictures.calibration[:count]):
            if name in (ENCODER, DESCRIPTOR):
                yield {"images": self.model.fit(path)[name == DESCRIPTOR][None]}
                continue
            tokens = self.seen.features.tokens
            feed = {"query_tokens": tokens[i : i + 1], "database_tokens": tokens[self.seen.candidates[i]]}
            if name == "pair_suffix":
                states = self.model.engines.pair_prefix.run(feed)
                feed |= {state: states[state] for state in ("query_state", "database_state")}
                feed["keep"] = np.arange(CALIBRATION_CANDIDATES)
            yield feed

    def _choose(self, kind: str) -> list[str]:
        """Return the names of the layers to keep in float: as few of the worst as the calibration pictures require."""
        for share in FLOAT_SHARES:
            names = self.ranking[: round(share * len(self.ranking))]
            model = self._model(self._files(self._graphs(kind, names)), kind)
            found = measure_agreement(model, self.pictures.calibration, self.seen, self.progress)
            self.progress(f"{kind}, {len(names)} of {len(self.ranking)} layers left in float: {found}")
            if found.within(LIMITS):
                break
        return names

    def _graphs(self, kind: str, left_float: list[str]) -> dict[str, GraphFiles]:
        """Write the graphs. Only ONNX Runtime runs int8-dynamic, so it may use ONNX Runtime's attention.

        Raises ExportError, before a file is written, for an operator set that is too old for the precision.
        """
        stored, narrow = "fp16" if kind == "int8-fp16" else "fp32", needs_narrow_weights()
        loaded = {
            name: FloatGraph(self.floats.graph(stored, name, cpu=False), fused=kind == "int8-dynamic")
            for name in self.names
        }
        if kind == "int8-fp16" and (old := min(main_opset(graph.model) for graph in loaded.values())) < HALF_OPSET:
            raise ExportError(
                f"int8-fp16 needs operator set {HALF_OPSET}, and a file's is {old}; export the file with {HALF_OPSET}"
            )
        graphs = {}
        for name, graph in loaded.items():
            if kind == "int8-dynamic":
                model = graph.dynamic(left_float, narrow)
            else:
                model = graph.static(self.ranges, left_float, narrow)
            graphs[name] = write_int8(model, name, kind, self.folder)
        return graphs

    def _judge(
        self, kind: str, graphs: Mapping[str, GraphFiles], held_out: Answers, truth: Reference
    ) -> dict[str, float]:
        """Check the graphs on the held-out pictures and on the reference. Return the errors.

        Raises ExportError if they are larger than allowed.
        """
        model = self._model(self._files(graphs), kind)
        found = measure_agreement(model, self.pictures.held_out, held_out, self.progress)
        self.progress(f"{kind}, held-out pictures: {found}")
        if not found.within(LIMITS):
            worst = ", ".join(f"{name} ({self.errors[name]:.1%})" for name in self.ranking[:NAMED])
            raise ExportError(
                f"the {kind} graphs differ from the float32 ones by more than allowed on {len(held_out.features)} "
                f"held-out pictures: {found}; allowed are {LIMITS}. Largest errors of single layers: {worst}. "
                "Use --fp16, or give --calibration-images that look like what the robot will see"
            )
        features = truth.encode(model, slice(None))
        scores = model.score(features[0], features) if self.floats.info.pair_classifier else truth.scores
        errors = measure(features, scores, truth, kind)
        if not errors.ok:
            raise ExportError(
                f"the {kind} graphs differ from the network on the reference pictures (descriptor cosine distance "
                f"{errors.cosine:.2g}, scores {errors.scores:.2g}); use --fp16"
            )
        return {
            "descriptor_cosine": found.cosine,
            "score_rank_correlation": found.rank_correlation,
            "top1_changed": found.top1_changed,
            "reference_cosine": errors.cosine,
            "reference_scores": errors.scores,
        }

    def _remove(self, graphs: Mapping[str, GraphFiles]) -> None:
        """Delete the files of graphs."""
        for files in graphs.values():
            for name in files.names:
                (self.folder / name).unlink()

    def _files(self, graphs: Mapping[str, GraphFiles]) -> dict[str, Path]:
        return {name: self.folder / files.file for name, files in graphs.items()}

    def _model(self, files: Mapping[str, Path], precision: str) -> Model:
        graphs = {name: OnnxRuntimeEngine(file) for name, file in files.items()}
        return Model(self.floats, Engines.from_graphs(graphs, "cpu", precision, "calibration"))
