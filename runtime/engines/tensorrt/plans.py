"""TensorRT plans on disk: each beside a JSON file that says what it was built of, on what, and for which shapes.

They lie in a bundle's `engines/<gpu>-<tensorrt version>/`. A plan runs where it was built, so what it says of itself
is compared with what is here before TensorRT sees it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pairvpr.errors import EngineError
from pairvpr.runtime.bundle import ENGINES, GRAPHS, Bundle, Dims, PictureFormat
from pairvpr.runtime.engines.tensorrt.cuda import Gpu

FORMAT = 1
BATCHES = (1, 8, 32, 100)
REBUILD = "build it here with `pairvpr engines build`"

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class PlanInfo:
    """What the file beside a plan says.

    sources: sha256 of the ONNX file and its weights. profiles: smallest, usual and largest shape of each input.
    layer_types: how many layers write which type. versions: of CUDA's driver and runtime, JetPack, display driver.
    decision: where INT8 was measured against float16, which was kept and why; such a plan's `precision` may be float16
    among those of INT8.
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
    decision: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @staticmethod
    def load(file: Path) -> PlanInfo:
        """Read the file beside a plan; raises EngineError where it is damaged or of a newer format."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            number = content.pop("format")
            if number != FORMAT:
                raise EngineError(f"{file}: plan format {number}, this pairvpr reads {FORMAT}; {REBUILD}")
            content["gpu"] = Gpu(**content["gpu"])
            content["profiles"] = [_as_profile(profile) for profile in content["profiles"]]
            return PlanInfo(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"{file}: not a plan's description ({error}); {REBUILD}") from error

    def problem(self, sources: Mapping[str, str], gpu: Gpu, tensorrt: str) -> str | None:
        """Why the plan does not serve this bundle here; None where it does."""
        if dict(self.sources) != dict(sources):
            return "it was built of other ONNX files than this bundle's"
        here, there = tensorrt.split("."), self.tensorrt.split(".")
        if self.version_compatible:
            # TensorRT's own rule: the same major version, and not an older one than the builder's.
            if here[0] != there[0] or _numbers(here) < _numbers(there):
                return f"it was built by TensorRT {self.tensorrt}, which TensorRT {tensorrt} cannot run"
        elif here != there:
            return f"it was built by TensorRT {self.tensorrt}, here is {tensorrt}"
        if self.hardware_compatible:
            if int(gpu.compute_capability.partition(".")[0]) < 8:
                return f"it needs compute capability 8.0 or more, {gpu.name} has {gpu.compute_capability}"
        elif gpu != self.gpu:
            return f"it was built on {describe(self.gpu)}, here is {describe(gpu)}"
        return None

    @property
    def largest_batch(self) -> int:
        """Most pictures or pairs that it takes at once."""
        name = "images" if self.graph == "encoder" else "database_tokens"
        return max(profile[name][2][0] for profile in self.profiles)


def describe(gpu: Gpu) -> str:
    """A GPU in words."""
    return f"{gpu.name} ({gpu.multiprocessors} multiprocessors, compute capability {gpu.compute_capability})"


def folder_name(gpu: Gpu, tensorrt: str) -> str:
    """Name of the folder of plans for a GPU and a version."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{gpu.name} {gpu.multiprocessors}sm".lower()).strip("-")
    return f"{slug}-{tensorrt}"


def plan_name(graph: str, precision: str) -> str:
    """Name of a plan's file."""
    return f"{graph}.{precision}.plan"


def info_file(plan: Path) -> Path:
    """The file that says what a plan is."""
    return plan.with_suffix(".json")


def sources(bundle: Bundle, precision: str, graph: str) -> dict[str, str]:
    """The sha256 that `bundle.json` has of a graph's ONNX file and weights."""
    files = bundle.info.precisions[precision].graphs[graph]
    return {name: bundle.info.files[name].sha256 for name in (files.file, files.weights)}


def find_plans(bundle: Bundle, precision: str, gpu: Gpu, tensorrt: str) -> dict[str, Path]:
    """The plan of each graph that runs here, by graph. Raises EngineError with the reason and the rebuild command."""
    flag = {"fp16": " --fp16", "int8-fp16": " --int8"}.get(precision, "")
    command = f"build it here with `pairvpr engines build --model {bundle.path}{flag}`"
    found: dict[str, Path] = {}
    for graph in GRAPHS:
        problems = []
        for plan in sorted((bundle.path / ENGINES).glob(f"*/{plan_name(graph, precision)}")):
            info = PlanInfo.load(info_file(plan))
            made_of = info.precision if info.precision in bundle.info.precisions else precision
            problem = info.problem(sources(bundle, made_of, graph), gpu, tensorrt)
            if problem is None:
                found[graph] = plan
                break
            problems.append(f"{plan}: {problem}; {command}")
        else:
            raise EngineError(problems[0] if problems else f"{bundle.path}: no {precision} {graph} plan; {command}")
    return found


def read_plan(plan: Path, info: PlanInfo) -> bytes:
    """A plan's content, checked. Raises EngineError where it is damaged."""
    try:
        content = plan.read_bytes()
    except OSError as error:
        raise EngineError(f"{plan}: cannot be read ({error.strerror}); {REBUILD}") from error
    if len(content) != info.bytes or hashlib.sha256(content).hexdigest() != info.sha256:
        raise EngineError(f"{plan}: damaged (its sha256 is not the one beside it); {REBUILD}")
    return content


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int | None:
    """The first profile that takes inputs of these shapes; None where none does."""
    for index, profile in enumerate(profiles):
        if all(_within(shape, profile[name]) for name, shape in shapes.items()):
            return index
    return None


def graph_profiles(graph: str, dims: Dims, picture: PictureFormat, batches: Sequence[int]) -> list[Profile]:
    """A profile for each of the ascending batch sizes: it is tuned for that size and takes all above the one before.

    The suffix's size is that of `keep`: however few candidates go on, they come out of as large a batch as any.
    """
    tokens, width, most = dims.tokens, dims.token_dim, batches[-1]
    profiles: list[Profile] = []
    for before, size in zip([0, *batches], batches, strict=False):
        sizes = (before + 1, size, size)
        of = (sizes[0], size, most) if graph == "pair_suffix" else sizes
        shapes: dict[str, list[Shape]] = {
            "query_tokens": [(1, tokens, width)] * 3,
            "database_tokens": [(n, tokens, width) for n in of],
        }
        if graph == "encoder":
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


def _as_profile(profile: Mapping[str, Sequence[Sequence[int]]]) -> Profile:
    return {name: tuple(tuple(shape) for shape in shapes) for name, shapes in profile.items()}  # type: ignore[misc]


def _numbers(version: Sequence[str]) -> list[Any]:
    return [int(part) if part.isdecimal() else 0 for part in version]
