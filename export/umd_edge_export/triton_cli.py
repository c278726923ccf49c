"""The command `umd-edge-export triton`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from umd_edge_train.options import PATH, json_option, threads_option

__all__ = ["triton"]


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write; a new one.")
@click.option("--variant", metavar="NAME", help="Of the bundle. [its default one]")
@click.option("--name", metavar="NAME", help="Of the ensemble. [the bundle's]")
@click.option("--max-batch", type=click.IntRange(1, 4096), default=8, show_default=True)
@click.option(
    "--max-delay-us",
    type=click.IntRange(0, 1_000_000),
    default=500,
    show_default=True,
    help="Longest that a request waits for others.",
)
@click.option("--instances", type=click.IntRange(1, 256), default=1, show_default=True)
@threads_option
@click.option("--gpu", is_flag=True, help="Run on GPUs, with onnxruntime's CUDA provider.")
@click.option(
    "--key", "keys", multiple=True, metavar="FILE", help="Public key that must have signed it."
)
@json_option
def triton(
    bundle: Path,
    out: Path,
    variant: str | None,
    name: str | None,
    max_batch: int,
    max_delay_us: int,
    instances: int,
    threads: int,
    gpu: bool,
    keys: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write BUNDLE as a model repository of Triton Inference Server.

    One model for each graph and an ensemble of them; preprocessing and tokenising stay with the
    client, which uses umd-edge for it.
    """
    from umd_edge._bundle import Bundle

    from .triton import TritonOptions, saturates_without_vnni, write_triton

    options = TritonOptions(
        variant=variant,
        name=name,
        max_batch=max_batch,
        max_delay_us=max_delay_us,
        instances=instances,
        gpu=gpu,
        threads=threads,
    )
    models = write_triton(bundle, out, options, public_key=keys or None)
    if not gpu and saturates_without_vnni(Bundle.open(bundle).manifest, variant):
        click.echo(
            "note: 8-bit weights; on x86-64 servers without VNNI use a variant with 7-bit weights "
            "or fp32, as Triton cannot turn on the sums that do not saturate",
            err=True,
        )
    if as_json:
        click.echo(json.dumps({"path": str(out), "models": list(models)}))
        return
    click.echo(f"{out}: {', '.join(models)}")
