"""The command `umd-edge-export explanations`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from umd_edge_train.options import PATH, json_option

from .options import repack_out_option

__all__ = ["explanations"]


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--proof",
    type=PATH,
    required=True,
    metavar="FILE",
    help="What `python -m benchmarks.explain` wrote: proof.json.",
)
@repack_out_option
@json_option
def explanations(bundle: Path, proof: Path, out: Path | None, as_json: bool) -> None:
    """Record in BUNDLE which maps of `umd-edge explain` are proven for which task.

    A map that is not proven is shown only when it is asked for. Signatures are dropped: sign the
    bundle again.
    """
    from umd_edge._explain import proven_methods

    from .explanations import write_explanations

    target = out or bundle
    written = write_explanations(bundle, proof, target)
    tasks = [task.name for task in written.manifest.tasks if task.kind != "retrieval"]
    proven = {name: proven_methods(written.manifest.extensions, name) for name in tasks}
    if as_json:
        click.echo(json.dumps({"path": str(target), "sha256": written.sha256, "proven": proven}))
        return
    for name, methods in proven.items():
        click.echo(f"{name}: {', '.join(methods) or 'none proven'}")
    click.echo(f"{target}: sha256 {written.sha256}")
