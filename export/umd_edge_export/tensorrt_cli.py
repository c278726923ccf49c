"""The command `umd-edge-export tensorrt`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from umd_edge.errors import BundleIntegrityError, UsageError
from umd_edge_train.options import PATH, json_option

if TYPE_CHECKING:
    from umd_edge._tensorrt_builder import Profile

__all__ = ["tensorrt"]


@click.command()
@click.argument("source", type=PATH, metavar="BUNDLE|GRAPH.onnx")
@click.option("--variant", metavar="NAME", help="Of a bundle. [int8-trt where it is, else fp32]")
@click.option(
    "--build",
    "gpus",
    multiple=True,
    metavar="X.Y",
    help="Also build for this compute capability with TensorRT-RTX, without a GPU; repeatable.",
)
@json_option
def tensorrt(source: Path, variant: str | None, gpus: tuple[str, ...], as_json: bool) -> None:
    """Name what TensorRT refuses in a bundle's graphs, or in one graph.

    Exit code 3 when there is anything. The engines of --build are thrown away.
    """
    from .tensorrt_linter import lint_graph

    graphs, profile = _graphs(source, variant)
    found = {name: lint_graph(_parse(name, data)) for name, data in graphs.items()}
    built = _build(graphs, profile, gpus) if not any(found.values()) else []
    if as_json:
        findings: list[dict[str, Any]] = [
            {"graph": name, "rule": item.rule, "place": item.place, "message": item.message}
            for name, items in found.items()
            for item in items
        ]
        click.echo(json.dumps({"graphs": list(graphs), "findings": findings, "built": built}))
    else:
        for name, items in found.items():
            for item in items:
                click.echo(f"{name}: {item}")
        for line in built:
            click.echo(
                f"{line['graph']}: built for {line['compute_capability']}, "
                f"{line['size_bytes'] / 1e6:.1f} MB"
            )
    total = sum(len(items) for items in found.values())
    if total:
        from .errors import LinterError

        raise LinterError(f"TensorRT would refuse {total} thing(s) in {str(source)!r}; see above")


def _graphs(source: Path, variant: str | None) -> tuple[dict[str, bytes], Profile]:
    """Name -> bytes of the graphs to look at, and the shapes to build them for."""
    from umd_edge._bundle import Bundle
    from umd_edge._tensorrt_builder import Profile
    from umd_edge._tensorrt_bundle import default_profile, tensorrt_variant

    if source.suffix == ".onnx":
        if variant is not None:
            raise UsageError("--variant given with a single graph; it names a variant of a bundle")
        try:
            # How long a text the graph takes is not known; a short one it does take.
            return {source.name: source.read_bytes()}, Profile(max_length=16)
        except OSError as error:
            raise UsageError(f"{str(source)!r} cannot be read: {error.strerror}") from error
    bundle = Bundle.open(source)
    chosen = tensorrt_variant(bundle.manifest, variant)
    paths = bundle.manifest.variants[chosen].graphs.values()
    return {path: bundle.read(path) for path in paths}, default_profile(bundle.manifest)


def _parse(name: str, data: bytes) -> Any:
    import onnx

    try:
        return onnx.load_from_string(data)
    except Exception as error:  # protobuf's own
        raise BundleIntegrityError(f"{name!r} is no ONNX graph") from error


def _build(
    graphs: dict[str, bytes], profile: Profile, gpus: tuple[str, ...]
) -> list[dict[str, Any]]:
    from umd_edge._tensorrt_builder import parse_capability
    from umd_edge._tensorrt_job import build_in_child
    from umd_edge._tensorrt_probe import require_library

    targets = {gpu: parse_capability(gpu) for gpu in gpus}
    library = require_library().library if targets else ""
    return [
        {
            "graph": name,
            "compute_capability": gpu,
            "size_bytes": len(
                build_in_child(
                    library, data, profile, name=name, compute_capability=capability
                ).plan
            ),
        }
        for gpu, capability in targets.items()
        for name, data in graphs.items()
    ]
