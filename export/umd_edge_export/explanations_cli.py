"""The command `umd-edge-export explanations`."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["explanations"]

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", type=_PATH)
@click.option(
    "--proof",
    type=_PATH,
    required=True,
    metavar="FILE",
    help="What `python -m benchmarks.explain` wrote: proof.json.",
)
@click.option("--out", type=_PATH, metavar="FILE", help="The .umd file to write. [BUNDLE itself]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
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
