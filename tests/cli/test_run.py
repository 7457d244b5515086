"""`pairvpr-run`: answers on stdout in the documented formats, failures in one line with exit code 2."""

from __future__ import annotations

import contextlib
import errno
import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pairvpr.cli.run import main
from pairvpr.runtime.features import Features
from pairvpr.runtime.map import Map, MapWriter
from pairvpr.runtime.mapping.builder import BuildOptions, add_pictures
from pairvpr.runtime.model import Model, load_model
from pairvpr.signals import hold_interrupts
from tests.scenes import draw_scene

COUNT, SIZE = 6, (96, 128)
RUN = [sys.executable, "-m", "pairvpr.cli.run"]
# The JSON line of the design, which other tools read.
LINE = [
    "format", "query", "timestamp", "best", "matches", "accepted", "confidence", "reason", "compared", "complete",
    "timings", "error",
]  # fmt: skip
MATCH = ["name", "score", "similarity", "stage", "pose"]
STEPS = ["decode", "preprocess", "encode", "search", "gather", "rerank", "total"]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model()


@pytest.fixture(scope="module")
def home(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures `db`, their `map`, and `queries` of which one is broken."""
    home = tmp_path_factory.mktemp("home")
    for folder, visit, count in (("db", 0, COUNT), ("queries", 1, 2)):
        (home / folder).mkdir()
        for place in range(count):
            Image.fromarray(draw_scene(place, visit, SIZE)).save(home / folder / f"p{place}.png")
    (home / "queries" / "a.jpg").write_bytes(b"broken")
    poses = home / "poses.csv"
    lines = [f"p{place}.png,{place},2,0,0,0,0,1" for place in range(COUNT)]
    poses.write_text("\n".join(["name,x,y,z,qx,qy,qz,qw", *lines]))
    add_pictures(home / "db", home / "map", model, BuildOptions(poses=poses), create=True)
    return home


def run(home: Path, query: str, *options: str, db: str = "map") -> Result:
    return CliRunner().invoke(main, ["--db", str(home / db), "--query", query, *options])


def answers(result: Result) -> list[dict]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def assert_one_line(result: Result, *parts: str) -> None:
    """The error is all there is: exit code 2, one line on stderr, nothing on stdout."""
    assert result.exit_code == 2, (result.exit_code, result.output)
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stdout == ""
    for part in parts:
        assert part in result.stderr


def test_json_line_of_one_picture(home: Path) -> None:
    (line,) = answers(run(home, str(home / "queries" / "p0.png"), "--format", "jsonl"))
    assert list(line) == LINE
    assert (line["format"], line["query"], line["timestamp"], line["error"]) == (1, "p0.png", None, None)
    assert (line["accepted"], line["confidence"], line["reason"]) == (None, None, "not calibrated")
    assert (line["compared"], line["complete"], len(line["matches"])) == (COUNT, True, COUNT)
    assert list(line["timings"]) == STEPS
    assert line["best"] == line["matches"][0]
    for match in line["matches"]:
        assert (list(match), match["stage"]) == (MATCH, "full")
        place = float(match["name"][1])
        assert match["pose"] == {"x": place, "y": 2.0, "z": 0.0, "q": [0, 0, 0, 1], "frame": "map"}
        assert list(match["pose"]) == ["x", "y", "z", "q", "frame"]
    scores = [match["score"] for match in line["matches"]]
    assert scores == sorted(scores, reverse=True)


def test_a_folder_with_a_broken_picture_goes_on(home: Path) -> None:
    result = run(home, str(home / "queries"), "--format", "jsonl")
    lines = answers(result)
    assert [line["query"] for line in lines] == ["a.jpg", "p0.png", "p1.png"]
    assert list(broken := lines[0]) == LINE
    assert "a.jpg is not a picture" in broken["error"]
    assert (broken["best"], broken["matches"], broken["compared"], broken["complete"]) == (None, [], 0, False)
    assert [line["error"] for line in lines[1:]] == [None, None]
    first, *rest = result.stderr.splitlines()
    said = r"model: nano [0-9a-f]{12}, licence: Apache-2\.0; engine: ONNX Runtime .* on c.*; decisions: not calibrated"
    assert re.fullmatch(said, first)
    progress, unread = rest  # answers do not go to a terminal here, so their number is on stderr
    assert progress.startswith("pictures: 3 of 3")
    assert unread == f"{home / 'queries'}: 1 of 3 pictures could not be read"


def test_pairs_as_hloc_reads_them(home: Path) -> None:
    result = run(home, str(home / "queries"), "--format", "pairs", "--matches", "2")
    lines = answers(run(home, str(home / "queries"), "--format", "jsonl"))
    pairs = [tuple(line.split()) for line in result.stdout.rstrip("\n").split("\n")]  # hloc's parse_retrieval
    assert pairs == [(line["query"], match["name"]) for line in lines for match in line["matches"][:2]]
    assert len(pairs) == 4  # the picture that cannot be read has none


def test_pairs_have_names_without_spaces(home: Path, tmp_path: Path) -> None:
    name = "p 0.png"
    (tmp_path / name).write_bytes((home / "queries" / "p0.png").read_bytes())
    result = run(home, str(tmp_path / name), "--format", "pairs")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "names without spaces; rename it or use --format jsonl" in result.stderr.splitlines()[-1]


def test_a_log_of_json_lines(home: Path) -> None:
    result = run(home, str(home / "queries"), "--log", "jsonl")
    assert result.exit_code == 0
    model, unread = (json.loads(line) for line in result.stderr.splitlines())
    assert list(model) == ["time", "level", "logger", "message"]
    assert abs(datetime.fromisoformat(model["time"]).timestamp() - time.time()) < 600
    assert (model["level"], model["logger"]) == ("INFO", "pairvpr.runtime.recognizer")
    assert model["message"].startswith("model: nano ")
    assert (unread["level"], unread["message"]) == (
        "WARNING",
        f"{home / 'queries'}: 1 of 3 pictures could not be read",
    )
    failed = run(home, str(home / "queries"), "--log", "jsonl", "--top-k", "0")
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert json.loads(failed.stderr)["level"] == "ERROR"
    assert "top-k 0 is outside 1 to 6" in json.loads(failed.stderr)["message"]


def test_a_folder_without_a_readable_picture_is_an_error(home: Path, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("no picture")
    result = run(home, str(tmp_path), "--format", "jsonl")
    assert result.exit_code == 2
    assert [json.loads(line)["error"] is None for line in result.stdout.splitlines()] == [False, False]
    assert result.stderr.splitlines()[-1].startswith(f"Error: {tmp_path}: none of its 2 pictures could be read")


def test_the_text_format(home: Path) -> None:
    result = run(home, str(home / "queries"), "--matches", "2")
    assert result.exit_code == 0, result.stderr
    broken, *lines = result.stdout.splitlines()
    assert re.match(r"a\.jpg: .*is not a picture", broken)
    assert len(lines) == 6
    match = r"p\d\.png  score [+-]\d.*  similarity 0\.\d+  at \S.*"
    for query, (head, second, tail) in (("p0.png", lines[:3]), ("p1.png", lines[3:])):
        assert re.fullmatch(f"{query} -> {match}", head)
        assert re.fullmatch(f"    {match}", second)
        assert f"({COUNT} compared in " in tail


@pytest.mark.parametrize("count", [1, 100])
def test_matches_limits_what_is_listed_not_what_is_compared(home: Path, count: int) -> None:
    query = str(home / "queries" / "p1.png")
    (line,) = answers(run(home, query, "--format", "jsonl", "--matches", str(count)))
    assert (len(line["matches"]), line["compared"]) == (min(count, COUNT), COUNT)


def test_without_reranking(home: Path) -> None:
    (line,) = answers(run(home, str(home / "queries" / "p1.png"), "--format", "jsonl", "--no-rerank"))
    assert {(match["score"], match["stage"]) for match in line["matches"]} == {(None, "descriptor")}
    assert (line["compared"], line["complete"]) == (0, True)
    similarities = [match["similarity"] for match in line["matches"]]
    assert similarities == sorted(similarities, reverse=True)
    assert run(home, str(home / "queries" / "p1.png"), "--no-rerank").stdout.count("not compared") == COUNT


def test_a_sequence_says_where_the_robot_is(home: Path) -> None:
    lines = answers(run(home, str(home / "queries"), "--format", "jsonl", "--sequence"))
    assert [list(line) for line in lines] == [LINE, [*LINE, "sequence"], [*LINE, "sequence"]]
    for line in lines[1:]:
        place = line["sequence"]
        assert list(place) == ["name", "probability", "off_map", "pose"]
        assert 0 < place["probability"] < 1 - place["off_map"] + 1e-5
        assert place["pose"]["x"] == float(place["name"][1])
    text = run(home, str(home / "queries"), "--sequence")
    assert len(re.findall(r"\n  sequence: p\d\.png  probability 0\.\d+, off the map 0\.\d+  at ", text.stdout)) == 2
    assert "sequence: by positions, 1.0 m apart" in text.stderr


def test_a_sequence_needs_pair_scores(home: Path) -> None:
    assert_one_line(
        run(home, str(home / "queries"), "--sequence", "--no-rerank"),
        "--sequence needs pair scores: leave out --no-rerank",
    )


def test_options_reach_the_recognizer(home: Path, model: Model) -> None:
    query = str(home / "queries" / "p1.png")
    options = ["--top-k", "2", "--model", str(model.bundle.path), "--device", "cpu", "--precision", "fp16"]
    (line,) = answers(run(home, query, "--format", "jsonl", "--batch-size", "1", *options))
    assert line["compared"] == len(line["matches"]) == 2


def test_an_answer_says_that_its_budget_is_spent(home: Path) -> None:
    query = str(home / "queries" / "p1.png")
    (line,) = answers(run(home, query, "--format", "jsonl", "--budget-ms", "0.001"))
    assert (line["compared"], line["complete"], len(line["matches"])) == (0, False, COUNT)
    assert {(match["score"], match["stage"]) for match in line["matches"]} == {(None, "descriptor")}
    assert "(only 0 compared in " in run(home, query, "--budget-ms", "0.001").stdout
    (line,) = answers(run(home, query, "--format", "jsonl", "--budget-ms", "1000000"))
    assert (line["compared"], line["complete"]) == (COUNT, True)


@pytest.mark.parametrize("budget", ["0", "-3", "nan", "inf"])
def test_budgets_that_are_refused(home: Path, budget: str) -> None:
    result = run(home, str(home / "queries" / "p1.png"), "--budget-ms", budget)
    assert_one_line(result, f"budget of {budget} ms", "give more than 0")


def test_answers_go_to_a_file(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text('{"query": "of yesterday"}\n{"query": "cut sh')
    result = run(home, str(home / "queries"), "--format", "jsonl", "--out", str(out))
    assert (result.exit_code, result.stdout) == (0, "")
    first, cut, *lines = out.read_text().splitlines()
    assert (first, cut) == ('{"query": "of yesterday"}', '{"query": "cut sh')
    assert [json.loads(line)["query"] for line in lines] == ["a.jpg", "p0.png", "p1.png"]


def test_a_single_query_that_cannot_be_read(home: Path) -> None:
    assert_one_line(run(home, str(home / "queries" / "a.jpg"), "--format", "jsonl"), "a.jpg is not a picture")
    command = [*RUN, "--db", str(home / "map"), "--query", str(home / "queries" / "a.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--query", "nowhere.jpg"], "is not a file, folder, camera or stream"),
        (["--query", ""], "is not a file, folder, camera or stream"),
        (["--db", "nowhere"], "nowhere holds no map: build it with"),
        (["--db", "db"], "holds no map"),
        (["--top-k", "0"], "top-k 0 is outside 1 to 6"),
        (["--top-k", "7"], "top-k 7 is outside 1 to 6"),
        (["--top-k", "many"], "'many' is not a valid integer"),
        (["--matches", "0"], "--matches"),
        (["--batch-size", "0"], "--batch-size"),
        (["--device", "gpu"], "'gpu' is not one of"),
        (["--precision", "fp32"], "no fp32 graphs in this bundle"),
        (
            ["--precision", "int8"],
            "(it has: fp16); export the same checkpoint with `pairvpr export --int8 ",
        ),
        (["--model", "nowhere"], "no model bundle there"),
        (["--format", "xml"], "'xml' is not one of"),
        (["--out", "nowhere/x.jsonl"], "cannot be written"),
        (["--out", "db"], "--out"),
        (["--speed", "high"], "No such option"),
        (["more"], "unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    monkeypatch.chdir(home)
    arguments = ["--db", "map", "--query", "queries/p0.png", *options]
    assert_one_line(CliRunner().invoke(main, arguments), told)
    assert_one_line(CliRunner().invoke(main, arguments[2:4]), "give either --db, a map, or --fleet")


def test_maps_that_cannot_answer(home: Path, model: Model, tmp_path: Path) -> None:
    dims = model.bundle.info.dims
    shapes = {"descriptor_dim": dims.descriptor, "token_shape": (dims.tokens, dims.token_dim)}
    for name, identity in (("empty", model.bundle.identity), ("other", "0" * 64)):
        install = model.bundle.install
        with MapWriter.open(tmp_path / name, identity=identity, install_model=install, **shapes) as writer:
            if name == "other":
                writer.add(name="p.png", source="", features=model.encode([draw_scene(0, 0, SIZE)]))
    query = str(home / "queries" / "p0.png")
    assert_one_line(run(tmp_path, query, db="empty"), "holds no pictures", "pairvpr map add")
    assert_one_line(run(tmp_path, query, db="other"), "made with model 000000000000")


def test_a_map_damaged_where_it_is_read_only_when_needed(home: Path, model: Model, tmp_path: Path) -> None:
    add_pictures(home / "db", tmp_path / "map", model, create=True)
    segment = next((tmp_path / "map" / "segments").glob("*.safetensors"))
    content = bytearray(segment.read_bytes())
    content[-7] ^= 1
    segment.write_bytes(content)
    query = str(home / "queries")
    lost = f"the tokens of 'p{COUNT - 1}.png' fail their checksum"
    done = run(tmp_path, query, "--format", "jsonl")
    _, *found = answers(done)
    assert [(len(each["matches"]), each["compared"], each["complete"]) for each in found] == [(5, 5, False)] * 2
    assert all(match["name"] != f"p{COUNT - 1}.png" for each in found for match in each["matches"])
    assert done.stderr.count(lost) == 1
    stopped = run(tmp_path, query, "--strict", "--format", "jsonl")
    assert stopped.exit_code == 2
    assert lost in stopped.stderr


def test_text_from_files_is_escaped(home: Path, model: Model, tmp_path: Path) -> None:
    name = "\x1b]0;x\x07\x1b[2Jx\nFAKE \u202e.png"
    with MapWriter.open(tmp_path / "map", **shapes_of(model), install_model=model.bundle.install) as writer:
        writer.add(name=name, source="", features=model.encode([draw_scene(0, 0, SIZE)]))
    query = tmp_path / "a\x1b[2Jb.png"
    shutil.copy(home / "queries" / "p0.png", query)
    text = run(tmp_path, str(query)).stdout
    assert all(line.isprintable() for line in text.splitlines())
    assert text.splitlines()[0].startswith(r"a\x1b[2Jb.png -> \x1b]0;x\x07\x1b[2Jx\nFAKE \u202e.png  score")
    (line,) = run(tmp_path, str(query), "--format", "jsonl").stdout.splitlines()
    assert line.isprintable()
    assert json.loads(line)["best"]["name"] == name


def shapes_of(model: Model) -> dict[str, Any]:
    dims = model.bundle.info.dims
    shape = (dims.tokens, dims.token_dim)
    return {"identity": model.bundle.identity, "descriptor_dim": dims.descriptor, "token_shape": shape}


def test_a_map_of_other_sizes_than_its_model_is_refused(home: Path, model: Model, tmp_path: Path) -> None:
    shapes = {**shapes_of(model), "descriptor_dim": 8}
    features = Features(np.eye(1, 8, dtype=np.float32), np.zeros((1, *shapes["token_shape"]), np.float32))
    with MapWriter.open(tmp_path / "map", **shapes, install_model=model.bundle.install) as writer:
        writer.add(name="p.png", source="", features=features)
    assert_one_line(run(tmp_path, str(home / "queries" / "p0.png")), "holds features of sizes (8,", "build it again")


def test_a_viewer_that_fails_is_dropped(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pairvpr.viewing.run_record.RunRecord.add", fail)
    page = tmp_path / "run.html"
    done = run(home, str(home / "queries"), "--no-rerank", "--report", str(page), "--format", "jsonl")
    assert len(answers(done)) == 3
    assert done.stderr.count(f"--report {page}: stopped ([Errno 28] No space left on device)") == 1


def test_a_signal_waits_for_the_answer_in_hand() -> None:
    written = []

    def answer(signals: int) -> None:
        with hold_interrupts():
            for _ in range(signals):
                signal.raise_signal(signal.SIGINT)
            written.append(signals)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job begins with Ctrl-C ignored
    try:
        for signals in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                answer(signals)
    finally:
        signal.signal(signal.SIGINT, before)
    assert written == [1]  # a second signal takes effect at once


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_output(home: Path) -> None:
    command = [*RUN, "--db", str(home / "map"), "--query", str(home / "queries"), "--no-rerank"]
    with Path("/dev/full").open("w") as full:
        to_stdout = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    to_file = subprocess.run([*command, "--out", "/dev/full"], capture_output=True, text=True, check=False)
    for done in (to_stdout, to_file):
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("Error: the output cannot be written (No space left")
        assert "Traceback" not in done.stderr


def test_a_reader_that_closes_the_pipe(home: Path) -> None:
    command = [*RUN, "--db", str(home / "map"), "--query", str(home / "db"), "--format", "jsonl", "--no-rerank"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end) as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search("Traceback|BrokenPipe", done.stderr)


def test_file_names_that_are_not_utf8(home: Path, tmp_path: Path) -> None:
    query = os.fsencode(tmp_path) + b"/bad\xff.png"
    Path(os.fsdecode(query)).write_bytes((home / "queries" / "p0.png").read_bytes())
    command = [*RUN, "--db", str(home / "map"), "--format", "jsonl", "--no-rerank", "--query", query]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, capture_output=True, env=strict, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode())["query"] == "bad\udcff.png"


@contextlib.contextmanager
def live_camera() -> Iterator[tuple[str, threading.Semaphore]]:
    """The address of a camera that repeats one picture, and a semaphore released by each client that connects."""
    stream = io.BytesIO()
    Image.fromarray(draw_scene(0, 1, SIZE)).save(stream, "JPEG")
    closing, looked = threading.Event(), threading.Semaphore(0)

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            looked.release()
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
            self.end_headers()
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(stream.getvalue())}\r\n\r\n".encode()
            with contextlib.suppress(OSError):
                while not closing.wait(0.05):
                    self.wfile.write(head + stream.getvalue() + b"\r\n")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/live", looked
        finally:
            closing.set()
            server.shutdown()


def heed_ctrl_c() -> None:
    """Reset Ctrl-C as in a terminal. Processes in a shell's background ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_building_from_a_live_camera_well(model: Model, tmp_path: Path) -> None:
    """Pictures of an earlier run are not taken for those of this one: a camera counts from 0 each time."""
    pytest.importorskip("av")
    db, counted = tmp_path / "map", 0
    with live_camera() as (address, looked):
        for _ in range(2):
            command = [sys.executable, "-m", "pairvpr", "map", "build", address, "--db", str(db)]
            process = subprocess.Popen(
                command, preexec_fn=heed_ctrl_c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            with process, contextlib.ExitStack() as stack:
                stack.callback(process.kill)
                assert looked.acquire(timeout=60)
                time.sleep(4)
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            added = re.search(r"(\d+) pictures added, 0 with a place, 0 already there", output)
            assert added, output
            counted += int(added[1])
    with Map.open(db) as map_:
        assert len(map_) == counted > 2
        assert all(re.fullmatch(r"http://.*/live#\d{6}@\d+\.\d{3}", record.name) for record in map_.records)


def test_a_run_has_its_page(home: Path, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    done = run(home, str(home / "queries"), "--no-rerank", "--report", str(page))
    assert done.exit_code == 0, done.stderr
    assert f"page: {page}" in done.stderr.splitlines()
    text = page.read_text()
    assert "came to its end" in text
    assert text.count('<circle class="unjudged"') == 2
    assert text.count("<img") == 4
    assert "a.jpg is not a picture" in text


def test_a_run_is_recorded_for_rerun(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="recordings need the extra pairvpr[viz]")
    from rerun.chunk import RrdReader

    page, recorded = tmp_path / "run.html", tmp_path / "run.rrd"
    query = str(home / "queries")
    done = run(home, query, "--no-rerank", "--rerun", str(recorded), "--report", str(page))
    assert done.exit_code == 0, done.stderr
    assert "came to its end" in page.read_text()
    rows: dict[str, int] = {}
    for chunk in RrdReader(recorded).stream():
        rows[chunk.entity_path] = rows.get(chunk.entity_path, 0) + chunk.num_rows
    assert (rows["/query"], rows["/match"], rows["/log"]) == (2, 2, 3)


def test_a_recording_without_rerun(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    monkeypatch.delitem(sys.modules, "pairvpr.viewing.rerun_recording", raising=False)
    done = run(home, str(home / "queries"), "--no-rerank", "--rerun", str(tmp_path / "run.rrd"))
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert 'pip install "pairvpr[viz]"' in done.stderr
    assert not (tmp_path / "run.rrd").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_a_live_camera_well(home: Path, tmp_path: Path, number: signal.Signals) -> None:
    pytest.importorskip("av")
    page = tmp_path / "run.html"
    with live_camera() as (address, _):
        command = [*RUN, "--db", str(home / "map"), "--query", address, "--format", "jsonl", "--top-k", "1"]
        command += ["--report", str(page)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, preexec_fn=heed_ctrl_c, **pipes)
        with process, contextlib.ExitStack() as stack:
            stack.callback(process.kill)
            assert process.stdout
            output = [process.stdout.readline(), process.stdout.readline()]
            process.send_signal(number)
            rest, errors = process.communicate(timeout=60)
            output += rest.splitlines()
            assert process.returncode == 0, errors
    assert b"Traceback" not in errors
    assert all(json.loads(line)["error"] is None for line in output)
    assert "went on until it was stopped" in page.read_text()
    assert "Frames dropped" in page.read_text()


@pytest.mark.parametrize("arguments", [["--help"], ["--db", "nowhere", "--query", "a.jpg"]], ids=["success", "failure"])
def test_sigterm_has_its_handler_again_after_a_command(arguments: list[str]) -> None:
    def handle(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, handle)
    try:
        CliRunner().invoke(main, arguments)
        assert signal.getsignal(signal.SIGTERM) is handle
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigterm_ends_a_command_with_143(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminate(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("pairvpr.runtime.sources.rig.open_rig", terminate)
    done = run(home, str(home / "queries"))
    assert (done.exit_code, done.stderr) == (143, "\ninterrupted; nothing that was committed is lost\n")


def test_a_live_run_follows_changes_of_its_map(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    db = shutil.copytree(home / "map", tmp_path / "map")
    with Map.open(db) as map_:
        gone, *left = [record.name for record in map_.records]
    with live_camera() as (address, _):
        command = [*RUN, "--db", str(db), "--query", address, "--format", "jsonl", "--no-rerank"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process, contextlib.ExitStack() as stack:
            stack.callback(process.kill)
            assert process.stdout
            answers = (json.loads(line) for line in process.stdout)

            def names() -> set[str]:
                return {match["name"] for match in next(answers)["matches"]}

            assert names() == {gone, *left}
            with MapWriter.edit(db) as writer:
                writer.remove([gone])
            while names() != set(left):
                pass
            with MapWriter.edit(db) as writer:
                writer.remove(left)
            deadline = time.monotonic() + 4
            while time.monotonic() < deadline:
                assert names() == set(left)
            process.terminate()
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors.count(b"the map holds no pictures any more") == 1
