"""What the commands say, alike in all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from umd_edge._bundle import Bundle

    from .gates import GateResult

__all__ = ["bundle_facts", "note", "note_gate", "show_bundle"]


def note(message: str) -> None:
    """A line of progress on stderr."""
    click.echo(message, err=True)


def note_gate(result: GateResult) -> None:
    """The line of a gate on stderr."""
    note(result.to_line())


def bundle_facts(built: Bundle) -> dict[str, Any]:
    """The key `bundle` of a command's JSON object."""
    manifest = built.manifest
    return {"name": manifest.name, "version": manifest.version, "sha256": built.sha256}


def show_bundle(out: Path, built: Bundle) -> None:
    """Path, size and hash of a bundle that was written."""
    click.echo(f"{out}: {built.size_bytes / 1e6:.1f} MB, sha256 {built.sha256}")
