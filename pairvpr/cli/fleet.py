"""Define `pairvpr fleet`. Imports stand in the bodies of commands, so that help is instant."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pairvpr.cli.build_options import SOURCE_ARGUMENT, new_map_options
from pairvpr.cli.errors import Group
from pairvpr.cli.log import log_to_stderr
from pairvpr.cli.options import ABOVE_ZERO, COUNT, PATH
from pairvpr.cli.progress import Meter
from pairvpr.cli.recognizer_options import LOG_OPTION, MATCHES_OPTION, RecognizerOptions, recognizer_options
from pairvpr.cli.serve import run_service
from pairvpr.printing import counted, json_document, print_line, print_lines

if TYPE_CHECKING:
    from pairvpr.runtime.mapping.builder import BuildOptions

FLEET_OPTION = click.option("--fleet", required=True, type=PATH, help="The fleet's folder.")

ADDRESS_OPTION = click.option(
    "--address",
    metavar="CLUSTER",
    help="Run each part in a process of its own, with Ray: local, auto or HOST:PORT. Default: all in this process.",
)


@click.group("fleet", cls=Group)
def fleet_group() -> None:
    """Publish, search and fetch the maps of many robots."""


@fleet_group.command("build")
@SOURCE_ARGUMENT
@FLEET_OPTION
@click.option("--shards", type=COUNT, default=1, show_default=True, help="Number of parts to build side by side.")
@ADDRESS_OPTION
@click.option(
    "--work", type=PATH, help="Folder for unpublished parts, by source. Default: the fleet's with .work at its end."
)
@click.option("--model", type=PATH, help="Build with this bundle. Default: the fleet's, else the default model.")
@new_map_options
def fleet_build(
    images: str,
    fleet: Path,
    shards: int,
    address: str | None,
    work: Path | None,
    model: Path | None,
    options: BuildOptions,
) -> None:
    """Build a source in parts, and publish them in a fleet.

    SOURCE is anything that --query of `pairvpr-run` takes and that knows its number of pictures. Run the command again
    to go on after an interruption.
    """
    from pairvpr.runtime.fleet.building import build_fleet

    if options.part is not None:
        raise click.UsageError("--part is for `pairvpr map build`: give --shards")
    meter = Meter("pictures checked").update
    reports, published = build_fleet(
        images, fleet, shards, model=model, work=work, options=options, address=address, progress=meter
    )
    for line in [line for report in reports for line in report.skipped]:
        print_line(f"skipped: {line}", err=True)
    print_line(
        f"{fleet}: version {published.version}, {counted(published.added, 'picture')} added in "
        f"{counted(len(published.tiles), 'tile')}, "
        f"{published.already} already there, {sum(len(report.skipped) for report in reports)} could not be read"
    )


@fleet_group.command("adopt")
@click.argument("maps", nargs=-1, required=True, type=PATH, metavar="MAP...")
@FLEET_OPTION
def fleet_adopt(maps: tuple[Path, ...], fleet: Path) -> None:
    """Publish maps in a fleet.

    The maps must have the same model and store tokens in the same way. Pictures that the fleet holds already are passed
    over. Every picture is checked. The maps stay as they are. Damaged or missing tiles of the fleet are replaced if
    the maps have their pictures.
    """
    from pairvpr.runtime.fleet.publishing import adopt

    report = adopt(maps, fleet, Meter("pictures checked").update)
    replaced = f", {counted(report.replaced, 'damaged tile')} replaced" if report.replaced else ""
    print_line(
        f"{fleet}: version {report.version}, {counted(report.added, 'picture')} added in "
        f"{counted(len(report.tiles), 'tile')}, "
        f"{report.already} already there{replaced}"
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


@fleet_group.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@FLEET_OPTION
def fleet_remove(names: tuple[str, ...], fleet: Path) -> None:
    """Take pictures or whole drives out of a fleet.

    NAME is the name of a picture, or its beginning before a / or #, which is its drive. Maps that were pulled lose the
    pictures with the next `pairvpr fleet pull`.
    """
    from pairvpr.runtime.fleet.removal import remove_pictures

    report = remove_pictures(fleet, names, Meter("pictures checked").update)
    print_line(
        f"{fleet}: version {report.version}, {report.pictures} pictures removed, {report.dropped} tiles dropped, "
        f"{report.replaced} made anew"
    )


@fleet_group.command("gc")
@FLEET_OPTION
def fleet_gc(fleet: Path) -> None:
    """Delete files that the current version of a fleet does not need.

    These are older versions and the remains of interrupted publications.
    """
    from pairvpr.runtime.fleet.collection import collect

    report = collect(fleet)
    print_line(f"{fleet}: {counted(report.files, 'file')} deleted, {report.bytes / 1e6:.1f} MB freed")


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
@click.option(
    "--fleet",
    required=True,
    metavar="PATH|URL",
    help="The fleet's folder, or an address of its files: of an HTTP server or an object store.",
)
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
        f"{db}: version {report.version}, {counted(report.tiles, 'tile')}, {counted(report.pictures, 'picture')}{own}; "
        f"{counted(report.files, 'file')} moved, {report.bytes / 1e6:.1f} MB"
    )


@fleet_group.command("serve")
@FLEET_OPTION
@click.option("--listen", required=True, metavar="ADDRESS", help="The address: unix:PATH or HOST:PORT.")
@click.option("--allow-remote", is_flag=True, help="Allow an address that other computers can reach.")
@click.option("--shards", type=COUNT, default=1, show_default=True, help="Number of parts to search and compare in.")
@ADDRESS_OPTION
@click.option(
    "--replicas",
    type=COUNT,
    default=1,
    show_default=True,
    help="Number of equal processes of each part. If one is killed, queries go on with another. Needs --address.",
)
@recognizer_options
@MATCHES_OPTION
@LOG_OPTION
def fleet_serve(listen: str, allow_remote: bool, recognizer: RecognizerOptions, matches: int, log_style: str) -> None:
    """Answer other programs from a fleet over HTTP.

    The protocol is the one of `pairvpr serve`. New versions of the fleet are taken over.
    """
    log_to_stderr(log_style)
    run_service(listen, allow_remote, recognizer, matches)
