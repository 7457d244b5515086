"""The description of a plan from a stranger: it is used correctly or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pairvpr.errors import EngineError
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import GRAPHS
from pairvpr.runtime.engines.tensorrt.cuda import Gpu
from pairvpr.runtime.engines.tensorrt.plans import PlanInfo, choose_profile, graph_profiles, read_plan
from pairvpr.runtime.model import default_bundle
from tests.runtime.test_hostile_bundle import VALUES, forge, places

GPU = Gpu("Test Board", "8.7", 16)


def description(graph: str, content: bytes = b"plan") -> PlanInfo:
    """Return the description of a plan with this content."""
    import hashlib

    info = Bundle.open(default_bundle()).info
    return PlanInfo(
        graph=graph,
        precision="fp16",
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        sources={"a.onnx": "0" * 64},
        gpu=GPU,
        tensorrt="10.3.0",
        versions={"cuda": "12.6"},
        version_compatible=False,
        hardware_compatible=True,
        profiles=graph_profiles(graph, info.dims, info.picture, [1, 8]),
        layer_types={"HALF": 10},
        build_seconds=1.5,
        decision={"kept": True},
    )


def use(file: Path) -> None:
    """Do what an engine does with a description before the plan is loaded."""
    info = PlanInfo.load(file)
    info.find_problem({"a.onnx": "0" * 64}, GPU, "10.3.0")
    info.find_problem({"a.onnx": "0" * 64}, GPU, "10.4.1.2")
    assert info.largest_batch >= 0
    for profile in info.profiles:
        shapes = {name: shape for name, (_, shape, _) in profile.items()}
        assert choose_profile(info.profiles, shapes) is not None
    read_plan(file.with_suffix(".plan"), info)


@pytest.mark.parametrize("examples", [100, pytest.param(500, marks=pytest.mark.soak)])
def test_a_forged_description_of_a_plan_is_refused_or_used(tmp_path: Path, examples: int) -> None:
    file = tmp_path / "encoder.fp16.json"
    file.with_suffix(".plan").write_bytes(b"plan")
    originals = {graph: description(graph).to_json() for graph in GRAPHS}
    for original in originals.values():
        file.write_text(original)
        use(file)
    every = [(graph, place) for graph, text in originals.items() for place in places(json.loads(text))]

    @settings(
        max_examples=examples,
        deadline=5000,
        derandomize=examples < 500,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(st.sampled_from(every), VALUES)
    def check(where: tuple[str, tuple[Any, ...]], value: Any) -> None:
        content = json.loads(originals[where[0]])
        forge(content, where[1], value)
        file.write_text(json.dumps(content))
        said = ""
        try:
            use(file)
        except EngineError as error:
            said = str(error)
        assert said == "" or (said.isprintable() and str(file.parent) in said)
        assert sorted(each.name for each in tmp_path.iterdir()) == ["encoder.fp16.json", "encoder.fp16.plan"]

    check()


@pytest.mark.parametrize(
    "edit",
    [
        lambda profile: profile.pop("keep"),
        lambda profile: profile.update(more=profile["keep"]),
        lambda profile: profile["keep"].reverse(),
        lambda profile: profile["keep"][0].append(1),
    ],
)
def test_profiles_are_those_of_the_inputs(tmp_path: Path, edit: Any) -> None:
    content = json.loads(description("pair_suffix").to_json())
    edit(content["profiles"][1])
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(EngineError, match="not a plan's description"):
        PlanInfo.load(tmp_path / "a.json")
