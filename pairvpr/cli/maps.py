"""`pairvpr map`: what becomes of maps. Bodies import what they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pairvpr.errors import MapError
from pairvpr.runtime.cli.errors import Group
from pairvpr.runtime.cli.log import say_model
from pairvpr.runtime.cli.progress import Meter
from pairvpr.runtime.cli.source_options import source_options

if TYPE_CHECKING:
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


@click.group("map", cls=Group)
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
    from pairvpr.runtime.mapping.builder import add_pictures
    from pairvpr.runtime.mapping.keyframes import Selection

    say_model(model.bundle, model.engines.description)
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

    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.calibrated.acceptance import ScoreSetup
    from pairvpr.runtime.calibrated.cascade import Cascade
    from pairvpr.runtime.calibrated.judge import Judge
    from pairvpr.runtime.calibrated.tuning import Tuning
    from pairvpr.runtime.map import Map
    from pairvpr.runtime.mapping.token_storage import describe

    with Map.open(db) as places:
        info = {**dataclasses.asdict(places.info()), "path": str(db)}
        bundle = Bundle.open(places.model_path)
        weights, cascade, tuning = bundle.info.weights, Cascade.find_in(bundle), Tuning.find_in(bundle)
        judge = Judge.from_bundle(bundle, ScoreSetup.from_map(places, min(bundle.info.top_k, len(places)), cascade))
    info.update(preset=bundle.info.preset, weights=weights.origin, licence=weights.licence)
    if style == "jsonl":
        info.update(cascade=cascade and cascade.figures(), tuning=tuning and tuning.to_json())
        info.update(decisions=judge.figures())
        click.echo(json.dumps(info))
        return
    info.update(tokens=describe(info["tokens"]), cascade=cascade or "not calibrated", tuned=tuning or "no")
    info.update(decisions=judge, bytes_per_picture=round(info["bytes_per_picture"]))
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
