"""The `umd-edge-export` command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import click

from umd_edge import __version__
from umd_edge._program import Program

from .bundle_cli import bundle
from .compare_cli import compare
from .distil_cli import distil, distil_report, soft_targets
from .explanations_cli import explanations
from .qat_cli import qat
from .quantize_cli import quantize
from .report_cli import report
from .sign_cli import keygen, sign
from .tensorrt_cli import tensorrt
from .triton_cli import triton
from .trust_cli import trust

__all__ = ["main", "run"]


@click.group("umd-edge-export", cls=Program, extra="export")
@click.version_option(__version__, prog_name="umd-edge-export")
def cli() -> None:
    """Turn a checkpoint into a bundle, and compare models.

    \b
    Exit codes: 0 ok, 1 internal error, 2 usage, 3 checkpoint, bundle or gate, 4 input, 5 provider
    or extra missing; 130 interrupted.
    """


cli.add_command(bundle)
cli.add_command(compare)
cli.add_command(report)
cli.add_command(tensorrt)
cli.add_command(quantize)
cli.add_command(distil)
cli.add_command(distil_report)
cli.add_command(soft_targets)
cli.add_command(qat)
cli.add_command(trust)
cli.add_command(explanations)
cli.add_command(keygen)
cli.add_command(sign)
cli.add_command(triton)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code back; None means the process's arguments."""
    return cli.run(arguments)


def main() -> NoReturn:
    """Entry point of the `umd-edge-export` script."""
    cli.main()
