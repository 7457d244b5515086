"""Check that pip can install every extra from wheels alone, for each Python and processor that is supported.

    python .ci/resolve_extras.py [--python 3.12] [--machine aarch64] [--extra viz]

Nothing is installed. It needs the package index, and pip and packaging in this Python. Markers of our own requirements
are evaluated for the target, and those of other packages for this Python.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
GLIBC = range(17, 40)
"""Minor versions of glibc, from the one of Ubuntu 24.04 and JetPack 7 downwards."""
WITHOUT_WHEELS = {
    ("gpu", "3.10", "aarch64"): "onnxruntime-gpu",
}
"""What cannot be installed, and the package that is missing. Something that can be installed again is an error too."""


def requirements(extra: str, python: str, machine: str) -> list[str]:
    """Return the requirements of the project with an extra, of those that apply to a Python and a processor."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    target = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }

    def found(lines: list[str]) -> Iterator[str]:
        for line in lines:
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate(target):
                continue
            if requirement.name == project["name"]:
                for name in sorted(requirement.extras):
                    yield from found(extras[name])
            else:
                requirement.marker = None
                yield str(requirement)

    return [*found(project["dependencies"]), *found(extras[extra])]


def resolve(extra: str, python: str, machine: str) -> str | None:
    """Return None if pip finds wheels for all requirements, or else the error that it prints."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in reversed(GLIBC)] + [f"manylinux2014_{machine}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
        command += ["--only-binary=:all:", "--target", folder, "--implementation", "cp", "--python-version", python]
        command += [word for platform in platforms for word in ("--platform", platform)]
        done = subprocess.run(
            [*command, *requirements(extra, python, machine)], capture_output=True, text=True, check=False
        )
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return " ".join(errors) or done.stderr


def judge(extra: str, python: str, machine: str) -> str | None:
    """Return the reason why the result of a combination is not the expected one, or None."""
    problem, missing = resolve(extra, python, machine), WITHOUT_WHEELS.get((extra, python, machine))
    if missing is None:
        return problem
    if problem is None:
        return f"{missing} has wheels now; remove the entry of WITHOUT_WHEELS and of the documents"
    return None if re.search(rf"No matching distribution found for {re.escape(missing)}\b", problem) else problem


def main() -> int:
    """Check all combinations that are asked for. Return the exit status."""
    extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", action="append", choices=PYTHONS)
    parser.add_argument("--machine", action="append", choices=MACHINES)
    parser.add_argument("--extra", action="append", choices=sorted(extras))
    asked = parser.parse_args()
    combinations = list(itertools.product(asked.extra or extras, asked.python or PYTHONS, asked.machine or MACHINES))
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        for combination, problem in zip(combinations, pool.map(lambda each: judge(*each), combinations), strict=True):
            failed += problem is not None
            print(*combination, "ok" if problem is None else f"FAILED: {problem}", flush=True)
    print(f"{len(combinations) - failed} of {len(combinations)} as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
