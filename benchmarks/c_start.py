"""Process start to first answer, and resident memory: the C library beside the Python runtime.

`python -m benchmarks.c_start [--bundle model.umd] [--runs 20]` compiles `c_start.c` with the
library, then starts one process of each kind in turn. Each opens the bundle, encodes a 640 x 480
frame and asks. Printed are the median of the ratios of neighbours and their 10 and 90 % quantiles.
Files are in the page cache, and Python's bytecode is compiled, since a first round does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np

from umd_edge._c_info import describe_c

from .c_overhead import compile_with_library

__all__ = ["main"]

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "which organ is shown?"
_PYTHON = """
import json, sys
import numpy as np
import umd_edge
predictor = umd_edge.Predictor.load(sys.argv[1])
frame = (np.arange(640 * 480) * 7 % 256).astype(np.uint8).reshape(480, 640)
print(predictor.encode(frame).ask(sys.argv[2]).answer, flush=True)
lines = open("/proc/self/status").read().splitlines()
facts = dict(line.split(":", 1) for line in lines)
number = lambda name: int(facts[name].split()[0])
print(json.dumps({"resident_kb": number("VmRSS"), "peak_kb": number("VmHWM")}))
"""


@dataclass(frozen=True)
class _Started:
    first_ms: float
    answer: str
    facts: dict[str, float]


def _start(command: list[str], environment: dict[str, str]) -> _Started:
    start = perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        answer = process.stdout.readline()
        first = (perf_counter() - start) * 1e3
        facts = process.stdout.readline()
    if process.returncode != 0:
        raise click.ClickException(f"{command[0]} failed with {process.returncode}")
    return _Started(first, answer.strip(), json.loads(facts))


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {"median": round(middle, 3), "q10": round(low, 3), "q90": round(high, 3)}


def _rows(rounds: list[tuple[_Started, _Started]]) -> Iterator[dict[str, Any]]:
    ratios = {
        "first_answer": [c.first_ms / python.first_ms for c, python in rounds],
        "resident": [c.facts["resident_kb"] / python.facts["resident_kb"] for c, python in rounds],
        "peak": [c.facts["peak_kb"] / python.facts["peak_kb"] for c, python in rounds],
    }
    for name, values in ratios.items():
        yield {"ratio": name, **_spread(values), "runs": len(values)}
    for index, name in enumerate(("c", "python")):
        started = [pair[index] for pair in rounds]
        yield {"first_answer_ms": name, **_spread([item.first_ms for item in started])}
        for key in started[0].facts:
            yield {key: name, **_spread([item.facts[key] for item in started])}


@click.command()
@click.option("--bundle", default=str(ROOT / "umd_edge/bundles/default.umd"), show_default=True)
@click.option("--runs", default=20, show_default=True, type=click.IntRange(min=4))
def main(bundle: str, runs: int) -> None:
    """Measure and print JSON Lines: ratios first, then what they are made of."""
    runtime = describe_c()["onnxruntime"]
    if runtime is None:
        raise click.ClickException("the installed onnxruntime has no shared library for C")
    with tempfile.TemporaryDirectory() as scratch:
        program = compile_with_library(ROOT / "benchmarks" / "c_start.c", Path(scratch))
        commands = (
            [str(program), bundle, runtime, QUESTION],
            [sys.executable, "-c", _PYTHON, bundle, QUESTION],
        )
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": scratch}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        rounds = []
        for number in range(runs + 1):
            order = (0, 1) if number % 2 else (1, 0)
            found = {index: _start(commands[index], environment) for index in order}
            rounds.append((found[0], found[1]))
    if len({item.answer for pair in rounds for item in pair}) != 1:
        raise click.ClickException("the two give different answers; nothing was compared")
    for row in _rows(rounds[1:]):
        click.echo(json.dumps(row))


if __name__ == "__main__":
    main()
