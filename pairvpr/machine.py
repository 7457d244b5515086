"""Describe this computer: processor, memory, graphics and cameras. Needs no library."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Instructions that decide how fast a network runs, by their names in Linux.
X86_FLAGS = {
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_tile": "AMX",
}
ARM_FLAGS = {"asimd": "NEON", "asimdhp": "FP16", "asimddp": "DOT", "i8mm": "I8MM", "bf16": "BF16", "sve": "SVE"}
TIMEOUT = 10  # seconds for a command to answer: a hung driver must not hang the caller

GIB = 2**30


@dataclass(frozen=True)
class Processor:
    """The CPU.

    model: its name. flags: its instructions that decide a network's speed.
    cores: number of cores that this process may use. all_cores: number of cores of the computer.
    quota: processor time that a container grants, in cores; None without a limit.
    """

    model: str
    flags: tuple[str, ...]
    cores: int
    all_cores: int
    quota: float | None


def system() -> str:
    """Return the operating system, its kernel and the machine type."""
    name = platform.system()
    if name == "Linux":
        match = re.search(r'^PRETTY_NAME="?([^"\n]*)', read(Path("/etc/os-release")), re.MULTILINE)
        name = f"{match[1] if match else name}, kernel {platform.release()}"
    return f"{name}, {platform.machine()}"


def name() -> str:
    """Return a name that stands for this computer's speed: its board or processor, and its usable cores."""
    cores = usable_cores()
    return f"{board() or processor().model} with {cores} core{'s' if cores > 1 else ''}"


def processor() -> Processor:
    """Return the CPU."""
    text = read(Path("/proc/cpuinfo"))
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    model = match[1].strip() if match else platform.processor() or platform.machine()
    return Processor(model, cpu_flags(text), usable_cores(), os.cpu_count() or 1, quota())


def int8_class() -> str:
    """Return the class of this computer's processor by its 8-bit arithmetic, such as "x86_64 with VNNI"."""
    kind = platform.machine()
    if kind.lower() not in ("x86_64", "amd64"):
        return kind
    return f"{kind} {'with' if any('VNNI' in flag for flag in processor().flags) else 'without'} VNNI"


def cpu_flags(cpuinfo: str) -> tuple[str, ...]:
    """Return the flags of /proc/cpuinfo that decide a network's speed, by their usual names."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    present = set(match[1].split()) if match else set()
    return tuple(name for flag, name in {**X86_FLAGS, **ARM_FLAGS}.items() if flag in present)


def cache_folder() -> Path:
    """Return the user's folder for results that can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pairvpr"


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_above_cores() -> float | None:
    """Return the load of the last minute if it is above the usable cores; None if not, or if the system has no load."""
    if not hasattr(os, "getloadavg"):
        return None
    load = os.getloadavg()[0]
    return load if load > usable_cores() else None


def quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Return the processor time that a container (control group, version 2) grants, in cores; None without a limit."""
    match = re.fullmatch(r"(\d+) (\d+)", read(file).strip())
    return int(match[1]) / int(match[2]) if match and int(match[2]) else None


def memory() -> tuple[int, int] | None:
    """Return the bytes of memory available and in total; None if unknown."""
    sizes = dict(re.findall(r"^(Mem\w+):\s*(\d+) kB$", read(Path("/proc/meminfo")), re.MULTILINE))
    if "MemAvailable" not in sizes or "MemTotal" not in sizes:
        return None
    return int(sizes["MemAvailable"]) * 1024, int(sizes["MemTotal"]) * 1024


def board() -> str | None:
    """Return the name of a board with a device tree, such as a Jetson or a Raspberry Pi; None for other computers."""
    return read(Path("/proc/device-tree/model")).strip("\0 \n") or None


def jetson_release() -> str | None:
    """Return the L4T release of a Jetson, such as R36.4.3; None for other computers."""
    match = re.search(r"R(\d+) .*REVISION: ([\d.]+)", read(Path("/etc/nv_tegra_release")))
    return f"R{match[1]}.{match[2]}" if match else None


def power_mode() -> str | None:
    """Return the power mode of a Jetson, such as MAXN or 15W, which sets its clocks; None if unknown."""
    command = shutil.which("nvpmodel")
    if command is None:
        return None
    try:
        done = _run(command, "-q")
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"NV Power Mode: *(\S+)", done.stdout)
    return match[1] if match else None


def nvidia_gpus() -> list[str] | str:
    """Return name, driver and memory of each NVIDIA GPU; [] without nvidia-smi; a text if it fails."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        done = _run(command, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    except subprocess.TimeoutExpired:
        return f"nvidia-smi gave no answer in {TIMEOUT} s"
    except OSError as error:
        return f"nvidia-smi cannot be run ({error.strerror})"
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode != 0 or not lines:
        said = (done.stderr.strip() or done.stdout.strip() or "no GPU listed").splitlines()[0]
        return f"nvidia-smi failed ({said})"
    return [", ".join(_gpu_fields(line)) for line in lines]


def cameras(folder: Path = Path("/dev")) -> list[str]:
    """Return the video devices in the order of their numbers."""
    numbers = [int(path.name[5:]) for path in folder.glob("video*") if path.name[5:].isdecimal()]
    return [str(folder / f"video{number}") for number in sorted(numbers)]


def read(file: Path) -> str:
    """Return the text of one of the system's files; empty if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # other systems and containers lack such files


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command. Raises OSError or subprocess.TimeoutExpired."""
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False)


def _gpu_fields(line: str) -> list[str]:
    name, *rest = (field.strip() for field in line.split(","))
    labels = ("driver ", "")
    return [name, *(label + value for label, value in zip(labels, rest, strict=False))]
