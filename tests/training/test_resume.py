"""Test runs that are killed, asked to stop, or fail."""

from __future__ import annotations

import json
import os
import resource
import signal

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

from pairvpr import files  # noqa: E402
from pairvpr.errors import TrainingError  # noqa: E402
from pairvpr.model import load_checkpoint  # noqa: E402
from pairvpr.training.loop import stop_signals  # noqa: E402
from tests.training.support import finish, lines, losses, start, train, wait_for_steps, write_config  # noqa: E402


def weights(folder):
    return load_checkpoint(folder / "last" / "network.safetensors").network.state_dict()


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("stage", ["one", "two"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(stage, tmp_path):
    """With dropped paths, which are random, and with other numbers of workers before and after."""
    slow = ["data.0.arguments.delay=0.05", "network.encoder_args.drop_path_rate=0.2"]
    process = start(stage, write_config(tmp_path, stage, "killed"), *slow, "run.workers=1")
    whole = train(stage, write_config(tmp_path, stage, "whole"), *slow)
    wait_for_steps(tmp_path / "killed" / "log.jsonl", 4, process)
    process.kill()
    finish(process)
    assert 3 <= int((tmp_path / "killed" / "last").readlink().name[-8:]) < 8

    resumed = train(stage, tmp_path / "killed.toml", *slow)
    assert (whole.finished, resumed.finished, resumed.step) == (True, True, 8)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert not list((tmp_path / "killed").rglob("*.partial"))
    assert len(lines(tmp_path / "killed", "start")) == 2


def test_sigterm_saves_and_exits_0(tmp_path):
    """Sent to the whole process group, as Slurm and `timeout` do: workers must not die before the loop has saved."""
    file = write_config(tmp_path, "one")
    settings = ["data.0.arguments.delay=0.05", "run.workers=2", "run.save_every=1000", "train.steps=500"]
    process = start("one", file, *settings)
    wait_for_steps(tmp_path / "run" / "log.jsonl", 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    told = finish(process)
    assert process.returncode == 0, told
    reached = lines(tmp_path / "run", "stopped")[0]["step"]
    state = torch.load(tmp_path / "run" / "last" / "state.pt", weights_only=True)
    assert 2 <= reached == state["step"] < 500


def test_sigterm_may_come_twice_a_second_ctrl_c_kills():
    """A scheduler that signals every process reaches those of torchrun twice: torchrun passes its signal on."""
    with stop_signals() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert stop.asked
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored
    try:
        with stop_signals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.asked
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_finished_run_stays_as_it_is(tmp_path):
    file = write_config(tmp_path, "one")
    train("one", file, "train.steps=4")
    before = (tmp_path / "run" / "log.jsonl").read_text()
    assert train("one", file, "train.steps=4").finished
    assert (tmp_path / "run" / "log.jsonl").read_text() == before


def test_other_settings_are_refused_harmless_ones_are_not(tmp_path):
    file = write_config(tmp_path, "one")
    train("one", file, "train.steps=4")
    with pytest.raises(TrainingError, match=r"other settings \(train.lr\)"):
        train("one", file, "train.steps=4", "train.lr=1e-2")
    assert train("one", file, "train.steps=4", "run.workers=1", "run.log_every=7").finished


def test_one_run_at_a_time(tmp_path):
    from pairvpr.training.state import RunFolder

    busy = pytest.raises(TrainingError, match="another run is writing here")
    with RunFolder(tmp_path, ""), busy, RunFolder(tmp_path, ""):
        pass


def test_numbers_that_are_not_finite_stop_the_run_and_are_not_saved(tmp_path):
    file = write_config(tmp_path, "one")
    with pytest.raises(TrainingError, match=r"step \d: .*(nan|inf).*stopped without saving this step"):
        train("one", file, "train.lr=1e30", "train.warmup_epochs=0", "run.save_every=1")
    if (tmp_path / "run" / "last").exists():
        assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())


def test_out_of_memory_names_what_to_lower(tmp_path, monkeypatch):
    from pairvpr.model import PairVPR

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PairVPR, "reconstruct", full)
    with pytest.raises(TrainingError, match="out of memory: lower"):
        train("one", write_config(tmp_path, "one"))


def test_old_checkpoints_are_removed(tmp_path):
    validation = '[[validation]]\nplaces = "tests.training.support:Scenes"\narguments = {count = 6, first = 50}\n'
    file = write_config(tmp_path, "two", extra=validation)
    settings = ["train.validate_every=2", "train.validate_steps=2", "run.save_every=1", "run.keep_every=3"]
    train("two", file, *settings)
    found = lines(tmp_path / "run", "validation")
    best = max(found, key=lambda line: line["accuracy"])["step"]
    assert [line["step"] for line in found] == [2, 4, 6, 8]
    kept = {int(folder.name[-8:]) for folder in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {3, 6, 8, best}
    assert int((tmp_path / "run" / "best").readlink().name[-8:]) == best
    assert {file.name for file in (tmp_path / "run" / "last").iterdir()} == {
        "network.safetensors", "network.json", "state.pt", "config.toml",
    }  # fmt: skip
    described = json.loads((tmp_path / "run" / "last" / "network.json").read_text())
    assert described["weights"]["trained"] is True
    assert described["weights"]["origin"].endswith("step 8")


def test_damaged_state_is_told(tmp_path):
    file = write_config(tmp_path, "one")
    train("one", file, "train.steps=4")
    state = tmp_path / "run" / "last" / "state.pt"
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(TrainingError, match=r"state\.pt: damaged"):
        train("one", file, "train.steps=4")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    file = write_config(tmp_path, "one")
    (tmp_path / "run").write_text("a file")
    with pytest.raises(TrainingError, match=r"run: cannot be written \(.*run.*\); free space, or allow") as caught:
        train("one", file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("room", "what"), [(200_000, r"step-00000003: cannot"), (0, r"config\.toml|run: cannot")])
def test_a_full_disk_stops_the_run_with_one_line(room, what, tmp_path):
    """A limit on the size of files in place of a full disk: the checkpoint does not fit, or nothing does."""
    file = write_config(tmp_path, "one")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(TrainingError, match=what) as caught:
            train("one", file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    if room:
        assert train("one", file).finished  # with room again
        assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000008"]


def test_a_crash_while_saving_leaves_the_run_at_the_checkpoint_before(tmp_path, monkeypatch):
    """In the second save: while a file, the folder or the link is synced, or between folder and link."""
    file = write_config(tmp_path, "one")
    train("one", file, "train.steps=4", "run.save_every=2")
    expected = losses(tmp_path / "run")
    # Each save syncs the files of its checkpoint twice, the second time through the link.
    for name, failing in (("state.pt", 3), (".step-00000004", 1), ("checkpoints", 2), (".last", 2)):
        run = f"run-{name.strip('.')}"
        file = write_config(tmp_path, "one", run)
        with monkeypatch.context() as crash:
            synced = []

            def fail_later(path, name=name, failing=failing, synced=synced, real=files.sync):
                synced.append(path.name)
                if path.name.startswith(name) and sum(each.startswith(name) for each in synced) == failing:
                    raise OSError("the power is off")
                real(path)

            crash.setattr(files, "sync", fail_later)
            with pytest.raises(TrainingError, match=r"cannot be written \(the power is off"):
                train("one", file, "train.steps=4", "run.save_every=2")
        assert (tmp_path / run / "last").readlink().name == "step-00000002"
        train("one", file, "train.steps=4", "run.save_every=2")
        assert losses(tmp_path / run) == expected
        assert [folder.name for folder in (tmp_path / run / "checkpoints").iterdir()] == ["step-00000004"]
