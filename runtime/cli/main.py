"""`pairvpr-run`: pictures in, places out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from pairvpr.errors import SourceError
from pairvpr.runtime.cli.errors import Command
from pairvpr.runtime.cli.log import log, log_to_stderr, release_log, say_untrained
from pairvpr.runtime.cli.source_options import source_options
from pairvpr.runtime.engines.open import DEVICES, PRECISIONS

if TYPE_CHECKING:
    from pairvpr.runtime.recognizer import PlaceRecognizer
    from pairvpr.runtime.sources import Source, SourceOptions
    from pairvpr.viewing.viewers import Viewer

MATCHES = 10
OPENING = ("model", "device", "precision", "top_k", "no_rerank", "exact", "budget_ms", "batch_size")
"""Options of a recogniser, whoever asks it."""


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--db", required=True, type=click.Path(path_type=Path), help="The map's folder.")
@click.option(
    "--query",
    help="A picture, folder, video, bag, camera (cam0, csi0, /dev/video0) or stream (rtsp://, http://).",
)
@click.option(
    "--serve",
    metavar="ADDRESS",
    help="Answer other programs over HTTP, at unix:PATH or HOST:PORT, instead of --query.",
)
@click.option("--allow-remote", is_flag=True, help="Let --serve listen where other computers can connect.")
@source_options
@click.option("--model", type=click.Path(path_type=Path), help="Another bundle of the map's model.")
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="auto: as tuned for the map (`pairvpr tune`), else TensorRT, CUDA or the CPU, the first that works.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Default: as tuned, or the bundle's best for it.")
@click.option("--top-k", type=int, help="Candidates to re-rank. Default: the model's, at most the map's size.")
@click.option("--no-rerank", is_flag=True, help="Answer by global descriptors alone.")
@click.option(
    "--exact/--cascade",
    default=None,
    help="Compare every candidate in full, or drop those without prospects. Default: as tuned, or what was calibrated.",
)
@click.option("--budget-ms", type=float, help="Milliseconds for an answer; what does not fit in is not compared.")
@click.option(
    "--sequence", is_flag=True, help="Also say where the robot is after all pictures so far; see docs/sequences.md."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Pairs per pass. Default: as tuned, or by the memory.")
@click.option("--matches", type=click.IntRange(min=1), default=MATCHES, show_default=True, help="Matches to list.")
@click.option("--format", "style", type=click.Choice(["text", "jsonl"]), default="text", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write answers here, not to stdout; into a file called .mcap as ROS messages.",
)
@click.option("--report", type=click.Path(path_type=Path), help="Show the run on this page when it ends, as run.html.")
@click.option("--rerun", type=click.Path(path_type=Path), help="Record the run for Rerun's viewer, as run.rrd.")
@click.option(
    "--log",
    "log_style",
    type=click.Choice(["text", "jsonl"]),
    default="text",
    show_default=True,
    help="Lines on stderr: plain, or JSON with time, level, logger and message.",
)
@click.version_option(package_name="pairvpr")
def main(
    db: Path,
    query: str | None,
    serve: str | None,
    allow_remote: bool,
    model: Path | None,
    device: str,
    precision: str | None,
    top_k: int | None,
    no_rerank: bool,
    exact: bool | None,
    budget_ms: float | None,
    sequence: bool,
    batch_size: int | None,
    matches: int,
    style: str,
    out: Path | None,
    report: Path | None,
    rerun: Path | None,
    log_style: str,
    options: SourceOptions,
) -> None:
    """Recognise where pictures were taken, in a map."""
    from pairvpr.runtime.recognizer import PlaceRecognizer

    if (query is None) == (serve is None):
        raise click.UsageError("give either --query, what to recognise, or --serve, where to be asked")
    if serve is None and allow_remote:
        raise click.UsageError("--allow-remote goes with --serve")
    if serve is not None:
        _refuse_with_serve()
    if sequence and no_rerank:
        raise click.UsageError("--sequence goes by pair scores, which --no-rerank leaves out")
    if out is not None and out.suffix.lower() == ".mcap" and _is_given("style"):
        raise click.UsageError("--format goes with lines of text; an .mcap file has ROS messages")
    log_to_stderr(log_style)
    opened = partial(
        PlaceRecognizer.open,
        db,
        model=model,
        top_k=top_k,
        rerank=not no_rerank,
        device=device,
        precision=precision,
        batch_size=batch_size,
        budget_ms=budget_ms,
        exact=exact,
    )
    if query is not None:
        from pairvpr.viewing.viewers import watching

        _answer(query, options, opened, sequence, matches, style, out, partial(watching, report, rerun, query))
    elif serve is not None:
        _serve(serve, allow_remote, opened, matches)


def _answer(
    query: str,
    options: SourceOptions,
    opened: Callable[[], PlaceRecognizer],
    sequence: bool,
    matches: int,
    style: str,
    out: Path | None,
    watched: Callable[[Source, PlaceRecognizer], AbstractContextManager[list[Viewer]]],
) -> None:
    """An answer for each picture of a source."""
    from pairvpr.runtime.map_refresh import Refresher
    from pairvpr.runtime.outputs.writers import output
    from pairvpr.runtime.sequence.filter import Follower
    from pairvpr.runtime.sources import open_source

    with (
        open_source(query, options) as source,
        opened() as recognizer,
        output(out, style, matches, query) as put,
        watched(source, recognizer) as viewers,
    ):
        say_untrained(recognizer.model.bundle)
        unread = total = 0
        refresher = Refresher(recognizer)
        follow = Follower(recognizer) if sequence else None
        try:
            for frame in source:
                if source.live:
                    refresher.poll()
                total += 1
                unread += frame.picture is None
                answer = recognizer.recognize_frame(frame)
                if follow is not None:
                    answer = follow(answer, frame)
                release_log()
                put(frame, answer)
                for viewer in viewers:
                    viewer.add(frame, answer)
        except KeyboardInterrupt:
            if not source.live:
                raise
        if total and unread == total:
            raise SourceError(f"{query}: none of its {total} pictures could be read; see the answers for why")
        if unread:
            log.warning("%s: %d of %d pictures could not be read", query, unread, total)


def _serve(address: str, remote: bool, opened: Callable[[], PlaceRecognizer], matches: int) -> None:
    """Answers for whoever asks, until SIGTERM or Ctrl-C."""
    from pairvpr.runtime.service.listener import Listener
    from pairvpr.runtime.service.server import serve

    with Listener(address, remote=remote) as listener, opened() as recognizer:
        say_untrained(recognizer.model.bundle)
        log.info("answering at %s", listener.address)
        serve(recognizer, listener, matches, ready=release_log)


def _refuse_with_serve() -> None:
    """Options that say something of pictures which --serve does not fetch, or of where it does not write."""
    served = {"db", "serve", "allow_remote", "matches", "log_style", *OPENING}
    for parameter in click.get_current_context().command.params:
        if parameter.name not in served and _is_given(parameter.name or ""):
            raise click.UsageError(f"{parameter.opts[0]} goes with --query, not with --serve")


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


if __name__ == "__main__":
    main()
