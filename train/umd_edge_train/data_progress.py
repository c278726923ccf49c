"""Progress bars of the `data` commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import click

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, and the function that is told what is done and how much there is.

    It appears with the first call and ends with the last piece: of two bars, each is shown while
    its work lasts, and work that is never begun shows none.
    """
    with ExitStack() as shown:

        @cache
        def bar(total: int) -> Any:
            return shown.enter_context(
                click.progressbar(length=total, label=label, file=sys.stderr)
            )

        def advance(done: int, total: int) -> None:
            bar(total).update(done - bar(total).pos)
            if done >= total:
                shown.close()

        yield advance
