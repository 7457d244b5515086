"""Run the sides of `benchmarks.pairs`: all steps of the pairs of a query, from tokens in memory to scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from benchmarks.sides import Jobs
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import GRAPHS
from pairvpr.runtime.engines.base import Engine
from pairvpr.runtime.engines.open import Engines
from pairvpr.runtime.model import MAX_BATCH, Model, load_model

if TYPE_CHECKING:
    from pairvpr.model import PairVPR

SECOND_LOOK, FULL = 4, 20
"""In the cascade one candidate in SECOND_LOOK goes on to the second look, and one in FULL to the end."""
MADE_UP_RANGE = 8.0

Tokens = npt.NDArray[np.float32]


def reference_jobs(checkpoint: str, images: npt.NDArray[np.uint8], threads: int) -> Jobs:
    """Prepare plain PyTorch eager on a checkpoint file or a preset's seeded weights.

    `features`: of the pictures. `exact`: scores of the first with all others. `encode`: the first. `matrix`: a product.
    """
    import torch

    from benchmarks import reference

    torch.set_num_threads(threads)
    network = reference.plain_encoder(load_network(checkpoint))
    pictures = torch.from_numpy(images)
    made = [reference.encode(network, part) for part in pictures.split(MAX_BATCH)]
    descriptors, tokens = (torch.cat(parts) for parts in zip(*made, strict=True))
    factor = torch.randn(2048, 2048)
    return {
        "features": lambda: (descriptors.numpy(), tokens.numpy()),
        "exact": lambda: np.concatenate(
            [reference.score(network, tokens[:1], part).numpy() for part in tokens[1:].split(MAX_BATCH)]
        ),
        "encode": lambda: reference.encode(network, pictures[:1])[0].numpy(),
        "matrix": lambda: (factor @ factor).shape,
    }


def torch_jobs(checkpoint: str, way: str, tokens: Tokens, threads: int) -> Jobs:
    """Prepare our network in PyTorch as a user would speed it up: `exact` as in `reference_jobs`.

    way: "fused attention", or that with "compiled" or "bfloat16".
    """
    import torch

    torch.set_num_threads(threads)
    network = load_network(checkpoint)
    dtype = torch.bfloat16 if way == "bfloat16" else torch.float32
    score = torch.compile(network.score) if way == "compiled" else network.score
    network.to(dtype)
    every = torch.from_numpy(tokens).to(dtype)

    @torch.no_grad()
    def exact() -> npt.NDArray[np.float32]:
        return np.concatenate([score(every[:1], part).float().numpy() for part in every[1:].split(MAX_BATCH)])

    return {"exact": exact}


def load_network(checkpoint: str) -> PairVPR:
    """Load the network of a checkpoint file, or of a preset with seeded weights."""
    from pairvpr.model import load_checkpoint, seeded_checkpoint

    return (load_checkpoint(checkpoint) if Path(checkpoint).exists() else seeded_checkpoint(checkpoint)).network


def runtime_jobs(
    bundle: Path, device: str, precision: str, images: npt.NDArray[np.uint8], tokens: Tokens, threads: int
) -> Jobs:
    """Prepare our runtime, without torch, on the same pictures and tokens: `exact`, `encode`, and `cascade`.

    `cascade` takes a first look at all candidates, a second at every fourth, and compares every twentieth in full.
    Which candidates these are does not change the time.
    """
    model = open_model(bundle, device, precision, threads)

    def batches() -> Iterator[Tokens]:
        for start in range(1, len(tokens), model.batch_size):
            yield tokens[start : start + model.batch_size]

    def cascade() -> None:
        done = 0
        for part in batches():
            model.look(tokens[:1], part)
            numbers = done + np.arange(len(part))
            seen = numbers[numbers % SECOND_LOOK == 0]
            pairs = model.prefix(tokens[:1], part[seen - done])
            keep = np.flatnonzero(seen % FULL == 0)
            if len(keep):
                model.suffix(pairs, keep)
            done += len(part)

    return {
        "exact": lambda: np.concatenate(
            [model.suffix(model.prefix(tokens[:1], part), np.arange(len(part))) for part in batches()]
        ),
        "encode": lambda: model.encode_prepared(images[:1]).descriptors,
        "cascade": cascade,
    }


def open_model(path: Path, device: str, precision: str, threads: int) -> Model:
    """Open a bundle on an engine. INT8 graphs that it lacks are those of `make_int8`."""
    bundle = Bundle.open(path)
    stored = precision.removesuffix("-bf16")
    if not stored.startswith("int8") or stored in bundle.info.precisions:
        return load_model(path, device, precision, threads=threads)

    def engine(file: Path) -> Engine:
        if device == "openvino":
            from pairvpr.runtime.engines.openvino import OpenVinoEngine

            return OpenVinoEngine(file, "f32" if precision == stored else "bf16", threads)
        from pairvpr.runtime.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(file, device, threads)

    graphs = {name: engine(int8_folder(path) / f"{name}.{stored}.onnx") for name in GRAPHS}
    return Model(bundle, Engines(**graphs, device=device, precision=precision, description="", largest_batch=None))


def make_int8(path: Path) -> None:
    """Make INT8 graphs with made-up ranges beside a bundle that has none, only to measure their speed."""
    from pairvpr.export.int8 import FloatGraph, write_int8

    bundle, folder = Bundle.open(path), int8_folder(path)
    if {"int8", "int8-dynamic"} <= set(bundle.info.precisions) or folder.exists():
        return
    unfinished = folder.with_suffix(".unfinished")
    unfinished.mkdir(exist_ok=True)
    for name in GRAPHS:
        file = bundle.graph("fp32", name, cpu=False)
        floats, fused = FloatGraph(file), FloatGraph(file, fused=True)
        write_int8(floats.static({layer.name: MADE_UP_RANGE for layer in floats.layers}, ()), name, "int8", unfinished)
        write_int8(fused.dynamic(()), name, "int8-dynamic", unfinished)
    unfinished.rename(folder)


def int8_folder(bundle: Path) -> Path:
    """Return the folder of the graphs of `make_int8`."""
    return bundle.with_name(f"{bundle.name}-int8-for-speed")
