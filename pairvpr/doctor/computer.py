"""Describe the computer: processor, memory, GPUs, cameras. Only a failing driver counts as broken."""

from __future__ import annotations

import platform
import sys

from pairvpr import __version__, machine
from pairvpr.doctor.check import Check, State

FASTEST = "sudo nvpmodel -m N (the modes are in /etc/nvpmodel.conf), then sudo jetson_clocks"
"""Commands that give a Jetson its full power and hold its clocks."""


def hardware() -> list[Check]:
    """Return versions, processor, memory, and the board if it has a name."""
    cpu, size, board = machine.processor(), machine.memory(), machine.board()
    cores = f"{cpu.cores} of {cpu.all_cores} may be used"
    if cpu.quota is not None and cpu.quota < cpu.cores:
        cores += f", for {cpu.quota:g} cores' worth of time"
    available = "not known"
    if size is not None:
        available = f"{size[0] / machine.GIB:.1f} of {size[1] / machine.GIB:.1f} GiB available"
    checks = [
        Check("pairvpr", "info", __version__),
        Check("Python", "info", f"{platform.python_version()}, {sys.executable}"),
        Check("system", "info", machine.system()),
        Check("CPU", "info", f"{cpu.model} ({', '.join(cpu.flags) or 'no vector instructions named'})"),
        Check("cores", "info", cores),
        Check("memory", "info", available),
    ]
    if board is not None:
        checks.insert(3, Check("board", "info", board))
    return checks


def graphics() -> list[Check]:
    """Return the NVIDIA GPUs; an empty list without one."""
    checks = []
    release = machine.jetson_release()
    if release is not None:
        checks.append(Check("Jetson Linux", "info", release))
        mode = machine.power_mode() or "not known"
        checks.append(Check("power mode", "info", f"{mode}; more speed: {FASTEST}"))
    found = machine.nvidia_gpus()
    if isinstance(found, str):
        # On a Jetson nvidia-smi may be there and know nothing; the GPU works all the same.
        state: State = "info" if release is not None else "broken"
        remedy = None if release is not None else "restart, or install the NVIDIA driver again"
        return [*checks, Check("GPU", state, found, remedy)]
    return [*checks, *(Check("GPU", "info", gpu) for gpu in found)]


def cameras() -> Check:
    """Return the cameras that the system names."""
    found = machine.cameras()
    return Check("cameras", "info", ", ".join(found) or "none at /dev/video*")
