"""Run the sides of the GPU benchmark, each in its own process: plain PyTorch in half precision, and our engines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.sides import Jobs
from pairvpr.errors import EngineError

if TYPE_CHECKING:
    from pairvpr.model.presets import NetworkConfig

MATRIX = {"cuda": 8192, "cpu": 256}
COMPILER = {"cuda": "inductor", "cpu": "eager"}
"""torch.compile's backend: on a CPU, where only the way through it is tried, the one that compiles nothing."""
HALF = {"cuda": "float16", "cpu": "bfloat16"}


def torch_jobs(config: NetworkConfig, device: str, compiled: bool, images: np.ndarray, tokens: np.ndarray) -> Jobs:
    """Prepare the published computation in PyTorch: `encode N`, `rerank N` (N at once), `matrix`, `memory`.

    Weights are cast once, and everything runs in one autocast context. images: uint8 (n, H, W, 3). tokens: float16
    (n, T, D), the first of the query. Inputs come from the host and results go to it, as with our engines.
    """
    import torch

    from benchmarks import reference
    from pairvpr.model.checkpoint import seeded

    half = getattr(torch, HALF[device])
    network = reference.plain_encoder(seeded(config).network).to(device, half)
    encode, score = reference.encode, reference.score
    if compiled:
        encode, score = (torch.compile(each, backend=COMPILER[device], dynamic=False) for each in (encode, score))
    pictures, stored = torch.from_numpy(images), torch.from_numpy(tokens)
    factor = torch.randn(MATRIX[device], MATRIX[device], device=device, dtype=half)

    def run_encode(batch: int) -> np.ndarray:
        with torch.no_grad(), torch.autocast(device, half):
            descriptors, features = encode(network, pictures[:batch].to(device))
        features.to(half).cpu()
        return descriptors.float().cpu().numpy()

    def run_rerank(batch: int) -> np.ndarray:
        parts = []
        with torch.no_grad(), torch.autocast(device, half):
            query = stored[:1].to(device, half)
            for i in range(1, len(stored), batch):
                parts.append(score(network, query, stored[i : i + batch].to(device, half)))
        return torch.cat(parts).float().cpu().numpy()

    def run_matrix(batch: int) -> None:
        for _ in range(batch):
            factor @ factor
        if device == "cuda":
            torch.cuda.synchronize()

    jobs = {"encode": run_encode, "rerank": run_rerank, "matrix": run_matrix, "memory": lambda _: _resident()}
    return NamedJobs(jobs, torch.OutOfMemoryError)


def engine_jobs(bundle: Path, device: str, precision: str, images: np.ndarray, tokens: np.ndarray) -> Jobs:
    """Prepare our runtime, without torch: `encode N`, `rerank N`, `memory`, and `graphs`, the outputs of each graph."""
    from pairvpr.runtime import Model, load_model
    from pairvpr.runtime.features import Features

    model = load_model(bundle, device, precision)
    stored = Features(np.zeros((len(tokens), model.bundle.info.dims.descriptor), np.float32), tokens)

    def run_encode(batch: int) -> np.ndarray:
        features = model.encode_prepared(images[:batch])
        return np.asarray(features.descriptors)

    def run_rerank(batch: int) -> np.ndarray:
        return Model(model.bundle, model.engines, batch).score(stored[0], stored[1:])

    def graphs(_: int) -> dict[str, Any]:
        features = model.encode_prepared(images)
        pairs = model.prefix(tokens[:1], tokens)
        scores = model.suffix(pairs, np.arange(len(tokens)))
        return {
            "engine": model.engines.description,
            "descriptors": np.asarray(features.descriptors),
            "tokens": np.asarray(features.tokens),
            "looks": model.look(tokens[:1], tokens),
            "summaries": pairs.summaries,
            "scores": scores,
        }

    jobs = {"encode": run_encode, "rerank": run_rerank, "graphs": graphs, "memory": lambda _: _resident()}
    return NamedJobs(jobs, EngineError)


class NamedJobs(dict[str, Callable[[], Any]]):
    """Jobs by name and number ("encode 8"). A job that runs out of memory gives None; smaller ones may still fit."""

    def __init__(self, jobs: dict[str, Callable[[int], Any]], short: type[Exception]) -> None:
        self._jobs, self._short = jobs, short

    def __missing__(self, key: str) -> Callable[[], Any]:
        name, _, number = key.partition(" ")

        def job() -> Any:
            try:
                return self._jobs[name](int(number or 1))
            except self._short as error:
                if "memory" not in str(error):
                    raise
                return None

        return job


def _resident() -> int:
    """Return the most bytes of host memory of this process, without those of its parent before it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.findall(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[0])
