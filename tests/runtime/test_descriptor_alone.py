"""A model without a pair classifier: maps without tokens, answers and decisions by similarity."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pairvpr.calibration.acceptance import PrecisionTarget, calibrate_acceptance
from pairvpr.cli.main import main
from pairvpr.cli.run import main as run_main
from pairvpr.errors import BundleError, EngineError, SourceError
from pairvpr.runtime import Match, Model, PlaceRecognizer, Recognition, load_model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import DESCRIPTOR_FORMAT, FILE, FORMAT, BundleInfo, Dims
from pairvpr.runtime.calibrated.acceptance import KEY
from pairvpr.runtime.calibrated.judge import ACCEPTED, NOT_SIMILAR
from pairvpr.runtime.map import Map, MapWriter, merge_maps, repair_map, verify_map
from pairvpr.runtime.mapping.builder import add_pictures
from pairvpr.runtime.mapping.closure import Threshold
from pairvpr.runtime.mapping.loop_closing import LoopCloser
from pairvpr.runtime.measure import DESCRIPTOR_ALONE, Measure
from pairvpr.runtime.model import default_bundle
from pairvpr.runtime.outputs.covariance import Floor, pose_covariance
from pairvpr.runtime.reference import check_reference
from pairvpr.runtime.rig import fuse
from pairvpr.runtime.sequence.filter import SequenceFilter
from pairvpr.runtime.sequence.observation import FOUND, Observation, Spread, read_values
from tests.scenes import draw_scene

SIZE, APART, PLACES, ASKED = (64, 64), 50, 8, 48
"""A map of PLACES pictures APART metres from each other, and ASKED pictures along the same street."""


def invoke(command: str, *arguments: object) -> Result:
    program, *names = command.split()
    started = run_main if program == "pairvpr-run" else main
    return CliRunner().invoke(started, [*names, *(str(argument) for argument in arguments)])


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert not result.stdout
    said = result.stderr.strip().splitlines()
    assert len(said) == 1, said
    return said[0]


@pytest.fixture(scope="module")
def home(descriptor_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `database`, a `map` of it, and `queries`: other views of the places, as two traverses."""
    home = tmp_path_factory.mktemp("home")
    for side, count in (("database", PLACES), ("queries", ASKED)):
        for number in range(count):
            folder = home / side / (f"drive{number % 6}" if side == "queries" else "")
            folder.mkdir(parents=True, exist_ok=True)
            place, visit = (number, 0) if side == "database" else divmod(number, 6)
            Image.fromarray(draw_scene(place, visit, SIZE)).save(folder / f"@{APART * place}@{visit}@{number:06d}.png")
    made = invoke("pairvpr map build", home / "database", "--db", home / "map", "--model", descriptor_bundle)
    assert made.exit_code == 0, made.output
    assert made.stderr.count(DESCRIPTOR_ALONE) == 1
    return home


@pytest.fixture(scope="module")
def model(descriptor_bundle: Path) -> Model:
    return load_model(descriptor_bundle)


def query(home: Path, place: int) -> Path:
    return next((home / "queries").glob(f"*/@{APART * place}@1@*.png"))


# The bundle


def test_the_bundle_has_one_graph_and_a_format_of_its_own(descriptor_bundle: Path, model: Model) -> None:
    info = model.bundle.info
    assert (info.graphs, info.pair_classifier, info.measure) == (("encoder",), False, Measure.SIMILARITY)
    assert json.loads((descriptor_bundle / FILE).read_text())["format"] == DESCRIPTOR_FORMAT
    assert json.loads((default_bundle() / FILE).read_text())["format"] == FORMAT
    assert BundleInfo.from_json(info.to_json(), Path("here")) == info
    assert check_reference(model).ok


def test_a_description_with_some_sizes_of_a_pair_classifier_is_refused(model: Model) -> None:
    forged = dataclasses.replace(model.bundle.info, dims=Dims(512, 0, 256, 4, 4, 1))
    with pytest.raises(BundleError, match="dims has sizes of a pair classifier"):
        BundleInfo.from_json(forged.to_json(), Path("here"))


def test_features_have_descriptors_alone(model: Model) -> None:
    pictures = [draw_scene(place, 0, SIZE) for place in range(3)]
    features, expected = model.encode(pictures), load_model().encode(pictures)
    np.testing.assert_array_equal(features.descriptors, expected.descriptors)
    assert features.tokens.shape == (3, 0, 0)
    assert features[1:].tokens.shape == (2, 0, 0)
    with pytest.raises(EngineError, match="a descriptor alone and has no pair scores"):
        model.score(features[0], features)


# The map


def test_the_map_stores_no_tokens(home: Path, model: Model) -> None:
    with Map.open(home / "map") as map_:
        assert (map_.token_shape, map_.token_format.type) == ((0, 0), "none")
        assert map_.read_tokens([2, 0]).shape == (2, 0, 0)
        stored = sum(file.stat().st_size for file in (home / "map" / "segments").glob("*.safetensors"))
        assert stored < PLACES * 4 * model.bundle.info.dims.descriptor + 400
    assert (
        "tokens             none: the model has no pair classifier"
        in invoke("pairvpr map info", "--db", home / "map").stdout
    )
    assert "intact" in invoke("pairvpr map verify", "--db", home / "map").stdout


def test_maps_are_added_to_merged_compacted_and_repaired(home: Path, model: Model, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(draw_scene(0, ord(name), SIZE)).save(tmp_path / f"{name}.png")
        add_pictures(tmp_path / f"{name}.png", tmp_path / f"map-{name}", model, create=True)
    assert merge_maps([tmp_path / "map-b"], tmp_path / "map-a").merged == 1
    with MapWriter.edit(tmp_path / "map-a") as writer:
        writer.remove(["a.png"])
        writer.compact()
    assert not verify_map(tmp_path / "map-a")
    segment = next((tmp_path / "map-a" / "segments").glob("*.safetensors"))
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    assert len(verify_map(tmp_path / "map-a")) == 1
    assert repair_map(tmp_path / "map-a").kept == 0


@pytest.mark.parametrize("option", [("--tokens", "int8"), ("--keep-tokens", "0.5")])
def test_options_of_tokens_are_refused(
    home: Path, descriptor_bundle: Path, tmp_path: Path, option: tuple[str, str]
) -> None:
    made = invoke("pairvpr map build", home / "database", "--db", tmp_path / "m", "--model", descriptor_bundle, *option)
    assert f"{option[0]} needs a pair classifier" in refused(made)
    assert not (tmp_path / "m" / "map.sqlite").exists()


# Answers


def test_answers_go_by_similarity_and_say_so_once(home: Path, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pairvpr")
    with PlaceRecognizer.open(home / "map", budget_ms=1e-3) as vpr:
        answers = [vpr.recognize(query(home, place)) for place in range(PLACES)]
        names, stored = [record.name for record in vpr.map.records], vpr.map.descriptors
    assert sum(DESCRIPTOR_ALONE in line for line in caplog.messages) == 1
    for place, answer in enumerate(answers):
        similarities = stored @ model.encode([query(home, place)]).descriptors[0]
        assert [match.name for match in answer.matches] == [names[row] for row in np.argsort(-similarities)]
        assert (answer.complete, answer.compared, answer.measure) == (True, 0, Measure.SIMILARITY)
        assert {(match.score, match.stage) for match in answer.matches} == {(None, "descriptor")}
        assert json.loads(answer.to_json())["best"]["score"] is None


def test_commands_that_need_pair_scores_are_refused_in_one_line(home: Path, descriptor_bundle: Path) -> None:
    asked = ("--query", query(home, 0), "--db", home / "map")
    assert "--cascade needs a pair classifier" in refused(invoke("pairvpr-run", *asked, "--cascade"))
    for target in (("--db", home / "map"), ("--model", descriptor_bundle)):
        said = refused(invoke("pairvpr calibrate cascade", *target, "--images", home / "queries"))
        assert "`pairvpr calibrate cascade` needs a pair classifier" in said
    assert invoke("pairvpr-run", *asked, "--no-rerank", "--exact").exit_code == 0


# Decisions


def test_a_threshold_on_similarities(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = ("--db", home / "map", "--images", home / "queries", "--radius", 5, "--precision-target", 0.6)
    made = invoke("pairvpr calibrate threshold", *options)
    assert made.exit_code == 0, made.output
    assert "similarity >= 0." in made.stdout
    assert "by descriptor alone" in made.stdout
    again = invoke("pairvpr calibrate threshold", *options)
    assert again.stdout == made.stdout
    assert "answers are kept from an earlier calibration" in again.stderr
    for top_k in (None, 2):  # the most similar picture is always found
        with PlaceRecognizer.open(home / "map", top_k=top_k) as vpr:
            acceptance = vpr._view.judge.acceptance
            answers = [vpr.recognize(query(home, place)) for place in range(PLACES)]
        assert acceptance is not None
        assert acceptance.measure is Measure.SIMILARITY
        for answer in answers:
            similar = answer.best.similarity >= acceptance.threshold
            assert (answer.accepted, answer.reason) == (similar, ACCEPTED if similar else NOT_SIMILAR)
            assert answer.confidence == acceptance.confidence(answer.best.similarity)
    accepted = next(answer for answer in answers if answer.accepted)
    assert pose_covariance(accepted, Floor()).shape == (6, 6)
    assert "measure" not in Bundle.open(home / "map" / "model").info.calibration[KEY]
    assert "similarity >= 0." in invoke("pairvpr map info", "--db", home / "map").stdout


def test_a_promise_that_no_similarity_keeps(home: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Match("m", None, 0.5, "descriptor")
    monkeypatch.setattr(
        PlaceRecognizer, "recognize_frame", lambda *_: Recognition("q", matches=(wrong,), complete=True)
    )
    target = PrecisionTarget(precision=0.6, radius=5)
    with Map.open(home / "map") as map_, pytest.raises(SourceError, match=r"no similarity shows a precision of 0\.6"):
        calibrate_acceptance(map_, model, [home / "queries"], target, lambda *_: None)


def test_the_camera_of_the_highest_similarity_speaks_for_the_robot() -> None:
    answers = [
        Recognition(str(value), matches=(Match("m", None, value, "descriptor"),), complete=True)
        for value in (0.3, 0.8, 0.5)
    ]
    assert fuse(answers).camera == 1


# Sequences and loops


def similar(similarities: list[float]) -> Recognition:
    matches = (Match(f"m{i}", None, value, "descriptor") for i, value in enumerate(similarities))
    return Recognition("q", matches=tuple(matches), complete=True)


def test_a_similarity_far_above_the_others_is_evidence() -> None:
    similarities = [0.9, *np.linspace(0.5, 0.3, 60)]
    spread = Spread.from_values(read_values(similar(similarities[5:])))
    observed = Observation.from_answer(similar(similarities), 61, spread)
    assert observed.ratios.argmax() == 0
    assert observed.ratios[0] > 20 * observed.ratios[1]
    assert observed.ratios[-1] < 0.1
    nowhere = Observation.from_answer(similar(np.linspace(0.5, 0.3, 61).tolist()), 61, spread)
    assert nowhere.ratios.max() < 1
    assert observed.elsewhere == 1.0
    assert Observation.from_answer(similar(similarities), 1000, spread).elsewhere == pytest.approx(1 - FOUND)


@pytest.mark.parametrize("similarities", [[], [0.4], [0.4, 0.4, 0.4], [1.0, 1.0000001]])
def test_similarities_that_do_not_differ_say_nothing(similarities: list[float]) -> None:
    ratios = Observation.from_answer(similar(similarities), len(similarities)).ratios
    assert np.isfinite(ratios).all()
    assert len(similarities) == len(ratios)
    assert np.ptp(ratios) == 0 if len(ratios) else True


def test_a_sequence_of_similarities(home: Path) -> None:
    with PlaceRecognizer.open(home / "map") as vpr:
        sequence = SequenceFilter(vpr.map.records)
        found = [sequence.update(vpr.recognize(query(home, place))).sequence for place in range(PLACES)]
        names = [record.name for record in vpr.map.records]
    assert [each.name for each in found[1:] if each is not None] == names[1:]
    result = invoke("pairvpr-run", "--db", home / "map", "--query", home / "queries" / "drive1", "--sequence")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("sequence: ") == PLACES


def test_a_loop_of_similar_pictures(model: Model, tmp_path: Path) -> None:
    found = []
    with LoopCloser(model, Threshold(0.9), exclude=25, report=found.append) as closer:
        (tmp_path / "data").mkdir()
        rows = ["#timestamp [ns],filename"]
        for number, place in enumerate((0, 1, 2, 3, 0, 1)):
            stamp = int((100 + 10 * number) * 1e9)
            Image.fromarray(draw_scene(place, 0, SIZE)).save(tmp_path / "data" / f"{stamp}.png")
            rows.append(f"{stamp},{stamp}.png")
        (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
        add_pictures(tmp_path, tmp_path / "map", model, create=True, loop_closer=closer)
    assert [(loop.timestamp, loop.earlier_timestamp) for loop in found] == [(140.0, 100.0), (150.0, 110.0)]
    assert all(loop.score is None and loop.similarity > 0.9 for loop in found)
    assert json.loads(found[0].to_json())["score"] is None


def test_the_command_of_loops_names_the_number(home: Path, descriptor_bundle: Path, tmp_path: Path) -> None:
    options = ("--db", tmp_path / "map", "--model", descriptor_bundle, "--threshold", "0.5")
    said = invoke("pairvpr map loops", home / "database", *options).stderr
    assert "closing loops from a similarity of 0.5 on" in said or "has no time stamp" in said


# Measurements


def test_an_evaluation_has_no_re_ranking(home: Path, descriptor_bundle: Path, tmp_path: Path) -> None:
    options = ("--model", descriptor_bundle, "--tolerance", 0, "--report", tmp_path / "report", "--sequence")
    for side, pictures in (("database", home / "database"), ("queries", home / "queries" / "drive2")):
        (tmp_path / side).mkdir()
        for number, file in enumerate(sorted(pictures.iterdir(), key=lambda file: file.name[-10:])):
            (tmp_path / side / f"{number:03d}.png").write_bytes(file.read_bytes())
    result = invoke("pairvpr eval", tmp_path / "database", tmp_path / "queries", *options)
    assert result.exit_code == 0, result.output
    assert f"{PLACES} database pictures, by descriptor alone" in result.stdout
    assert "re-ranked" not in result.stdout
    assert "pair score" not in result.stdout
    assert "similarity as confidence" in result.stdout
    figures = json.loads((tmp_path / "report" / "results.json").read_text())
    assert (figures["ranked_by"], figures["precision_recall"]["score"]) == ("similarity", None)
    assert figures["recall"]["descriptor"] == figures["recall"]["re_ranked"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Accepting by similarity" in page
    assert "e-rank" not in page
    assert "air score" not in page


def test_the_demo_and_the_bench(home: Path, descriptor_bundle: Path, tmp_path: Path) -> None:
    shown = invoke(
        "pairvpr demo", "--images", home / "database", "--model", descriptor_bundle, "--out", tmp_path / "demo"
    )
    assert shown.exit_code == 0, shown.output
    assert "re-ranking" not in shown.stdout
    assert "e-rank" not in (tmp_path / "demo" / "index.html").read_text()
    timed = invoke("pairvpr bench", "--model", descriptor_bundle, "--images", home / "database", "--queries", 2)
    assert timed.exit_code == 0, timed.output
    assert "0 of them compared in full" in timed.stdout
