"""`umd-edge c-info`."""

from __future__ import annotations

import click

from .._c_info import describe_c
from ._options import as_json
from ._output import emit, table

__all__ = ["c_info"]


@click.command("c-info")
@as_json
def c_info(as_json: bool) -> None:
    """Show what a C or C++ program needs.

    Folder of the header, the built library, and the ONNX Runtime that it can open: the one of this
    Python installation.
    """
    facts = describe_c()
    if as_json:
        emit(facts)
        return
    click.echo(
        table([(name.replace("_", " "), value or "not found") for name, value in facts.items()])
    )
