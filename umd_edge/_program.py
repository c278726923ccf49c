"""`Program`: the one place where an error of a command becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from .errors import MissingDependencyError, UmdEdgeError

__all__ = ["Program"]

_INTERRUPTED = 130
_READER_GONE = 141


class Program(click.Group):
    """A command group that never shows a traceback unless `--traceback` is given.

    An error of ours is one line with the exit code of its class; one of the file system names file
    and reason (exit code 1); any other shows its type and place alone, as its message may quote
    what it was given.
    """

    def __init__(self, *args: Any, extra: str | None = None, **kwargs: Any) -> None:
        """A group; `extra` brings what its commands import beside the base runtime."""
        self._extra = extra
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
            if sys.stdout is not None:  # closed by whoever started us (`>&-`)
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
        except Exception as caught:
            problem = self._told(caught)
            if "--traceback" in given:
                raise
            click.echo(f"error: {_one_line(problem, name)}", err=True)
            return problem.exit_code if isinstance(problem, UmdEdgeError) else 1

    def _told(self, error: Exception) -> Exception:
        """The error, or, of a package that is not installed, ours."""
        missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        if self._extra is None or not missing or missing.startswith("umd_edge"):
            return error
        package = missing.partition(".")[0]
        return MissingDependencyError(
            f'{package} is not installed: pip install "umd-edge[{self._extra}]"'
        )

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **_: Any
    ) -> NoReturn:
        """Run the command line and leave the process."""
        sys.exit(self.run(args, prog_name))


def _one_line(error: Exception, name: str) -> str:
    if isinstance(error, UmdEdgeError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:  # a full disk, a folder without permission
        place = repr(str(error.filename)) if error.filename else "cannot write"
        return f"{place}: {error.strerror}"
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else "?"
    return (
        f"internal error ({type(error).__name__} at {place}); please report it with the output of "
        f"`umd-edge doctor`. `{name} --traceback ...` shows more"
    )
