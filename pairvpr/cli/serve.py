"""`pairvpr serve`: answer other programs over HTTP."""

from __future__ import annotations

import click

from pairvpr.cli.errors import Command
from pairvpr.cli.log import log, log_to_stderr, release_log, say_untrained
from pairvpr.cli.options import DB_OPTION
from pairvpr.cli.recognizer_options import (
    LOG_OPTION,
    MATCHES_OPTION,
    RecognizerOptions,
    recognizer_options,
)


@click.command("serve", cls=Command)
@DB_OPTION
@click.option("--listen", required=True, metavar="ADDRESS", help="The address: unix:PATH or HOST:PORT.")
@click.option("--allow-remote", is_flag=True, help="Allow an address that other computers can reach.")
@recognizer_options
@MATCHES_OPTION
@LOG_OPTION
def serve(listen: str, allow_remote: bool, recognizer: RecognizerOptions, matches: int, log_style: str) -> None:
    """Answer other programs over HTTP."""
    log_to_stderr(log_style)
    run_service(listen, allow_remote, recognizer, matches)


def run_service(address: str, allow_remote: bool, options: RecognizerOptions, matches: int) -> None:
    """Answer clients at `address` until SIGTERM or Ctrl-C.

    matches: number of matches that an answer lists if the request does not say.
    Raises ServiceError for an address that cannot be used, and the errors of `PlaceRecognizer.open`.
    """
    from pairvpr.runtime.service.listener import Listener
    from pairvpr.runtime.service.server import serve

    with Listener(address, remote=allow_remote) as listener, options.open() as recognizer:
        say_untrained(recognizer.model.bundle)
        log.info("answering at %s", listener.address)
        serve(recognizer, listener, matches, ready=release_log)
