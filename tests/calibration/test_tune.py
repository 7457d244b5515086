"""`pairvpr tune`: what is tried and counted, which setting is chosen, and what is written."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pairvpr import machine
from pairvpr.calibration import candidates as candidates_module
from pairvpr.calibration import tune as tune_module
from pairvpr.calibration.candidates import SMALL_BATCH, Candidate, exact_setting, list_families
from pairvpr.calibration.trials import Tuned
from pairvpr.calibration.tune import pictures_needed, tune
from pairvpr.cli.main import main
from pairvpr.cli.run import main as run_main
from pairvpr.errors import EngineError, MapError, SourceError
from pairvpr.runtime import Match, Recognition, load_model
from pairvpr.runtime.bundle import TUNING, Bundle
from pairvpr.runtime.bundle_info import PrecisionInfo
from pairvpr.runtime.calibrated.tuning import RuntimeSetting, Tuning
from pairvpr.runtime.map import MapInfo
from pairvpr.runtime.mapping.builder import add_pictures
from pairvpr.runtime.model import default_bundle
from pairvpr.viewing.calibration_results import align, tuning_rows
from pairvpr.viewing.tuning_page import chosen_rows, render, table, verdict
from tests.scenes import draw_scene

PICTURES = 200
EXACT = RuntimeSetting("cpu", "fp32", exact=True)


def quiet(step: str, done: int, total: int) -> None:
    pass


class Plan:
    """Settings that behave as planned: milliseconds, and numbers of pictures with another first match."""

    path = Path("map")
    cascade: object | None = object()
    top_k = 100
    bundle = None

    def __init__(self, milliseconds: dict[str, float], changed: dict[str, set[int]]) -> None:
        self.milliseconds, self.changed = milliseconds, changed
        self.lacks: set[str] = set()
        self.asked: list[tuple[RuntimeSetting, int]] = []
        self.map_ = self

    def __len__(self) -> int:
        return 500

    def info(self) -> MapInfo:
        return MapInfo(
            self.path,
            "0",
            "0",
            500,
            0,
            0,
            0,
            1,
            256,
            (100, 192),
            {"type": "int8", "keep": 1},
            0,
            0,
            0,
            0.0,
            index_precision="float32",
        )

    def list_families(self, bundle: object, exact: bool) -> list[RuntimeSetting]:
        names = dict.fromkeys(name.removesuffix(" cascade") for name in self.milliseconds)
        return [RuntimeSetting(*name.split(), exact=exact) for name in names]

    def open(self, setting: RuntimeSetting) -> Candidate:
        if setting.precision in self.lacks:
            raise EngineError(f"no {setting.precision} here")
        return Candidate(setting, Planned(self, setting))  # type: ignore[arg-type]

    def both(self, fastest: Candidate) -> list[Candidate]:
        return [fastest, self.open(replace(fastest.setting, exact=True))]


class Planned:
    """A recogniser of a plan; two threads take 0.8 of the time, small batches more."""

    def __init__(self, plan: Plan, setting: RuntimeSetting) -> None:
        self.plan, self.setting = plan, setting
        self.name = f"{setting.device} {setting.precision}" + ("" if setting.exact else " cascade")
        self.model = self.engines = self
        self.description = self.name

    def recognize(self, picture: Path) -> Recognition:
        number = int(picture.stem)
        self.plan.asked.append((self.setting, number))
        factor = (0.8 if self.setting.threads == 2 else 1) * (1.1 if self.setting.batch_size else 1)
        name = "another" if number in self.plan.changed.get(self.name, ()) else "right"
        similarity = 1.0 if number in self.plan.changed.get("own", ()) else 0.9
        total = self.plan.milliseconds[self.name] * factor * (1 + (number % 100 == 0))
        return Recognition(picture.name, matches=(Match(name, 1.0, similarity, "full"),), timings={"total": total})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(PICTURES):
        Image.new("RGB", (16, 16)).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The fastest is wrong too often, the next is wrong once, one is slower than exact answers."""
    milliseconds = {"cpu fp32": 100, "cpu fp32 cascade": 50, "cpu int8": 120, "cpu int8 cascade": 110}
    milliseconds |= {"openvino bf16": 40, "openvino bf16 cascade": 20, "openvino int8": 30, "openvino int8 cascade": 10}
    often = set(range(1, PICTURES, 10))
    plan = Plan(
        milliseconds, {"openvino int8": often, "openvino int8 cascade": often, "openvino bf16 cascade": {PICTURES - 1}}
    )
    monkeypatch.setattr(tune_module.Workshop, "from_map", lambda map_: map_)
    monkeypatch.setattr(tune_module, "list_families", plan.list_families)
    monkeypatch.setattr(tune_module, "exact_setting", lambda bundle: EXACT)
    monkeypatch.setattr(candidates_module, "usable_cores", lambda: 2)
    return plan


def run(plan: Plan, images: Path, max_loss: float = 0.02, budget_ms: float | None = None) -> Tuned:
    return tune(plan, images, max_loss, budget_ms, quiet)  # type: ignore[arg-type]


def told(tuned: Tuned) -> dict[str, str]:
    return {trial.engine + (", 2 threads" if trial.setting.threads else ""): trial.outcome for trial in tuned.trials}


# What is chosen


def test_the_fastest_that_agrees_is_chosen(plan: Plan, images: Path) -> None:
    tuned = run(plan, images)
    assert tuned.chosen is not None
    assert tuned.chosen.setting == RuntimeSetting("openvino", "bf16", threads=2, exact=False)
    # 100 pictures are needed, 1.5 times as many used: every fourth is not.
    assert (tuned.chosen.pictures, tuned.chosen.changed) == (150, 1)
    assert tuned.chosen.median_ms == pytest.approx(16)
    assert tuned.chosen.p99_ms > 16
    assert told(tuned) == {
        "openvino int8 cascade, 2 threads": "too many other matches",
        "openvino bf16 cascade, 2 threads": "chosen",
        "openvino int8, 2 threads": "slower than the chosen one",
        "openvino bf16, 2 threads": "slower than the chosen one",
        "cpu fp32 cascade, 2 threads": "slower than the chosen one",
        "cpu fp32, 2 threads": "slower than the chosen one",
        "cpu int8 cascade, 2 threads": "slower than the chosen one",
        "cpu int8, 2 threads": "slower than the chosen one",
        "cpu fp32": "slower than the chosen one",
    }


def test_what_cannot_win_is_not_asked_for_long(plan: Plan, images: Path) -> None:
    plan.milliseconds |= {"cpu int8": 150, "cpu int8 cascade": 130}
    tuned = run(plan, images)
    by_name = {trial.engine: trial for trial in tuned.trials if trial.setting.threads}
    assert by_name["cpu int8 cascade"].outcome == by_name["cpu int8"].outcome == "no faster than exact"
    assert by_name["cpu int8"].pictures == tune_module.ROUND
    assert 3 < by_name["openvino int8 cascade"].changed <= 4  # left at the fourth: three in 150 are allowed
    assert by_name["openvino int8 cascade"].pictures < 100
    assert by_name["cpu fp32 cascade"].pictures == tune_module.ROUND * tune_module.ROUNDS
    assert tuned.exact.pictures == 150


def test_settings_take_turns(plan: Plan, images: Path) -> None:
    """In the comparison every picture is asked of all that are still there before the next one is."""
    run(plan, images)
    warm_up = next(i for i, (setting, _) in enumerate(plan.asked) if i >= 150 and setting == EXACT)
    turn = plan.asked[warm_up + 9 : warm_up + 9 + 9 * tune_module.ROUND]
    for start in range(0, len(turn), 9):
        assert len({setting for setting, _ in turn[start : start + 9]}) == 9
        assert len({number for _, number in turn[start : start + 9]}) == 1
    assert len({turn[start][0] for start in range(0, len(turn), 9)}) > 1  # and each is the first now and then


def test_a_budget_is_kept_at_p99_or_nothing_is_chosen(plan: Plan, images: Path) -> None:
    plan.milliseconds["openvino bf16"] = 30  # 24 with two threads
    kept = run(plan, images, budget_ms=33)
    assert kept.chosen is not None
    assert kept.chosen.engine == "openvino bf16 cascade"
    assert kept.chosen.p99_ms <= 33
    none = run(plan, images, budget_ms=20)  # the median would do
    assert none.chosen is None
    assert told(none)["openvino bf16 cascade, 2 threads"] == "over the budget at p99"
    assert told(none)["cpu fp32"] == "over the budget at the median"
    assert "No setting keeps 20 ms" in verdict(none)
    assert "Nothing was written. The nearest is openvino bf16, 2 threads, cascade, p99" in verdict(none)


def test_where_nothing_else_agrees_the_exact_setting_is_chosen(plan: Plan, images: Path) -> None:
    for name in plan.milliseconds:
        if name != "cpu fp32":
            plan.changed[name] = set(range(0, PICTURES, 2))
    tuned = run(plan, images)
    assert tuned.chosen is not None
    assert tuned.chosen.setting == replace(EXACT, threads=2)
    assert tuned.chosen.loss == 0


def test_the_front_holds_what_no_faster_setting_matches(plan: Plan, images: Path) -> None:
    front = run(plan, images).front()
    assert [trial.engine for trial in front] == ["openvino int8 cascade", "openvino bf16 cascade", "openvino bf16"]
    assert [trial.loss for trial in front] == sorted((trial.loss for trial in front), reverse=True)


def test_what_cannot_be_had_is_told(plan: Plan, images: Path) -> None:
    plan.lacks = {"bf16"}
    tuned = run(plan, images)
    assert tuned.left_out == ["openvino bf16: no bf16 here"]
    assert "Left out: openvino bf16: no bf16 here" in table(tuned)


# Pictures


@pytest.mark.parametrize(
    ("max_loss", "budget_ms", "needed"), [(0.003, None, 667), (0.01, None, 200), (0.5, None, 40), (0.5, 10.0, 100)]
)
def test_pictures_needed(max_loss: float, budget_ms: float | None, needed: int) -> None:
    assert pictures_needed(max_loss, budget_ms) == needed


def test_too_few_pictures_are_refused(plan: Plan, images: Path) -> None:
    with pytest.raises(SourceError, match=r"200 usable pictures; a loss of 0\.30% needs at least 667"):
        run(plan, images, max_loss=0.003)
    assert not plan.asked  # before anything is
    plan.changed["own"] = set(range(0, 150))
    with pytest.raises(SourceError, match=r"38 usable pictures \(112 more are in the map, 0 cannot"):
        run(plan, images)
    plan.changed["own"] = {0}
    assert run(plan, images).same == 1


def test_a_map_with_nothing_to_choose_is_refused(plan: Plan, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "__len__", lambda self: 2)
    with pytest.raises(MapError, match="a map of 2 pictures has nothing to choose"):
        run(plan, images)


# What is tried


def test_the_settings_of_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates_module, "working_devices", lambda: {"cpu": None})
    bundle = Bundle.open(default_bundle())

    def tried(*precisions: str) -> list[str]:
        held = {name: PrecisionInfo({}, {}) for name in precisions}
        fake = Bundle(bundle.path, dataclasses.replace(bundle.info, precisions=held))
        return [f"{each.device} {each.precision}" for each in list_families(fake, exact=True)]

    assert tried("fp16") == ["cpu fp16", "openvino fp16", "openvino bf16"]
    assert tried("fp16", "fp32") == ["cpu fp32", "openvino fp32", "openvino bf16"]
    assert tried("fp32", "int8", "int8-fp16", "int8-dynamic") == [
        "cpu fp32",
        "cpu int8-dynamic",
        "cpu int8",
        "openvino fp32",
        "openvino bf16",
        "openvino int8",
        "openvino int8-bf16",
    ]
    assert exact_setting(bundle) == RuntimeSetting("cpu", "fp16", exact=True)
    only = Bundle(bundle.path, dataclasses.replace(bundle.info, precisions={"int8": PrecisionInfo({}, {})}))
    with pytest.raises(EngineError, match="no float graphs to compare with"):
        exact_setting(only)


# What is shown


def test_the_page_and_the_table(plan: Plan, images: Path) -> None:
    tuned = run(plan, images, budget_ms=90)
    text, html = table(tuned), render(tuned)
    assert re.search(r"^\* openvino bf16, 2 threads, cascade +16\.0 .* 6\.25 +1 of 150 +0\.67% .* chosen$", text, re.M)
    assert "150 queries to a map of 500 pictures, 100 candidates each; tokens of the map: int8" in text
    assert verdict(tuned) == "Chosen: the fastest setting with a changed first match in at most 2.00% of pictures"
    assert ("setting", "openvino bf16, 2 threads, cascade") in chosen_rows(tuned)
    assert "<th>openvino bf16, 2 threads, cascade</th>" in html
    svg = ET.fromstring(re.search(r"<svg.*</svg>", html, re.S)[0])  # type: ignore[index]
    values = svg.findall("g[@class='mark']")
    assert len(values) == len(tuned.trials)
    assert "openvino bf16, 2 threads, cascade" in "".join(values[1].itertext())
    marks = [value[0] for value in values]
    assert [mark.get("class") for mark in marks][:3] == ["trial on", "trial on chosen", "trial"]
    assert svg.find("line[@class='budget']") is not None
    across = [float(mark.find("circle").get("cx")) for mark in marks]  # type: ignore[union-attr,arg-type]
    assert across == sorted(across)
    assert "http" not in html.replace("http-equiv", "")  # needs nothing from elsewhere


# The command, from pictures to answers


def invoke(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])  # type: ignore[arg-type]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as a test has time for: ONNX Runtime on four pictures."""
    monkeypatch.setattr(tune_module, "MIN_PICTURES", 4)
    monkeypatch.setattr(tune_module, "BUDGET_PICTURES", 4)
    monkeypatch.setattr(tune_module, "MORE", 1)
    monkeypatch.setattr(tune_module, "ROUND", 1)
    monkeypatch.setattr(tune_module, "RACED", 1)
    monkeypatch.setattr(candidates_module, "usable_cores", lambda: 1)
    monkeypatch.setattr(candidates_module, "PRECISIONS", {"cpu": ("fp16",), "cuda": (), "openvino": ()})


def cut(_: object) -> None:
    raise KeyboardInterrupt


def test_a_map_is_tuned_and_answers_so(tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, count in (("db", 3), ("images", 4)):
        (tmp_path / folder).mkdir()
        for place in range(count):
            picture = draw_scene(place % 3, int(folder == "images"), (96, 128))
            Image.fromarray(picture).save(tmp_path / folder / f"p{place}.png")
    db, page = tmp_path / "map", tmp_path / "tune.html"
    add_pictures(tmp_path / "db", db, load_model(), create=True)
    tuning = ["tune", "--db", db, "--images", tmp_path / "images", "--max-loss", "0.5", "--report"]

    refused = invoke(main, *tuning, tmp_path / "nowhere" / "tune.html")
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert "tune.html: cannot be written" in refused.stderr

    with monkeypatch.context() as cutting:
        cutting.setattr(tune_module._Session, "compare_all", cut)
        ended = invoke(main, *tuning, page)
    assert ended.exit_code == 130
    assert ended.stderr.endswith("\ninterrupted; nothing was written, neither page nor setting\n")
    assert not page.exists()
    assert TUNING not in Bundle.open(db / "model").info.calibration

    none = invoke(main, *tuning, page, "--budget-ms", "0.001", "--format", "jsonl")
    assert none.exit_code == 0, none.output
    result = json.loads(none.stdout)
    assert (result["bundle"], result["chosen"], result["candidates"]) == (str(db / "model"), None, 3)
    assert {"over the budget at the median"} <= {trial["outcome"] for trial in result["trials"]}
    assert TUNING not in Bundle.open(db / "model").info.calibration

    done = invoke(main, *tuning, page)
    assert done.exit_code == 0, done.output
    assert "1 settings, 4 pictures, 3 candidates" in done.stderr
    assert page.read_text().startswith("<!DOCTYPE html>")
    found = Tuning.find_in(Bundle.open(db / "model"))
    assert found is not None
    assert found.setting in [RuntimeSetting("cpu", "fp16", None, batch, True) for batch in (None, SMALL_BATCH)]
    assert "\nChosen: the fastest setting with a changed first match in at most 50.00% of pictures\n" in done.stdout
    assert all(f"  {line}\n" in done.stdout for line in align(tuning_rows(found)))
    assert TUNING not in Bundle.open(default_bundle()).info.calibration

    query = ["--db", db, "--query", tmp_path / "images" / "p0.png"]
    answered = invoke(run_main, *query)
    assert answered.exit_code == 0, answered.output
    (said,) = answered.stderr.splitlines()
    assert said.endswith(f"; tuned: {found.setting}")
    shown = invoke(main, "map", "info", "--db", db).stdout
    assert f"tuned              setting     {found.setting}\n" in shown
    assert all(line in shown for line in align(tuning_rows(found)))
    cascade = invoke(run_main, *query, "--cascade")
    assert (cascade.exit_code, len(cascade.stderr.splitlines())) == (2, 1)
    assert "no cascade was calibrated" in cascade.stderr

    monkeypatch.setattr(machine, "name", lambda: "a robot with 6 cores")
    moved = invoke(run_main, *query)
    assert moved.exit_code == 0, moved.output
    assert moved.stdout.split("(")[0] == answered.stdout.split("(")[0]
    warned = [line for line in moved.stderr.splitlines() if "is not used" in line]
    assert len(warned) == 1
    assert "this is a robot with 6 cores; find one for this computer with `pairvpr tune`" in warned[0]
