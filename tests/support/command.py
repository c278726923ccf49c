"""Runs the `umd-edge` command inside the test's process."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COMMON_KEYS = {"image", "index", "bundle", "variant", "provider", "timing_ms"}


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Done:
    """Run `umd-edge ARGUMENTS`."""
    from umd_edge._cli._app import run as run_command

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def run_json(*arguments: object) -> list[dict[str, Any]]:
    """Run a command with `--json`; it must succeed."""
    done = run(*arguments, "--json")
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def png(path: Path, side: int = 48) -> Path:
    """Write a grey PNG that is not all one colour."""
    pixels = np.random.default_rng(side).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
