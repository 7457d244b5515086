"""Quantize the linear layers of a graph, and nothing else, with onnxruntime.quantization.

Static graphs hold Q/DQ pairs around linear layers: symmetric signed activations with ranges from real pictures,
symmetric weights with a scale per output channel, and unchanged biases (Jacob et al. 2018). In dynamic graphs ONNX
Runtime finds the ranges of activations at run time.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorData, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from pairvpr.export.cpu_form import drop_unused, fuse_attention
from pairvpr.export.tracing import INLINE_BYTES
from pairvpr.machine import int8_class
from pairvpr.runtime.bundle_info import GraphFiles

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

MIN_WIDTH = 64
"""Smallest number of outputs of a quantized layer.

Smaller ones, such as the classifier's last, take no time and stay in float.
"""
QDQ_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": ["MatMul"],
}


@dataclass(frozen=True)
class Layer:
    """A linear layer.

    weight: name of its weight (in, out).
    nodes: the nodes that apply it. Both orders share one weight.
    """

    name: str
    weight: str
    nodes: tuple[NodeProto, ...]


class FloatGraph:
    """A float graph with its weights in memory and its linear layers. Weights are transposed in advance."""

    def __init__(self, file: Path, fused: bool = False) -> None:
        """Load a graph file.

        fused: replace attention by ONNX Runtime's operator.
        """
        self.name = file.name.partition(".")[0]
        self.model = onnx.load(str(file))
        if fused:
            fuse_attention(self.model)
        transpose_weights(self.model.graph)
        drop_unused(self.model.graph)
        self.layers = _linear_layers(self.model.graph, self.name)

    def static(self, ranges: Mapping[str, float], left_float: Collection[str], narrow: bool = False) -> ModelProto:
        """Return the graph with Q/DQ pairs.

        ranges: largest absolute input of each layer, by name.
        left_float: names of the layers that stay in float.
        narrow: give weights 7 bits, see `needs_narrow_weights`.
        """
        dtype = numpy_helper.to_array(_initializers(self.model.graph)[self.layers[0].weight]).dtype
        limits: dict[str, TensorData] = {}
        for layer in self.layers:
            for node in layer.nodes:
                # Several nodes may read the same value. The wider range serves all of them.
                most = max(ranges[layer.name], float(limits[node.input[0]].highest) if node.input[0] in limits else 0.0)
                limits[node.input[0]] = TensorData(lowest=np.array(-most, dtype), highest=np.array(most, dtype))
        with _quiet():
            quantizer = QDQQuantizer(
                copy.deepcopy(self.model),
                per_channel=True,
                reduce_range=narrow,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
                nodes_to_quantize=[],
                nodes_to_exclude=self._others(left_float),
                op_types_to_quantize=["MatMul"],
                extra_options=dict(QDQ_OPTIONS),
            )
            quantizer.quantize_model()
        quantizer.model.topological_sort()
        _keep_float(quantizer.model.model.graph, set(self._others(left_float)))
        quantized: ModelProto = quantizer.model.model
        return quantized

    def dynamic(self, left_float: Collection[str], narrow: bool = False) -> ModelProto:
        """Return the graph with linear layers that quantize their input at run time.

        left_float: names of the layers that stay in float.
        narrow: give weights 7 bits, see `needs_narrow_weights`.
        """
        with tempfile.TemporaryDirectory() as scratch, _quiet():
            file = Path(scratch) / "graph.onnx"
            quantize_dynamic(
                copy.deepcopy(self.model),
                file,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=narrow,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=self._others(left_float),
                extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
            )
            return onnx.load(str(file))

    def _others(self, left_float: Collection[str]) -> list[str]:
        """Return the matrix products that stay in float.

        They are those of the layers `left_float` and those of no linear layer, as in attention.
        """
        chosen = {node.name for layer in self.layers if layer.name not in left_float for node in layer.nodes}
        return [node.name for node in self.model.graph.node if node.op_type == "MatMul" and node.name not in chosen]


def needs_narrow_weights() -> bool:
    """Return whether 8-bit weights overflow on this computer.

    x86 processors without VNNI add two products of unsigned by signed 8 bits in 16 bits, which saturate. Weights of 7
    bits keep within 16. ONNX Runtime's exact kernels (session.x64quantprecision) refuse graphs with shared weights.
    """
    return int8_class().endswith("without VNNI")


def measure_ranges(graph: FloatGraph, feeds: Iterable[Arrays]) -> dict[str, float]:
    """Return the largest absolute input of each linear layer of a float32 graph over all `feeds`, by layer name."""
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        file = Path(scratch) / "graph.onnx"
        _save(graph.model, file)
        calibrator = create_calibrator(
            file, ["MatMul"], str(Path(scratch) / "augmented.onnx"), use_external_data_format=True
        )
        calibrator.collect_data(_Reader(feeds))
        found = calibrator.compute_data()
    return {
        layer.name: max(float(np.max(np.abs(found[node.input[0]].range_value))) for node in layer.nodes)
        for layer in graph.layers
    }


def layer_errors(graph: FloatGraph, ranges: Mapping[str, float], feeds: Iterable[Arrays]) -> dict[str, float]:
    """Return the error of each linear layer's output if only this layer is quantized, relative to the output's size."""
    weights = {name: numpy_helper.to_array(tensor) for name, tensor in _initializers(graph.model.graph).items()}
    watched = [node.input[0] for layer in graph.layers for node in layer.nodes]
    noise, signal = dict.fromkeys(ranges, 0.0), dict.fromkeys(ranges, 0.0)
    for values in _watch(graph.model, list(dict.fromkeys(watched)), feeds):
        for layer in graph.layers:
            weight = weights[layer.weight]
            coarse_weight = _rounded(weight, np.abs(weight).max(axis=0))
            for node in layer.nodes:
                x = values[node.input[0]].reshape(-1, len(weight))
                true = x @ weight
                noise[layer.name] += float(np.sum((_rounded(x, ranges[layer.name]) @ coarse_weight - true) ** 2))
                signal[layer.name] += float(np.sum(true**2))
    return {name: (noise[name] / max(signal[name], 1e-30)) ** 0.5 for name in noise}


def write_int8(model: ModelProto, name: str, precision: str, folder: Path) -> GraphFiles:
    """Write a graph and its weights beside it, checked by onnx. CPUs and devices use the same form."""
    file, weights = f"{name}.{precision}.onnx", f"{name}.{precision}.weights"
    model.producer_name, model.producer_version = "pairvpr", ""
    (folder / weights).unlink(missing_ok=True)  # onnx would append to it
    onnx.save(model, str(folder / file), save_as_external_data=True, location=weights, size_threshold=INLINE_BYTES)
    onnx.checker.check_model(str(folder / file))
    return GraphFiles(file, file, weights)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    """Passes feeds to the calibrator, one after the other."""

    def __init__(self, feeds: Iterable[Arrays]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Arrays | None:
        return next(self._feeds, None)


def _watch(model: ModelProto, names: Sequence[str], feeds: Iterable[Arrays]) -> Iterable[dict[str, Array]]:
    """Yield the values of some names within a graph, for each of `feeds`."""
    watched = copy.deepcopy(model)
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in known
    )
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "graph.onnx"
        _save(watched, file)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        inputs = [name for name in names if name in {value.name for value in model.graph.input}]
        outputs = [name for name in names if name not in inputs]
        for feed in feeds:
            values = session.run(outputs, dict(feed))
            yield {**{name: feed[name] for name in inputs}, **dict(zip(outputs, values, strict=True))}


def _save(model: ModelProto, file: Path) -> None:
    """Write a copy of a model, because onnx removes the weights from the model that it writes."""
    onnx.save(copy.deepcopy(model), str(file), save_as_external_data=True, location=f"{file.name}.weights")


def _rounded(values: Array, most: Array | float) -> Array:
    """Round values to signed 8-bit integers that cover -`most` to `most`."""
    scale = np.maximum(most, 1e-30) / 127
    rounded: Array = np.clip(np.round(values / scale), -128, 127) * scale
    return rounded


def transpose_weights(graph: GraphProto) -> None:
    """Transpose the weights of matrix products now, because only constants of the graph are quantized."""
    made, initializers = {name: node for node in graph.node for name in node.output}, _initializers(graph)
    for node in graph.node:
        before = made.get(node.input[1]) if node.op_type == "MatMul" else None
        if before is None or before.op_type != "Transpose" or before.input[0] not in initializers:
            continue
        weight, (order,) = before.input[0], (list(attribute.ints) for attribute in before.attribute)
        turned = f"{weight}.T"
        if order != [1, 0]:
            continue
        if turned not in initializers:
            values = np.ascontiguousarray(numpy_helper.to_array(initializers[weight]).T)
            graph.initializer.append(numpy_helper.from_array(values, turned))
            initializers = _initializers(graph)
        node.input[1] = turned


def _keep_float(graph: GraphProto, others: Collection[str]) -> None:
    """Give all nodes but linear layers the exact values.

    The library gives rounded ones to all nodes that read a value.
    """
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" or (node.op_type == "MatMul" and node.name not in others):
            continue
        for i, name in enumerate(node.input):
            before = made.get(name)
            if before is not None and before.op_type == "DequantizeLinear" and before.input[0] in made:
                node.input[i] = made[before.input[0]].input[0]


def _linear_layers(graph: GraphProto, where: str) -> list[Layer]:
    """Return the matrix products with constant matrices, by weight, in the graph's order."""
    users: dict[str, list[NodeProto]] = {}
    initializers = _initializers(graph)
    for node in graph.node:
        weight = initializers.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and len(weight.dims) == 2 and weight.dims[1] >= MIN_WIDTH:
            users.setdefault(weight.name, []).append(node)
    layers = []
    for i, (name, nodes) in enumerate(users.items()):
        # Names that the exporter kept say more than sizes. Names that it invented hold no dot.
        told = name.removesuffix(".half").removesuffix(".T").removesuffix(".weight")
        told = told if "." in told else "x".join(map(str, initializers[name].dims))
        layers.append(Layer(f"{where} {i + 1} {told}", name, tuple(nodes)))
    return layers


def _initializers(graph: GraphProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's advice, which it logs by the root logger, from the user.

    `logging.warning` gives a root logger without handlers one that prints, for good. Every line of our own log would
    then appear twice. So the root logger has a handler that prints nothing meanwhile.
    """
    level, silent = logging.root.manager.disable, logging.NullHandler()
    logging.disable(logging.WARNING)
    logging.root.addHandler(silent)
    try:
        yield
    finally:
        logging.root.removeHandler(silent)
        logging.disable(level)
