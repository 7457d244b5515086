"""Define `pairvpr map`. Imports stand in the bodies of commands, so that help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pairvpr.cli.build_options import SOURCE_ARGUMENT, build_options, new_map_options
from pairvpr.cli.errors import Group
from pairvpr.cli.log import say_model
from pairvpr.cli.options import DB_OPTION, FILE, FORMAT_OPTION, PATH
from pairvpr.cli.progress import Meter
from pairvpr.errors import MapError
from pairvpr.printing import counted, json_line, print_line

if TYPE_CHECKING:
    from pairvpr.runtime.mapping.builder import BuildOptions
    from pairvpr.runtime.model import Model


@click.group("map", cls=Group)
def map_group() -> None:
    """Build, extend and look at maps."""


@map_group.command("build")
@SOURCE_ARGUMENT
@DB_OPTION
@click.option("--model", type=PATH, help="Build with this bundle. Default: the default model.")
@new_map_options
def map_build(images: str, db: Path, model: Path | None, options: BuildOptions) -> None:
    """Build a map from a folder or other source.

    SOURCE is anything that --query of `pairvpr-run` takes. Run the command again to go on after an interruption.
    """
    from pairvpr.runtime.model import load_model

    _add(images, db, load_model(model, digest=options.model_digest), options, create=True)


@map_group.command("add")
@SOURCE_ARGUMENT
@DB_OPTION
@build_options
def map_add(images: str, db: Path, options: BuildOptions) -> None:
    """Add pictures to a map.

    SOURCE is anything that --query of `pairvpr-run` takes. The map's own model encodes the pictures.
    """
    from pairvpr.runtime.map.catalog import load_meta
    from pairvpr.runtime.map.creation import MODEL
    from pairvpr.runtime.map.errors import refuse_tile
    from pairvpr.runtime.map.meta import DIGEST
    from pairvpr.runtime.model import load_model

    refuse_tile(db)
    digest = load_meta(db).settings.get(DIGEST)
    _add(images, db, load_model(db / MODEL, digest=digest), options, create=False)


def _add(images: str, db: Path, model: Model, options: BuildOptions, *, create: bool) -> None:
    from pairvpr.runtime.mapping.builder import add_pictures

    say_model(model.bundle, model.engines.description)
    report = add_pictures(images, db, model, options, create=create, progress=Meter("pictures").update)
    for line in report.skipped:
        print_line(f"skipped: {line}", err=True)
    left_out = f", {report.left_out} left out by --min-distance or --min-change" if report.left_out else ""
    print_line(
        f"{db}: {report.added} pictures added, {report.with_place} with a place, {report.already} already there, "
        f"{len(report.skipped)} could not be read{left_out}"
    )


@map_group.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@DB_OPTION
def map_remove(names: tuple[str, ...], db: Path) -> None:
    """Remove pictures from a map.

    NAMEs are those that `map list` gives. If one is unknown, no picture is removed.
    """
    from pairvpr.runtime.map import MapWriter

    with MapWriter.edit(db) as writer:
        print_line(f"{db}: {writer.remove(names)} pictures removed")


@map_group.command("merge")
@click.argument("others", nargs=-1, required=True, type=PATH, metavar="OTHER...")
@DB_OPTION
def map_merge(others: tuple[Path, ...], db: Path) -> None:
    """Add the pictures of other maps.

    The maps must have the same model and store tokens in the same way. Nothing is encoded again. Run the command again
    to go on after an interruption.
    """
    from pairvpr.runtime.map import merge_maps

    report = merge_maps(others, db, Meter("pictures").update)
    for line in report.damaged:
        print_line(f"left out: {line}", err=True)
    print_line(f"{db}: {report.merged} pictures merged, {report.already} already there, {len(report.damaged)} damaged")
    if report.damaged:
        raise MapError(f"{db}: {len(report.damaged)} damaged pictures, listed above, were left out; the others are in")


@map_group.command("compact")
@DB_OPTION
def map_compact(db: Path) -> None:
    """Free the space of removed pictures.

    Small segments are merged.
    """
    from pairvpr.runtime.map import MapWriter

    with MapWriter.edit(db) as writer:
        freed = writer.compact()
    print_line(f"{db}: {freed / 1e6:.1f} MB freed")


@map_group.command("index")
@DB_OPTION
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16"]),
    help="Compare all descriptors in this precision. float16 takes half the memory; near-ties may change places.",
)
@click.option(
    "--ivf",
    is_flag=True,
    help="Sort the descriptors into lists, and compare those of the nearest lists alone, in float16 (faiss IVF).",
)
def map_index(db: Path, precision: str | None, ivf: bool) -> None:
    """Set how a map is searched.

    The map stores the setting. With --ivf, it also stores the lists and how much of the exact search they find.
    """
    from pairvpr.runtime.map import MapWriter
    from pairvpr.runtime.mapping.map_index import describe_lists, make_lists

    if (precision is None) == (not ivf):
        raise click.UsageError("give --precision or --ivf, one of them")
    if precision is not None:
        with MapWriter.edit(db) as writer:
            writer.set_index_precision(precision)
        print_line(f"{db}: searched in {precision}")
        return
    lines = describe_lists(make_lists(db), unlisted=0)
    print_line(f"{db}: searched by inverted lists")
    for line in lines:
        print_line(f"  {line}")


@map_group.command("list")
@DB_OPTION
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "jsonl", "names"]),
    default="text",
    show_default=True,
    help="Print text, JSON lines for programs, or names alone, as the image lists of COLMAP and hloc.",
)
def map_list(db: Path, style: str) -> None:
    """List the pictures of a map."""
    from pairvpr.runtime.map import Map

    with Map.open(db, descriptors=False) as map_:
        for record in map_.records:
            place = record.pose or record.gps
            pose = None if place is None else place.as_json()
            if style == "jsonl":
                told = {"name": record.name, "timestamp": record.timestamp, "pose": pose, "source": record.source}
                line = json_line(told)
            elif style == "names":
                line = record.name
            else:
                line = "  ".join([record.name, *([] if place is None else [str(place)])])
            print_line(line)


@map_group.command("export")
@DB_OPTION
@click.option("--out", required=True, type=FILE, help="Write this file, as descriptors.h5. An earlier one is replaced.")
def map_export(db: Path, out: Path) -> None:
    """Write the descriptors of a map as hloc reads them.

    The HDF5 file has a group for each picture, with the data set global_descriptor.
    """
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.outputs.hdf5 import write_descriptors

    with Map.open(db) as map_:
        write_descriptors(map_, out)
        print_line(f"{out}: {counted(len(map_), 'descriptor')} of {map_.descriptors.shape[1]} numbers")


@map_group.command("info")
@DB_OPTION
@FORMAT_OPTION
def map_info(db: Path, style: str) -> None:
    """Show figures, size and model of a map."""
    import dataclasses

    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.mapping.map_index import describe_lists
    from pairvpr.runtime.mapping.token_storage import describe
    from pairvpr.viewing.calibration_results import CalibrationResults, align, cascade_rows, judge_rows, tuning_rows

    with Map.open(db, descriptors=False) as map_:
        info = {**dataclasses.asdict(map_.info()), "path": str(db)}
        lists, unlisted = map_.lists, map_.unlisted
        bundle = Bundle.open(map_.model_path)
        found = CalibrationResults.from_map(map_, bundle)
        pinned = map_.model_digest is not None
    info.update(preset=bundle.info.preset, weights=bundle.info.origin, licence=bundle.info.licence)
    info.update(model_digest=bundle.digest, model_digest_pinned=pinned)
    if style == "jsonl":
        info.update(cascade=found.cascade and found.cascade.figures(), tuning=found.tuning and found.tuning.to_json())
        info.update(decisions=found.acceptance and found.acceptance.to_json())
        info.update(decisions_void=None if found.judge.acceptance is not None else found.judge.reason)
        info.update(added_after_calibration=found.judge.added)
        print_line(json_line(info))
        return
    info.update(tokens=describe(info["tokens"]), bytes_per_picture=round(info["bytes_per_picture"]))
    rows = [(name.replace("_", " "), str(value)) for name, value in info.items() if name != "lists"]
    lines = ["none: all descriptors are compared"] if lists is None else describe_lists(lists, unlisted)
    rows += [("lists" if number == 0 else "", line) for number, line in enumerate(lines)]
    results = {
        "cascade": cascade_rows(found.cascade) if found.cascade else [],
        "tuned": tuning_rows(found.tuning) if found.tuning else [],
        "decisions": judge_rows(found.judge, found.acceptance),
    }
    for name, labelled in results.items():
        lines = align(labelled) or ["not calibrated" if name == "cascade" else "no"]
        rows += [(name if number == 0 else "", line) for number, line in enumerate(lines)]
    for label, text in rows:
        print_line(f"{label:18} {text}")


@map_group.command("view")
@DB_OPTION
@click.option("--out", required=True, type=PATH, help="Write the page to this file, as map.html.")
def map_view(db: Path, out: Path) -> None:
    """Show a map on an HTML page.

    The page has the figures of the map, a plot of the places of its pictures, and some of the pictures.
    """
    from pairvpr.viewing.map_page import view_map

    page = view_map(db, out)
    print_line(f"{out}: {page.pictures} pictures, {page.plotted} on a plot, {page.shown} shown")


@map_group.command("verify")
@DB_OPTION
@click.option(
    "--repair",
    is_flag=True,
    help="Keep intact pictures, move damaged files aside, and print the names of lost pictures.",
)
def map_verify(db: Path, repair: bool) -> None:
    """Check a map for damage.

    Every byte that matters is read, and the model's reference check is run on the CPU. The damage is listed, and the
    command exits with 2.
    """
    from pairvpr.runtime.map import verify_map
    from pairvpr.runtime.map.errors import RESTORE_TILE, find_tile

    if repair:
        _repair(db)
    damages = verify_map(db, Meter("pictures checked").update)
    in_fleet = find_tile(db) is not None
    if not in_fleet:
        damages += _check_model(db)
    damages = list(dict.fromkeys(damages))
    for damage in damages:
        print_line(damage)
    if damages:
        remedy = (
            f"restore the map from a copy, or keep its intact pictures with `pairvpr map verify --repair --db {db}`"
        )
        raise MapError(f"{db}: {len(damages)} damages found, listed above; {RESTORE_TILE if in_fleet else remedy}")
    print_line(f"{db}: intact")


def _check_model(db: Path) -> list[str]:
    """Return a line for each damage of the map's model."""
    from pairvpr.errors import BundleError, EngineError
    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.model import load_model
    from pairvpr.runtime.reference import check_reference, describe

    damages = []
    try:
        bundle = Bundle.open(db / "model")
        bundle.verify()
        with Map.open(db, descriptors=False) as map_:
            if bundle.identity != map_.identity:
                damages.append(f"{db / 'model'}: not the model that the map was made with; copy the right bundle there")
            if misfit := map_.find_misfit(bundle.info.dims):
                damages.append(f"{db}: {misfit}; restore the map from a copy or build it again")
        errors = check_reference(load_model(db / "model", "cpu"))
        if not errors.ok:
            damages.append(
                f"{db / 'model'}: its weights are not those of its reference check "
                f"({describe(errors, bundle.info.pair_classifier)}); copy the right bundle there"
            )
    except (BundleError, EngineError, MapError) as error:
        damages.append(str(error))
    return damages


def _repair(db: Path) -> None:
    from pairvpr.runtime.map import repair_map

    report = repair_map(db, Meter("pictures looked at").update)
    for line in report.dropped:
        print_line(f"dropped: {line}")
    if report.aside:
        nameless = f", {report.nameless} entries lost with their names" if report.nameless else ""
        print_line(
            f"{db}: {report.kept} pictures kept, {len(report.dropped)} dropped{nameless}; {report.aside[0].parent} has "
            "the damaged files and the old catalog; delete it when you no longer need it"
        )
