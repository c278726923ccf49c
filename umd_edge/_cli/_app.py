"""The `umd-edge` command group."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Sequence
from typing import NoReturn

import click

from .. import __version__
from .._program import Program

__all__ = ["main", "run"]

_OBJECTS_BETWEEN_LOOKS = 100_000

# Command -> the module that holds it, which is loaded with its first use.
_MODULES = {
    "ask": "_predict",
    "audit": "_audit",
    "bench": "_measure",
    "build-engine": "_build_engine",
    "c-info": "_c_info",
    "classify": "_predict",
    "demo": "_demo",
    "doctor": "_inspect",
    "evaluate": "_measure",
    "explain": "_explain",
    "info": "_inspect",
    "rank": "_rank",
    "sbom": "_sbom",
    "serve": "_serve",
    "verify": "_inspect",
}


class _Commands(Program):
    """The commands of `_MODULES`: classifying an image does not load what reports or serves."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        module = importlib.import_module(f".{_MODULES[cmd_name]}", __package__)
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


@click.group("umd-edge", cls=_Commands)
@click.version_option(__version__, prog_name="umd-edge")
def cli() -> None:
    """Classify medical images and ask questions about them, on this machine.

    Not a medical device: for research and development only.

    \b
    Exit codes: 0 ok, 1 internal error, 2 usage, 3 bundle, 4 input, 5 provider or extra missing,
    6 an acceptance rule is not met; 130 interrupted, 141 the reader of the output went away.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code back; None means the process's arguments."""
    return cli.run(arguments)


def main() -> NoReturn:
    """Entry point of the `umd-edge` script."""
    # Loading makes many objects and hardly any garbage: looking for it at the usual pace takes a
    # twentieth of a short call.
    gc.set_threshold(_OBJECTS_BETWEEN_LOOKS)
    cli.main()
