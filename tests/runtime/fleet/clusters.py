"""Clusters of several nodes on this computer, for tests and benchmarks of fleets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ENVIRONMENT = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}  # on the loopback interface


class Nodes:
    """A cluster of nodes with some CPUs each, all on this computer."""

    def __init__(self, cpus: int = 1) -> None:
        os.environ.update(ENVIRONMENT)
        self.cpus = cpus
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> None:
        """Start a node, in a session of its own."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, "--block"]
        command += [f"--num-cpus={self.cpus}", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        self.started.append(subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL))

    def start_all(self, count: int) -> None:
        """Start this number of nodes, and wait until they are there."""
        self.start("--head", f"--port={self.port}", "--include-dashboard=false")
        wait_for(self.address, self.cpus)
        for number in range(2, count + 1):
            self.add()
            wait_for(self.address, number * self.cpus)

    def add(self) -> None:
        self.start(f"--address={self.address}")

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a node with all of its processes."""
        for pid in descendants(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()

    def close(self) -> None:
        for each in self.started:
            each.terminate()
        for each in self.started:
            with suppress(subprocess.TimeoutExpired):
                each.wait(20)
            self.kill(each)


def descendants(pid: int) -> list[int]:
    """Return the ids of the processes below a process."""
    parents = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal():
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, above in parents.items() if above == parent]
    return found[1:]


def wait_for(address: str, cpus: int) -> None:
    """Wait until a cluster has this number of CPUs. Raises TimeoutError."""
    script = """
import sys, time, ray
ray.init(address=sys.argv[1], _node_ip_address="127.0.0.1", logging_level="error", log_to_driver=False)
while ray.cluster_resources().get("CPU", 0) < int(sys.argv[2]):
    time.sleep(0.2)
"""
    ends = time.monotonic() + 90
    while time.monotonic() < ends:
        try:
            subprocess.run(
                [sys.executable, "-c", script, address, str(cpus)], check=True, timeout=60, capture_output=True
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            time.sleep(0.5)
        else:
            return
    raise TimeoutError(f"no cluster with {cpus} CPUs at {address}")
