"""`umd-edge serve`."""

from __future__ import annotations

import logging
import sys

import click

from .._predictor import Predictor
from ._options import with_audited_predictor
from ._output import note

__all__ = ["serve"]


@click.command()
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="[127.0.0.1]")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8765, help="0 takes a free one. [8765]"
)
@click.option(
    "--token-file",
    metavar="FILE",
    help="File with the token that requests must carry; needed for any address but loopback.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Name by which clients call the service; may be given several times.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Threads that decode and infer. [processors, at most 4]",
)
@click.option(
    "--queue",
    type=click.IntRange(1, 65_536),
    default=32,
    help="Requests that may wait; one more is refused at once. [32]",
)
@click.option(
    "--max-request-mb", type=click.IntRange(1, 512), default=32, help="Largest body in MiB. [32]"
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 3600),
    default=30.0,
    metavar="SECONDS",
    help="From a request to its answer. [30]",
)
@click.option(
    "--grace",
    type=click.FloatRange(0.1, 3600),
    default=20.0,
    metavar="SECONDS",
    help="For accepted requests when the service is stopped. [20]",
)
@click.option("--quiet", is_flag=True, help="No line for each request on standard error.")
@with_audited_predictor
def serve(
    predictor: Predictor,
    host: str,
    port: int,
    token_file: str | None,
    hosts: tuple[str, ...],
    workers: int | None,
    queue: int,
    max_request_mb: int,
    timeout: float,
    grace: float,
    quiet: bool,
) -> None:
    """Answer over HTTP, for programs that are not written in Python, and on one plain page.

    Listens on this machine alone unless told otherwise. Needs the extra `serve`.

    \b
    umd-edge serve
    curl -F image=@chest.dcm -F task=chest-xray http://127.0.0.1:8765/v1/classify

    SIGTERM or Ctrl-C finishes what was accepted and refuses the rest.
    """
    from .. import serve as service  # the extra, for this command alone

    given = {} if workers is None else {"workers": workers}
    options = service.ServeOptions(
        host=host,
        port=port,
        token=None if token_file is None else service.read_token(token_file),
        allowed_hosts=hosts,
        queue=queue,
        max_request_bytes=max_request_mb << 20,
        timeout_s=timeout,
        grace_s=grace,
        **given,
    )
    _log_to_stderr(quiet=quiet)
    info = predictor.info
    note(f"{info.name} {info.version} {predictor.variant} on {predictor.provider}")
    service.serve(predictor, options, on_start=lambda url: note(f"listening on {url}"))
    note("stopped")


def _log_to_stderr(*, quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Brief("%(asctime)s %(message)s"))
    for name, level in (("umd_edge.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING if quiet else level)


class _Brief(logging.Formatter):
    """One line; a traceback may quote what a client has sent."""

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        return ""
