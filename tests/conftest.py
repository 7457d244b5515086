"""Fixtures that tests share: data folders, seeded checkpoints, small bundles."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent
SHARED = HERE.parent.parent / "shared"

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) is not None and hasattr(os, "sched_setaffinity"):
    # Each worker has cores of its own, before any library counts them: threads that wait for work would else take the
    # cores of the other workers.
    cores, workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) % len(cores) :: workers])
PARITY = HERE / "parity"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


seeded = _load(PARITY / "seeded_checkpoint.py")


def shared(path: str) -> Path:
    """Return a file or folder beside the project. If it is missing the test is skipped, and in CI it fails."""
    found = SHARED / path
    if not found.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"shared/{path} is missing, and CI must not skip what needs it")
        pytest.skip(f"needs shared/{path}, which stays outside the project")
    return found


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need a GPU if there is none, and give the reason."""
    if item.get_closest_marker("gpu") is not None and (reason := _no_gpu()) is not None:
        pytest.skip(f"needs an NVIDIA GPU: {reason}")


@functools.lru_cache(maxsize=1)
def _no_gpu() -> str | None:
    """Return the reason why no GPU can be used here, or None if one can."""
    from pairvpr.errors import EngineError
    from pairvpr.runtime.engines.tensorrt import cuda

    try:
        cuda.gpu()
    except EngineError as error:
        return str(error)
    return None


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep results that can be computed again in a folder of the tests, and not in the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands find the computer idle, whatever runs beside the tests."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Restore the log's handlers, because a command sends the log to a stderr that ends with its test."""
    logger = logging.getLogger("pairvpr")
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory):
    """Return a function that makes a layout's seeded checkpoint in the published format and returns its path."""
    torch = pytest.importorskip("torch")

    folder = tmp_path_factory.mktemp("checkpoints")

    def build(name: str) -> Path:
        path = folder / f"{name}.pth"
        if not path.exists():
            here = PARITY / "layouts" / f"{name}.json"
            layout = here if here.exists() else shared(f"parity/layouts/{name}.json")
            state = seeded.seeded_state_dict(json.loads(layout.read_text())["tensors"])
            tensors = {key: torch.from_numpy(value) for key, value in state.items()}
            torch.save({"model": tensors} if "stage-one" in name else tensors, path)
        return path

    return build


@pytest.fixture(scope="session")
def descriptor_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a bundle without a pair classifier from the encoder of the default model."""
    import dataclasses

    import numpy as np

    from pairvpr.runtime import Features
    from pairvpr.runtime.bundle import REFERENCE, Bundle, sha256
    from pairvpr.runtime.bundle_info import ENCODER, FILE, Dims, FileInfo, PrecisionInfo
    from pairvpr.runtime.model import default_bundle
    from pairvpr.runtime.reference import Reference

    nano, folder = Bundle.open(default_bundle()), tmp_path_factory.mktemp("bundles") / "descriptor"
    nano.install(folder)
    truth = Reference.from_bundle(nano)
    descriptors = truth.features.descriptors
    (folder / REFERENCE).unlink()  # a link to the package's own
    alone = Features(descriptors, np.zeros((len(descriptors), 0, 0), np.float32))
    Reference(truth.images, alone, np.zeros(0, np.float32)).save(folder / REFERENCE)
    (folder / FILE).unlink()
    for file in folder.glob("pair_*"):
        file.unlink()
    files = {file.name: FileInfo(file.stat().st_size, sha256(file)) for file in folder.iterdir()}
    precisions = {
        name: PrecisionInfo({ENCODER: made.graphs[ENCODER]}, {}) for name, made in nano.info.precisions.items()
    }
    info = dataclasses.replace(
        nano.info,
        identity="d" * 64,
        preset="descriptor",
        dims=Dims(nano.info.dims.descriptor),
        files=files,
        precisions=precisions,
        calibration={},
    )
    (folder / FILE).write_text(info.to_json())
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(checkpoint_of, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a bundle of `tiny-decoder` in both precisions with the code under test."""
    from pairvpr.export.bundle_writer import export_bundle
    from pairvpr.model import load_checkpoint

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    checkpoint = load_checkpoint(checkpoint_of("tiny-decoder"))
    export_bundle(checkpoint, "fp32", out, lambda step: None)
    export_bundle(checkpoint, "fp16", out, lambda step: None)
    return out
