"""Check the libraries that recognition, sources and export need."""

from __future__ import annotations

from pairvpr.doctor.check import Check, find_module, import_problem, installed_version

REQUIRED = {
    "numpy": "numpy",
    "pillow": "PIL",
    "faiss-cpu": "faiss",
    "click": "click",
    "safetensors": "safetensors",
}
"""Modules of the base dependencies by distribution."""
EXPORT = ("torch", "timm", "onnx", "onnxscript")


def dependencies() -> list[Check]:
    """Import the base dependencies."""
    checks = []
    for distribution, module in REQUIRED.items():
        problem = import_problem(module)
        version = installed_version(distribution) or "version not known"
        if problem is None:
            checks.append(Check(distribution, "ok", version))
        elif find_module(module) is None:
            checks.append(Check(distribution, "missing", "not installed", f"pip install {distribution}"))
        else:
            remedy = f"pip install --force-reinstall {distribution}"
            checks.append(Check(distribution, "broken", f"{version}, {problem}", remedy))
    return checks


def library(name: str, module: str, extra: str, use: str) -> Check:
    """Check a library of an extra.

    name: shown, and the distribution if that does not have the name of the module. use: completes "optional, ...".
    """
    remedy = f'pip install "pairvpr[{extra}]"'
    if find_module(module) is None:
        return Check(name, "missing", f"optional, {use}: not installed", remedy)
    problem = import_problem(module)
    if problem is not None:
        return Check(name, "broken", problem, f"{remedy} --force-reinstall")
    return Check(name, "ok", installed_version(module) or installed_version(name) or "version not known")


def export_parts() -> list[Check]:
    """Look up the parts of training and export. They are not imported, which would take seconds."""
    remedy = 'pip install "pairvpr[export]"'
    missing = "optional, for training and export: not installed"
    return [
        Check(name, "missing", missing, remedy) if version is None else Check(name, "ok", version)
        for name, version in ((name, installed_version(name)) for name in EXPORT)
    ]
