"""Train a small network by labels, by a teacher on unlabelled pictures, and by both, in the same short run.

    python -m benchmarks.distillation TOWN TEST --teacher CHECKPOINT --out benchmarks/results/distillation.json

TOWN and TEST are as in `benchmarks.ablation`. The student is half as deep as the default model and starts from scratch.
The figures are Recall@1 of the students and of the teacher, on queries that are evenly spread over TEST.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ablation import recall
from pairvpr.model import PRESETS, load_checkpoint
from pairvpr.training import StageTwoConfig, train_stage_two
from pairvpr.training.config import RunConfig, SourceConfig, StageTwoTrain, TeacherConfig

PICTURES = 72
"""Of a step."""
STUDENT = dataclasses.replace(
    PRESETS["nano"], preset="custom", encoder_args={"depth": 3, "num_heads": 6}, decoder_depth=2
)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("town", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--teacher", required=True, help="A checkpoint of stage two.")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def student(args: argparse.Namespace, folder: Path, labels: bool, teacher: bool) -> dict[str, Any]:
    """Train one student and return its figures."""
    began = time.perf_counter()
    count = 3 if labels else 1
    config = StageTwoConfig(
        out=folder,
        network=STUDENT,
        data=(SourceConfig("folders" if labels else "pictures", {"root": str(args.town)}),),
        run=RunConfig(workers=1, device="cpu", save_every=10**6),
        train=StageTwoTrain(
            steps=args.steps,
            places=PICTURES // count,
            pictures_per_place=count,
            lr=5e-4,
            warmup_steps=30,
            augmentation="relight",
            strength=0.2,
            order="mixed",
            pairs="easy",
            trained_blocks=-1,
            clip=1.0,
        ),
        teacher=TeacherConfig(args.teacher if teacher else ""),
    )
    trained = load_checkpoint(train_stage_two(config).checkpoint / "network.safetensors").network
    seconds = round(time.perf_counter() - began)
    return {"recall@1": recall(trained, args), "seconds": seconds}


def main() -> None:
    """Train the three, measure, print, and write the table."""
    args = arguments()
    table: dict[str, Any] = {name: getattr(args, name) for name in ("steps", "queries", "candidates")}
    table["the teacher itself"] = {"recall@1": recall(load_checkpoint(args.teacher).network, args)}
    with tempfile.TemporaryDirectory() as folder:
        for name, labels, teacher in (("labels", True, False), ("teacher alone", False, True), ("both", True, True)):
            table[name] = student(args, Path(folder) / name, labels, teacher)
            print(name, json.dumps(table[name], allow_nan=False), flush=True)
    if args.out:
        args.out.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
