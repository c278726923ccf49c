"""`Program`: the one place where an error of a command becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from .errors import UmdEdgeError

__all__ = ["Program"]

_INTERRUPTED = 130
_READER_GONE = 141


class Program(click.Group):
    """A command group that never shows a traceback unless `--traceback` is given.

    An error of ours is one line with the exit code of its class; one of the file system names file
    and reason (exit code 1); any other shows its type and place alone, as its message may quote
    what it was given.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault(
            "context_settings", {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        )
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--traceback"],
                is_flag=True,
                expose_value=False,
                help="Show the Python traceback of an error.",
            )
        )

    def run(self, arguments: Sequence[str] | None = None, name: str | None = None) -> int:
        """Run the command line and give its exit code back.

        Args:
            arguments: Without the program's name; None means those of the process.
            name: The program's name in messages; the group's own where None.
        """
        given = list(sys.argv[1:] if arguments is None else arguments)
        name = name or self.name or "umd-edge"
        try:
            # Not `click.Group.main`: it turns a broken pipe into exit code 1.
            with self.make_context(name, [*given]) as context:
                code = self.invoke(context)
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
            click.echo(f"error: {_one_line(error, name)}", err=True)
            return error.exit_code if isinstance(error, UmdEdgeError) else 1

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **_: Any
    ) -> NoReturn:
        """Run the command line and leave the process."""
        sys.exit(self.run(args, prog_name))


def _one_line(error: Exception, name: str) -> str:
    if isinstance(error, UmdEdgeError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:  # a full disk, a folder without permission
        return f"{str(error.filename or 'file system')!r}: {error.strerror}"
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else "?"
    return (
        f"internal error ({type(error).__name__} at {place}); please report it with the output of "
        f"`umd-edge doctor`. `{name} --traceback ...` shows more"
    )
