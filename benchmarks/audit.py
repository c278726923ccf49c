"""What an audit log costs: `python -m benchmarks.audit FOLDER`, in a folder on the disk it lies on.

Inside each round, in alternating order: appends to an audit log, and bare writes of as many bytes
with `fsync`; and questions with and without a log. The report gives the median of the rounds'
ratios and their 10 and 90 % quantiles.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import click
import numpy as np

from umd_edge import AuditLog, Predictor

__all__ = ["main"]

_LINE = 1000


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        call()
    return perf_counter() - start


def _compare(
    name: str, ours: Callable[[], object], bare: Callable[[], object], rounds: int, repeats: int
) -> None:
    ratios, spent = [], []
    for number in range(rounds):
        pair = [ours, bare] if number % 2 else [bare, ours]
        times = {call: _seconds(call, repeats) for call in pair}
        ratios.append(times[ours] / times[bare])
        spent.append(times[ours] / repeats * 1e3)
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    click.echo(
        f"{name}: {middle:.2f} ({low:.2f} to {high:.2f}) times, "
        f"{np.median(spent):.2f} ms, {rounds} rounds of {repeats}"
    )


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--bundle", metavar="PATH", help="Bundle that answers. [the one in the package]")
@click.option("--rounds", type=int, default=15, show_default=True)
@click.option("--repeats", type=int, default=40, show_default=True)
def main(folder: Path, bundle: str | None, rounds: int, repeats: int) -> None:
    """Measure in FOLDER."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        descriptor = os.open(Path(place) / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with AuditLog(Path(place) / "log") as log:
            load = Predictor.load if bundle else Predictor.default
            given = (bundle,) if bundle else ()
            recorded = load(*given, audit=log).encode(pixels)
            alone = load(*given).encode(pixels)
            result = alone.ask("which organ is shown?")
            line = b"x" * _LINE

            def write() -> None:
                os.write(descriptor, line)
                os.fsync(descriptor)

            def append() -> None:
                log.record_result(result, "vqa", {}, 0.0, question="which organ is shown?")

            def ask() -> None:
                recorded.ask("which organ is shown?")

            _compare("append / write and fsync", append, write, rounds, repeats)
            _compare(
                "ask with / without a log",
                ask,
                lambda: alone.ask("which organ is shown?"),
                rounds,
                repeats,
            )
        os.close(descriptor)


if __name__ == "__main__":
    main()
