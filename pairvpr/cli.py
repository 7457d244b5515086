"""`pairvpr`: everything but answering queries. Bodies import what they need, so that help is instant."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click

from pairvpr.cli_learning import town, train_group
from pairvpr.cli_tuning import tune
from pairvpr.errors import CheckpointError, MapError
from pairvpr.runtime.console import Group, Meter, Meters, log_to_stderr, say_model, source_options
from pairvpr.runtime.engine import DEVICES, PRECISIONS

if TYPE_CHECKING:
    from pairvpr.export.precision import Precision
    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.model import Model

FOLDER = click.Path(path_type=Path)

db_option = click.option("--db", required=True, type=FOLDER, help="The map's folder.")
poses_option = click.option(
    "--poses", type=FOLDER, help="Poses by picture name (CSV) or time stamp (TUM). Else: @UTM@ names, EXIF GPS."
)
strict_option = click.option("--strict", is_flag=True, help="Stop at a picture that cannot be read.")
distance_option = click.option(
    "--min-distance", type=click.FloatRange(min=0), help="Keep a picture so many metres from the last one kept."
)
change_option = click.option(
    "--min-change",
    type=click.FloatRange(0, 2),
    help="Keep a picture whose descriptor's cosine to that of the last one kept is lower by so much than 1.",
)
format_option = click.option(
    "--format", "style", type=click.Choice(["text", "jsonl"]), default="text", show_default=True
)


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
    from pairvpr.runtime import onnxruntime_engine

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
@click.option("--int8", "precision", flag_value="int8-fp16", help="8-bit linear layers, the rest in half precision.")
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
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.tensorrt_api import Settings

    if db is not None:
        with Map.open(db) as places:
            model = places.model_path
    settings = Settings(workspace and workspace << 20, optimization_level, version_compatible, hardware_compatible)
    _build_engines(Bundle.open(model or Path()), precision, [int(size) for size in sizes], settings)


def _build_engines(bundle: Bundle, precision: str | None, *options: Any) -> None:
    from pairvpr.export.tensorrt import build_engines

    say_model(bundle)
    folder = build_engines(bundle, precision, Meters(), *options)
    click.echo(f"{folder}: engines of all graphs, within tolerance at every batch size")


@main.group("map", cls=Group)
def map_group() -> None:
    """Build, extend and look at maps."""


@map_group.command("build")
@click.argument("source")
@db_option
@click.option("--model", type=FOLDER, help="The bundle to build with. Default: the default model.")
@poses_option
@strict_option
@click.option(
    "--tokens",
    "token_type",
    type=click.Choice(["float16", "int8"]),
    help="How tokens are stored. Default: int8 where pair scores of the model's reference pictures stay the same.",
)
@click.option(
    "--keep-tokens",
    type=click.FloatRange(0, 1, min_open=True),
    help="Merge a picture's tokens to this share, as 0.5; cheaper in every way but accuracy. Default: all.",
)
@distance_option
@change_option
@source_options
def map_build(source: str, db: Path, model: Path | None, **how: Any) -> None:
    """Build a map from SOURCE, a folder or whatever --query takes; run it again to go on after an interruption."""
    from pairvpr.runtime.model import load_model

    _add(source, db, load_model(model), create=True, **how)


@map_group.command("add")
@click.argument("source")
@db_option
@poses_option
@strict_option
@distance_option
@change_option
@source_options
def map_add(source: str, db: Path, **how: Any) -> None:
    """Add the pictures of SOURCE, a folder or whatever --query takes, to a map, with the map's own model."""
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.model import load_model

    with Map.open(db) as places:
        model_path = places.model_path
    _add(source, db, load_model(model_path), create=False, **how)


def _add(
    source: str, db: Path, model: Model, *, min_distance: float | None, min_change: float | None, **how: Any
) -> None:
    from pairvpr.runtime.map_builder import add_pictures
    from pairvpr.runtime.selection import Selection

    say_model(model.bundle)
    selection = Selection(min_distance, min_change)
    report = add_pictures(source, db, model, selection=selection, progress=Meter("pictures"), **how)
    for line in report.skipped:
        click.echo(f"skipped: {line}", err=True)
    left_out = f", {report.left_out} left out by --min-distance or --min-change" if report.left_out else ""
    click.echo(
        f"{db}: {report.added} pictures added, {report.with_place} with a place, {report.already} already there, "
        f"{len(report.skipped)} could not be read{left_out}"
    )


@map_group.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@db_option
def map_remove(names: tuple[str, ...], db: Path) -> None:
    """Remove pictures from a map, by the names that `map list` gives: all of them or, where one is unknown, none."""
    from pairvpr.runtime.map import MapWriter

    with MapWriter.edit(db) as writer:
        click.echo(f"{db}: {writer.remove(names)} pictures removed")


@map_group.command("merge")
@click.argument("others", nargs=-1, required=True, type=FOLDER, metavar="OTHER...")
@db_option
def map_merge(others: tuple[Path, ...], db: Path) -> None:
    """Add the pictures of other maps to a map; run it again to go on after an interruption.

    The maps must be of one model and store tokens in one way. Nothing is computed anew.
    """
    from pairvpr.runtime.map import merge_maps

    report = merge_maps(others, db, Meter("pictures"))
    for line in report.damaged:
        click.echo(f"left out: {line}", err=True)
    click.echo(f"{db}: {report.merged} pictures merged, {report.already} already there, {len(report.damaged)} damaged")
    if report.damaged:
        raise MapError(f"{db}: {len(report.damaged)} damaged pictures, listed above, were left out; the others are in")


@map_group.command("compact")
@db_option
def map_compact(db: Path) -> None:
    """Give back the room of removed pictures, and merge small segments."""
    from pairvpr.runtime.map import MapWriter

    with MapWriter.edit(db) as writer:
        freed = writer.compact()
    click.echo(f"{db}: {freed / 1e6:.1f} MB freed")


@map_group.command("list")
@db_option
@format_option
def map_list(db: Path, style: str) -> None:
    """List a map's pictures."""
    from pairvpr.runtime.map import Map

    with Map.open(db) as places:
        for record in places.records:
            place = record.pose or record.gps
            pose = None if place is None else place.as_json()
            if style == "jsonl":
                line = json.dumps(
                    {"name": record.name, "timestamp": record.timestamp, "pose": pose}, ensure_ascii=False
                )
            else:
                line = "  ".join([record.name, *([] if place is None else [str(place)])])
            click.echo(line)


@map_group.command("info")
@db_option
@format_option
def map_info(db: Path, style: str) -> None:
    """Say what a map holds, what it takes, and what model it was made with."""
    import dataclasses

    from pairvpr.runtime.acceptance import Judge, Setup
    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.cascade import Cascade
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.token_choice import describe
    from pairvpr.runtime.tuning import Tuning

    with Map.open(db) as places:
        info = {**dataclasses.asdict(places.info()), "path": str(db)}
        bundle = Bundle.open(places.model_path)
        weights, cascade, tuning = bundle.info.weights, Cascade.of(bundle), Tuning.of(bundle)
        judge = Judge.of(bundle, Setup.of(places, min(bundle.info.top_k, len(places)), cascade))
    info.update(preset=bundle.info.preset, weights=weights.origin, licence=weights.licence)
    if style == "jsonl":
        info.update(cascade=cascade and cascade.figures(), tuning=tuning and tuning.to_json())
        info.update(decisions=judge.figures())
        click.echo(json.dumps(info))
        return
    info.update(tokens=describe(info["tokens"]), cascade=cascade or "not calibrated", tuned=tuning or "no")
    info.update(decisions=judge)
    for name, value in info.items():
        click.echo(f"{name.replace('_', ' '):18} {value}")


@map_group.command("view")
@db_option
@click.option("--out", required=True, type=FOLDER, help="The page's file, as map.html.")
def map_view(db: Path, out: Path) -> None:
    """Show a map on one page: its numbers, where its pictures were taken, and some of them."""
    from pairvpr.viewing.map_page import view_map

    page = view_map(db, out)
    click.echo(f"{out}: {page.pictures} pictures, {page.plotted} on a plot, {page.shown} shown")


@map_group.command("verify")
@db_option
@click.option("--repair", is_flag=True, help="Keep what is intact, move damaged files aside, name lost pictures.")
def map_verify(db: Path, repair: bool) -> None:
    """Check every byte of a map that matters; exit 2 and name the damage where there is any."""
    from pairvpr.errors import BundleError
    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.map import Map, verify_map

    if repair:
        _repair(db)
    damages = verify_map(db, Meter("pictures checked"))
    try:
        bundle = Bundle.open(db / "model")
        bundle.verify()
        with Map.open(db) as places:
            if bundle.identity != places.identity:
                damages.append(f"{db / 'model'}: not the model the map was made with; copy the right bundle there")
    except (BundleError, MapError) as error:
        damages.append(str(error))
    damages = list(dict.fromkeys(damages))
    for damage in damages:
        click.echo(damage)
    if damages:
        raise MapError(
            f"{db}: {len(damages)} damages found, listed above; restore the map from a copy, or keep what is "
            f"intact of its pictures with `pairvpr map verify --repair --db {db}`"
        )
    click.echo(f"{db}: intact")


def _repair(db: Path) -> None:
    from pairvpr.runtime.map import repair_map

    report = repair_map(db, Meter("pictures looked at"))
    for line in report.dropped:
        click.echo(f"dropped: {line}")
    if report.aside:
        nameless = f", {report.nameless} entries lost with their names" if report.nameless else ""
        click.echo(
            f"{db}: {report.kept} pictures kept, {len(report.dropped)} dropped{nameless}; {report.aside[0].parent} has "
            "the damaged files, and the catalog as it was: delete it when it is of no more use"
        )


@main.command()
@click.option("--images", type=FOLDER, help="Your own pictures, in place of the made-up town.")
@click.option("--model", type=FOLDER, help="Another bundle than the default model's.")
@click.option("--out", type=FOLDER, default=Path("demo-out"), show_default=True)
def demo(images: Path | None, model: Path | None, out: Path) -> None:
    """Build a map, query it, and show on one page what was recognised."""
    from pairvpr.demo.run import run_demo

    result = run_demo(out, images=images, model=model, progress=Meters())
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
    report: Path | None,
    work: Path | None,
) -> None:
    """Measure how well a model recognises QUERIES in a map of DATABASE."""
    given = [each is not None for each in (database, queries, dataset, root)]
    if given not in ([True, True, False, False], [False, False, True, True]):
        raise click.UsageError("give DATABASE and QUERIES, or --dataset NAME and --root DIR")
    if (dataset is not None and tolerance is not None) or (model is not None and checkpoint is not None):
        raise click.UsageError("--tolerance goes with two folders, and --model and --checkpoint exclude each other")
    from pairvpr.evaluation import (
        check_report_folder,
        evaluate,
        load_dataset,
        load_folders,
        open_model,
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
        say_model(opened.bundle)
        evaluation = evaluate(benchmark, opened, top_k=top_k, exact=exact, work_dir=work, progress=Meters())
    click.echo(summary(evaluation))
    if report is not None:
        click.echo(f"page: {write_report(evaluation, report)}")


@main.command()
@click.option("--model", type=FOLDER, help="The bundle to calibrate, on a map of the pictures themselves.")
@click.option("--db", type=FOLDER, help="The map whose model to calibrate, on answers from this map.")
@click.option("--images", required=True, type=FOLDER, help="Your own pictures, as the robot sees them.")
@click.option(
    "--accept", is_flag=True, help="Find the score from which answers may be acted on; needs --db and places."
)
@click.option(
    "--precision-target",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="With --accept: the share of accepted answers that is to be right. Default: 0.99.",
)
@click.option(
    "--delta",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="With --accept: the chance that it is less after all. Default: 0.1.",
)
@click.option(
    "--radius",
    type=click.FloatRange(min=0, min_open=True),
    help="With --accept: a match is right within so many metres, or the map's units. Default: 25.",
)
@click.option("--poses", type=FOLDER, help="With --accept: poses, as for `map build`. Else: @UTM@ names, EXIF GPS.")
@click.option("--top-k", type=click.IntRange(min=1), help="With --accept: candidates, as `pairvpr-run` will take.")
@click.option("--exact", is_flag=True, default=None, help="With --accept: for `pairvpr-run --exact`.")
@source_options
def calibrate(model: Path | None, db: Path | None, images: Path, accept: bool, **how: Any) -> None:
    """Learn from your pictures which candidates need no full comparison, and measure what that costs.

    With --accept, and after that: from which score on an answer may be acted on. --topic, --every and the like are for
    --accept alone.
    """
    from pairvpr.runtime.sources.options import DEFAULT

    asked = {name: value for name, value in how.items() if value not in (None, DEFAULT)}
    if accept:
        if db is None or model is not None:
            raise click.UsageError("--accept decides on answers from a map: give --db MAP")
        _calibrate_acceptance(db, images, **asked)
        return
    if (model is None) == (db is None):
        raise click.UsageError("give --model BUNDLE or --db MAP")
    if asked:
        raise click.UsageError("all options but --model, --db and --images go with --accept")
    from contextlib import ExitStack

    from pairvpr.calibration.cascade import calibrate_cascade, map_of
    from pairvpr.runtime.cascade import KEY
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.model import load_model

    with ExitStack() as stack:
        places = None if db is None else stack.enter_context(Map.open(db))
        opened = load_model(model if places is None else places.model_path)
        opened.bundle.check_writable()
        say_model(opened.bundle)
        meters = Meters()
        places = places or stack.enter_context(map_of(images, opened, meters))
        cascade = calibrate_cascade(places, opened, images, meters)
    opened.bundle.store_calibration(KEY, cascade.to_json())
    click.echo(f"{opened.bundle.path}: {cascade}")


def _calibrate_acceptance(
    db: Path,
    images: Path,
    precision_target: float | None = None,
    delta: float | None = None,
    radius: float | None = None,
    **how: Any,
) -> None:
    from pairvpr.calibration.acceptance import DELTA, PRECISION, RADIUS, Promise, calibrate_acceptance
    from pairvpr.runtime.acceptance import KEY
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.model import load_model

    promise = Promise(precision_target or PRECISION, delta or DELTA, radius or RADIUS)
    with Map.open(db) as places:
        opened = load_model(places.model_path)
        opened.bundle.check_writable()
        say_model(opened.bundle)
        acceptance = calibrate_acceptance(places, opened, images, promise, Meters(), **how)
    opened.bundle.store_calibration(KEY, acceptance.to_json())
    click.echo(f"{opened.bundle.path}: {acceptance}")


@main.command()
@click.option("--model", type=FOLDER, help="The bundle to measure. Default: the default model.")
@click.option("--images", type=FOLDER, help="Your own pictures, in place of drawn ones.")
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

    measured = run_bench(model, images, device=device, precision=precision, queries=queries, progress=Meters())
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


main.add_command(train_group)
main.add_command(town)
main.add_command(tune)


if __name__ == "__main__":
    main()
