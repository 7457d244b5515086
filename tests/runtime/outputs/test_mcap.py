"""`pairvpr-run --out out.mcap`, read back by another library than the one that wrote it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("rosbags", reason="MCAP files need the extra pairvpr[bags]")
pytest.importorskip("mcap_ros2", reason="reading back needs mcap-ros2-support, of the extra pairvpr[test]")

from mcap.exceptions import EndOfFile
from mcap.reader import NonSeekingReader, make_reader
from mcap_ros2.decoder import DecoderFactory

from pairvpr.cli.run import main
from pairvpr.errors import SourceError
from pairvpr.runtime import Match, Recognition
from pairvpr.runtime.outputs.covariance import promised_deviation
from pairvpr.runtime.outputs.mcap import open_mcap
from pairvpr.runtime.outputs.ros_messages import AnswerMessages
from pairvpr.runtime.sources.base import Frame
from tests.runtime.outputs.ros_contract import acceptance, write_accepting_map
from tests.runtime.sources.bag_writer import BagWriter, scene, stamp

COUNT = 4
TYPES = {
    "/visual_localization/pose": "geometry_msgs/msg/PoseWithCovarianceStamped",
    "/visual_localization/candidates": "geometry_msgs/msg/PoseArray",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
}
ODD = 123_456_789  # nanoseconds that seconds in a float64 do not hold


def read(path: Path) -> dict[str, list[tuple[int, Any]]]:
    """Log time and message, by topic."""
    found = defaultdict(list)
    with path.open("rb") as stream:
        opened = make_reader(stream, decoder_factories=[DecoderFactory()], validate_crcs=True)
        assert opened.get_header().profile == "ros2"
        for schema, channel, message, decoded in opened.iter_decoded_messages():
            assert (schema.name, schema.encoding, channel.message_encoding) == (TYPES[channel.topic], "ros2msg", "cdr")
            found[channel.topic].append((message.log_time, decoded))
    return found


def nanoseconds(header: Any) -> int:
    return header.stamp.sec * 10**9 + header.stamp.nanosec


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `map` whose matches of its own pictures are accepted, `drive.mcap` and `queries`, one of which is broken."""
    home = tmp_path_factory.mktemp("home")
    write_accepting_map(home, COUNT)
    shutil.copytree(home / "db", home / "queries")
    (home / "queries" / "a.jpg").write_bytes(b"broken")
    with BagWriter(home, "drive.mcap") as bag:
        for place in range(COUNT):
            bag.image("/image", stamp(place) + ODD, scene(place), frame="lens", logged=stamp(place) + 5)
    (home / "drive" / "drive.mcap").rename(home / "drive.mcap")
    return home


def run(home: Path, query: str, out: Path, *options: str) -> Result:
    arguments = ["--db", str(home / "map"), "--query", str(home / query), "--out", str(out), *options]
    return CliRunner().invoke(main, arguments)


def test_answers_for_a_bag_have_its_stamps_and_frames(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mcap"
    done = run(home, "drive.mcap", out)
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    assert list(tmp_path.iterdir()) == [out]
    found = read(out)
    assert {topic: len(messages) for topic, messages in found.items()} == dict.fromkeys(TYPES, COUNT)
    stamps = [stamp(place) + ODD for place in range(COUNT)]
    frames = {"/diagnostics": "lens", "/visual_localization/pose": "map", "/visual_localization/candidates": "map"}
    for topic, messages in found.items():
        assert [logged for logged, _ in messages] == stamps
        assert [nanoseconds(message.header) for _, message in messages] == stamps
        assert {message.header.frame_id for _, message in messages} == {frames[topic]}
    for place, (_, pose) in enumerate(found["/visual_localization/pose"]):
        position = pose.pose.pose.position
        assert (position.x, position.y, pose.pose.pose.orientation.w) == (place, 2, 1)
        assert pose.pose.covariance[0] >= promised_deviation(acceptance()) ** 2
        assert len(found["/visual_localization/candidates"][place][1].poses) == COUNT
    (status,) = found["/diagnostics"][1][1].status
    values = {each.key: each.value for each in status.values}
    assert (status.level, status.hardware_id.endswith("drive.mcap")) == (0, True)
    assert (values["query"], values["candidate_1.name"]) == ("drive.mcap/image#000001", "p1.png")


def test_the_bag_source_reads_the_file(home: Path, tmp_path: Path) -> None:
    from rosbags.highlevel import AnyReader

    out = tmp_path / "out.mcap"
    assert run(home, "drive.mcap", out).exit_code == 0
    with AnyReader([out]) as opened:
        assert {each.topic: (each.msgtype, each.msgcount) for each in opened.connections} == {
            topic: (kind, COUNT) for topic, kind in TYPES.items()
        }


def test_pictures_without_time_have_stamp_zero(home: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "out.mcap", time.time_ns()
    done = run(home, "queries", out, "--no-rerank", "--matches", "2")
    assert done.exit_code == 0, done.stderr
    assert f"{out}: 0 of {COUNT + 1} answers were accepted; the file has the others' places among" in done.stderr
    found = read(out)
    assert {topic: len(messages) for topic, messages in found.items()} == {
        "/diagnostics": COUNT + 1,
        "/visual_localization/candidates": COUNT,
    }
    for logged, message in found["/diagnostics"]:
        assert before < logged < time.time_ns()
        assert nanoseconds(message.header) == 0
    assert {len(message.poses) for _, message in found["/visual_localization/candidates"]} == {2}
    levels = [message.status[0].level for _, message in found["/diagnostics"]]
    assert levels == [2] + [1] * COUNT
    assert "a.jpg is not a picture" in found["/diagnostics"][0][1].status[0].message


def test_the_next_run_keeps_the_file_of_the_run_before(home: Path, tmp_path: Path, caplog: Any) -> None:
    out = tmp_path / "out.mcap"
    for _ in range(3):
        assert run(home, "drive.mcap", out).exit_code == 0
    names = ["out-2.mcap", "out-3.mcap", "out.mcap"]
    assert sorted(each.name for each in tmp_path.iterdir()) == names
    assert all(len(read(tmp_path / name)["/diagnostics"]) == COUNT for name in names)
    said = [text for text in caplog.messages if "is kept" in text]
    assert said == [f"{out} exists and is kept: the answers go to {tmp_path / name}" for name in names[:2]]


def test_two_runs_at_once_keep_both_files(tmp_path: Path) -> None:
    frame = Frame("a.jpg", 1.0, None, None, 0.0)
    with (
        open_mcap(tmp_path / "out.mcap", AnswerMessages("a", 1)) as first,
        open_mcap(tmp_path / "out.mcap", AnswerMessages("a", 1)) as second,
    ):
        for file in (first, second):
            file.add(frame, Recognition("a.jpg"))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out-2.mcap", "out.mcap"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_keeps_earlier_answers(home: Path, tmp_path: Path, number: signal.Signals) -> None:
    pixels = scene(0)
    with BagWriter(tmp_path, "long.mcap") as bag:
        for i in range(2000):
            bag.image("/image", stamp(i), pixels)
    out = tmp_path / "out.mcap"
    command = [sys.executable, "-m", "pairvpr.cli.run", "--db", str(home / "map"), "--query"]
    command += [str(tmp_path / "long"), "--out", str(out), "--matches", "1"]
    process = subprocess.Popen(
        command,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stderr=subprocess.PIPE,
        text=True,
    )
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stderr
        line = ""
        while not line.startswith("model:"):  # shown with the first answer
            line = process.stderr.readline()
            assert line, process.wait()
        time.sleep(5)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else 143), errors
    assert "Traceback" not in errors
    count = len(read(out)["/diagnostics"])
    assert 0 < count < 2000
    assert {path.name for path in tmp_path.iterdir()} == {"out.mcap", "long"}


def test_a_run_that_fails_at_once_leaves_nothing(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mcap"
    out.write_bytes(b"of yesterday")
    done = run(home, "queries/a.jpg", out)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert out.read_bytes() == b"of yesterday"
    assert list(tmp_path.iterdir()) == [out]


def test_a_run_without_frames_is_an_empty_file(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mcap"
    done = run(home, "drive.mcap", out, "--start", "1000")
    assert done.exit_code == 0, done.stderr
    assert read(out) == {}


def test_mistakes_are_told_in_one_line(home: Path, tmp_path: Path) -> None:
    query = shutil.copy(home / "drive.mcap", tmp_path / "drive.mcap")
    folder = shutil.copytree(home / "drive", tmp_path / "drive")
    shutil.copy(query, folder / "drive.mcap")
    before = query.read_bytes()
    for out, asked, options, told in (
        (
            tmp_path / "no" / "out.mcap",
            query,
            (),
            "cannot be written (No such file or directory); choose another --out",
        ),
        (tmp_path / "out.mcap", query, ("--format", "jsonl"), "--format is for text"),
        (query, query, (), "--query reads it; choose another --out"),
        (folder / "drive.mcap", folder, (), "--query reads it; choose another --out"),
    ):
        done = run(home, str(asked), out, *options)
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert told in done.stderr
    assert query.read_bytes() == (folder / "drive.mcap").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drive", "drive.mcap"]


def test_a_full_disk_keeps_earlier_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written stays for `mcap recover`, and closing raises no second error."""
    from rosbags.rosbag2.storage_mcap import McapWriter

    answer = Recognition("q", matches=(Match("m", 1.0, 0.5, "full"),), timings={"total": 1.0}, reason="r" * 2**18)
    frame = Frame("q", 1.5, None, "", 0.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def write() -> None:
        with open_mcap(tmp_path / "out.mcap", AnswerMessages("s", 1)) as file:
            for _ in range(6):  # four fill a chunk
                file.add(frame, answer)
            monkeypatch.setattr(McapWriter, "write", full)
            file.add(frame, answer)

    with pytest.raises(
        SourceError, match=r"No space left .*; `mcap recover` restores .* except its last MiB; make room"
    ):
        write()
    assert not (tmp_path / "out.mcap").exists()
    (left,) = tmp_path.glob(".out.mcap.*/out/out.mcap")
    found = 0
    with left.open("rb") as stream, contextlib.suppress(EndOfFile):
        for _ in NonSeekingReader(stream).iter_messages(log_time_order=False):
            found += 1
    assert found == 4
