"""Find and check TensorRT plans on disk. A JSON file beside each plan names its sources, its device and its shapes.

Plans lie in a bundle's `engines/<gpu>-<tensorrt version>/`. A plan runs only on the device it was built on, so its
description is compared with this device before TensorRT reads the plan.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pairvpr.errors import EngineError, one_line
from pairvpr.files import read_member
from pairvpr.printing import json_document
from pairvpr.runtime.bundle import Bundle, plan_folders
from pairvpr.runtime.bundle_info import DESCRIPTOR, ENCODER, LOOK, Dims, PictureFormat
from pairvpr.runtime.engines.tensorrt.cuda import Gpu
from pairvpr.validation import (
    check_bool,
    check_int,
    check_keys,
    check_list,
    check_mapping,
    check_real,
    check_text,
    parse_json,
)

FORMAT = 1
_LONGEST_DESCRIPTION = 8 << 20  # bytes of the file beside a plan
_LARGEST_PLAN = 64 << 30
BATCHES = (1, 8, 32, 100)
SMALL_MEMORY = 12e9
"""Bytes of GPU memory below which engines are built for fewer pairs at a time."""
PICTURES = 32
"""Largest number of pictures that an engine of the encoder takes. More at a time are not faster."""
FORMS = ("fused attention", "separate attention", "float32 arithmetic")
"""Ways to build a graph, in order of preference. The later ones are slower, for libraries whose fused attention or
float16 is wrong."""
REBUILD = "build it here with `pairvpr engines build`"

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class PlanInfo:
    """Hold the description of a plan, from the file beside it.

    graph, precision: the graph that the plan runs, and its precision.
    bytes, sha256: size and checksum of the plan.
    sources: sha256 of the ONNX file and its weights.
    gpu, tensorrt: GPU and TensorRT version of the build.
    versions: versions of CUDA's driver and runtime, JetPack and display driver.
    version_compatible, hardware_compatible: see `BuildSettings`.
    profiles: smallest, usual and largest shape of each input.
    layer_types: number of layers by output type.
    build_seconds: duration of the build.
    form: one of FORMS.
    decision: result of the measurement of INT8 against float16, or None. If float16 was kept, the `precision` of a
    plan among those of INT8 is float16.
    """

    graph: str
    precision: str
    bytes: int
    sha256: str
    sources: Mapping[str, str]
    gpu: Gpu
    tensorrt: str
    versions: Mapping[str, str]
    version_compatible: bool
    hardware_compatible: bool
    profiles: Sequence[Profile]
    layer_types: Mapping[str, int]
    build_seconds: float
    form: str = FORMS[0]
    decision: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """Return the text of the file."""
        return json_document({"format": FORMAT, **asdict(self)})

    @staticmethod
    def load(file: Path) -> PlanInfo:
        """Read the file beside a plan. Raises EngineError if it is damaged or of another format."""
        try:
            content = check_mapping(parse_json(read_member(file.parent, file.name, _LONGEST_DESCRIPTION)), "it", 100)
            number = check_int(content.get("format"), "format", 1, 2**31)
            if number != FORMAT:
                raise EngineError(f"{file}: plan format {number}, this pairvpr reads {FORMAT}; {REBUILD}")
            return _decode(content)
        except (OSError, ValueError) as error:
            raise EngineError(f"{file}: not a plan's description ({one_line(error)}); {REBUILD}") from error

    def find_problem(self, sources: Mapping[str, str], gpu: Gpu, tensorrt: str) -> str | None:
        """Return the reason why the plan cannot run this bundle here, or None if it can."""
        if dict(self.sources) != dict(sources):
            return "it was built from other ONNX files than this bundle's"
        here, there = tensorrt.split("."), self.tensorrt.split(".")
        if self.version_compatible:
            # TensorRT's own rule: the same major version, and no older than the builder's.
            if here[0] != there[0] or _numbers(here) < _numbers(there):
                return f"it was built by TensorRT {self.tensorrt}, which TensorRT {tensorrt} cannot run"
        elif here != there:
            return f"it was built by TensorRT {self.tensorrt}, here is {tensorrt}"
        if self.hardware_compatible:
            if int(gpu.compute_capability.partition(".")[0]) < 8:
                return f"it needs compute capability 8.0 or more, {gpu.name} has {gpu.compute_capability}"
        elif gpu != self.gpu:
            problem = f"it was built on {describe(self.gpu)}, here is {describe(gpu)}"
            if (gpu.name, gpu.compute_capability) == (self.gpu.name, self.gpu.compute_capability):
                return f"{problem}: the power mode is another one (set the mode of the build with sudo nvpmodel -m N)"
            return problem
        return None

    @property
    def largest_batch(self) -> int:
        """Return the largest number of pictures or pairs in one run."""
        name = _batched_input(self.graph)
        return max(profile[name][2][0] for profile in self.profiles)


def default_batches(memory: int) -> tuple[int, ...]:
    """Return the batch sizes to build for on a GPU with this number of bytes of memory."""
    return tuple(size for size in BATCHES if size <= PICTURES or memory >= SMALL_MEMORY)


def describe(gpu: Gpu) -> str:
    """Describe a GPU."""
    return f"{gpu.name} ({gpu.multiprocessors} multiprocessors, compute capability {gpu.compute_capability})"


def folder_name(gpu: Gpu, tensorrt: str) -> str:
    """Return the name of the folder of plans for a GPU and a version."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{gpu.name} {gpu.multiprocessors}sm".lower()).strip("-")
    return f"{slug}-{tensorrt}"


def plan_name(graph: str, precision: str) -> str:
    """Return the name of a plan's file."""
    return f"{graph}.{precision}.plan"


def info_file(plan: Path) -> Path:
    """Return the path of a plan's description."""
    return plan.with_suffix(".json")


def sources(bundle: Bundle, precision: str, graph: str) -> dict[str, str]:
    """Return the sha256 of a graph's ONNX file and weights from `bundle.json`."""
    files = bundle.info.precisions[precision].graphs[graph]
    return {name: bundle.info.files[name].sha256 for name in (files.file, files.weights)}


def find_plans(bundle: Bundle, precision: str, gpu: Gpu, tensorrt: str) -> dict[str, Path]:
    """Return the plan of each graph that runs here, by graph. Raises EngineError with the command to build one."""
    flag = {"fp16": " --fp16", "int8-fp16": " --int8"}.get(precision, "")
    command = f"build it here with `pairvpr engines build --model {bundle.path}{flag}`"
    found: dict[str, Path] = {}
    for graph in bundle.info.graphs:
        problems = []
        for plan in sorted(folder / plan_name(graph, precision) for folder in plan_folders(bundle)):
            if not os.path.lexists(plan):
                continue
            info = PlanInfo.load(info_file(plan))
            made_of = info.precision if info.precision in bundle.info.precisions else precision
            problem = info.find_problem(sources(bundle, made_of, graph), gpu, tensorrt)
            if problem is None:
                found[graph] = plan
                break
            problems.append(f"{plan}: {problem}; {command}")
        else:
            raise EngineError(problems[0] if problems else f"{bundle.path}: no {precision} {graph} plan; {command}")
    return found


def read_plan(plan: Path, info: PlanInfo) -> bytes:
    """Read a plan and check its sha256. Raises EngineError if it is damaged."""
    try:
        content = read_member(plan.parent, plan.name, info.bytes)
    except OSError as error:
        raise EngineError(f"{plan}: cannot be read ({error.strerror}); {REBUILD}") from error
    except ValueError as error:
        raise EngineError(f"{plan}: damaged ({error}); {REBUILD}") from error
    if len(content) != info.bytes or hashlib.sha256(content).hexdigest() != info.sha256:
        raise EngineError(f"{plan}: damaged (its sha256 is not the one beside it); {REBUILD}")
    return content


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int | None:
    """Return the index of the first profile that accepts these shapes, or None."""
    for index, profile in enumerate(profiles):
        if all(_within(shape, profile[name]) for name, shape in shapes.items()):
            return index
    return None


def graph_profiles(graph: str, dims: Dims, picture: PictureFormat, batches: Sequence[int]) -> list[Profile]:
    """Return a profile for each of the ascending batch sizes.

    Each profile is tuned for its batch size and accepts all sizes above the previous one. The batch size of the suffix
    is the length of `keep`: even a few kept candidates may come from a batch of any size. Graphs of pictures take at
    most PICTURES.
    """
    if graph in (ENCODER, DESCRIPTOR):
        batches = sorted({min(size, PICTURES) for size in batches})
    tokens, width, most = dims.tokens, dims.token_dim, batches[-1]
    profiles: list[Profile] = []
    for before, size in zip([0, *batches], batches, strict=False):
        sizes = (before + 1, size, size)
        of = (sizes[0], size, most) if graph == "pair_suffix" else sizes
        shapes: dict[str, list[Shape]] = {
            "query_tokens": [(1, tokens, width)] * 3,
            "database_tokens": [(n, tokens, width) for n in of],
        }
        if graph in (ENCODER, DESCRIPTOR):
            shapes = {"images": [(n, picture.height, picture.width, 3) for n in sizes]}
        elif graph == "pair_suffix":
            shapes["query_state"] = shapes["database_state"] = [(n, tokens + 1, width) for n in of]
            shapes["keep"] = [(n,) for n in sizes]
        profiles.append({name: (each[0], each[1], each[2]) for name, each in shapes.items()})
    return profiles


def _within(shape: Shape, limits: tuple[Shape, Shape, Shape]) -> bool:
    smallest, _, largest = limits
    return len(shape) == len(smallest) and all(
        low <= n <= high for low, n, high in zip(smallest, shape, largest, strict=True)
    )


def _decode(content: Mapping[str, Any]) -> PlanInfo:
    """Validate the description of a plan. Raises ValueError."""
    optional = {"decision", "form"}
    check_keys(content, "it", {"format", *(each.name for each in fields(PlanInfo))} - optional, optional)
    graph = check_text(content["graph"], "graph", 200)
    if graph not in _AXES:
        raise ValueError("graph is not one of a bundle")
    profiles = [_decode_profile(each, graph) for each in check_list(content["profiles"], "profiles", 1, 100)]
    gpu = check_keys(content["gpu"], "gpu", {each.name for each in fields(Gpu)})
    decision = content.get("decision")
    form = check_text(content.get("form", FORMS[0]), "form", 200)
    if form not in FORMS:
        raise ValueError("form is not a known one")
    return PlanInfo(
        graph=graph,
        precision=check_text(content["precision"], "precision", 200),
        bytes=check_int(content["bytes"], "bytes", 0, _LARGEST_PLAN),
        sha256=check_text(content["sha256"], "sha256", 64),
        sources=_decode_texts(content["sources"], "sources"),
        gpu=Gpu(
            check_text(gpu["name"], "the GPU's name", 200),
            check_text(gpu["compute_capability"], "compute_capability", 200),
            check_int(gpu["multiprocessors"], "multiprocessors", 1, 100_000),
        ),
        tensorrt=check_text(content["tensorrt"], "tensorrt", 200),
        versions=_decode_texts(content["versions"], "versions"),
        version_compatible=check_bool(content["version_compatible"], "version_compatible"),
        hardware_compatible=check_bool(content["hardware_compatible"], "hardware_compatible"),
        profiles=profiles,
        layer_types={
            name: check_int(count, "layer_types", 0, 2**31)
            for name, count in check_mapping(content["layer_types"], "layer_types", 100).items()
        },
        build_seconds=check_real(content["build_seconds"], "build_seconds", 0),
        form=form,
        decision=None if decision is None else check_mapping(decision, "decision", 100),
    )


_AXES: Mapping[str, Mapping[str, int]] = {
    ENCODER: {"images": 4},
    DESCRIPTOR: {"images": 4},
    LOOK: {"query_tokens": 3, "database_tokens": 3},
    "pair_prefix": {"query_tokens": 3, "database_tokens": 3},
    "pair_suffix": {"query_tokens": 3, "database_tokens": 3, "query_state": 3, "database_state": 3, "keep": 1},
}
"""The inputs of each graph and their numbers of axes."""


def _batched_input(graph: str) -> str:
    return "images" if graph in (ENCODER, DESCRIPTOR) else "database_tokens"


def _decode_texts(content: object, name: str) -> dict[str, str]:
    return {key: check_text(value, name, 200) for key, value in check_mapping(content, name, 100).items()}


def _decode_profile(content: object, graph: str) -> Profile:
    profile: dict[str, tuple[Shape, Shape, Shape]] = {}
    for name, shapes in check_keys(content, "profiles", set(_AXES[graph])).items():
        axes = _AXES[graph][name]
        smallest, usual, largest = (
            tuple(check_int(size, "profiles", 0, 2**31) for size in check_list(shape, "profiles", axes, axes))
            for shape in check_list(shapes, "profiles", 3, 3)
        )
        if not _within(usual, (smallest, usual, largest)):
            raise ValueError(f"profiles has sizes of {name} in no order")
        profile[name] = smallest, usual, largest
    return profile


def _numbers(version: Sequence[str]) -> list[Any]:
    return [int(part) if part.isdecimal() else 0 for part in version]
