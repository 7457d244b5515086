"""Keep a run's folder: checkpoints that appear complete or not at all, and the state for an exact resume.

    OUT/config.toml                   the resolved configuration
    OUT/log.jsonl                     see `log`
    OUT/checkpoints/step-00000500/    network.safetensors + .json, state.pt (optimizer), config.toml
    OUT/last, OUT/best                links to one of them

A checkpoint is written under a temporary name, synced and renamed. Then the link is replaced in one step. A crash at
any moment leaves the run at this checkpoint or at the one before.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from pairvpr.errors import TrainingError, one_line
from pairvpr.files import find_partials, lock_file, remove, write_atomically
from pairvpr.model import Checkpoint, load_checkpoint, save_checkpoint
from pairvpr.training.failures import writing
from pairvpr.training.settings import differences, parse_toml

FORMAT = 1
STEP = ", step "  # separates the origin of saved weights from the step
NETWORK, STATE, CONFIG = "network.safetensors", "state.pt", "config.toml"
HARMLESS = ("run.", "out")
"""Settings that do not change the result, and so may differ when a run is resumed."""


@dataclass
class RunState:
    """State of a run at a step, beside the network.

    Random numbers need no state: each step's are drawn from the run's seed and the step's number (`sampling`, `loop`).

    step: steps done.
    optimizer: its state dict.
    best: the best validation measure so far.
    broken: reports of broken pictures so far.
    """

    step: int = 0
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    best: float | None = None
    broken: list[str] = field(default_factory=list)


class RunFolder:
    """The folder of a run, used by one run at a time."""

    def __init__(self, path: Path, config: str, writes: bool = True) -> None:
        """Set the folder.

        config: the resolved configuration as TOML.
        writes: false for processes that only read.
        """
        self.path, self.config, self.writes = path, config, writes
        self.checkpoints = path / "checkpoints"
        self._lock: FileIO | None = None

    def __enter__(self) -> RunFolder:
        self._check_same_run()
        if self.writes:
            with writing(self.path), ExitStack() as stack:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                self._lock = stack.enter_context(_locked(self.path / ".lock"))
                for left in [*find_partials(self.path), *find_partials(self.checkpoints)]:
                    remove(left)
                with write_atomically(self.path / CONFIG) as partial:
                    partial.write_text(self.config, encoding="utf-8")
                stack.pop_all()  # keeps the lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def last(self) -> Path:
        """Link to the newest checkpoint."""
        return self.path / "last"

    @property
    def best(self) -> Path:
        """Link to the checkpoint that did best in validation."""
        return self.path / "best"

    def checkpoint(self) -> Checkpoint | None:
        """Load the newest checkpoint, its origin without the step. Return None if there is none."""
        if not self.last.exists():
            return None
        found = load_checkpoint(self.last / NETWORK)
        origin = found.weights.origin.rpartition(STEP)[0]
        return replace(found, weights=replace(found.weights, origin=origin))

    def state(self) -> RunState:
        """Load the state of the newest checkpoint. Without a checkpoint return a fresh state."""
        if not self.last.exists():
            return RunState()
        file = self.last / STATE
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise TrainingError(
                f"{file}: damaged ({one_line(error)}); link {self.last} to an older folder of {self.checkpoints}"
            ) from error
        if content["format"] > FORMAT:
            raise TrainingError(f"{file}: format {content['format']} is newer than this pairvpr reads; upgrade")
        return RunState(content["step"], content["optimizer"], content["best"], content["broken"])

    def save(self, checkpoint: Checkpoint, state: RunState, *, best: bool = False, keep_every: int = 0) -> None:
        """Write a checkpoint, link `last` (and `best`) to it, and remove checkpoints that are no longer needed.

        keep_every: keep checkpoints of multiples of this number of steps. 0 keeps none.
        Raises TrainingError if a weight is not finite or there is no room. Everything is then as before.
        """
        bad = [name for name, tensor in checkpoint.network.state_dict().items() if not torch.isfinite(tensor).all()]
        if bad:
            raise TrainingError(
                f"step {state.step}: {bad[0]} is not finite, nothing was saved; lower train.lr and run again"
            )
        weights = replace(checkpoint.weights, origin=f"{checkpoint.weights.origin}{STEP}{state.step}", trained=True)
        name = f"step-{state.step:08}"
        with writing(self.checkpoints / name):
            self._write_checkpoint(name, replace(checkpoint, weights=weights), state)
            for link in [self.last, *([self.best] if best else [])]:
                with write_atomically(link) as partial:
                    partial.symlink_to(Path("checkpoints") / name)
            self._prune(keep_every)

    def _write_checkpoint(self, name: str, checkpoint: Checkpoint, state: RunState) -> None:
        final = self.checkpoints / name
        if final.exists() and self.last.exists() and self.last.samefile(final):
            return
        remove(final)  # a run that broke off may have written it without linking to it
        with write_atomically(final) as folder:
            folder.mkdir()
            save_checkpoint(checkpoint, folder / NETWORK)
            torch.save({"format": FORMAT, **vars(state)}, folder / STATE)
            (folder / CONFIG).write_text(self.config, encoding="utf-8")

    def _prune(self, keep_every: int) -> None:
        linked = {link.resolve().name for link in (self.last, self.best) if link.exists()}
        for folder in self.checkpoints.glob("step-*"):
            step = int(folder.name.removeprefix("step-"))
            if folder.name not in linked and not (keep_every and step % keep_every == 0):
                shutil.rmtree(folder)

    def _check_same_run(self) -> None:
        """Raise TrainingError if the folder holds a run with other settings. The result would be neither run's."""
        file = self.last / CONFIG
        if not file.exists():
            return
        before = parse_toml(file.read_text(encoding="utf-8"), str(file))
        found = differences(before, parse_toml(self.config, "the configuration"))
        changed = [name for name in found if not name.startswith(HARMLESS)]
        if changed:
            raise TrainingError(
                f"{self.path}: holds a run with other settings ({', '.join(changed)}); restore them, or set another out"
            )


def _locked(path: Path) -> FileIO:
    """Lock a run's folder until the returned file is closed or the process ends."""
    try:
        return lock_file(path, "training")
    except BlockingIOError as error:
        raise TrainingError(
            f"{path.parent}: another run is writing here ({error.strerror}); wait for it, or set another out"
        ) from error
