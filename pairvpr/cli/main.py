"""`pairvpr`: everything but answering queries. Bodies import what they need, so that help is instant."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click

from pairvpr.cli.calibrate import calibrate, tune
from pairvpr.cli.loops import map_loops
from pairvpr.cli.maps import map_group
from pairvpr.cli.train import town, train_group
from pairvpr.errors import CheckpointError
from pairvpr.runtime.cli.errors import Group, if_interrupted
from pairvpr.runtime.cli.log import log, log_to_stderr, say_model
from pairvpr.runtime.cli.progress import Meters
from pairvpr.runtime.cli.serve import serve
from pairvpr.runtime.engines.open import DEVICES, PRECISIONS

if TYPE_CHECKING:
    from pairvpr.export.precision import Precision
    from pairvpr.runtime.bundle import Bundle

FOLDER = click.Path(path_type=Path)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pairvpr")
def main() -> None:
    """Pair-VPR on the edge: visual place recognition by descriptor search and pair re-ranking."""
    log_to_stderr()


@main.command()
@click.option("--checkpoint", help="A .pth or .safetensors file, or hf:OWNER/REPO/FILE.")
@click.option("--preset", help="A preset with seeded weights, to measure its speed.")
@click.option("--fp32", "precision", flag_value="fp32", default=True, help="Full precision (the default).")
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision, LayerNorms in float32.")
@click.option("--int8", "precision", flag_value="int8", help="8-bit linear layers, judged against float32.")
@click.option("--calibration-images", type=FOLDER, help="For --int8: at least 264 pictures like the robot's own.")
@click.option("--tensorrt", is_flag=True, help="Build TensorRT engines too, for the GPU of this computer.")
@click.option("--out", type=FOLDER, help="The bundle's folder. Default: models/<preset>.")
def export(
    checkpoint: str | None,
    preset: str | None,
    precision: str,
    calibration_images: Path | None,
    tensorrt: bool,
    out: Path | None,
) -> None:
    """Export a checkpoint (the default model without one) to a bundle of ONNX graphs."""
    if checkpoint and preset:
        raise click.UsageError("--checkpoint and --preset exclude each other")
    if (precision == "int8") != (calibration_images is not None):
        raise click.UsageError("--int8 and --calibration-images go together")
    from pairvpr.export.tensorrt import require
    from pairvpr.runtime.engines import onnxruntime as onnxruntime_engine

    onnxruntime_engine.load()  # every export is compared with the network by it
    try:
        from pairvpr.export.bundle_writer import export_bundle, export_int8
        from pairvpr.model import default_checkpoint, load_checkpoint, seeded_checkpoint
    except ImportError as error:
        raise CheckpointError(
            f'export needs torch, timm and onnx, several GB ({error}); run pip install "pairvpr[export]"'
        ) from error

    if tensorrt:
        require()
    start = time.monotonic()
    loaded = seeded_checkpoint(preset) if preset else load_checkpoint(checkpoint or default_checkpoint())
    folder = out or Path("models") / _folder_name(loaded.network.config.preset, checkpoint)

    def progress(step: str) -> None:
        click.echo(f"{time.monotonic() - start:6.1f} s  {step}", err=True)

    if calibration_images is not None:
        if tensorrt:
            export_bundle(loaded, "fp16", folder, progress)  # what INT8 is measured against on the device
        bundle = export_int8(loaded, calibration_images, folder, progress)
    else:
        bundle = export_bundle(loaded, cast("Precision", precision), folder, progress)
    say_model(bundle)
    for name, info in bundle.info.precisions.items():
        if name.partition("-")[0] == precision:
            click.echo(f"{folder}: {name}, " + ", ".join(f"{k} {v:.3g}" for k, v in info.errors.items()))
    if tensorrt:
        _build_engines(bundle, "int8-fp16" if precision == "int8" else precision)


@main.group("engines", cls=Group)
def engines_group() -> None:
    """TensorRT engines, built on the device that runs them."""


@engines_group.command("build")
@click.option("--model", type=FOLDER, help="The bundle to build engines for.")
@click.option("--db", type=FOLDER, help="The map for whose model to build them.")
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision (the default where the bundle has it).")
@click.option(
    "--int8",
    "precision",
    flag_value="int8-fp16",
    help="8-bit linear layers in graphs that are faster so, as measured here.",
)
@click.option(
    "--batches", default="1,8,32,100", show_default=True, help="Batch sizes to tune for; the last is the most."
)
@click.option("--workspace", type=click.IntRange(min=1), help="MiB of scratch memory a layer may take.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="How long to search for fast code. Default: 3.")
@click.option("--version-compatible", is_flag=True, help="For later versions of the same major TensorRT too.")
@click.option("--hardware-compatible", is_flag=True, help="For other GPUs from Ampere on too; not on a Jetson.")
def engines_build(
    model: Path | None,
    db: Path | None,
    precision: str | None,
    batches: str,
    workspace: int | None,
    optimization_level: int | None,
    version_compatible: bool,
    hardware_compatible: bool,
) -> None:
    """Build and check TensorRT engines of a bundle, here, for here. Takes minutes."""
    if (model is None) == (db is None):
        raise click.UsageError("give --model BUNDLE or --db MAP")
    sizes = batches.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise click.UsageError(f"--batches {batches}: give numbers with commas between them")
    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.engines.tensorrt.api import BuildSettings
    from pairvpr.runtime.map import Map

    if db is not None:
        with Map.open(db) as places:
            model = places.model_path
    settings = BuildSettings(workspace and workspace << 20, optimization_level, version_compatible, hardware_compatible)
    _build_engines(Bundle.open(model or Path()), precision, [int(size) for size in sizes], settings)


def _build_engines(bundle: Bundle, precision: str | None, *options: Any) -> None:
    from pairvpr.export.tensorrt import build_engines
    from pairvpr.export.tensorrt_int8 import build_int8

    say_model(bundle)
    if precision == "int8-fp16":
        folder, decisions = build_int8(bundle, Meters().update, *options)
        for decision in decisions:
            click.echo(str(decision))
    else:
        folder = build_engines(bundle, precision, Meters().update, *options)
    click.echo(f"{folder}: engines of all graphs, within tolerance at every batch size")


@main.command()
@click.option("--images", type=FOLDER, help="Your own pictures, in place of the made-up town.")
@click.option("--model", type=FOLDER, help="Another bundle than the default model's.")
@click.option("--out", type=FOLDER, default=Path("demo-out"), show_default=True)
def demo(images: Path | None, model: Path | None, out: Path) -> None:
    """Build a map, query it, and show on one page what was recognised."""
    from pairvpr.demo.run import run_demo

    with if_interrupted(f"no page was written; the next demo replaces what is in {out}"):
        result = run_demo(out, images=images, model=model, progress=Meters().update)
    if not result.trained:
        click.echo("the weights are seeded, never trained: the figures show the machinery, not the method")
    click.echo(
        f"Recall@1 on {result.queries} queries of {result.places} places: {result.recall_before:.1%} by descriptor, "
        f"{result.recall_after:.1%} after re-ranking the best {result.top_k}; {result.milliseconds:.0f} ms a query"
    )
    click.echo(f"page: {result.report}")


@main.command("eval")
@click.argument("database", type=FOLDER, required=False)
@click.argument("queries", type=FOLDER, required=False)
@click.option(
    "--dataset", help="A published benchmark instead, as msls-val or pitts30k; with --root, any other name lists them."
)
@click.option("--root", type=FOLDER, help="The folder of --dataset.")
@click.option("--tolerance", type=click.IntRange(min=0), help="Frames: match by numbers in names, not @UTM@ positions.")
@click.option("--model", type=FOLDER, help="The bundle to measure. Default: the default model.")
@click.option("--checkpoint", help="A checkpoint to measure instead, as `pairvpr export` takes it.")
@click.option("--top-k", type=click.IntRange(min=1), help="Candidates to re-rank. Default: the model's.")
@click.option("--exact", is_flag=True, help="Compare every candidate in full, also where a cascade was calibrated.")
@click.option("--sequence", is_flag=True, help="Filter the answers to queries in order too; with --tolerance.")
@click.option("--report", type=FOLDER, help="Write page, figures and predictions into this folder.")
@click.option("--work", type=FOLDER, help="Keep the map here, and go on with it after an interruption.")
def eval_(
    database: Path | None,
    queries: Path | None,
    dataset: str | None,
    root: Path | None,
    tolerance: int | None,
    model: Path | None,
    checkpoint: str | None,
    top_k: int | None,
    exact: bool,
    sequence: bool,
    report: Path | None,
    work: Path | None,
) -> None:
    """Measure how well a model recognises QUERIES in a map of DATABASE."""
    given = [each is not None for each in (database, queries, dataset, root)]
    if given not in ([True, True, False, False], [False, False, True, True]):
        raise click.UsageError("give DATABASE and QUERIES, or --dataset NAME and --root DIR")
    if (dataset is not None and tolerance is not None) or (model is not None and checkpoint is not None):
        raise click.UsageError("--tolerance goes with two folders, and --model and --checkpoint exclude each other")
    if sequence and tolerance is None:
        raise click.UsageError("--sequence goes with --tolerance: it needs two traverses, numbered frame by frame")
    from pairvpr.evaluation import (
        check_report_folder,
        evaluate,
        load_dataset,
        load_folders,
        open_model,
        sequence_warning,
        summary,
        write_report,
    )

    if database is not None and queries is not None:
        benchmark = load_folders(database, queries, tolerance)
    else:
        benchmark = load_dataset(str(dataset), root or Path())
    if report is not None:
        check_report_folder(report)
    with open_model(model, checkpoint) as opened:
        say_model(opened.bundle, opened.engines.description)
        evaluation = evaluate(
            benchmark, opened, top_k=top_k, exact=exact, sequence=sequence, work_dir=work, progress=Meters().update
        )
    click.echo(summary(evaluation))
    if (warning := sequence_warning(evaluation)) is not None:
        log.warning(warning)
    if report is not None:
        click.echo(f"page: {write_report(evaluation, report)}")


@main.command()
@click.option("--model", type=FOLDER, help="The bundle to measure. Default: the default model.")
@click.option("--images", type=FOLDER, help="Your own pictures, in place of the made-up town.")
@click.option("--queries", type=click.IntRange(min=1), default=50, show_default=True, help="Answers to measure.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Default: the device's best in the bundle.")
@click.option("--json", "file", type=click.File("w", "utf-8", lazy=False), help="Also write the figures there.")
def bench(
    model: Path | None, images: Path | None, queries: int, device: str, precision: str | None, file: IO[str] | None
) -> None:
    """Measure answers on this machine, step by step, and project what they take on other boards."""
    from pairvpr.bench.page import page
    from pairvpr.bench.run import run_bench

    measured = run_bench(model, images, device=device, precision=precision, queries=queries, progress=Meters().update)
    click.echo(page(measured))
    if file is not None:
        file.write(json.dumps(measured.to_json(), indent=1) + "\n")


@main.command()
@click.option("--db", type=FOLDER, help="Also say whether the setting tuned for this map can be had here.")
@click.pass_context
def doctor(context: click.Context, db: Path | None) -> None:
    """Say what is installed, what works, and how to get what is missing."""
    from pairvpr.doctor import examine, format_report, healthy

    checks = examine(db)
    click.echo(format_report(checks))
    context.exit(0 if healthy(checks) else 2)


def _folder_name(preset: str, checkpoint: str | None) -> str:
    """The default folder of a bundle: the preset's name, or the checkpoint's where no preset fits."""
    return preset if preset != "custom" or checkpoint is None else Path(checkpoint).stem


map_group.add_command(map_loops)
for command in (map_group, calibrate, tune, serve, train_group, town):
    main.add_command(command)


if __name__ == "__main__":
    main()
