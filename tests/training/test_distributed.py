"""Test that two processes learn the same as one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

from pairvpr.data.samples import PlaceBatch  # noqa: E402
from pairvpr.model import Checkpoint, WeightsInfo, save_checkpoint  # noqa: E402
from pairvpr.training.config import TeacherConfig  # noqa: E402
from pairvpr.training.distributed import World, joined_world  # noqa: E402
from pairvpr.training.initial import seeded_network  # noqa: E402
from pairvpr.training.schedules import freeze  # noqa: E402
from pairvpr.training.stage_two import StageTwoObjective  # noqa: E402
from pairvpr.training.teacher import Teacher  # noqa: E402
from tests.training.support import ROOT, finish, lines, losses, start, train, write_config  # noqa: E402
from tests.training.test_schedules import CONFIG  # noqa: E402

TOLD = {"stderr": subprocess.PIPE, "text": True}


def pair_of(command_of_rank):
    """Two processes as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [command_of_rank({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)]


TEACHING = ("labels", "teacher", "both")


def gradients(world, teaching, teacher):
    """Measures of stage two in float32, and gradients by name, on 4 places of 2 pictures shared by the processes."""
    network = seeded_network(CONFIG, 0)
    freeze(network, "two", -1)
    images = torch.randint(0, 255, (8, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    mine = slice(world.rank * 8 // world.size, (world.rank + 1) * 8 // world.size)
    known = Teacher(TeacherConfig(teacher), world, CONFIG.descriptor_dim) if teaching != "labels" else None
    objective = StageTwoObjective(network, world, 2.0, labelled=teaching != "teacher", teacher=known)
    wrapped = world.wrap(objective)  # must outlive the backward pass, in which it averages
    outcome = wrapped(PlaceBatch(images[mine], labels[mine], []))
    outcome.loss.backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return world.mean(outcome.measures), found


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """What each way of teaching gives two processes, and the teacher's file."""
    folder = tmp_path_factory.mktemp("two")
    teacher, out = folder / "teacher.safetensors", folder / "out.pt"
    save_checkpoint(Checkpoint(seeded_network(CONFIG, 5), WeightsInfo("a teacher", "free")), teacher)
    command = [sys.executable, "-m", "tests.training.test_distributed", str(out), str(teacher)]
    processes = pair_of(lambda world: subprocess.Popen(command, cwd=ROOT, env={**os.environ, **world}, **TOLD))
    told = [finish(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    return torch.load(out, weights_only=True), str(teacher)


@pytest.mark.parametrize("teaching", TEACHING)
def test_gradients_of_the_mined_batch_are_the_same(teaching, of_two_processes):
    two, teacher = of_two_processes
    measures, expected = gradients(World(), teaching, teacher)
    assert two[teaching]["measures"] == pytest.approx(measures, abs=1e-5)
    assert two[teaching]["gradients"].keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(two[teaching]["gradients"][name], gradient, atol=1e-5, rtol=0, msg=name)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2  # there was something to compare


def test_a_run_of_two_processes_is_the_run_of_one(tmp_path):
    """Pictures, masks, losses and gradients over several steps, in float32."""
    settings = ["train.precision=fp32", "train.steps=4", "data.0.arguments.broken=['3/1']"]
    file = write_config(tmp_path, "one", "two")
    processes = pair_of(lambda world: start("one", file, *settings, **world))
    train("one", write_config(tmp_path, "one", "one"), *settings)
    told = [finish(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python reads TOML from 3.11 on")
def test_torchrun_starts_the_command(tmp_path):
    """The command of the documentation: `torchrun -m pairvpr train`. One process speaks for both."""
    file = write_config(tmp_path, "one")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *torchrun, "-m", "pairvpr", "train", "stage-one", "--config", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--set", "train.steps=4"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/run/last/network.safetensors: step 4, finished\n"
    assert lines(tmp_path / "run", "start")[0]["processes"] == 2


def test_machines_that_do_not_share_the_folder_are_told(tmp_path):
    """The first process has a checkpoint, the second, elsewhere, has none: they must not wait for each other."""
    file = write_config(tmp_path, "one", "first")
    train("one", file, "train.steps=6")
    settings = [["train.steps=6"], ["train.steps=6", f"out={tmp_path / 'second'}"]]
    processes = pair_of(lambda world: start("one", file, *settings[int(world["RANK"])], **world))
    told = [finish(process) for process in processes]
    assert [process.returncode for process in processes] == [1, 1], told
    assert all("one process finds step 0 in it, another step 6; set out to a folder" in text for text in told)


def test_a_batch_that_processes_cannot_share_is_refused():
    from pairvpr.errors import TrainingError

    with pytest.raises(TrainingError, match="5 cannot be shared among 2 processes"):
        World(0, 2).share(5, "train.batch")


def main() -> None:
    out, teacher = sys.argv[1:]
    torch.set_num_threads(1)
    with joined_world("cpu") as world:
        found = {teaching: gradients(world, teaching, teacher) for teaching in TEACHING}
        if world.first:
            torch.save({key: {"measures": value[0], "gradients": value[1]} for key, value in found.items()}, out)


if __name__ == "__main__":
    main()
