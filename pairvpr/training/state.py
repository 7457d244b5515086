"""A run's folder: checkpoints that appear whole or not at all, and what is needed to go on exactly.

    OUT/config.toml                   the resolved configuration
    OUT/log.jsonl                     see `log`
    OUT/checkpoints/step-00000500/    network.safetensors + .json, state.pt (optimizer), config.toml
    OUT/last, OUT/best                links to one of them

A checkpoint is written under another name, synced and renamed; then the link is replaced in one step. A crash at
any moment leaves the run at this checkpoint or at the one before.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from pairvpr.errors import TrainingError
from pairvpr.model import Checkpoint, load_checkpoint, save_checkpoint
from pairvpr.training.failures import writing
from pairvpr.training.settings import differences, parse_toml

FORMAT = 1
STEP = ", step "  # ends the origin of saved weights
NETWORK, STATE, CONFIG = "network.safetensors", "state.pt", "config.toml"
HARMLESS = ("run.", "out")
"""Settings that change nothing of what is learnt, and so may differ on resuming."""


@dataclass
class RunState:
    """What there is to know of a run at a step, beside the network.

    Random numbers need no state: each step's are drawn from the run's seed and the step's number (`sampling`, `loop`).
    step: steps done. optimizer: its state dict. best: the best validation measure so far. broken: reports of broken
    pictures so far.
    """

    step: int = 0
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    best: float | None = None
    broken: list[str] = field(default_factory=list)


class RunFolder:
    """The folder of one run, held by one run at a time."""

    def __init__(self, path: Path, config: str, writes: bool = True) -> None:
        """`config`: the resolved configuration as TOML. Raises TrainingError if the folder is another run's."""
        self.path, self.config, self.writes = path, config, writes
        self.checkpoints = path / "checkpoints"
        self._lock: TextIOWrapper | None = None

    def __enter__(self) -> RunFolder:
        self._check_same_run()
        if self.writes:
            with writing(self.path), ExitStack() as stack:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                self._lock = stack.enter_context(_locked(self.path / ".lock"))
                _write(self.path / CONFIG, self.config)
                for left in self.checkpoints.glob("*.partial"):
                    shutil.rmtree(left)
                stack.pop_all()  # keeps the lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def last(self) -> Path:
        """The newest checkpoint, a link."""
        return self.path / "last"

    @property
    def best(self) -> Path:
        """The checkpoint that did best in validation, a link."""
        return self.path / "best"

    def checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint, its origin without the step; None if there is none."""
        if not self.last.exists():
            return None
        found = load_checkpoint(self.last / NETWORK)
        origin = found.weights.origin.rpartition(STEP)[0]
        return replace(found, weights=replace(found.weights, origin=origin))

    def state(self) -> RunState:
        """The state to go on from; a fresh one if there is no checkpoint."""
        if not self.last.exists():
            return RunState()
        file = self.last / STATE
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise TrainingError(
                f"{file}: damaged ({error}); link {self.last} to an older folder of {self.checkpoints}"
            ) from error
        if content["format"] > FORMAT:
            raise TrainingError(f"{file}: format {content['format']} is newer than this pairvpr reads; upgrade")
        return RunState(content["step"], content["optimizer"], content["best"], content["broken"])

    def save(self, checkpoint: Checkpoint, state: RunState, *, best: bool = False, keep_every: int = 0) -> None:
        """Write a checkpoint, link `last` (and `best`) to it, and remove those that nothing keeps any more.

        Raises TrainingError, with everything as before, where a weight is not finite or there is no room.
        """
        bad = [name for name, tensor in checkpoint.network.state_dict().items() if not torch.isfinite(tensor).all()]
        if bad:
            raise TrainingError(f"step {state.step}: {bad[0]} is not finite, nothing saved; lower train.lr, run again")
        weights = replace(checkpoint.weights, origin=f"{checkpoint.weights.origin}{STEP}{state.step}", trained=True)
        name = f"step-{state.step:08}"
        with writing(self.checkpoints / name):
            self._write_checkpoint(name, replace(checkpoint, weights=weights), state)
            for link in [self.last, *([self.best] if best else [])]:
                _link(link, Path("checkpoints") / name)
            self._prune(keep_every)

    def _write_checkpoint(self, name: str, checkpoint: Checkpoint, state: RunState) -> None:
        final, partial = self.checkpoints / name, self.checkpoints / f"{name}.partial"
        if final.exists() and self.last.exists() and self.last.samefile(final):
            return
        partial.mkdir()
        save_checkpoint(checkpoint, partial / NETWORK)
        torch.save({"format": FORMAT, **vars(state)}, partial / STATE)
        _write(partial / CONFIG, self.config)
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        if final.exists():  # written, but not linked to when the run broke off
            shutil.rmtree(final)
        partial.replace(final)
        _sync(self.checkpoints)

    def _prune(self, keep_every: int) -> None:
        linked = {link.resolve().name for link in (self.last, self.best) if link.exists()}
        for folder in self.checkpoints.glob("step-*"):
            step = int(folder.name.removeprefix("step-"))
            if folder.name not in linked and not (keep_every and step % keep_every == 0):
                shutil.rmtree(folder)

    def _check_same_run(self) -> None:
        """Refuse to go on with other settings: the result would be neither run's."""
        file = self.last / CONFIG
        if not file.exists():
            return
        before = parse_toml(file.read_text(encoding="utf-8"), str(file))
        found = differences(before, parse_toml(self.config, "the configuration"))
        changed = [name for name in found if not name.startswith(HARMLESS)]
        if changed:
            raise TrainingError(
                f"{self.path}: holds a run with other settings ({', '.join(changed)}); restore them or set another out"
            )


def _locked(path: Path) -> TextIOWrapper:
    """A lock file, locked until it is closed or the process ends."""
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise TrainingError(f"{path.parent}: another run is writing here; wait for it, or set another out") from error
    return lock


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _sync(path: Path) -> None:
    """Make sure that a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(link: Path, target: Path) -> None:
    """Point a link at a target in one step."""
    partial = link.with_name(link.name + ".partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(link)
    _sync(link.parent)
