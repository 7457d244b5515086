"""Make INT8 graphs for the GPU benchmark, whose seeded weights the gate of `export --int8` would refuse."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pairvpr.export.int8 import Arrays, FloatGraph, measure_ranges, write_int8
from pairvpr.runtime import Model, load_model
from pairvpr.runtime.bundle import Bundle, sha256
from pairvpr.runtime.bundle_info import FILE, GRAPHS, FileInfo, PrecisionInfo

INT8 = "int8-fp16"
PICTURES = 5
"""So many of the town's pictures, a query and candidates, give the ranges."""


def add_int8(folder: Path, images: np.ndarray) -> None:
    """Add INT8 graphs with a float16 remainder to a bundle with fp32 and fp16; all linear layers are quantized.

    images: uint8 (n, H, W, 3); the first few give the ranges.
    """
    bundle = Bundle.open(folder)
    model = load_model(folder, "cpu", "fp32")
    graphs = {}
    for name in GRAPHS:
        ranges = measure_ranges(FloatGraph(bundle.graph("fp32", name, cpu=False)), _feeds(model, name, images))
        quantized = FloatGraph(bundle.graph("fp16", name, cpu=False)).static(ranges, ())
        graphs[name] = write_int8(quantized, name, INT8, folder)
    written = [folder / file for each in graphs.values() for file in (each.file, each.weights)]
    files = {file.name: FileInfo(file.stat().st_size, sha256(file)) for file in written}
    info = dataclasses.replace(
        bundle.info,
        files={**bundle.info.files, **files},
        precisions={**bundle.info.precisions, INT8: PrecisionInfo(graphs, {})},
    )
    (folder / FILE).write_text(info.to_json(), encoding="utf-8")


def _feeds(model: Model, name: str, images: np.ndarray) -> Iterator[Arrays]:
    """Return the inputs of a graph while the first picture is compared with itself and the others."""
    images = images[:PICTURES]
    if name == "encoder":
        yield from ({"images": image[None]} for image in images)
        return
    tokens = model.encode_prepared(images).tokens
    feed = {"query_tokens": tokens[:1], "database_tokens": tokens}
    if name == "pair_suffix":
        states = model.engines.pair_prefix.run(feed)
        feed |= {state: states[state] for state in ("query_state", "database_state")}
        feed["keep"] = np.arange(len(tokens))
    yield feed
