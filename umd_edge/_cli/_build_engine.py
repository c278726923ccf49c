"""`umd-edge build-engine`."""

from __future__ import annotations

import time

import click

from .._tensorrt_builder import Profile, parse_capability
from .._tensorrt_bundle import build_engines, default_profile, tensorrt_variant
from .._tensorrt_progress import BuildStatus
from ._options import BundleChoice, as_json, bundle_option, engines_option, open_bundle
from ._output import emit, note, table

__all__ = ["build_engine"]

_EVERY_S = 10.0


@click.command("build-engine")
@bundle_option
@click.option(
    "--variant", metavar="NAME", help="Variant to build. [int8-trt where there is one, else fp32]"
)
@engines_option
@click.option(
    "--max-batch", type=click.IntRange(1, 1024), help="Largest batch; 1 saves memory. [16]"
)
@click.option(
    "--max-length",
    type=click.IntRange(1, 4096),
    help="Longest text in tokens. [the bundle's longest]",
)
@click.option(
    "--workspace",
    type=click.IntRange(1, 1 << 20),
    metavar="MIB",
    help="Device memory that a kernel may use. [all that is free]",
)
@click.option(
    "--compute-capability",
    metavar="X.Y",
    help="Build for this GPU without one, such as 8.6; TensorRT-RTX alone can.",
)
@click.option("--rebuild", is_flag=True, help="Build also what is there already.")
@as_json
def build_engine(
    bundle: BundleChoice,
    variant: str | None,
    engines: str | None,
    max_batch: int | None,
    max_length: int | None,
    workspace: int | None,
    compute_capability: str | None,
    rebuild: bool,
    as_json: bool,
) -> None:
    """Build the TensorRT engines of a bundle on this device (experimental).

    The first time takes minutes on a small board; a line says every ten seconds how far it is.
    Then run with --provider tensorrt. After an update of TensorRT or of the driver, build again.

    \b
    umd-edge build-engine --bundle model.umd
    umd-edge verify --bundle model.umd --provider tensorrt
    """
    opened = open_bundle(bundle)
    usual = default_profile(opened.manifest)
    chosen = tensorrt_variant(opened.manifest, variant)
    note(f"building engines of {opened.manifest.name} {opened.manifest.version} {chosen} ...")
    files = build_engines(
        opened,
        chosen,
        profile=Profile(max_batch or usual.max_batch, max_length or usual.max_length),
        folder=engines,
        compute_capability=None
        if compute_capability is None
        else parse_capability(compute_capability),
        workspace_bytes=None if workspace is None else workspace << 20,
        rebuild=rebuild,
        on_status=_Lines().show,
    )
    if as_json:
        items = [
            {
                "part": file.part,
                "path": str(file.path),
                "size_bytes": file.size,
                "seconds": round(file.seconds, 3),
                "built": file.built,
            }
            for file in files
        ]
        emit({"bundle": opened.sha256, "variant": chosen, "engines": items})
        return
    rows = [("engine", "MB", "seconds", "file")]
    rows += [
        (
            file.part,
            f"{file.size / 1e6:.1f}",
            f"{file.seconds:.1f}" if file.built else "was there",
            str(file.path),
        )
        for file in files
    ]
    click.echo(table(rows, right=[1, 2]))


class _Lines:
    """A line on standard error for each part at once, and then every ten seconds."""

    def __init__(self) -> None:
        self._part = ""
        self._last = 0.0

    def show(self, part: str, status: BuildStatus) -> None:
        now = time.monotonic()
        if part == self._part and now - self._last < _EVERY_S:
            return
        self._part, self._last = part, now
        note(f"{part}: {_describe(status)}")


def _describe(status: BuildStatus) -> str:
    """`Timing graph nodes 3 of 11, 12 s gone, about 23 s left`."""
    phase = f"{status.phase} {status.done} of {status.steps}, " if status.phase else ""
    left = "" if status.remaining_s is None else f", about {_span(status.remaining_s)} left"
    return f"{phase}{_span(status.elapsed_s)} gone{left}"


def _span(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"
