"""From drawn pictures to a report with the default model, without torch; the report's files."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pairvpr.errors import CheckpointError, MapError, PairVPRError, SourceError
from pairvpr.evaluation import Evaluation, evaluate, load_folders, sequence_warning, summary, write_report
from pairvpr.evaluation.benchmark import Benchmark
from pairvpr.evaluation.hog import describe, hog_recall
from pairvpr.evaluation.predictions import predictions_text
from pairvpr.evaluation.report import MARKER, check_report_folder
from pairvpr.evaluation.results import ModelInfo
from pairvpr.export.load import open_model
from pairvpr.html.document import percent
from pairvpr.runtime import load_model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import Weights
from pairvpr.runtime.map import Map, MapWriter
from pairvpr.runtime.mapping.builder import open_writer
from tests.html.page_reader import Page
from tests.scenes import draw_scene

PLACES = 8
STEPS = ("decode", "preprocess", "encode", "search", "gather", "rerank", "total")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Eight places 100 m apart: one picture of each for the map, a second look as query, and one from nowhere."""
    root = tmp_path_factory.mktemp("pictures")
    for side, visit in (("database", 0), ("queries", 1)):
        (root / side).mkdir()
        for place in range(PLACES):
            file = root / side / f"@{100 * place}.0@0.0@{place}@.png"
            Image.fromarray(draw_scene(place, visit)).resize((160, 120)).save(file)
    Image.fromarray(draw_scene(99, 0)).resize((160, 120)).save(root / "queries/@90000.0@0.0@nowhere@.png")
    return root


@pytest.fixture(scope="module")
def benchmark(pictures: Path) -> Benchmark:
    return load_folders(pictures / "database", pictures / "queries")


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def evaluation(benchmark, model) -> Evaluation:
    return evaluate(benchmark, model, top_k=3)


def test_the_answers_are_those_of_the_model(benchmark, model, evaluation):
    database = model.encode([path for _, path in benchmark.database])
    assert evaluation.by_descriptor.shape == (PLACES + 1, PLACES)
    for i, (_, path) in enumerate(benchmark.queries):
        query = model.encode([path])
        similarities = database.descriptors @ query.descriptors[0]
        order = evaluation.by_descriptor[i]
        assert sorted(order) == list(range(PLACES))
        assert np.allclose(evaluation.similarities[i], similarities[order], atol=1e-4)
        assert (np.diff(evaluation.similarities[i]) <= 1e-6).all()
        # Re-ranking orders the first three by score and leaves the others where they were.
        re_ranked = evaluation.re_ranked[i]
        assert sorted(re_ranked[:3]) == sorted(order[:3])
        assert re_ranked[3:].tolist() == order[3:].tolist()
        scores = model.score(query, database)
        assert np.allclose(
            evaluation.scores[i, :3], scores[re_ranked[:3]], atol=0.01 * np.ptp(scores)
        )  # the map rounds
        assert (np.diff(evaluation.scores[i, :3]) <= 0).all()
        assert np.isnan(evaluation.scores[i, 3:]).all()
    assert set(evaluation.timings) == set(STEPS)
    assert all(len(spent) == PLACES + 1 for spent in evaluation.timings.values())
    assert (evaluation.built, evaluation.top_k) == (PLACES, 3)
    assert evaluation.bytes_per_picture > 1000


def test_figures_equal_a_direct_count(benchmark, evaluation):
    figures = evaluation.figures()
    assert figures.without_answer == 1
    for found, ranked in (
        (figures.recall_before, evaluation.by_descriptor),
        (figures.recall_after, evaluation.re_ranked),
    ):
        assert list(found) == [1, 5]  # of 8 pictures
        for n, share in found.items():
            hits = sum(bool(set(row[:n]) & set(right)) for row, right in zip(ranked, benchmark.positives, strict=True))
            assert share == pytest.approx(hits / (PLACES + 1))  # a query without a right answer is a miss
    assert figures.by_score.recall[-1] == pytest.approx(figures.recall_after[1] * (PLACES + 1) / PLACES)


def test_an_interrupted_build_goes_on(benchmark, model, evaluation, tmp_path):
    dims = model.bundle.info.dims
    with MapWriter.open(
        tmp_path / "map",
        identity=model.bundle.identity,
        descriptor_dim=dims.descriptor,
        token_shape=(dims.tokens, dims.token_dim),
        install_model=model.bundle.install,
    ) as writer:
        for name, path in (benchmark.database[5], benchmark.database[2]):  # in another order
            writer.add(name=name, source=str(path.resolve()), features=model.encode([path]))
    told = []
    again = evaluate(benchmark, model, top_k=3, work_dir=tmp_path, progress=lambda *step: told.append(step))
    assert again.built == PLACES - 2
    assert told[0] == ("building the map", PLACES - 2, PLACES - 2)
    assert told[-1] == ("recognising", PLACES + 1, PLACES + 1)
    assert (again.re_ranked == evaluation.re_ranked).all()
    span = np.nanmax(evaluation.scores) - np.nanmin(evaluation.scores)
    assert np.allclose(again.scores, evaluation.scores, atol=0.01 * span, equal_nan=True)
    with Map.open(tmp_path / "map") as places:
        assert len(places) == PLACES
    assert evaluate(benchmark, model, top_k=1, work_dir=tmp_path).built == 0
    other = dataclasses.replace(benchmark, name="other", database=benchmark.database[:4])
    with pytest.raises(MapError, match=r"is no database picture of other; choose another folder"):
        evaluate(other, model, top_k=1, work_dir=tmp_path)
    with pytest.raises(MapError, match="is a map; choose another folder"):
        evaluate(benchmark, model, top_k=1, work_dir=tmp_path / "map")


def test_what_cannot_be_evaluated(benchmark, model, tmp_path):
    for k in (0, PLACES + 1):
        with pytest.raises(MapError, match=rf"top-k {k} is outside 1 to {PLACES}, its database's pictures; choose"):
            evaluate(benchmark, model, top_k=k)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    database = (("broken.png", broken), *benchmark.database[1:])
    with pytest.raises(SourceError, match=r"broken\.png"):
        evaluate(dataclasses.replace(benchmark, database=database), model, top_k=1)


def test_it_runs_without_torch(pictures, tmp_path):
    """In a process where torch, timm and onnx cannot be imported, from folders to the page."""
    code = f"""
import sys
for name in ("torch", "timm", "onnx", "pairvpr.model"):
    sys.modules[name] = None
from pairvpr.errors import CheckpointError
from pairvpr.evaluation import evaluate, load_folders, write_report
from pairvpr.export.load import open_model
benchmark = load_folders({str(pictures / "database")!r}, {str(pictures / "queries")!r})
with open_model() as model:
    print(write_report(evaluate(benchmark, model, top_k=2), {str(tmp_path / "report")!r}))
try:
    with open_model(checkpoint="speed.pth"):
        pass
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "speed.pth: a checkpoint needs torch" in done.stdout
    assert (tmp_path / "report/index.html").exists()


def test_a_checkpoint_is_exported_to_a_temporary_fp32_bundle(benchmark, model, monkeypatch):
    """With an exporter that hands out the default bundle; the slow test has the true one."""
    asked = []

    def export_bundle(checkpoint, precision, out, progress):
        asked.append((checkpoint, precision))
        model.bundle.install(out)
        return Bundle.open(out)

    monkeypatch.setitem(sys.modules, "pairvpr.model", SimpleNamespace(load_checkpoint=lambda file: f"loaded {file}"))
    monkeypatch.setitem(sys.modules, "pairvpr.export.bundle_writer", SimpleNamespace(export_bundle=export_bundle))
    with open_model(checkpoint="speed.pth") as opened:
        folder = opened.bundle.path
        assert opened.bundle.identity == model.bundle.identity
        assert evaluate(benchmark, opened, top_k=1).built == PLACES
    assert asked == [("loaded speed.pth", "fp32")]
    assert not folder.exists()


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_as_the_bundle_it_exports_to(checkpoint_of, benchmark):
    pytest.importorskip("torch")
    with open_model(checkpoint=checkpoint_of("tiny-decoder")) as opened:
        assert list(opened.bundle.info.precisions) == ["fp32"]
        found = evaluate(benchmark, opened, top_k=2)
        identity = opened.bundle.identity
    assert found.model.identity == identity
    with pytest.raises(CheckpointError), open_model(checkpoint="missing.pth"):
        pass


@pytest.fixture
def crafted(pictures: Path) -> Evaluation:
    """One query of each kind, by hand: won, lost, wrong, right, and one without a right answer."""
    database = tuple((f"<d{i}>.png", path) for i, path in enumerate(sorted((pictures / "database").iterdir())))
    queries = tuple((f"q{i}.png", path) for i, path in enumerate(sorted((pictures / "queries").iterdir())[:5]))
    by_descriptor = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]])
    re_ranked = np.array([[1, 0, 2], [1, 0, 2], [1, 0, 2], [0, 1, 2], [0, 1, 2]])
    positives = tuple(np.array(right, np.int64) for right in ([1], [0], [2, 5], [0], []))
    similarities = np.tile(np.array([0.9, 0.8, 0.7], np.float32), (5, 1)) - np.arange(5, dtype=np.float32)[:, None] / 99
    scores = np.tile(np.array([2.0, 1.0, np.nan], np.float32), (5, 1)) + np.arange(5, dtype=np.float32)[:, None]
    return Evaluation(
        Benchmark("<b>by hand</b>", database, queries, positives, "Right & wrong."),
        ModelInfo("nano", "0" * 64, Weights("seeded", "none", trained=False), "cpu, <fp32>"),
        2,
        by_descriptor,
        re_ranked,
        similarities,
        scores,
        {step: np.arange(1.0, 6.0) for step in STEPS},
        PLACES,
        2.0,
        123_456.0,
    )


def test_the_page_shows_each_effect_of_re_ranking(crafted, tmp_path):
    path = write_report(crafted, tmp_path / "report")
    html = path.read_text()
    page = Page(html)
    for title in ("Put right by re-ranking 1", "Put wrong by re-ranking 1", "Wrong throughout 2", "Right throughout 1"):
        assert title in page.text
    for text in ("<b>by hand</b>", "Right & wrong.", "never trained", "123 kB", "4.0 a second", "one"):
        assert text in page.text
    assert page.text.count("A right answer") == 1 + 2  # the heading of recall, and where the first match is wrong
    assert "The database holds no right answer." in page.text
    assert "The first right answer is number 3 by descriptor, number 3 after re-ranking." in page.text
    assert page.count("polyline") == 2
    assert page.count("svg") == 3  # matches, histogram, curves
    assert (page.count("circle", "right"), page.count("circle", "wrong")) == (2, 3)
    assert "q0.png -> <d1>.png, right" in page.text
    assert "score 2.00 to 2.13: 1 right" in page.text
    assert "precision 40.0 %, recall 50.0 %" in page.text
    hog = percent(hog_recall(crafted.benchmark)[1])
    for row in (
        f"@140.0 % (11.8 to 76.9)40.0 % (11.8 to 76.9){hog}12.5 %",
        "all40.0 %60.0 %0.0 %",
        "at most 5 % wrong0.0 %0.0 %100.0 %none",
        "80%not reached",
        "99%not reached",
    ):
        assert row in page.text
    assert page.count("img") == 5 * 3 + 2 + 3
    assert "Pictures that are wrongly answered most 1 shown" in page.text
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.pictures)
    assert "<b>by hand" not in html
    assert "$" not in page.text


def test_results_and_summary(crafted, tmp_path):
    write_report(crafted, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["recall"] == {"descriptor": {"1": 0.4}, "re_ranked": {"1": 0.4}}
    assert found["benchmark"]["queries_without_answer"] == 1
    assert found["milliseconds"]["total"] == {"median": 3.0, "p95": 4.8}
    # By score queries 4 (no answer) and 3 (right) are accepted first, then 2, 1 (wrong), 0 (right), of 4 answerable.
    assert found["precision_recall"]["score"]["recall"] == [0, 0.25, 0.25, 0.25, 0.5]
    assert found["precision_recall"]["score"]["recall_at_full_precision"] == 0
    assert found["model"]["weights"]["trained"] is False
    assert found["recall_interval"]["re_ranked"]["1"] == pytest.approx([0.1176, 0.7693], abs=1e-4)
    assert found["operating_points"] == []
    lines = summary(crafted).splitlines()
    assert lines[0] == "<b>by hand</b>: 5 queries, 8 database pictures, the best 2 re-ranked"
    assert lines[3].split() == ["descriptor", "40.0"]


def test_a_record_of_each_query(crafted, tmp_path):
    write_report(crafted, tmp_path)
    first, second, third, fourth, fifth = map(json.loads, (tmp_path / "queries.jsonl").read_text().splitlines())
    assert first == {
        "format": 1,
        "query": "q0.png",
        "positives": ["<d1>.png"],
        "rank_descriptor": 2,
        "rank_re_ranked": 1,
        "descriptor_order": ["<d0>.png", "<d1>.png", "<d2>.png"],
        "similarities": [0.9, 0.8, 0.7],
        "matches": ["<d1>.png", "<d0>.png"],
        "scores": [2.0, 1.0],
    }
    assert (second["rank_descriptor"], second["rank_re_ranked"]) == (1, 2)
    assert (third["positives"], third["rank_re_ranked"]) == (["<d2>.png", "<d5>.png"], 3)
    assert fourth["rank_descriptor"] == 1
    assert (fifth["positives"], fifth["rank_descriptor"]) == ([], None)
    scores = crafted.scores.copy()
    scores[0, 1] = np.nan
    filtered = dataclasses.replace(crafted, scores=scores, filtered=np.array([3] * 5), off_map=np.full(5, 0.25))
    write_report(filtered, tmp_path)
    record = json.loads((tmp_path / "queries.jsonl").read_text().splitlines()[0])
    assert (record["scores"], record["sequence"], record["off_map"]) == ([2.0, None], "<d3>.png", 0.25)


def test_the_page_of_a_sequence_shows_its_matches_too(crafted, tmp_path):
    filtered = dataclasses.replace(crafted, filtered=np.array([0, 0, 2, 0, 0]), off_map=np.zeros(5))
    page = Page(write_report(filtered, tmp_path / "report").read_text())
    assert page.count("svg") == 4
    assert "3 right (green) and 2 wrong (red)" in page.text
    assert "@1, sequence60.0 % (23.1 to 88.2)" in page.text


def test_pictures_that_are_wrongly_answered_most_are_shown(crafted, tmp_path):
    hubs = dataclasses.replace(crafted, re_ranked=np.array([[3, 1, 2], [3, 0, 2], [3, 1, 2], [0, 1, 2], [2, 1, 0]]))
    page = Page(write_report(hubs, tmp_path / "report").read_text())
    assert "Pictures that are wrongly answered most 1 shown" in page.text
    assert "The first match of 3 queries of other places." in page.text
    found = json.loads((tmp_path / "report" / "results.json").read_text())["hubs"]
    assert found == [{"picture": "<d3>.png", "queries": ["q0.png", "q1.png", "q2.png"]}]


def test_errors_are_distances_of_first_matches(benchmark, evaluation, tmp_path):
    assert benchmark.positions is not None
    figures = evaluation.figures()
    off = [
        np.linalg.norm(benchmark.positions.database[row[0]] - benchmark.positions.queries[i])
        for i, row in enumerate(evaluation.re_ranked)
    ]
    assert figures.errors is not None
    assert (figures.errors.unit, figures.errors.median) == ("m", pytest.approx(np.median(off)))
    assert figures.errors.p95 == pytest.approx(np.percentile(off, 95))
    page = Page(write_report(evaluation, tmp_path / "report").read_text())
    assert f"m off (median), 95 % within {np.percentile(off, 95):,.1f}" in page.text
    assert f"Database: {Path(benchmark.database[0][1]).parent}. Queries: " in page.text


def test_hog_finds_the_same_picture_and_knows_orientation(benchmark):
    picture = Image.fromarray(draw_scene(0, 0)).resize((160, 120))
    assert describe(picture).shape == (756,)
    assert np.linalg.norm(describe(picture)) == pytest.approx(1, abs=1e-4)
    upright = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) % 8 // 4 * 255, (64, 1)))
    same, turned = upright.resize((128, 128)), upright.rotate(90)
    assert describe(upright) @ describe(same) > 0.9 > 0.5 > describe(upright) @ describe(turned)
    assert not describe(Image.new("RGB", (80, 60))).any()  # nothing to see
    own = dataclasses.replace(
        benchmark, queries=benchmark.database, positives=tuple(np.array([i]) for i in range(PLACES)), positions=None
    )
    assert hog_recall(own) == {1: 1.0, 5: 1.0}


def test_a_page_without_full_scores(crafted, tmp_path):
    bare = dataclasses.replace(crafted, scores=np.full_like(crafted.scores, np.nan))
    assert "No first match was compared in full." in Page(write_report(bare, tmp_path / "report").read_text()).text


def test_sequence_figures_and_the_warning_about_a_harmful_filter(crafted, tmp_path):
    assert sequence_warning(crafted) is None
    filtered = dataclasses.replace(
        crafted,
        filtered=np.array([0, 0, 2, 0, 0]),  # wrong, right, right, right, no right answer
        off_map=np.linspace(0, 1, 5),
        timings={**crafted.timings, "sequence": np.full(5, 0.25)},
    )
    write_report(filtered, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["sequence"] == {"recall": 0.6, "gained": 2, "lost": 1, "off_map": 0.5}
    assert "sequence: Recall@1 60.0 %, 2 queries right only with the filter, 1 only without" in summary(filtered)
    assert "the filter takes 0.25 ms a query" in summary(filtered)
    assert sequence_warning(filtered) is None
    worse = dataclasses.replace(filtered, filtered=np.array([0, 1, 1, 0, 0]))
    assert "the sequence filter lowers Recall@1: 40.0 % without it, 20.0 % with it" in str(sequence_warning(worse))


def test_a_sequence_follows_the_traverse_whatever_the_order_of_the_map(model, tmp_path):
    for side, visit in (("database", 0), ("queries", 1)):
        (tmp_path / side).mkdir()
        for place in range(5):
            Image.fromarray(draw_scene(place, visit)).resize((160, 120)).save(tmp_path / side / f"{place}.png")
    benchmark = load_folders(tmp_path / "database", tmp_path / "queries", 0)
    (tmp_path / "work").mkdir()
    with open_writer(tmp_path / "work" / "map", model, create=True) as writer:
        for place in (3, 0):
            name, path = benchmark.database[place]
            writer.add(name=name, source=str(path.resolve()), features=model.encode([path]))
    other = evaluate(benchmark, model, sequence=True, work_dir=tmp_path / "work")
    fresh = evaluate(benchmark, model, sequence=True)
    assert other.filtered.tolist() == fresh.filtered.tolist()
    assert np.allclose(other.off_map, fresh.off_map, atol=1e-3)
    assert len(fresh.timings["sequence"]) == 5
    assert evaluate(benchmark, model, top_k=2).filtered is None


def test_predictions_are_in_the_known_format(crafted, tmp_path):
    (tmp_path / "preds").mkdir()
    (tmp_path / MARKER).touch()
    for name in ("007.txt", "mine.txt"):
        (tmp_path / "preds" / name).touch()
    write_report(crafted, tmp_path)
    assert sorted(file.name for file in (tmp_path / "preds").iterdir()) == [
        *(f"{i:03d}.txt" for i in range(5)),
        "mine.txt",
    ]
    (_, query), files = crafted.benchmark.queries[2], [str(path) for _, path in crafted.benchmark.database]
    text = (tmp_path / "preds/002.txt").read_text()
    assert text.split("\n") == [
        "Query path:", str(query), "",
        "Predictions paths:", files[1], files[0], files[2], "",
        "Positives paths:", files[2], files[5], "",
    ]  # fmt: skip
    assert predictions_text("q", ["a", "b"], []) == "Query path:\nq\n\nPredictions paths:\na\nb\n\nPositives paths:\n\n"


def test_a_report_that_cannot_be_written(crafted, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PairVPRError, match=r"file: a file, not a folder; choose another folder for the report"):
        write_report(crafted, tmp_path / "file")


def test_a_report_that_cannot_be_written_is_refused_before_the_evaluation(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "report", Path("/proc/report")):
        with pytest.raises(PairVPRError, match=f"{folder}: cannot be written .*; choose another folder"):
            check_report_folder(folder)
    check_report_folder(tmp_path / "new" / "report")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_report_never_replaces_other_things(crafted, tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(PairVPRError, match="not empty and holds no report"):
        write_report(crafted, tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("index.html", "mine")]
    write_report(crafted, tmp_path / "new")
    write_report(crafted, tmp_path / "new")
