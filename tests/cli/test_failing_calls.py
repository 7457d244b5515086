"""A failing call of the system ends a command in one line and with the old state, or it changes nothing.

The n-th read, write, fsync, rename or link of a command on its files fails, for each n up to the number of such calls.
`failing_calls.c` makes them fail, also those of SQLite. Run as a script this file starts the commands, each in a
process of its own, and prints a line of JSON for each.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve()
KINDS = {
    "read": errno.EIO,
    "pread": errno.EIO,
    "write": errno.ENOSPC,
    "fsync": errno.EIO,
    "rename": errno.EIO,
    "link": errno.EIO,
}
"""The calls that fail, and their errors."""
SECONDS = 120
FIRST = {"0.png", "1.png", "2.png"}
MORE = {"3.png", "4.png"}


@dataclass(frozen=True)
class Job:
    """A command, whose words may name folders of its own as {home}.

    before, after: the map's pictures before the command and after it.
    changed: the folder of the map that it changes.
    """

    words: str
    before: set[str]
    after: set[str]
    changed: str = "map"


JOBS = {
    "build": Job("map build {home}/a --db {home}/new", set(), FIRST, "new"),
    "add": Job("map add {home}/b --db {home}/map", FIRST, FIRST | MORE),
    "remove": Job("map remove 1.png --db {home}/map", FIRST, FIRST - {"1.png"}),
    "compact": Job("map compact --db {home}/map", FIRST, FIRST),
    "merge": Job("map merge {home}/other --db {home}/map", FIRST, FIRST | MORE),
    "query": Job("run --db {home}/map --query {home}/a/0.png --format jsonl", FIRST, FIRST),
    "adopt": Job("fleet adopt {home}/map --fleet {home}/fleet", FIRST, FIRST),
    "pull": Job("fleet pull --fleet {home}/published --db {home}/robot", set(), FIRST, "robot"),
}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux, to make calls fail")
    library = tmp_path_factory.mktemp("shim") / "failing_calls.so"
    source = HERE.with_name("failing_calls.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def outcomes(mode: str, job: str, home: Path, shim: Path, points: str) -> Iterator[dict[str, Any]]:
    """Run a job at each point in a process of its own. Yield what came of it."""
    command = [sys.executable, str(HERE), mode, job, str(home), str(shim), points]
    environment = {**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[2])}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    yield from map(json.loads, process.stdout.splitlines())


def check(outcome: dict[str, Any], job: Job) -> None:
    """Raise AssertionError unless the outcome is one line and the old state, or a right answer."""
    assert outcome["code"] in (0, 2), outcome
    told = outcome["stderr"].splitlines()
    faults = [line for line in told if line.startswith("Error: ")]
    assert len(faults) == (outcome["code"] == 2), outcome
    assert all(line.isprintable() for line in faults), outcome
    assert "Traceback" not in outcome["stderr"] + outcome["stdout"], outcome
    found = set(outcome["found"] or ())
    if outcome["code"] == 2:
        assert found in (job.before, job.after), outcome
    elif found != job.after:
        missing = job.after - found
        assert f"{len(missing)} could not be read" in outcome["stdout"] + outcome["stderr"], outcome
    if job.words.startswith("run ") and outcome["code"] == 0:
        (answer,) = map(json.loads, outcome["stdout"].splitlines())
        assert answer["best"]["name"] == "0.png", outcome
        assert answer["complete"] or "it is left out of the answers" in outcome["stderr"], outcome
    assert outcome["again"] == 0, outcome
    assert set(outcome["finally"]) == job.after, outcome


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("points", ["some", pytest.param("every", marks=pytest.mark.soak)])
def test_a_failing_call(job: str, points: str, tmp_path: Path, shim: Path) -> None:
    found = list(outcomes("calls", job, tmp_path, shim, points))
    for outcome in found:
        check(outcome, JOBS[job])
    assert any(outcome["code"] == 2 for outcome in found)


@pytest.mark.soak
@pytest.mark.parametrize("job", JOBS)
def test_too_little_memory(job: str, tmp_path: Path, shim: Path) -> None:
    for outcome in outcomes("memory", job, tmp_path, shim, "every"):
        check(outcome, JOBS[job])


# From here on: the script.


class Driver:
    """Runs a job's command again and again, each time on fresh copies of the same folders."""

    def __init__(self, name: str, home: Path, shim: Path) -> None:
        import_libraries()
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # no threads, which would not outlive a fork
        os.environ["XDG_CACHE_HOME"] = str(home / "cache")
        self.job, self.home, self.template = JOBS[name], home / "work", home / "template"
        self.shim = ctypes.CDLL(str(shim))
        self.shim.fail_count.restype = ctypes.c_long
        self._prepare(home)

    def _prepare(self, home: Path) -> None:
        from PIL import Image

        from tests.scenes import draw_scene

        keep_sessions()
        for folder, names in (("a", FIRST), ("b", MORE)):
            (self.template / folder).mkdir(parents=True)
            for name in sorted(names):
                Image.fromarray(draw_scene(int(name[0]), 0, (48, 64))).save(self.template / folder / name)
        for words in (
            "map build {home}/a --db {home}/map",
            "map build {home}/b --db {home}/other",
            "fleet adopt {home}/map --fleet {home}/published",
        ):
            code = self.run(words, self.template, lambda: None)
            assert code == 0, (home / "stderr").read_text()

    def run(self, words: str, home: Path, arm: Callable[[], None]) -> int:
        """Run a command in a process of its own. Return its exit code, negative for a signal."""
        child = os.fork()
        if child == 0:
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(home.parent / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os._exit(self._run_here(words.format(home=home).split(), arm))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _run_here(self, words: list[str], arm: Callable[[], None]) -> int:
        import signal

        from pairvpr.cli.main import main
        from pairvpr.cli.run import main as run

        signal.alarm(SECONDS)
        command, words = (run, words[1:]) if words[0] == "run" else (main, words)
        code: object = 0
        try:
            arm()
            command(words)
        except SystemExit as ending:
            code = ending.code
        except BaseException:
            traceback.print_exc()
            code = 1
        self.shim.fail_at(b"", b"", -1, 0)
        sys.stdout.flush()
        sys.stderr.flush()
        return code if isinstance(code, int) else 0

    def attempt(self, arm: Callable[[], None]) -> dict[str, Any]:
        """Run the command once with a failure, then without one."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.template, self.home)
        code = self.run(self.job.words, self.home, arm)
        told = {name: (self.home.parent / name).read_text() for name in ("stdout", "stderr")}
        found = self.names()
        again = self.run(self.job.words, self.home, lambda: None)
        if again == 2 and found == sorted(self.job.after):
            again = 0  # what was to be removed is gone
        return {"code": code, **told, "found": found, "again": again, "finally": self.names()}

    def names(self) -> list[str] | None:
        from pairvpr.runtime.map import Map, verify_map

        path = self.home / self.job.changed
        if not (path / "map.sqlite").exists():
            return None
        damages = verify_map(path)
        assert damages == [], damages
        with Map.open(path) as map_:
            return sorted(record.name for record in map_.records)

    def calls(self, points: str) -> None:
        for kind, number in KINDS.items():
            count = self.count(kind)
            for nth in range(1, count + 1) if points == "every" else [(count + 1) // 2][:count]:
                arguments = (kind.encode(), f"{self.home}/".encode(), nth, number)
                say(what=f"{kind} {nth} of {count}", **self.attempt(lambda given=arguments: self.shim.fail_at(*given)))

    def count(self, kind: str) -> int:
        """Return how many calls of a kind the command makes on its files."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.template, self.home)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            arm = lambda: self.shim.fail_at(kind.encode(), f"{self.home}/".encode(), 0, 0)  # noqa: E731
            counter = self.shim.fail_at

            def stop(*arguments: Any) -> None:
                if arguments[2] < 0:
                    os.write(write, str(self.shim.fail_count()).encode())
                counter(*arguments)

            self.shim.fail_at = stop
            self.run_quietly(arm)
            os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        with os.fdopen(read) as stream:
            return int(stream.read())

    def run_quietly(self, arm: Callable[[], None]) -> None:
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        self._run_here(self.job.words.format(home=self.home).split(), arm)

    def memory(self) -> None:
        for megabytes in (*range(0, 40, 2), *range(40, 400, 20)):

            def limit(more: int = megabytes << 20) -> None:
                here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (here + more, here + more))

            say(what=f"{megabytes} MB", **self.attempt(limit))


def import_libraries() -> None:
    """Import what the commands import. The loader of libraries may crash for want of memory."""
    import pairvpr.cli.fleet
    import pairvpr.cli.main
    import pairvpr.cli.run
    import pairvpr.runtime.fleet.publishing
    import pairvpr.runtime.fleet.pulling
    import pairvpr.runtime.mapping.builder
    import pairvpr.runtime.recognizer
    import pairvpr.viewing.viewers  # noqa: F401


def keep_sessions() -> None:
    """Load each graph once for all processes. Its file is checked each time all the same."""
    import onnxruntime

    load, held = onnxruntime.InferenceSession, dict[str, Any]()

    def session(path: Any, *arguments: Any, **named: Any) -> Any:
        name = Path(path).name
        if name not in held:
            held[name] = load(path, *arguments, **named)
        return held[name]

    onnxruntime.InferenceSession = session
    from pairvpr.runtime.model import load_model

    load_model(None, "cpu")


def say(**outcome: Any) -> None:
    print(json.dumps(outcome), flush=True)  # noqa: T201


if __name__ == "__main__":
    mode, job_name, folder, library, wanted = sys.argv[1:]
    driver = Driver(job_name, Path(folder), Path(library))
    driver.calls(wanted) if mode == "calls" else driver.memory()
