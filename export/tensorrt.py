"""Build and check TensorRT plans of a bundle on the device that will run them. Imports neither torch nor onnx.

Some versions of TensorRT compute vision transformers wrongly on some boards, in fused attention or in float16. Graphs
that are wrong are therefore built again in another form, which is slower.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairvpr import machine
from pairvpr.errors import EngineError
from pairvpr.export.tensorrt_check import PAIR_GRAPHS, Progress, Verdict, judge_engines
from pairvpr.export.tensorrt_progress import BuildProgress, interruptible
from pairvpr.files import lock_file, sync, write_atomically
from pairvpr.runtime.bundle import ENGINES, Bundle
from pairvpr.runtime.bundle_info import DESCRIPTOR, ENCODER, LOOK
from pairvpr.runtime.engines.open import PREFERENCES
from pairvpr.runtime.engines.tensorrt import api, cuda
from pairvpr.runtime.engines.tensorrt.engine import open_plans
from pairvpr.runtime.engines.tensorrt.execution import Execution
from pairvpr.runtime.engines.tensorrt.network import BuildSettings, Network
from pairvpr.runtime.engines.tensorrt.plans import (
    FORMS,
    PlanInfo,
    default_batches,
    folder_name,
    graph_profiles,
    info_file,
    plan_name,
    read_plan,
    sources,
)

PRODUCTS = {"fp32": "float32", "fp16": "float16", "int8-fp16": "float16"}
"""Precisions that can be built, with the type of their matrix products in the network."""
WRITTEN = {"fp32": "fp32", "fp16": "fp16", "int8-fp16": "int8"}
"""Precisions that can be built, with a type that some layers of the plan must write."""

DEFAULTS = BuildSettings()

log = logging.getLogger(__name__)


def require() -> None:
    """Raise EngineError if no plan can be built here, because TensorRT, CUDA or a GPU is missing."""
    api.load()
    cuda.gpu()


def build_engines(
    bundle: Bundle,
    precision: str | None,
    progress: Progress,
    batches: Sequence[int] | None = None,
    settings: BuildSettings = DEFAULTS,
) -> Path:
    """Build a plan of each graph, one graph at a time, check them, and put them into the bundle. Return their folder.

    A graph that is wrong is built again, first without fused attention and then in float32. The first right form is
    kept, with a warning.
    precision: None for float16, or for float32 if the bundle has no float16.
    batches: sizes to tune for. All sizes up to the largest can be run. None chooses them by the GPU's memory.
    Raises EngineError, BundleError or KeyboardInterrupt. The bundle is then left as it was.
    """
    precision = _choose(bundle, precision)
    with building(bundle, batches) as site:
        plans = site.build_right(precision, settings, progress)
        put(plans, site.final)
    return site.final


@dataclass(frozen=True)
class Site:
    """A place to build plans of a bundle.

    batches: sizes, ascending.
    workshop: folder in which plans are built.
    final: folder of the finished plans.
    """

    bundle: Bundle
    batches: list[int]
    workshop: Path
    final: Path

    def build(self, precision: str, settings: BuildSettings, progress: Progress) -> dict[str, Path]:
        """Build a plan of each graph in the workshop, one graph at a time, with its description.

        Raise EngineError on failure.
        """
        return {
            graph: self._build_graph(graph, precision, FORMS[0], settings, progress)
            for graph in self.bundle.info.graphs
        }

    def build_right(self, precision: str, settings: BuildSettings, progress: Progress) -> dict[str, Path]:
        """Build a plan of each graph in the workshop, in the first of FORMS in which it passes the reference check.

        Raise EngineError on failure.
        """
        plans = self.build(precision, settings, progress)
        verdict = self._judge(plans, precision, progress)
        forms = [form for form in FORMS[1:] if precision == "fp16" or form != FORMS[2]]
        for form in forms:
            rebuilt: dict[str, Path] = {}
            # Only the scores show whether prefix and suffix are right, so each is tried alone, and then both.
            for trial in ((ENCODER,), (DESCRIPTOR,), (LOOK,), *((graph,) for graph in PAIR_GRAPHS), PAIR_GRAPHS):
                if not set(trial) <= set(verdict.wrong):
                    continue
                for graph in trial:
                    if graph not in rebuilt:
                        cuda.stream().release()  # memory of the engines that were checked
                        rebuilt[graph] = self._build_graph(graph, precision, form, settings, progress)
                tried = {**plans, **{graph: rebuilt[graph] for graph in trial}}
                now = self._judge(tried, precision, progress)
                if not set(trial) & set(now.wrong):
                    log.warning(
                        "%s: wrong with %s on this board and TensorRT %s; built with %s, which is slower",
                        " and ".join(trial),
                        FORMS[0],
                        api.version(),
                        form,
                    )
                    plans, verdict = tried, now
        verdict.require(self.bundle, precision)
        return plans

    def _judge(self, plans: Mapping[str, Path], precision: str, progress: Progress) -> Verdict:
        return judge_engines(self.bundle, open_plans(plans), precision, self.batches, progress)

    def _build_graph(self, graph: str, precision: str, form: str, settings: BuildSettings, progress: Progress) -> Path:
        folder = self.workshop / form
        folder.mkdir(exist_ok=True)
        plan, cache = folder / plan_name(graph, precision), self.final / "timing.cache"
        built = _build(self.bundle, precision, graph, form, self.batches, settings, cache, progress)
        plan.write_bytes(built.plan)
        info = PlanInfo(
            graph=graph,
            precision=precision,
            bytes=len(built.plan),
            sha256=hashlib.sha256(built.plan).hexdigest(),
            sources=sources(self.bundle, precision, graph),
            gpu=cuda.gpu(),
            tensorrt=api.version(),
            versions=_versions(),
            version_compatible=settings.version_compatible,
            hardware_compatible=settings.hardware_compatible,
            profiles=built.profiles,
            layer_types={},
            build_seconds=round(built.seconds, 1),
            form=form,
        )
        del built
        describe_plan(plan, dataclasses.replace(info, layer_types=_layer_types(plan, info)))
        return plan


@contextmanager
def building(bundle: Bundle, batches: Sequence[int] | None) -> Iterator[Site]:
    """Yield a locked, empty place to build a bundle's plans in, and remove it afterwards.

    batches: None chooses them by the GPU's memory.
    Raises EngineError or BundleError.
    """
    if batches is not None and min(batches, default=0) < 1:
        raise EngineError(f"--batches {', '.join(map(str, batches)) or 'none'}: give sizes of at least 1")
    require()
    sizes = sorted(set(batches or default_batches(cuda.memory())))
    bundle.reference()
    with _writing(bundle.path / ENGINES) as workshop:
        final = workshop.parent / folder_name(cuda.gpu(), api.version())
        final.mkdir(exist_ok=True)
        yield Site(bundle, sizes, workshop, final)


def describe_plan(plan: Path, info: PlanInfo) -> None:
    """Write a plan's description beside it."""
    info_file(plan).write_text(info.to_json(), encoding="utf-8")


@dataclass(frozen=True)
class _Built:
    plan: bytes
    profiles: list[Any]
    seconds: float


def _build(
    bundle: Bundle,
    precision: str,
    graph: str,
    form: str,
    batches: Sequence[int],
    settings: BuildSettings,
    cache: Path,
    progress: Progress,
) -> _Built:
    """Build the plan of one graph in one of FORMS.

    TensorRT's timings are kept after each, so that a second build after an interruption is faster.
    """
    start = time.monotonic()
    network = Network(bundle.graph(precision, graph, cpu=False))
    types = network.product_types()
    if set(types) != {PRODUCTS[precision]} or (precision.startswith("int8") and not network.quantized_tensors()):
        raise EngineError(
            f"{network.name}: TensorRT read it as another precision (matrix products: {dict(types)}); export it again"
        )
    if form != FORMS[0]:
        network.unfuse_attention()
    if form == FORMS[2]:
        network.compute_in_float32()
    profiles = graph_profiles(graph, bundle.info.dims, bundle.info.picture_of(graph), batches)
    known = cache.read_bytes() if cache.exists() else b""
    with interruptible() as asked:
        monitor = BuildProgress(lambda percent: progress(f"building {graph}, percent", percent, 100), asked)
        try:
            built = network.build(profiles, settings, known, monitor)
        except EngineError:
            if asked.is_set():
                raise KeyboardInterrupt from None
            raise
    if asked.is_set():
        raise KeyboardInterrupt
    _write(cache, built.timing_cache)
    return _Built(built.plan, profiles, time.monotonic() - start)


def _choose(bundle: Bundle, asked: str | None) -> str:
    present = list(bundle.info.precisions)
    wanted = [asked] if asked else [name for name in PREFERENCES["tensorrt"] if name in PRODUCTS]
    for precision in wanted:
        if precision in present:
            return precision
    raise EngineError(
        f"{bundle.path}: no {' or '.join(wanted)} graphs in this bundle (it has: {', '.join(present) or 'none'}); "
        f"export them into it first (`pairvpr export --{wanted[0].partition('-')[0]} --out {bundle.path}`)"
    )


def _layer_types(plan: Path, info: PlanInfo) -> dict[str, int]:
    """Return the types that a plan's layers write. Raise EngineError if it was built in another precision."""
    types = Execution(read_plan(plan, info), plan.name, info.version_compatible).layer_types()
    # If the inspector's words are unknown, rely on the network's types, which were checked before.
    written = WRITTEN["fp32" if info.form == FORMS[2] else info.precision]
    if set(types) - {"other"} and written not in types:
        raise EngineError(f"{plan.name}: TensorRT built no {info.precision} plan (layers write: {types}); report it")
    return types


def _versions() -> dict[str, str]:
    """Return the versions of CUDA, of the Jetson's release and of the display driver, if present."""
    found = {f"cuda {name}": number for name, number in cuda.versions().items()}
    release, gpus = machine.jetson_release(), machine.nvidia_gpus()
    if release is not None:
        found["jetson linux"] = release
    if isinstance(gpus, list) and gpus:
        found["nvidia-smi"] = gpus[0]
    return found


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to work in, for one builder at a time, and remove it afterwards.

    Raise EngineError on failure.
    """
    try:
        folder.mkdir(exist_ok=True)
        with lock_file(folder / ".lock", "pairvpr engine builder"):
            workshop = folder / ".building"
            shutil.rmtree(workshop, ignore_errors=True)  # a killed build may have left it
            workshop.mkdir()
            try:
                yield workshop
            finally:
                shutil.rmtree(workshop, ignore_errors=True)
    except BlockingIOError as error:
        raise EngineError(
            f"{folder}: engines are being built there by {error.strerror}; wait until it is done"
        ) from error
    except OSError as error:
        raise EngineError(
            f"{folder}: cannot be written ({error.strerror or error}); free space, or allow writing to it"
        ) from error


def put(plans: Mapping[str, Path], folder: Path) -> None:
    """Move plans into a folder, each before its description. A plan that does not match its description is refused."""
    for plan in plans.values():
        for file in (plan, info_file(plan)):
            sync(file)
            file.replace(folder / file.name)
    sync(folder)


def _write(file: Path, content: bytes) -> None:
    with write_atomically(file) as partial:
        partial.write_bytes(content)
