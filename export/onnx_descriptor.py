"""Read a descriptor's ONNX file, and put preprocessing before it and normalisation behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.compose
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pairvpr.errors import ExportError, one_line
from pairvpr.export.tracing import MAX_IR_VERSION
from pairvpr.runtime.bundle_info import PictureFormat

AXES_ARE_INPUT = 18
"""Operator set from which the axes of a reduction are an input."""
FILE = "file."
"""Prefix of the names in the file's graph."""
OLDEST = 11
"""Lowest operator set that is read."""
TYPES = {TensorProto.FLOAT: np.float32, TensorProto.UINT8: np.uint8}


@dataclass(frozen=True)
class OnnxPicture:
    """Describe the only input of an ONNX file.

    name: of the input. dtype: of its numbers. last: whether its colours are the last axis, else they are the second.
    size: height and width in pixels, None if the file leaves them open.
    """

    name: str
    dtype: Any
    last: bool
    size: tuple[int, int] | None

    @property
    def bytes(self) -> bool:
        """Return whether the file takes uint8 and normalises by itself."""
        return bool(self.dtype == np.uint8)

    def prepare(self, images: npt.NDArray[np.uint8], picture: PictureFormat) -> npt.NDArray[Any]:
        """Turn resized pictures (n, H, W, 3) into the file's input."""
        pictures: npt.NDArray[Any] = images
        if not self.bytes:
            mean, std = np.array(picture.mean, np.float32), np.array(picture.std, np.float32)
            pictures = ((images.astype(np.float32) / np.float32(255) - mean) / std).astype(self.dtype)
        return pictures if self.last else np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))


def read_onnx(file: Path) -> tuple[ModelProto, OnnxPicture]:
    """Read an ONNX file with its weights. Raises ExportError if it is no descriptor of pictures."""
    try:
        model = onnx.load(str(file))
        onnx.checker.check_model(model)
    except Exception as error:  # the library's exceptions share no base class
        raise ExportError(f"{file}: not an ONNX file that can be read ({one_line(error)}); export it again") from error
    version = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)
    if version < OLDEST:
        raise ExportError(f"{file}: its operator set is {version}; export it with {OLDEST} or a later one")
    weights = {tensor.name for tensor in model.graph.initializer}
    if any(tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for tensor in model.graph.initializer):
        raise ExportError(f"{file}: holds 16-bit weights; export it in float32, of which float16 is made here")
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ExportError(f"{file}: needs other inputs than a picture ({names}); export it with one input")
    kind = inputs[0].type.tensor_type
    axes = [axis.dim_value if axis.HasField("dim_value") else 0 for axis in kind.shape.dim]
    if kind.elem_type not in TYPES or len(axes) != 4 or (axes[1] == 3) == (axes[3] == 3):
        raise ExportError(
            f"{file}: its input {inputs[0].name} has shape {axes}, and pictures (B, 3, H, W) or (B, H, W, 3) of "
            "float32 or uint8 are needed; export it so"
        )
    if axes[0]:
        raise ExportError(f"{file}: takes exactly {axes[0]} pictures at a time; export it with a dynamic batch axis")
    last = axes[3] == 3
    sides = (axes[1], axes[2]) if last else (axes[2], axes[3])
    size = (sides[0], sides[1]) if all(sides) else None
    return model, OnnxPicture(inputs[0].name, TYPES[kind.elem_type], last, size)


def wrap_onnx(model: ModelProto, takes: OnnxPicture, picture: PictureFormat, output: str) -> ModelProto:
    """Return the graph of an ONNX file from images uint8 (B, H, W, 3) to L2-normalised descriptors float32 (B, G).

    output: the file's output that holds the descriptor.
    """
    whole: ModelProto = onnx.compose.add_prefix(model, FILE)  # its names may be ours, such as `images`
    graph, output = whole.graph, f"{FILE}{output}"
    before, constants = _preprocessing(replace(takes, name=f"{FILE}{takes.name}"), picture)
    after, more = make_normalisation(output, main_opset(model), "pairvpr")
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*constants, *more])
    shape: list[str | int | None] = ["batch", picture.height, picture.width, 3]
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, shape))
    graph.output.append(helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["batch", "G"]))
    whole.ir_version = min(whole.ir_version, MAX_IR_VERSION)
    whole.producer_name, whole.producer_version, whole.doc_string = "pairvpr", "", ""
    return whole


def _preprocessing(takes: OnnxPicture, picture: PictureFormat) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return the nodes, and their constants, from `images` to the file's input."""
    nodes, constants, at = [], [], "images"
    if not takes.bytes:
        values = {"255": [255.0], "mean": picture.mean, "std": picture.std}
        constants = [_constant(name, np.array(value, np.float32)) for name, value in values.items()]
        nodes.append(helper.make_node("Cast", [at], ["pairvpr.float"], to=TensorProto.FLOAT))
        at = "pairvpr.float"
        for operator, name in (("Div", "255"), ("Sub", "mean"), ("Div", "std")):
            nodes.append(helper.make_node(operator, [at, f"pairvpr.{name}"], [f"pairvpr.after.{name}"]))
            at = f"pairvpr.after.{name}"
    if takes.last:
        nodes.append(helper.make_node("Identity", [at], [takes.name]))
    else:
        nodes.append(helper.make_node("Transpose", [at], [takes.name], perm=[0, 3, 1, 2]))
    return nodes, constants


def main_opset(model: ModelProto) -> int:
    """Return the version of the graph's main operator set."""
    return max(int(each.version) for each in model.opset_import if each.domain in ("", "ai.onnx"))


def make_normalisation(output: str, version: int, prefix: str) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return the nodes, and their constants, from `output` to `descriptors`. As torch's `F.normalize`.

    version: of the main operator set. prefix: of the names of values between.
    """
    raw, length, least, divisor, axes = (f"{prefix}.{name}" for name in ("raw", "length", "least", "divisor", "axes"))
    constants = [numpy_helper.from_array(np.array([1e-12], np.float32), least)]
    reduced: dict[str, Any] = {"axes": [1]}
    inputs = [raw]
    if version >= AXES_ARE_INPUT:
        constants.append(numpy_helper.from_array(np.array([1], np.int64), axes))
        inputs, reduced = [raw, axes], {}
    nodes = [
        helper.make_node("Cast", [output], [raw], to=TensorProto.FLOAT),
        helper.make_node("ReduceL2", inputs, [length], keepdims=1, **reduced),
        helper.make_node("Max", [length, least], [divisor]),
        helper.make_node("Div", [raw, divisor], ["descriptors"]),
    ]
    return nodes, constants


def _constant(name: str, value: npt.NDArray[Any]) -> TensorProto:
    return numpy_helper.from_array(value, f"pairvpr.{name}")
