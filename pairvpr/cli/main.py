"""Define the command `pairvpr`. Imports stand in the bodies of commands, so that help is instant."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import click

from pairvpr.cli.calibrate import calibrate, tune
from pairvpr.cli.descriptor_options import DescriptorOptions, descriptor_options
from pairvpr.cli.errors import Group, if_interrupted
from pairvpr.cli.evaluation import eval_
from pairvpr.cli.fleet import fleet_group
from pairvpr.cli.log import log_to_stderr, say_busy, say_model
from pairvpr.cli.loops import map_graph, map_loops
from pairvpr.cli.maps import map_group
from pairvpr.cli.options import COUNT, PATH, Whole
from pairvpr.cli.progress import Meters
from pairvpr.cli.serve import serve
from pairvpr.cli.train import town, train_group
from pairvpr.errors import CheckpointError
from pairvpr.printing import json_document, print_line, print_lines
from pairvpr.runtime.engines.open import DEVICES, PRECISIONS

if TYPE_CHECKING:
    from pairvpr.export.descriptor_source import Descriptor
    from pairvpr.export.precision import Precision
    from pairvpr.model.checkpoint import Checkpoint
    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.engines.tensorrt.network import BuildSettings


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pairvpr")
def main() -> None:
    """Pair-VPR on the edge: visual place recognition by descriptor search and pair re-ranking."""
    log_to_stderr()


@main.command()
@click.option("--checkpoint", help="A .pth or .safetensors file, or hf:OWNER/REPO/FILE.")
@click.option("--preset", help="Export a preset with seeded weights instead, to measure its speed.")
@descriptor_options
@click.option("--fp32", "precision", flag_value="fp32", default=True, help="Full precision (the default).")
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision, LayerNorms in float32.")
@click.option("--int8", "precision", flag_value="int8", help="8-bit linear layers, judged against float32.")
@click.option(
    "--calibration-images",
    type=PATH,
    help="For --int8 (264 or more) and --descriptor-dim: pictures like the robot's own.",
)
@click.option("--tensorrt", is_flag=True, help="Build TensorRT engines too, for the GPU of this computer.")
@click.option("--out", type=PATH, help="The bundle's folder. Default: models/<preset>.")
def export(
    checkpoint: str | None,
    preset: str | None,
    descriptor: DescriptorOptions,
    precision: str,
    calibration_images: Path | None,
    tensorrt: bool,
    out: Path | None,
) -> None:
    """Export a checkpoint to an ONNX bundle.

    Without --checkpoint or --preset the default model is exported, or the descriptor alone if one is given. Every
    graph is compared with the network.
    """
    if checkpoint and preset:
        raise click.UsageError("--checkpoint and --preset exclude each other")
    if precision == "int8" and calibration_images is None:
        raise click.UsageError("--int8 needs --calibration-images")
    if descriptor.dim is not None and calibration_images is None:
        raise click.UsageError("--descriptor-dim needs --calibration-images")
    if precision != "int8" and descriptor.dim is None and calibration_images is not None:
        raise click.UsageError("--calibration-images needs --int8 or --descriptor-dim")
    if precision == "int8" and tensorrt and descriptor.spec is not None:
        raise click.UsageError("--int8 --tensorrt does not go with --descriptor: give --fp16")
    _check_export(tensorrt)
    loaded = None if descriptor.alone(checkpoint, preset) else _load_for_export(checkpoint, preset)
    progress = _progress()
    first = descriptor.load(calibration_images, progress)
    name = "descriptor" if loaded is None else _folder_name(loaded.network.config.preset, checkpoint)
    folder = out or Path("models") / (name if loaded is None or first is None else f"{name}-descriptor")
    bundle = _export(loaded, first, precision, calibration_images, tensorrt, folder, progress)
    say_model(bundle)
    for name, info in bundle.info.precisions.items():
        if name.partition("-")[0] == precision:
            print_line(f"{folder}: {name}, " + ", ".join(f"{k} {v:.3g}" for k, v in info.errors.items()))
    if tensorrt:
        _build_engines(bundle, "int8-fp16" if precision == "int8" else precision)


def _check_export(tensorrt: bool) -> None:
    """Check that all that the export needs is installed, before weights are read."""
    from pairvpr.export.tensorrt import require
    from pairvpr.runtime.engines import onnxruntime as onnxruntime_engine

    onnxruntime_engine.load()  # every export is compared with the network by it
    try:
        import pairvpr.export.bundle_writer  # noqa: F401  (fails here if onnx is missing)
    except ImportError as error:
        raise CheckpointError(
            f'export needs torch, timm and onnx, several GB ({error}); run pip install "pairvpr[export]"'
        ) from error
    if tensorrt:
        require()


def _load_for_export(checkpoint: str | None, preset: str | None) -> Checkpoint:
    from pairvpr.model import default_checkpoint, load_checkpoint, seeded_checkpoint

    return seeded_checkpoint(preset) if preset else load_checkpoint(checkpoint or default_checkpoint())


def _export(
    loaded: Checkpoint | None,
    descriptor: Descriptor | None,
    precision: str,
    calibration_images: Path | None,
    tensorrt: bool,
    folder: Path,
    progress: Callable[[str], None],
) -> Bundle:
    from pairvpr.export.bundle_writer import export_bundle, export_int8

    if precision != "int8" or calibration_images is None:
        return export_bundle(loaded, cast("Precision", precision), folder, progress, descriptor)
    if tensorrt:
        export_bundle(loaded, "fp16", folder, progress)  # the device compares INT8 with it
    return export_int8(loaded, calibration_images, folder, progress, descriptor)


def _progress() -> Callable[[str], None]:
    """Return a function that prints each step on stderr, with the seconds since now."""
    start = time.monotonic()
    return lambda step: print_line(f"{time.monotonic() - start:6.1f} s  {step}", err=True)


def _folder_name(preset: str, checkpoint: str | None) -> str:
    """Return the default folder of a bundle: the name of the preset, or of the checkpoint if no preset fits."""
    return preset if preset != "custom" or checkpoint is None else Path(checkpoint).stem


@main.group("engines", cls=Group)
def engines_group() -> None:
    """Build TensorRT engines on this device."""


@engines_group.command("build")
@click.option("--model", type=PATH, help="The bundle to build engines for.")
@click.option("--db", type=PATH, help="The map for whose model to build them.")
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision (the default where the bundle has it).")
@click.option(
    "--int8",
    "precision",
    flag_value="int8-fp16",
    help="8-bit linear layers in each graph in which they are faster on this device.",
)
@click.option(
    "--batches",
    help="Batch sizes to tune for; the last is the largest. Default: 1,8,32,100; below 12 GB of GPU memory 1,8,32.",
)
@click.option("--workspace", type=COUNT, help="Scratch memory for a layer, in MiB, at most.")
@click.option(
    "--optimization-level",
    type=Whole(0, 5),
    help="Search longer for fast code with a higher level. Default: 3.",
)
@click.option("--version-compatible", is_flag=True, help="Run with later versions of the same major TensorRT too.")
@click.option("--hardware-compatible", is_flag=True, help="Run on other GPUs from Ampere on too; not on a Jetson.")
def engines_build(
    model: Path | None,
    db: Path | None,
    precision: str | None,
    batches: str | None,
    workspace: int | None,
    optimization_level: int | None,
    version_compatible: bool,
    hardware_compatible: bool,
) -> None:
    """Build TensorRT engines of a bundle.

    They run on this device. Every engine is checked against the reference. This takes minutes.
    """
    if (model is None) == (db is None):
        raise click.UsageError("give --model BUNDLE or --db MAP")
    sizes = [] if batches is None else batches.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise click.UsageError(f"--batches {batches}: give numbers with commas between them")
    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.engines.tensorrt.network import BuildSettings
    from pairvpr.runtime.map import Map

    if db is not None:
        with Map.open(db) as map_:
            model = map_.model_path
    settings = BuildSettings(workspace and workspace << 20, optimization_level, version_compatible, hardware_compatible)
    _build_engines(Bundle.open(model or Path()), precision, [int(size) for size in sizes] or None, settings)


def _build_engines(
    bundle: Bundle, precision: str | None, batches: Sequence[int] | None = None, settings: BuildSettings | None = None
) -> None:
    from pairvpr.export.tensorrt import build_engines
    from pairvpr.export.tensorrt_int8 import build_int8
    from pairvpr.runtime.engines.tensorrt.network import BuildSettings

    say_model(bundle)
    settings = settings or BuildSettings()
    if precision == "int8-fp16":
        folder, decisions = build_int8(bundle, Meters().update, batches, settings)
        for decision in decisions:
            print_line(str(decision))
    else:
        folder = build_engines(bundle, precision, Meters().update, batches, settings)
    print_line(f"{folder}: engines of all graphs, within tolerance at every batch size")


@main.command()
@click.option("--images", type=PATH, help="Your own pictures, in place of the made-up town.")
@click.option("--model", type=PATH, help="Another bundle than the default model's.")
@click.option("--out", type=PATH, default=Path("demo-out"), show_default=True, help="The folder to write.")
def demo(images: Path | None, model: Path | None, out: Path) -> None:
    """Build a map, query it, show a page.

    Without --images it shows a made-up town, whose pictures ship with the package.
    """
    from pairvpr.demo.run import run_demo
    from pairvpr.runtime.measure import Measure

    with if_interrupted(f"no page was written; the next demo replaces the content of {out}"):
        result = run_demo(out, images=images, model=model, progress=Meters().update)
    if not result.trained:
        print_line("the weights are seeded, not trained: the figures do not show how well places are recognised")
    for note in result.notes:
        print_line(note)
    re_ranked = f", {result.recall_after:.1%} after re-ranking the best {result.top_k}"
    print_line(
        f"Recall@1 on {result.queries} queries of {result.places} places: {result.recall_before:.1%} by descriptor"
        f"{re_ranked if result.measure is Measure.SCORE else ''}; {result.milliseconds:.0f} ms a query"
    )
    print_line(f"page: {result.report}")


@main.command()
@click.option("--model", type=PATH, help="The bundle to measure. Default: the default model.")
@click.option("--images", type=PATH, help="Your own pictures, in place of the made-up town.")
@click.option("--queries", type=COUNT, default=50, show_default=True, help="Answers to measure.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to compute.")
@click.option(
    "--precision", type=click.Choice(PRECISIONS), help="Number format. Default: the best in the bundle for the device."
)
@click.option(
    "--json", "file", type=click.File("w", "utf-8", lazy=False), help="Also write the figures into this file, as JSON."
)
@click.option("--html", type=PATH, help="Also write the figures as a page, in bench.html say.")
def bench(
    model: Path | None,
    images: Path | None,
    queries: int,
    device: str,
    precision: str | None,
    file: IO[str] | None,
    html: Path | None,
) -> None:
    """Measure answers on this machine, by step.

    The time on other boards is projected from the work and their peak rates.
    """
    from pairvpr.bench.html_page import render
    from pairvpr.bench.page import page
    from pairvpr.bench.run import run_bench
    from pairvpr.html.document import check_page, write_page

    if html is not None:
        check_page(html)
    say_busy()
    measured = run_bench(model, images, device=device, precision=precision, queries=queries, progress=Meters().update)
    print_lines(page(measured))
    if file is not None:
        file.write(json_document(measured.to_json()))
    if html is not None:
        write_page(html, render(measured))
        print_line(f"page: {html}")


@main.command()
@click.option("--db", type=PATH, help="Also check that the setting tuned for this map works here.")
@click.option("--html", type=PATH, help="Also write the checks as a page, in doctor.html say.")
@click.pass_context
def doctor(context: click.Context, db: Path | None, html: Path | None) -> None:
    """Check the installation of this computer.

    Every part is tried. A line says how to get each part that is missing or broken. Exits with 2 if recognition does
    not work.
    """
    from pairvpr.doctor import examine, format_report, healthy
    from pairvpr.doctor.html_page import render
    from pairvpr.html.document import check_page, write_page

    if html is not None:
        check_page(html)
    checks = examine(db)
    print_lines(format_report(checks))
    if html is not None:
        write_page(html, render(checks))
        print_line(f"page: {html}")
    context.exit(0 if healthy(checks) else 2)


map_group.add_command(map_loops)
map_group.add_command(map_graph)
for command in (map_group, fleet_group, eval_, calibrate, tune, serve, train_group, town):
    main.add_command(command)


if __name__ == "__main__":
    main()
