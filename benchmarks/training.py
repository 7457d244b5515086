"""Measure the time of training: drawing a town, loading its pictures, and the steps of both stages.

    python -m benchmarks.training --preset nano --out benchmarks/results/training_nano.json

Each stage's step is timed on a batch in memory, in alternation with a large matrix product of the same precision, and
its share of that product's rate is reported. Operations are counted by torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pairvpr.data import FolderPlaces
from pairvpr.data.samples import PairBatch, PairSamples, PlaceBatch, PlaceSamples
from pairvpr.data.sampling import EpochOrder, StepBatches
from pairvpr.data.town import write_town
from pairvpr.data.transforms import CropAndJitter, CropAndRelight, SquashAndAugment
from pairvpr.model import PRESETS
from pairvpr.training.distributed import joined_world
from pairvpr.training.initial import seeded_network
from pairvpr.training.loop import fast_attention
from pairvpr.training.stage_one import StageOneObjective
from pairvpr.training.stage_two import StageTwoObjective

PAIRS, PLACES, PER_PLACE, MASKED = 32, 16, 4, 0.9
MATRIX = 2048


def seconds(job: Callable[[], Any]) -> float:
    """Return the seconds of a job."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def measure(job: Callable[[], Any], pictures: int, rounds: int) -> dict[str, float]:
    """Return pictures a second of a step, and its share of the rate of a large bfloat16 product, taken in turn."""
    with FlopCounterMode(display=False) as counter:
        job()
    work = counter.get_total_flops()
    factor = torch.randn(MATRIX, MATRIX, dtype=torch.bfloat16)
    steps, shares = [], []
    for _ in range(rounds):
        step, product = seconds(job), seconds(lambda: factor @ factor)
        steps.append(step)
        shares.append(work / step / (2 * MATRIX**3 / product))
    return {
        "pictures_per_second": round(pictures / statistics.median(steps), 1),
        "gflop_per_picture": round(work / pictures / 1e9, 2),
        "share_of_matrix_rate": round(statistics.median(shares), 3),
    }


def learning(preset: str, rounds: int) -> dict[str, Any]:
    """Measure steps of both stages, forward and backward in bfloat16, on pictures of noise."""
    network = seeded_network(PRESETS[preset], 0)
    side, tokens = network.config.image_size, len(network.decoder.positions)
    generator = torch.Generator().manual_seed(0)

    def noise(count: int) -> torch.Tensor:
        return torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=generator)

    mask = torch.rand(PAIRS, tokens, generator=generator) < MASKED
    pairs = PairBatch(noise(PAIRS), noise(PAIRS), mask, [])
    places = PlaceBatch(noise(PLACES * PER_PLACE), torch.arange(PLACES).repeat_interleave(PER_PLACE), [])
    with joined_world("cpu") as world, fast_attention(world.device):
        objectives = {
            "stage one": (StageOneObjective(network), pairs, 2 * PAIRS),
            "stage two": (StageTwoObjective(network, world, 2.0), places, PLACES * PER_PLACE),
            "stage two, descriptor alone": (StageTwoObjective(network, world, 0.0), places, PLACES * PER_PLACE),
        }

        def step(objective: torch.nn.Module, batch: PairBatch | PlaceBatch) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = objective(batch).loss
            loss.backward()
            network.zero_grad()

        return {
            name: measure(lambda o=objective, b=batch: step(o, b), count, rounds)
            for name, (objective, batch, count) in objectives.items()
        }


def drawing_and_loading(side: int) -> dict[str, float]:
    """Measure pictures a second: drawn by all processors, and loaded by one worker."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "town"
        write_town(out, 2, 1, 6, lambda done, total: None)  # starts the processes' imports
        started = time.perf_counter()
        write_town(Path(folder) / "timed", 12, 0, 6, lambda done, total: None)
        rates = {"drawing, start of its processes included": 12 * 18 / (time.perf_counter() - started)}
        places = FolderPlaces(str(Path(folder) / "timed"))
        order = EpochOrder(places.groups, 0)
        (draws,) = StepBatches(order, len(places), range(1))
        samples = {
            "loading for stage one": (PairSamples(places, CropAndJitter(side), 81, MASKED), 2),
            "loading for stage two, randaugment": (PlaceSamples(places, SquashAndAugment(side), PER_PLACE), PER_PLACE),
            "loading for stage two, relight": (PlaceSamples(places, CropAndRelight(side), PER_PLACE), PER_PLACE),
        }
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as workers do
        for name, (data, count) in samples.items():
            taken = seconds(lambda data=data: [data[draw] for draw in draws])
            rates[name] = count * len(draws) / taken
        torch.set_num_threads(threads)
    return {name: round(rate, 1) for name, rate in rates.items()}


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {
        "preset": args.preset,
        "threads": args.threads,
        "versions": {"torch": torch.__version__},
        "learning": learning(args.preset, args.rounds),
        "pictures_per_second": drawing_and_loading(PRESETS[args.preset].image_size),
    }
    print(json.dumps(results, indent=1, allow_nan=False))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
