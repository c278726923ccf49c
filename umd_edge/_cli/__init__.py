"""The `umd-edge` command: parse, call, print. Nothing here that the library cannot do too."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> NoReturn:
    """Entry point of the `umd-edge` script."""
    try:
        from ._app import main as run
    except KeyboardInterrupt:  # before there is anything that tells of it
        sys.stderr.write("interrupted\n")
        sys.exit(_INTERRUPTED)
    run()
