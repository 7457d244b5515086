"""`pairvpr-run`: recognize the places of pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from pairvpr.cli.asking import Asking
from pairvpr.cli.errors import Command
from pairvpr.cli.log import log, log_to_stderr, release_log, say_renamed, say_untrained
from pairvpr.cli.options import FILE, PATH
from pairvpr.cli.prior_options import PriorOptions, prior_options
from pairvpr.cli.progress import Meter
from pairvpr.cli.recognizer_options import (
    LOG_OPTION,
    MATCHES_OPTION,
    NAMES,
    RecognizerOptions,
    recognizer_options,
)
from pairvpr.cli.serve import run_service
from pairvpr.cli.source_options import source_options
from pairvpr.errors import SourceError
from pairvpr.signals import hold_interrupts

if TYPE_CHECKING:
    from pairvpr.runtime.recognizer import PlaceRecognizer
    from pairvpr.runtime.sources import Source, SourceOptions
    from pairvpr.viewing.viewers import Viewer


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--db", type=PATH, help="The map's folder.")
@click.option("--fleet", type=PATH, help="The fleet's folder, in place of a map.")
@click.option(
    "--query",
    "queries",
    multiple=True,
    help="A picture, folder, video, bag, camera (cam0, csi0, /dev/video0) or stream (rtsp://, http://). Several "
    "--query are the cameras of one robot: see docs/rigs.md.",
)
@click.option(
    "--camera-poses",
    metavar="X,Y,Z,QX,QY,QZ,QW;...",
    help="Poses of the cameras in the robot's base, one for each camera. The first camera took the map's pictures.",
)
@click.option("--serve", metavar="ADDRESS", hidden=True)
@click.option("--allow-remote", is_flag=True, hidden=True)
@source_options
@recognizer_options
@prior_options
@click.option(
    "--sequence",
    is_flag=True,
    help="Also estimate the robot's place from all pictures so far; see docs/sequences.md.",
)
@click.option(
    "--track",
    is_flag=True,
    help="As --sequence, and compare each picture only with map pictures around the expected place.",
)
@MATCHES_OPTION
@click.option("--format", "style", type=click.Choice(["text", "jsonl", "pairs"]), default="text", show_default=True)
@click.option(
    "--out",
    type=FILE,
    help="Append answers to this file, not to stdout. A name ending in .mcap gets ROS messages, in a new file.",
)
@click.option("--report", type=PATH, help="Write a page about the run, such as run.html.")
@click.option("--rerun", type=PATH, help="Record the run for Rerun's viewer, in run.rrd say.")
@LOG_OPTION
@click.version_option(package_name="pairvpr")
def main(
    queries: tuple[str, ...],
    camera_poses: str | None,
    serve: str | None,
    allow_remote: bool,
    options: SourceOptions,
    recognizer: RecognizerOptions,
    prior: PriorOptions,
    sequence: bool,
    track: bool,
    matches: int,
    style: str,
    out: Path | None,
    report: Path | None,
    rerun: Path | None,
    log_style: str,
) -> None:
    """Recognize the places of pictures in a map."""
    if queries and serve is not None:
        raise click.UsageError("--query and --serve exclude each other")
    if not queries and serve is None:
        raise click.UsageError("give --query; to answer other programs, run `pairvpr serve`")
    if serve is None and allow_remote:
        raise click.UsageError("--allow-remote needs --serve")
    if serve is not None:
        _refuse_with_serve()
    if (sequence or track) and recognizer.no_rerank:
        option = "--track" if track else "--sequence"
        raise click.UsageError(f"{option} needs pair scores: leave out --no-rerank")
    if out is not None and out.suffix.lower() == ".mcap" and _is_given("style"):
        raise click.UsageError("--format is for text: an .mcap file holds ROS messages")
    log_to_stderr(log_style)
    asking = Asking(prior, sequence=sequence, track=track)
    if queries:
        from pairvpr.viewing.viewers import watching

        watch = partial(watching, report, rerun, ", ".join(queries))
        shown = log_style == "text" and (out is not None or not sys.stdout.isatty())
        opened = partial(_open_source, queries, camera_poses, options)
        _answer(queries, opened, recognizer, asking, matches, style, out, watch, shown)
    elif serve is not None:
        say_renamed("pairvpr-run --serve ADDRESS", "pairvpr serve --listen ADDRESS")
        run_service(serve, allow_remote, recognizer, matches)


def _open_source(queries: Sequence[str], camera_poses: str | None, options: SourceOptions) -> Source:
    """Open the source of the robot's cameras. Raises SourceError, also for poses that cannot be used."""
    from pairvpr.runtime.geometry.transforms import parse_transforms
    from pairvpr.runtime.sources.rig import open_rig

    try:
        mounts = None if camera_poses is None else parse_transforms(camera_poses)
    except ValueError as fault:
        raise SourceError(f"--camera-poses has {fault}") from fault
    return open_rig(queries, options, mounts)


def _answer(
    queries: Sequence[str],
    opened: Callable[[], Source],
    recognizer_options: RecognizerOptions,
    asking: Asking,
    matches: int,
    style: str,
    out: Path | None,
    watch: Callable[[Source, PlaceRecognizer], AbstractContextManager[list[Viewer]]],
    show_progress: bool,
) -> None:
    """Answer for each picture of a source.

    show_progress: count the answers of a recording on stderr, because they are not seen on a terminal.
    """
    from pairvpr.runtime.ahead import fitted_frames
    from pairvpr.runtime.map_refresh import Refresher
    from pairvpr.runtime.outputs.writers import open_output

    query = ", ".join(queries)
    with (
        opened() as source,
        recognizer_options.open() as recognizer,
        open_output(out, style, matches, queries) as put,
        watch(source, recognizer) as viewers,
        fitted_frames(source, recognizer.model, ahead=recognizer.budget_ms is None) as frames,
    ):
        say_untrained(recognizer.model.bundle)
        if _is_given("camera_poses"):
            _check_camera_poses(source, recognizer)
        unread = pictures = total = 0
        refresher = Refresher(recognizer)
        asked = asking.begin(recognizer, live=source.live)
        warning: str | None = None
        meter = Meter("pictures") if show_progress and not source.live and not source.single else None
        try:
            for frame in frames:
                if source.live:
                    refresher.poll()
                total += 1
                pictures += len(frame.cameras)
                unread += sum(each.picture is None for each in frame.cameras)
                with hold_interrupts():
                    answer = asking.ask(asked, frame)
                    frame = frame.cameras[answer.camera or 0]
                    release_log()
                    put(frame, answer)
                    if warning is None and answer.warning is not None:
                        warning = answer.warning
                        log.warning("%s: %s", query, warning)
                    for viewer in viewers:
                        viewer.add(frame, answer)
                    if meter is not None:
                        meter.update(total, source.length)
        except KeyboardInterrupt:
            if not source.live:
                raise
        _check_read(query, pictures, unread)
        if warning is None and (found := recognizer.finish_run()) is not None:
            log.warning("%s: %s", query, found)
        asking.warn(query, total)


def _check_camera_poses(source: Source, recognizer: PlaceRecognizer) -> None:
    """Warn if --camera-poses changes no pose of an answer."""
    from pairvpr.runtime.sources.rig import RigSource

    poses = (record.pose for record in recognizer.map.records)
    if not isinstance(source, RigSource):
        log.warning("--camera-poses has no effect: there is one camera, which counts as the map's")
    elif not any(pose is not None and pose.q is not None for pose in poses):
        log.warning("--camera-poses has no effect: %s has no poses with orientations", recognizer.map.path)


def _check_read(query: str, total: int, unread: int) -> None:
    """Log how many pictures could not be read. Raise SourceError if none of them could."""
    if total and unread == total:
        raise SourceError(f"{query}: none of its {total} pictures could be read; the answers say why")
    if unread:
        log.warning("%s: %d of %d pictures could not be read", query, unread, total)


def _refuse_with_serve() -> None:
    """Raise UsageError for an option that has no meaning with --serve."""
    served = {"serve", "allow_remote", "matches", "log_style", *NAMES}
    for parameter in click.get_current_context().command.params:
        if parameter.name not in served and _is_given(parameter.name or ""):
            raise click.UsageError(f"{parameter.opts[0]} needs --query and does nothing with --serve")


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


if __name__ == "__main__":
    main()
