"""What the out-of-distribution score costs: the same calls with and without it, in turns.

`python -m benchmarks.ood_cost [--bundle BUNDLE] [--rounds 300]`

A round runs each side once, in random order, on the same picture of the model's own size, so that
neither decoding nor resizing hides the score. The ratio of a round is with over without. Processor
time of the calling thread, in which one thread's sessions run: what else the machine does counts
little.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import thread_time

import click
import numpy as np

from umd_edge import Predictor
from umd_edge.errors import UsageError

__all__ = ["main"]

QUESTION = "what imaging modality was used to take this image?"
_WARM_UP = 10


def _timed(call: Callable[[], object]) -> float:
    start = thread_time()
    call()
    return thread_time() - start


def _ratios(
    with_score: Callable[[], object], without: Callable[[], object], rounds: int
) -> tuple[list[float], float]:
    """Ratio of each round, and the median difference in microseconds."""
    sides, ratios, differences = [with_score, without], [], []
    for index in range(rounds + _WARM_UP):
        order = [0, 1]
        random.shuffle(order)
        spent = [0.0, 0.0]
        for side in order:
            spent[side] = _timed(sides[side])
        if index >= _WARM_UP:
            ratios.append(spent[0] / spent[1])
            differences.append(spent[0] - spent[1])
    return ratios, 1e6 * float(np.median(differences))


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), help="[the one in the package]")
@click.option("--rounds", type=click.IntRange(min=10), default=300, show_default=True)
def main(bundle: Path | None, rounds: int) -> None:
    """Time first and further answers with and without the score."""
    scored = Predictor.load(bundle) if bundle else Predictor.default()
    if not any(task.out_of_distribution for task in scored.tasks):
        raise UsageError("the bundle has no out-of-distribution score; fit one first")
    plain = Predictor.load(bundle) if bundle else Predictor.default()
    plain._engine._ood.clear()
    spec = scored.manifest.preprocessing
    rng = np.random.default_rng(0)
    for name, channels in (("grey", 1), ("colour", 3)):
        shape = (spec.height, spec.width, channels)
        picture = rng.integers(0, 256, shape, dtype=np.uint8)
        picture = picture[..., 0] if channels == 1 else picture
        encoded = scored.encode(picture), plain.encode(picture)
        calls = {
            "first answer": [partial(side.ask, picture, QUESTION) for side in (scored, plain)],
            "further answer": [partial(image.ask, QUESTION) for image in encoded],
        }
        for part, pair in calls.items():
            ratios, spent = _ratios(pair[0], pair[1], rounds)
            low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
            click.echo(
                f"{part}, {name}: {middle:.3f} ({low:.3f} to {high:.3f}), {spent:.0f} microseconds"
            )


if __name__ == "__main__":
    main()
