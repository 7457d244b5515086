"""Run the same code in one process or in several. `torchrun` sets the environment. Without it there is one process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pairvpr.errors import TrainingError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """The processes that train together.

    rank: number of this process.
    size: number of processes.
    device: of this process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """True for the process that writes the files."""
        return self.rank == 0

    def share(self, batch: int, setting: str) -> int:
        """Return this process's share of a batch.

        setting: name of the setting, for messages.
        Raises TrainingError if the number of processes does not divide the batch.
        """
        if batch % self.size:
            raise TrainingError(
                f"setting {setting}: {batch} cannot be shared among {self.size} processes; "
                f"set a multiple of {self.size}"
            )
        return batch // self.size

    def gather(self, x: Tensor) -> Tensor:
        """Join the tensors (B, ...) of all processes in order, (size * B, ...).

        Gradients return to the tensor's process. A gradient arrives summed over the processes that used the tensor. DDP
        averages gradients over the processes. So losses whose sum over the processes is the whole batch's loss must be
        multiplied by `size`. Parameters then get the gradient of the whole batch.
        """
        return x if self.size == 1 else _Gather.apply(x, self.size)

    def mean(self, measures: Mapping[str, Tensor]) -> dict[str, float]:
        """Return scalars by name, averaged over the processes."""
        values = torch.stack([value.detach().double() for value in measures.values()])
        if self.size > 1:
            dist.all_reduce(values)
        return dict(zip(measures, (values / self.size).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return true if the flag is true in any process."""
        if self.size == 1:
            return flag
        raised = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(raised)
        return bool(raised > 0)

    def collect(self, lines: list[str]) -> list[str]:
        """Return the lines of all processes, in order."""
        if self.size == 1:
            return lines
        all_lines: list[list[str]] = [[] for _ in range(self.size)]
        dist.all_gather_object(all_lines, lines)
        return [line for part in all_lines for line in part]

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap a module so that its gradients are averaged over the processes.

        Keep the result as long as the module learns.
        """
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)


class _Gather(torch.autograd.Function):
    """Join the tensors of all processes in order. Backward sums the gradients and returns each process its own part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        out = x.new_empty((size * len(x), *x.shape[1:]))
        dist.all_gather_into_tensor(out, x.contiguous())
        ctx.rows = len(x)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        mine = grad.new_empty((ctx.rows, *grad.shape[1:]))
        dist.reduce_scatter_tensor(mine, grad)
        return mine, None


@contextmanager
def joined_world(device: str) -> Iterator[World]:
    """Join the processes that the environment describes, and leave their process group at the end.

    device: "auto", "cpu" or "cuda".
    Raises TrainingError if CUDA is asked for but not available.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("setting run.device: cuda, but torch finds no CUDA device; install a CUDA build or use cpu")
    on_cuda = device != "cpu" and torch.cuda.is_available()
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_cuda else torch.device("cpu")
    if on_cuda:
        torch.cuda.set_device(local)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=local)
        return
    dist.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield World(dist.get_rank(), size, local)
    finally:
        dist.destroy_process_group()
