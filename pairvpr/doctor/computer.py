"""The computer: processor, memory, GPUs, cameras. Nothing is judged but a driver that fails."""

from __future__ import annotations

import platform
import sys

from pairvpr import __version__, machine
from pairvpr.doctor.check import Check, State

FASTEST = "sudo nvpmodel -m N (the modes are in /etc/nvpmodel.conf), then sudo jetson_clocks"
"""What gives a Jetson all its power, and holds its clocks there."""


def hardware() -> list[Check]:
    """Versions, processor, memory, and the board where it has a name."""
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
    """The NVIDIA GPUs; nothing where there is none."""
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
    """Which cameras the system names."""
    found = machine.cameras()
    return Check("cameras", "info", ", ".join(found) or "none at /dev/video*")
