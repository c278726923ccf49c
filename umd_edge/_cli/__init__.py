"""The `umd-edge` command: parse, call, print. Nothing here that the library cannot do too."""

from ._app import main

__all__ = ["main"]
