"""Define `pairvpr fleet`. Imports stand in the bodies of commands, so that help is instant."""

from __future__ import annotations

import math
from pathlib import Path

import click

from pairvpr.cli.errors import Group
from pairvpr.cli.options import ABOVE_ZERO, PATH
from pairvpr.cli.progress import Meter
from pairvpr.printing import json_document, print_line, print_lines

FLEET_OPTION = click.option("--fleet", required=True, type=PATH, help="The fleet's folder.")


@click.group("fleet", cls=Group)
def fleet_group() -> None:
    """Publish, search and fetch the maps of many robots."""


@fleet_group.command("adopt")
@click.argument("maps", nargs=-1, required=True, type=PATH, metavar="MAP...")
@FLEET_OPTION
def fleet_adopt(maps: tuple[Path, ...], fleet: Path) -> None:
    """Publish maps in a fleet.

    The maps must have the same model and store tokens in the same way. Pictures that the fleet holds already are passed
    over. Every picture is checked. The maps stay as they are.
    """
    from pairvpr.runtime.fleet.publishing import adopt

    report = adopt(maps, fleet, Meter("pictures checked").update)
    print_line(
        f"{fleet}: version {report.version}, {report.added} pictures added in {len(report.tiles)} tiles, "
        f"{report.already} already there"
    )


@fleet_group.command("info")
@FLEET_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON with every tile.")
def fleet_info(fleet: Path, as_json: bool) -> None:
    """Show figures, tiles and model of a fleet."""
    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.fleet.storage import FolderStorage
    from pairvpr.runtime.fleet.version import read_current

    version = read_current(FolderStorage(fleet))
    bundle = Bundle.open(fleet / version.model_folder)
    info = {
        "path": str(fleet),
        "version": version.number,
        "pictures": version.pictures,
        "tiles": len(version.tiles),
        "places": len({tile.id for tile in version.tiles}),
        "bytes": sum(tile.bytes for tile in version.tiles),
        "identity": version.identity,
        "preset": bundle.info.preset,
        "licence": bundle.info.licence,
        "tokens": str(version.meta.token_format),
        "index_precision": version.meta.settings.get("index_precision", "float32"),
    }
    if as_json:
        tiles = [
            {
                "id": tile.id,
                "digest": tile.digest,
                "pictures": tile.pictures,
                "bytes": tile.bytes,
                "gps": tile.gps,
                "frames": dict(tile.frames),
                "time": tile.time,
            }
            for tile in version.tiles
        ]
        print_lines(json_document({**info, "tiles": tiles}).rstrip("\n"))
        return
    for name, value in info.items():
        print_line(f"{name.replace('_', ' '):18} {value}")


@fleet_group.command("gc")
@FLEET_OPTION
def fleet_gc(fleet: Path) -> None:
    """Delete files that the current version of a fleet does not need.

    These are older versions and the remains of interrupted publications.
    """
    from pairvpr.runtime.fleet.publishing import collect

    report = collect(fleet)
    print_line(f"{fleet}: {report.files} files deleted, {report.bytes / 1e6:.1f} MB freed")


def _read_position(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        latitude, longitude = map(float, value.split(","))
    except ValueError:
        latitude = longitude = math.nan
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        raise click.BadParameter(f"{value!r} is not LAT,LON in degrees, as 48.1374,11.5755")
    return latitude, longitude


@fleet_group.command("pull")
@click.option("--fleet", required=True, metavar="PATH|URL", help="The fleet's folder, or an HTTP server of its files.")
@click.option("--db", required=True, type=PATH, help="The map's folder.")
@click.option("--near", metavar="LAT,LON", callback=_read_position, help="Fetch only the tiles around this position.")
@click.option("--radius", metavar="METRES", type=ABOVE_ZERO, help="The distance for --near.")
def fleet_pull(fleet: str, db: Path, near: tuple[float, float] | None, radius: float | None) -> None:
    """Fetch a map of a fleet's tiles, or bring one up to date.

    Only changed files move. The old map answers until the new one is whole. Pictures that were added to the map stay in
    it. Run the command again to go on after an interruption.
    """
    from pairvpr.runtime.fleet.pulling import pull
    from pairvpr.runtime.geometry.poses import Gps

    if (near is None) != (radius is None):
        raise click.UsageError("--near needs --radius" if radius is None else "--radius needs --near")
    position = None if near is None else Gps(*near)
    report = pull(fleet, db, position, radius or math.inf, Meter("segments fetched").update)
    own = f", {report.own} of its own" if report.own else ""
    print_line(
        f"{db}: version {report.version}, {report.tiles} tiles, {report.pictures} pictures{own}; {report.files} files "
        f"moved, {report.bytes / 1e6:.1f} MB"
    )
