"""Load another network's descriptor for the export: from torch.hub, a module on the path, or an ONNX file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pairvpr.errors import EngineError, ExportError, one_line
from pairvpr.export.descriptor_spec import UNSTATED, DescriptorSpec
from pairvpr.export.onnx_descriptor import read_onnx, wrap_onnx
from pairvpr.export.tracing import GraphSpec, trace
from pairvpr.runtime.bundle_info import PictureFormat, Weights
from pairvpr.runtime.engines.onnxruntime import OnnxRuntimeEngine
from pairvpr.runtime.resize_rules import SQUASH

LARGEST = 65_536
"""Most numbers of a descriptor."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = ("image_size", "img_size", "input_size")
"""Attributes of a module that may hold the size of its pictures."""


class Descriptor(Protocol):
    """A network that makes a global descriptor of a picture.

    picture: the pictures it takes. weights: origin and licence. dim: numbers of a descriptor.
    """

    picture: PictureFormat
    weights: Weights
    dim: int

    def describe(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the network's L2-normalised descriptors (n, G) of resized pictures (n, H, W, 3)."""
        ...

    def digest(self) -> str:
        """Return the hash of weights and preprocessing."""
        ...

    def graph(self) -> onnx.ModelProto:
        """Return the float32 graph: images uint8 (B, H, W, 3) -> descriptors float32 (B, G), L2-normalised."""
        ...


@dataclass(frozen=True)
class Stated:
    """Hold the options on the pictures of a descriptor. None leaves a value to be found.

    size: height and width in pixels. resize: a name of RULES. mean, std: of red, green and blue, from 0 to 1.
    """

    size: tuple[int, int] | None = None
    resize: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


NOTHING = Stated()


def load_descriptor(spec: str, stated: Stated = NOTHING) -> Descriptor:
    """Load the descriptor that `spec` names, and try it on made-up pictures.

    spec: `torchhub:OWNER/REPO:ENTRY`, `FOLDER:ENTRY` for a local folder of such code, `MODULE:FUNCTION`, or a file
    that ends in `.onnx`. An entry may have keyword arguments: `get_model(dim=512)`.
    Raises ExportError for code that fails, for pictures of unknown size, and for descriptors that cannot be used.
    """
    if spec.endswith(".onnx"):
        return _OnnxDescriptor(spec, stated)
    return _TorchDescriptor(spec, stated)


class _Graph(nn.Module):
    """The exported module: images uint8 (B, H, W, 3) -> descriptors float32 (B, G)."""

    def __init__(self, module: nn.Module, picture: PictureFormat) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", torch.tensor(picture.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(picture.std).view(3, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        pictures = (images.float().permute(0, 3, 1, 2) / 255.0 - self.mean) / self.std
        return F.normalize(pick(self.module(pictures), pictures.shape[0]).float(), dim=-1)


class _TorchDescriptor:
    def __init__(self, spec: str, stated: Stated) -> None:
        named = DescriptorSpec.parse(spec)
        self._call = named.call
        with _blaming(spec, "cannot be loaded"):
            module = named.load()
        if not isinstance(module, nn.Module):
            raise ExportError(f"{spec}: gives {type(module).__name__}, not a torch.nn.Module; name an entry that does")
        self._check_inputs(spec, module)
        self._module = module.cpu().float().eval().requires_grad_(False)
        self._spec, self.picture = spec, _complete(spec, stated, _look(module))
        self.weights = Weights(f"descriptor {spec}", named.licence(), trained=True)
        self._graph = _Graph(self._module, self.picture)
        self.dim = _try(spec, self.describe, self.picture)

    @staticmethod
    def _check_inputs(spec: str, module: nn.Module) -> None:
        """Raise ExportError for a module that needs more than one input."""
        parameters = list(inspect.signature(module.forward).parameters.values())
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        needed = [each.name for each in parameters[1:] if each.default is each.empty and each.kind not in kinds]
        if needed:
            raise ExportError(
                f"{spec}: needs other inputs than a picture ({', '.join(needed)}); name a function that gives a module "
                "of one input"
            )

    def describe(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.no_grad(), _blaming(self._spec, "fails on a picture"):
            found: npt.NDArray[np.float32] = self._graph(torch.from_numpy(images)).numpy()
        return found

    def digest(self) -> str:
        digest = hashlib.sha256(json.dumps([asdict(self.picture), self._call], allow_nan=False).encode())
        tensors = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        for name, tensor in sorted(tensors.items()):
            array = tensor.detach().numpy()
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def graph(self) -> onnx.ModelProto:
        return self._traced

    @functools.cached_property
    def _traced(self) -> onnx.ModelProto:
        side = (self.picture.height, self.picture.width)
        batch = torch.export.Dim("batch", min=1, max=1 << 16)
        images = {"images": torch.zeros(2, *side, 3, dtype=torch.uint8)}
        with _blaming(self._spec, "cannot be traced to ONNX; export it yourself and give FILE.onnx"):
            model = trace(GraphSpec(self._graph, images, ("descriptors",), {"images": {0: batch}}), "fp32")
            proto: onnx.ModelProto = onnx.shape_inference.infer_shapes(onnx_ir.to_proto(model))
        return proto


class _OnnxDescriptor:
    def __init__(self, spec: str, stated: Stated) -> None:
        self._file = Path(spec)
        self._model, self._takes = read_onnx(self._file)
        found = Stated(size=self._takes.size)
        if found.size is not None and stated.size not in (None, found.size):
            raise ExportError(f"{spec}: takes pictures of {found.size[0]}x{found.size[1]}; leave out --descriptor-size")
        if self._takes.bytes:  # the graph normalises by itself
            if stated.mean is not None or stated.std is not None:
                raise ExportError(f"{spec}: takes uint8 pictures; leave out --descriptor-mean and --descriptor-std")
            found = replace(found, mean=(0.0,) * 3, std=(1.0,) * 3)
        self._spec, self.picture = spec, _complete(spec, stated, found)
        self.weights = Weights(f"descriptor {self._file.name}", UNSTATED, trained=True)
        self._engine = OnnxRuntimeEngine(self._file)
        self.dim = _try(spec, self.describe, self.picture)

    def describe(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        pictures = self._takes.prepare(images, self.picture)
        try:
            outputs = self._engine.run({self._takes.name: pictures})
        except EngineError as error:
            raise ExportError(f"{self._spec}: fails on a picture ({one_line(error)}); check the file") from error
        with _blaming(self._spec, "cannot be used"):
            found = pick({name: torch.from_numpy(value) for name, value in outputs.items()}, len(images))
        normalised: npt.NDArray[np.float32] = F.normalize(found.float(), dim=-1).numpy()
        return normalised

    def digest(self) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self.picture), allow_nan=False).encode())
        digest.update(self._model.SerializeToString(deterministic=True))
        return digest.hexdigest()

    def graph(self) -> onnx.ModelProto:
        with _blaming(self._spec, "cannot be used"):
            return wrap_onnx(self._model, self._takes, self.picture, self._output())

    def _output(self) -> str:
        """Return the name of the output that holds the descriptor."""
        images = np.zeros((2, self.picture.height, self.picture.width, 3), np.uint8)
        outputs = self._engine.run({self._takes.name: self._takes.prepare(images, self.picture)})
        return next(name for name, value in outputs.items() if value.ndim == 2 and len(value) == 2)


def pick(result: Any, batch: int | torch.SymInt) -> Tensor:
    """Return the only tensor (B, G) of a network's result: a tensor, or several in a tuple, list or dictionary.

    Raises ExportError if there is none or more than one.
    """
    parts = [result] if isinstance(result, Tensor) else _parts(result)
    tensors = [each for each in parts if isinstance(each, Tensor)]
    found = [each for each in tensors if each.ndim == 2 and each.shape[0] == batch and each.is_floating_point()]
    if len(found) == 1:
        return found[0]
    shapes = ", ".join(str(tuple(int(size) for size in each.shape)) for each in tensors) or "no tensor"
    raise ExportError(
        f"gives {shapes} for {int(batch)} pictures, and exactly one result of shape (B, G) is needed, a row of numbers "
        "for each picture; name a function that gives it"
    )


def _parts(result: Any) -> list[Any]:
    values = list(result.values()) if isinstance(result, Mapping) else result
    return list(values) if isinstance(values, (tuple, list)) else []


@contextlib.contextmanager
def _blaming(spec: str, fault: str) -> Iterator[None]:
    """Turn any failure of foreign code into an ExportError."""
    try:
        yield
    except ExportError as error:
        raise error if str(error).startswith(spec) else ExportError(f"{spec}: {error}") from error
    except Exception as error:
        told = one_line(str(error).strip().splitlines()[0] if str(error).strip() else error, 200)
        raise ExportError(f"{spec}: {fault} ({type(error).__name__}: {told})") from error


def _look(module: nn.Module) -> Stated:
    """Find size, mean and deviation of a module's pictures in timm's configurations and in its own attributes.

    The configuration of a part, such as the backbone, tells mean and deviation alone.
    """
    found = NOTHING
    for part in module.modules():
        config = getattr(part, "pretrained_cfg", None) or getattr(part, "default_cfg", None)
        if isinstance(config, Mapping) and config.get("mean") and config.get("std"):
            found = Stated(mean=tuple(config["mean"]), std=tuple(config["std"]))
            if part is module and config.get("input_size"):
                found = replace(found, size=(int(config["input_size"][1]), int(config["input_size"][2])))
            break
    for name in SIZES:
        size = getattr(module, name, None)
        if isinstance(size, int) and not isinstance(size, bool):
            return replace(found, size=(size, size))
        if isinstance(size, (tuple, list)) and len(size) >= 2 and all(isinstance(side, int) for side in size):
            return replace(found, size=(size[-2], size[-1]))
    return found


def _complete(spec: str, stated: Stated, found: Stated) -> PictureFormat:
    """Return the pictures of a descriptor, as stated, else as found. Raises ExportError for an unknown size."""
    size = stated.size or found.size
    if size is None:
        raise ExportError(
            f"{spec}: does not say which pictures it takes; give --descriptor-size, such as 322 or 240x320"
        )
    mean, std = stated.mean or found.mean or IMAGENET_MEAN, stated.std or found.std or IMAGENET_STD
    return PictureFormat(size[0], size[1], stated.resize or SQUASH, list(mean), list(std))


def _try(
    spec: str, describe: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]], picture: PictureFormat
) -> int:
    """Describe made-up pictures in batches of several sizes. Return the number of numbers. Raises ExportError."""
    rng = np.random.default_rng(0)
    shape = (3, picture.height, picture.width, 3)
    images = rng.integers(0, 256, shape, np.uint8)
    images[1] = 0
    dims = set()
    for count in (3, 1, 2):
        found = describe(images[:count])
        dims.add(found.shape[1])
        if not np.isfinite(found).all():
            raise ExportError(
                f"{spec}: gives descriptors that are not finite; check its weights, and --descriptor-mean"
            )
    if len(dims) > 1:
        raise ExportError(f"{spec}: gives descriptors of changing size ({', '.join(map(str, sorted(dims)))} numbers)")
    dim = dims.pop()
    if not 1 <= dim <= LARGEST:
        raise ExportError(f"{spec}: gives descriptors of {dim} numbers; a map stores 1 to {LARGEST}")
    return int(dim)
