"""The command group, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from .. import __version__
from ..errors import UmdEdgeError
from ._demo import demo
from ._inspect import doctor, info, verify
from ._measure import bench, evaluate
from ._predict import ask, classify

__all__ = ["main", "run"]

_INTERRUPTED = 130
_READER_GONE = 141


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="umd-edge")
@click.option("--traceback", is_flag=True, help="Show the Python traceback of an error.")
def cli(traceback: bool) -> None:
    """Classify medical images and ask questions about them, on this machine.

    Not a medical device: for research and development only.

    \b
    Exit codes: 0 ok, 1 internal error, 2 usage, 3 bundle, 4 input, 5 provider or extra missing;
    130 interrupted, 141 the reader of the output went away.
    """


for command in (classify, ask, info, verify, evaluate, bench, doctor, demo):
    cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code back.

    Args:
        arguments: Without the program's name; None means those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Not `cli.main`: it turns a broken pipe into exit code 1.
        with cli.make_context("umd-edge", [*given]) as context:
            code = cli.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); keep the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE
    except click.exceptions.Exit as leave:  # after --help and --version
        return leave.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return _INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        if "--traceback" in given:
            raise
        click.echo(f"error: {_one_line(error)}", err=True)
        return error.exit_code if isinstance(error, UmdEdgeError) else 1


def _one_line(error: Exception) -> str:
    if isinstance(error, UmdEdgeError):
        return " ".join(str(error).split())
    # The message of a foreign error may quote what it was given, so only its place is shown.
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else "?"
    return (
        f"internal error ({type(error).__name__} at {place}); please report it with the output of "
        "`umd-edge doctor`. `umd-edge --traceback ...` shows more"
    )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `umd-edge` script."""
    sys.exit(run(arguments))
