"""The `umd-edge` command group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import click

from .. import __version__
from .._program import Program
from ._audit import audit
from ._build_engine import build_engine
from ._c_info import c_info
from ._demo import demo
from ._explain import explain
from ._inspect import doctor, info, verify
from ._measure import bench, evaluate
from ._predict import ask, classify
from ._rank import rank
from ._sbom import sbom
from ._serve import serve

__all__ = ["main", "run"]


@click.group("umd-edge", cls=Program)
@click.version_option(__version__, prog_name="umd-edge")
def cli() -> None:
    """Classify medical images and ask questions about them, on this machine.

    Not a medical device: for research and development only.

    \b
    Exit codes: 0 ok, 1 internal error, 2 usage, 3 bundle, 4 input, 5 provider or extra missing,
    6 an acceptance rule is not met; 130 interrupted, 141 the reader of the output went away.
    """


for command in (
    classify,
    ask,
    rank,
    explain,
    info,
    verify,
    evaluate,
    bench,
    doctor,
    build_engine,
    demo,
    c_info,
    audit,
    sbom,
    serve,
):
    cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code back; None means the process's arguments."""
    return cli.run(arguments)


def main() -> NoReturn:
    """Entry point of the `umd-edge` script."""
    cli.main()
