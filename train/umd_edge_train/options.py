"""Options that several commands share, here and in `umd_edge_export`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from umd_edge.errors import UsageError

__all__ = [
    "PATH",
    "data_option",
    "json_option",
    "recipe_options",
    "require_log",
    "split_options",
    "threads_option",
]

Command = Callable[..., Any]

PATH = click.Path(path_type=Path)

data_option = click.option("--data", type=PATH, required=True, help="Data sets' folder.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
threads_option = click.option(
    "--threads", type=click.IntRange(1, 256), default=1, show_default=True
)


def recipe_options(recipe_help: str = "TOML recipe.") -> Callable[[Command], Command]:
    """Add the options that choose a recipe, and hand the command the loaded one as `recipe`."""

    def decorate(command: Command) -> Command:
        @click.option("--recipe", type=PATH, required=True, help=recipe_help)
        @click.option(
            "--set", "settings", multiple=True, metavar="A.B=C", help="Overrides a setting."
        )
        @functools.wraps(command)
        def wrapped(recipe: Path, settings: tuple[str, ...], **rest: Any) -> Any:
            from .recipe import load_recipe

            return command(recipe=load_recipe(recipe, settings), **rest)

        return wrapped

    return decorate


def split_options(log_help: str = "Append the figures here.") -> Callable[[Command], Command]:
    """Add `--split` and `--log`; the command is not called for an unlogged look at test."""

    def decorate(command: Command) -> Command:
        @click.option("--split", type=click.Choice(["train", "val", "test"]), default="val")
        @click.option("--log", type=PATH, help=log_help)
        @functools.wraps(command)
        def wrapped(split: str, log: Path | None, **rest: Any) -> Any:
            if split == "test":
                require_log(log)
            return command(split=split, log=log, **rest)

        return wrapped

    return decorate


def require_log(log: Path | None) -> None:
    """Refuse a look at a test split that leaves no trace.

    Raises:
        UsageError: There is no log.
    """
    if log is None:
        raise UsageError("a look at the test split must be logged; give --log FILE")
