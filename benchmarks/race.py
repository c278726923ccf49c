"""The race: the same model, weights and inputs in several libraries, on this machine.

`python -m benchmarks.race [--python openvino=/path/to/python] [--rounds 20] [--out FOLDER]`

Every contender is a process of its own. Only one of them works at a time: in each round all take
their turn, in another order each time, so that whatever else the machine does meets all of them.
Ratios are formed inside a round, and their spread over the rounds is reported.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from umd_edge.errors import UsageError

from .contender import CONTENDERS
from .prepare import BATCHES, prepare_folder
from .race_report import Races, write_report

__all__ = ["Racer", "main", "run_rounds"]

ROOT = Path(__file__).resolve().parent.parent
_SCRIPT = Path(__file__).with_name("contender.py")
PARTS = ("first", "further", "vision")
_WARM_UP = 2
# A library's threads go on spinning for a while after their work.
_PAUSE = 0.25
# The same weights: what only rounding may change. 8 bits move logits by more.
_FLOAT_TOLERANCE = 1e-2


class ContenderError(RuntimeError):
    """A contender stopped, or answered something else."""


@dataclass
class Racer:
    """A contender's process."""

    name: str
    process: subprocess.Popen[str]
    threads: int
    versions: dict[str, str] = field(default_factory=dict)
    disk: int = 0

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order, wait for the reply.

        Raises:
            ContenderError: The process ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ContenderError(f"{self.name} stopped (exit code {self.close()})")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> int:
        """End the process by ending its input, and give its exit code."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return self.process.wait()


def interpreter(name: str, pythons: dict[str, str]) -> str:
    """Of a contender: the one given for it, or for the library that its name starts with."""
    return pythons.get(name) or pythons.get(name.split("-")[0]) or sys.executable


def _command(name: str, folder: Path, threads: int, pythons: dict[str, str]) -> list[str]:
    python = interpreter(name, pythons)
    return [python, str(_SCRIPT), name, str(folder), "--threads", str(threads)]


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}


def start(
    name: str, folder: Path, threads: int, pythons: dict[str, str]
) -> tuple[Racer | None, str]:
    """Start a contender; None with the reason where its library is not there."""
    process = subprocess.Popen(
        _command(name, folder, threads, pythons),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_environment(threads),
    )
    racer = Racer(name, process, threads)
    assert process.stdout is not None
    hello = json.loads(process.stdout.readline() or '{"missing": "it did not start"}')
    if "missing" in hello:
        racer.close()
        return None, str(hello["missing"])
    racer.versions, racer.disk = hello["versions"], int(hello["disk"])
    return racer, ""


def run_rounds(
    racers: list[Racer], part: str, batch: int, rounds: int, repeats: int, rng: random.Random
) -> dict[str, list[float]]:
    """Contender -> its median seconds in each round."""
    medians: dict[str, list[float]] = {racer.name: [] for racer in racers}
    for _ in range(rounds):
        for racer in rng.sample(racers, len(racers)):
            if racer.threads > 1:
                time.sleep(_PAUSE)
            reply = racer.ask(do="run", part=part, batch=batch, repeats=repeats, warm_up=_WARM_UP)
            medians[racer.name].append(float(np.median(reply["seconds"])))
    return medians


def cold_starts(
    names: list[str], folder: Path, pythons: dict[str, str], rounds: int, rng: random.Random
) -> dict[str, list[float]]:
    """Contender -> seconds from the start of a process to its first answer and its end."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in rng.sample(names, len(names)):
            began = time.perf_counter()
            subprocess.run(
                [*_command(name, folder, 1, pythons), "--once"],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(1),
            )
            seconds[name].append(time.perf_counter() - began)
    return seconds


def _differences(racers: list[Racer]) -> dict[str, float]:
    """Largest difference of each contender's logits from the first float32 one's, batch of 8."""
    given = {racer.name: np.asarray(racer.ask(do="logits", batch=8)["logits"]) for racer in racers}
    names = [name for name in ("torch-eager", "ort-fp32") if name in given]
    if not names:
        return {}
    reference = given[names[0]]
    differences = {name: float(np.abs(logits - reference).max()) for name, logits in given.items()}
    if "ort-fp32" in given and differences["ort-fp32"] > _FLOAT_TOLERANCE:
        raise UsageError("the float32 graphs are not those of the checkpoint; prepare them again")
    return differences


def _nncf(folder: Path, pythons: dict[str, str]) -> str:
    """Let NNCF quantise, once; the reason where it cannot."""
    if any((folder / "nncf").glob("fusion.xml")):
        return ""
    name = "openvino-int8"
    done = subprocess.run(
        [*_command(name, folder, 1, pythons), "--prepare"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    if any((folder / "nncf").glob("fusion.xml")):
        return ""
    lines = done.stdout.strip().splitlines()
    hint = "NNCF failed" if not lines else str(json.loads(lines[-1]).get("missing", "NNCF failed"))
    return hint


def run_race(
    names: list[str],
    folder: Path,
    pythons: dict[str, str],
    *,
    threads: tuple[int, ...],
    rounds: int,
    repeats: int,
    starts: int,
) -> Races:
    """Let the contenders run; those whose library is missing are left out and said to be."""
    rng = random.Random(0)
    races = Races(rounds=rounds, repeats=repeats)
    nncf = _nncf(folder, pythons) if any("int8" in n and "openvino" in n for n in names) else ""
    for count in threads:
        racers = []
        for name in names:
            racer, reason = None, nncf if name.startswith("openvino-int8") else ""
            if not reason:
                racer, reason = start(name, folder, count, pythons)
            if racer is None:
                races.skipped[name] = reason
                click.echo(f"{name}: left out: {reason}", err=True)
            else:
                racers.append(racer)
                races.versions[name], races.disk[name] = racer.versions, racer.disk
        try:
            for batch in BATCHES:
                for part in PARTS:
                    click.echo(f"{part}, batch {batch}, {count} threads", err=True)
                    times = run_rounds(racers, part, batch, rounds, repeats, rng)
                    races.add(part, batch, count, times)
                if batch == 1 and count == 1:
                    for racer in racers:
                        races.memory[racer.name] = racer.ask(do="memory")["bytes"]
            races.differences = races.differences or _differences(racers)
        finally:
            for racer in racers:
                racer.close()
    present = [name for name in names if name not in races.skipped]
    races.cold = cold_starts(present, folder, pythons, starts, rng)
    return races


def _pythons(given: tuple[str, ...]) -> dict[str, str]:
    pairs = [item.partition("=") for item in given]
    wrong = [item[0] for item in pairs if not item[2] or not Path(item[2]).exists()]
    if wrong:
        raise UsageError(f"--python {wrong[0]}: write NAME=PATH with the path of an interpreter")
    return {name: path for name, _, path in pairs}


@click.command()
@click.option("--checkpoint", type=Path, default=ROOT / "checkpoints" / "default")
@click.option("--bundle", type=Path, default=ROOT / "umd_edge" / "bundles" / "default.umd")
@click.option("--work", type=Path, default=ROOT / "build" / "race", help="Graphs and inputs.")
@click.option("--out", type=Path, default=ROOT / "build" / "race-report", help="Result.")
@click.option("--python", "python", multiple=True, help="NAME=PATH: interpreter of a contender.")
@click.option("--only", multiple=True, type=click.Choice(list(CONTENDERS)))
@click.option("--threads", multiple=True, type=int, default=(1, 2))
@click.option("--rounds", type=click.IntRange(3), default=20)
@click.option("--repeats", type=click.IntRange(1), default=10)
@click.option("--starts", type=click.IntRange(1), default=5)
@click.option("--prepared", is_flag=True, help="Take the graphs in --work as they are.")
def main(**given: Any) -> None:
    """Run the race and write race.json, race.md and race.svg."""
    pythons = _pythons(given["python"])
    if not given["prepared"]:
        prepare_folder(given["checkpoint"], given["bundle"], given["work"])
    races = run_race(
        list(given["only"] or CONTENDERS),
        given["work"],
        pythons,
        threads=given["threads"],
        rounds=given["rounds"],
        repeats=given["repeats"],
        starts=given["starts"],
    )
    write_report(races, given["out"])
    click.echo(str(given["out"] / "race.md"))


if __name__ == "__main__":
    main()
