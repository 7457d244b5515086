"""Measure the gain of each part of training, by short runs from two starts of the decoder, with and without stage one.

    python -m benchmarks.ablation TOWN TEST --start CHECKPOINT --out benchmarks/results/ablation.json

TOWN and TEST are written by `pairvpr town`, TEST with --evaluation. Encoder and descriptor start from CHECKPOINT, as
the paper's start from DINOv2. The decoder starts as `seeded_network` gives it, or as MAE's does. Stage one teaches the
decoder alone and leaves the encoder as it is; an encoder that is trained along forgets places (see benchmarks/results).
The figures are Recall@1 by descriptor, after re-ranking by one order (query first), and by both orders, on queries
that are evenly spread over TEST.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pairvpr.evaluation import load_folders
from pairvpr.model import Checkpoint, PairVPR, load_checkpoint, save_checkpoint
from pairvpr.runtime.image import load_picture, resize
from pairvpr.training import StageOneConfig, StageTwoConfig, train_stage_one, train_stage_two
from pairvpr.training.config import InitConfig, RunConfig, SourceConfig, StageOneTrain, StageTwoTrain
from pairvpr.training.initial import seeded_network

BATCH = 64


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("town", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--start", required=True, help="Checkpoint whose encoder and descriptor have learned.")
    parser.add_argument("--stage-one", type=int, default=200, help="Steps.")
    parser.add_argument("--stage-two", type=int, default=200, help="Steps.")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def fresh_decoder(start: Checkpoint, path: Path, matching: bool = True) -> Path:
    """Return a checkpoint of the start's encoder and descriptor with an untrained decoder.

    matching: start the decoder as one that looks for counterparts; otherwise Xavier-uniform, as MAE's.
    """
    network = seeded_network(start.network.config, 0)
    learned = {k: v for k, v in start.network.state_dict().items() if not k.startswith("decoder.")}
    network.load_state_dict(learned, strict=False)
    if not matching:
        torch.manual_seed(0)
        attentions = [block.cross_attn for block in network.decoder.blocks]
        for layer in [network.decoder.embed, *(layer for attention in attentions for layer in attention.children())]:
            torch.nn.init.xavier_uniform_(layer.weight)
    save_checkpoint(Checkpoint(network, start.weights), path)
    return path


def train(args: argparse.Namespace, start: Path, folder: Path, with_stage_one: bool) -> tuple[PairVPR, float]:
    """Train one arm; return the network and the seconds that it took."""
    began = time.perf_counter()
    network = load_checkpoint(start).network.config
    common: dict[str, Any] = {
        "data": (SourceConfig("folders", {"root": str(args.town)}),),
        "run": RunConfig(workers=1, device="cpu", save_every=10**6),
    }
    init = InitConfig(checkpoint=str(start))
    if with_stage_one:
        one = StageOneConfig(
            out=folder / "one",
            network=dataclasses.replace(network, pair_classifier=False),
            init=init,
            train=StageOneTrain(
                steps=args.stage_one, batch=64, lr=1e-3, warmup_epochs=1, mask_ratio=0.75, trained_blocks=0, clip=1.0
            ),
            **common,
        )
        decoder = train_stage_one(one).checkpoint / "network.safetensors"
        init = dataclasses.replace(init, decoder=str(decoder))  # descriptor and classifier start as without stage one
    two = StageTwoConfig(
        out=folder / "two",
        network=network,
        init=init,
        train=StageTwoTrain(
            steps=args.stage_two,
            places=24,
            pictures_per_place=3,
            lr=8e-4,
            warmup_steps=20,
            decay_steps=args.stage_two,
            decay_to=0.03,
            augmentation="relight",
            strength=0.4,
            order="mixed",
            pairs="ranked",
            trained_blocks=-1,
            clip=1.0,
        ),
        **common,
    )
    trained = load_checkpoint(train_stage_two(two).checkpoint / "network.safetensors").network
    return trained, time.perf_counter() - began


@torch.inference_mode()
def recall(network: PairVPR, args: argparse.Namespace) -> dict[str, float]:
    """Return Recall@1 in per cent by descriptor, after re-ranking by one order, and by both."""
    benchmark = load_folders(args.test / "database", args.test / "queries")
    chosen = np.linspace(0, len(benchmark.queries) - 1, min(args.queries, len(benchmark.queries))).astype(int)
    database = features(network, [file for _, file in benchmark.database])
    queries = features(network, [benchmark.queries[i][1] for i in chosen])
    right = {"descriptor": 0, "one order": 0, "both orders": 0, "reachable": 0}
    for row, number in enumerate(chosen):
        similarities = database[0] @ queries[0][row]
        candidates = similarities.topk(min(args.candidates, len(similarities))).indices
        first, second = queries[1][row].expand(len(candidates), -1, -1), database[1][candidates]
        one = network.pair_logits(first, second)
        both = one + network.pair_logits(second, first)
        positives = set(benchmark.positives[number].tolist())
        for name, scores in (("descriptor", similarities[candidates]), ("one order", one), ("both orders", both)):
            right[name] += int(candidates[scores.argmax()]) in positives
        right["reachable"] += bool(positives & set(candidates.tolist()))
    return {name: round(100 * count / len(chosen), 1) for name, count in right.items()}


def features(network: PairVPR, files: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return descriptors (n, G) and tokens (n, T, D) of picture files."""
    side = network.config.image_size
    parts = []
    for start in range(0, len(files), BATCH):
        pictures = np.stack([resize(load_picture(file), (side, side)) for file in files[start : start + BATCH]])
        parts.append(network.encode(torch.from_numpy(pictures)))
    descriptors, tokens = zip(*parts, strict=True)
    return torch.cat(descriptors), torch.cat(tokens)


def main() -> None:
    """Train all arms, measure, print, and write the table."""
    args = arguments()
    table: dict[str, Any] = {name: getattr(args, name) for name in ("stage_one", "stage_two", "queries", "candidates")}
    with tempfile.TemporaryDirectory() as folder:
        learned = load_checkpoint(args.start)
        matching = fresh_decoder(learned, Path(folder) / "matching.safetensors")
        plain = fresh_decoder(learned, Path(folder) / "plain.safetensors", matching=False)
        table["start"] = recall(load_checkpoint(matching).network, args)
        for name, start, with_stage_one in (
            ("without stage one", matching, False),
            ("with stage one", matching, True),
            ("without stage one, MAE's start", plain, False),
            ("with stage one, MAE's start", plain, True),
        ):
            network, seconds = train(args, start, Path(folder) / name.replace(" ", "-"), with_stage_one)
            table[name] = {"recall@1": recall(network, args), "seconds": round(seconds)}
            print(name, json.dumps(table[name], allow_nan=False), flush=True)
    if args.out:
        args.out.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
