"""`umd-edge sbom`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .._distributions import RUNTIME_EXTRAS
from .._files import write_whole
from ..errors import UsageError
from ._options import BundleChoice, as_json, bundle_option, open_bundle
from ._output import emit, note
from ._places import check_place

__all__ = ["sbom"]

_SHOWN = 5


@click.command()
@click.option("--out", required=True, metavar="FILE", help="The JSON file to write.")
@click.option(
    "--extra",
    "extras",
    multiple=True,
    metavar="NAME",
    help="Extra that belongs to the product; repeatable. [those that are installed]",
)
@click.option("--no-extras", is_flag=True, help="The base runtime alone.")
@bundle_option
@as_json
def sbom(
    bundle: BundleChoice, out: str, extras: tuple[str, ...], no_extras: bool, as_json: bool
) -> None:
    """Write a software bill of materials (CycloneDX 1.6) of the installed runtime and the bundle.

    Every installed file is compared with the hash that its distribution recorded; those that differ
    are named, and marked in the document.
    """
    from .._sbom import make_sbom

    unknown = sorted(set(extras) - set(RUNTIME_EXTRAS))
    if unknown or (extras and no_extras):
        raise UsageError(
            f"--extra {unknown or list(extras)} given; some of {list(RUNTIME_EXTRAS)}, or "
            "--no-extras, are allowed"
        )
    chosen = () if no_extras else extras or None
    opened = open_bundle(bundle)
    check_place("--out", out)
    document, changed = make_sbom(opened, extras=chosen)
    write_whole(Path(out), document)
    count = len(json.loads(document)["components"])
    for name in changed[:_SHOWN]:
        note(f"differs from what was installed: {name}")
    if len(changed) > _SHOWN:
        note(f"... and {len(changed) - _SHOWN} more")
    if as_json:
        emit({"path": out, "components": count, "changed_files": list(changed)})
        return
    click.echo(f"{out}: {count} components, {len(changed)} changed files")
