"""The description beside a checkpoint from a stranger: the network is the right one, or it is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from pairvpr.errors import CheckpointError
from pairvpr.model import load_checkpoint, save_checkpoint
from tests.runtime.test_hostile_bundle import VALUES, forge, places

# Values that a network may have, so that some descriptions get as far as the weights.
NAMES = ["vit_small_patch16_224", "resnet18", "hf-hub:a/b", "offset", "nano", 1.5]
NEAR = st.integers(0, 1024) | st.sampled_from(NAMES)


@pytest.mark.parametrize("examples", [40, pytest.param(500, marks=pytest.mark.soak)])
def test_a_forged_description_is_refused_or_loads_the_same_network(
    checkpoint_of: Any, tmp_path: Path, examples: int
) -> None:
    file = tmp_path / "network.safetensors"
    made = load_checkpoint(checkpoint_of("tiny-decoder"))
    save_checkpoint(made, file)
    sidecar = file.with_suffix(".json")
    original = sidecar.read_text()
    shapes = {name: tensor.shape for name, tensor in made.network.state_dict().items()}

    @settings(
        max_examples=examples,
        deadline=5000,
        derandomize=examples < 500,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(st.sampled_from(places(json.loads(original))), VALUES | NEAR)
    def check(place: tuple[Any, ...], value: Any) -> None:
        content = json.loads(original)
        forge(content, place, value)
        sidecar.write_text(json.dumps(content))
        said = ""
        try:
            found = load_checkpoint(file)
            assert {name: tensor.shape for name, tensor in found.network.state_dict().items()} == shapes
        except CheckpointError as error:
            said = str(error)
        assert said == "" or said.isprintable()
        assert sorted(each.name for each in tmp_path.iterdir()) == ["network.json", "network.safetensors"]

    check()
