"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from umd_edge_train.options import PATH

__all__ = [
    "batch_dependence_option",
    "bundle_out_option",
    "data_sets_option",
    "naming_options",
    "pictures_option",
    "range_options",
    "repack_out_option",
    "restricted_option",
    "tasks_option",
    "teachers_option",
]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

batch_dependence_option = click.option(
    "--allow-batch-dependence",
    is_flag=True,
    help="Accept target dynamic: a result then depends on its batch and on padding.",
)
bundle_out_option = click.option("--out", type=PATH, required=True, help="The .umd file to write.")
pictures_option = click.option(
    "--with-pictures",
    type=PATH,
    metavar="DIR",
    help="Folder for pictures of the records that disagree most. They show patients' pictures.",
)
repack_out_option = click.option(
    "--out", type=PATH, metavar="FILE", help="The .umd file to write. [BUNDLE itself]"
)
restricted_option = click.option(
    "--allow-non-commercial", is_flag=True, help="Take restricted records too."
)
tasks_option = click.option(
    "--task", "tasks", multiple=True, help="Task; repeatable. All where none is given."
)


def data_sets_option(name: str, *, help: str, required: bool = False) -> Decorator:
    """A repeatable option that names JSONL manifests."""
    return click.option(name, type=PATH, multiple=True, required=required, help=help)


def naming_options(*, name_help: str, version_help: str, metrics_help: str) -> Decorator:
    """Add `--name`, `--version` and `--metrics`: what a new bundle says of itself."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--metrics", type=PATH, help=metrics_help),
            click.option("--version", default="0.1.0", show_default=True, help=version_help),
            click.option("--name", default="umd-edge", show_default=True, help=name_help),
        ):
            command = option(command)
        return command

    return decorate


def range_options(data_help: str) -> Decorator:
    """Add `--range-data` and `--range-samples`: the records that set the INT8 ranges."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option(
            "--range-samples", type=click.IntRange(min=1), default=256, show_default=True
        )(command)
        return data_sets_option("--range-data", help=data_help, required=True)(command)

    return decorate


def teachers_option(help: str = "As in distil.", *, required: bool = False) -> Decorator:
    """Add `--teacher`, repeatable, as `teachers`."""
    return click.option(
        "--teacher", "teachers", type=PATH, multiple=True, required=required, help=help
    )
