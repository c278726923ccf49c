"""How good the maps of `umd-edge explain` are, and what they cost.

`python -m benchmarks.explain --data DIR` judges them on validation records by deletion and
insertion curves and by the pointing game, measures time and memory, and writes explain.json,
explain.md, explain.png and proof.json; the last one is what `umd-edge-export --explanations` takes.
`--also NAME` judges another way of making a map as well, `--pointing-only` leaves out the curves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import thread_time
from typing import Any

import click
import numpy as np

from umd_edge import Predictor
from umd_edge._files import write_whole
from umd_edge._records import Record, build_examples, read_records

from .explain_judge import Judged, judge_case
from .explain_maps import ALTERNATIVES, MAPS, USUAL, Case
from .explain_report import markdown, plot, proof

__all__ = ["cases", "cost", "main"]

ROOT = Path(__file__).resolve().parent.parent
SETS = {
    "breast-ultrasound": ("busi",),
    "chest-xray": ("nihcxr",),
    "skin-lesion": ("padufes",),
    "vqa": ("vqarad", "vqamed19"),
}
_MEMORY = """
import re, sys, numpy as np, umd_edge
predictor = umd_edge.Predictor.load(sys.argv[1])
image = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
for _ in range(20):
    if sys.argv[3] == "plain":
        predictor.classify(image, sys.argv[2])
    else:
        predictor.encode(image).explain(task=sys.argv[2], method=sys.argv[3])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
"""


def cases(
    predictor: Predictor, task: str, data: Path, split: str, limit: int, *, boxed: bool = False
) -> Iterator[Case]:
    """Free examples of a task in an order that does not depend on the file, at most `limit`.

    Args:
        predictor: Holds the task.
        task: Its name.
        data: Folder of the data sets.
        split: Which records.
        limit: How many.
        boxed: Only those with a lesion's box.
    """
    spec = next(item for item in predictor.tasks if item.name == task)
    for name in SETS[task]:
        records = [r for r in read_records(data / name / f"{split}.jsonl")]
        free = [r for r in records if not r.raw.get("non_commercial", True)]
        made = build_examples(free, spec, predictor.manifest.structured_fields, on_unmapped="drop")
        boxes = {r.where: _boxes(r) for r in free}
        usual = [box for r in read_records(data / name / "train.jsonl") for box in _boxes(r)]
        chosen = [item for item in made.examples if boxes[item.where] or not boxed]
        np.random.default_rng(0).shuffle(chosen)
        for example in chosen[: -(-limit // len(SETS[task]))]:
            yield Case(predictor, spec, example, boxes[example.where], usual)


def _boxes(record: Record) -> list[tuple[float, float, float, float]]:
    return [tuple(item["bbox"]) for item in record.raw.get("lesions") or ()]


def cost(predictor: Predictor, task: str, rounds: int) -> dict[str, Any]:
    """Time of an explained result over that of a plain one, each from pixels, in one process.

    Of the processor, for the one thread that works: what else the machine does adds little.
    """
    image = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)

    def explained(method: str) -> Callable[[], object]:
        return lambda: predictor.encode(image).explain(task=task, method=method)

    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: predictor.encode(image).classify(task),
        "attention": explained("attention"),
        "ablation": explained("ablation"),
    }
    ratios: dict[str, list[float]] = {"attention": [], "ablation": []}
    for _ in range(rounds + 2):
        spent = {}
        for name, work in ways.items():
            work()
            start = thread_time()
            work()
            spent[name] = thread_time() - start
        for name, values in ratios.items():
            values.append(spent[name] / spent["plain"])
    found = {}
    for name, values in ratios.items():
        low, middle, high = np.quantile(values[2:], [0.1, 0.5, 0.9])
        found[name] = {"value": float(middle), "low": float(low), "high": float(high), "n": rounds}
    return found


def memory(bundle: Path, task: str) -> dict[str, int]:
    """Largest resident bytes of a process that gives plain or explained results; needs Linux."""
    found = {}
    for way in ("plain", "attention", "ablation"):
        command = [sys.executable, "-c", _MEMORY, str(bundle), task, way]
        found[way] = int(subprocess.check_output(command, text=True)) * 1024
    return found


def _judge(
    predictor: Predictor, task: str, names: tuple[str, ...], given: dict[str, Any]
) -> Judged:
    only = bool(given["pointing_only"])
    chosen = cases(predictor, task, given["data"], given["split"], given["limit"], boxed=only)
    judged = Judged(task)
    with click.progressbar(list(chosen), label=f"{task:18}", file=sys.stderr) as bar:
        for example in bar:
            # A copy: what it keeps goes with it.
            case = replace(example)
            judged.add(case.example.group, judge_case(case, names, curves=not only))
    return judged


@click.command()
@click.option("--data", type=Path, required=True, help="Folder of the data sets.")
@click.option("--split", default="val")
@click.option("--bundle", type=Path, default=ROOT / "umd_edge" / "bundles" / "default.umd")
@click.option("--task", "tasks", multiple=True, type=click.Choice(list(SETS)))
@click.option("--limit", type=click.IntRange(2), default=100, help="Examples of each task.")
@click.option(
    "--also",
    "others",
    multiple=True,
    type=click.Choice(ALTERNATIVES),
    help="Judge another way of making a map too; repeatable.",
)
@click.option("--pointing-only", is_flag=True, help="No curves, and only examples with boxes.")
@click.option("--rounds", type=click.IntRange(5), default=40, help="For the cost.")
@click.option("--out", type=Path, required=True, help="Folder to write.")
def main(**given: Any) -> None:
    """Judge the maps and write the figures."""
    predictor = Predictor.load(given["bundle"], threads=1)
    names = MAPS + given["others"] + ((USUAL,) if given["pointing_only"] else ())
    tasks = given["tasks"] or (["breast-ultrasound"] if given["pointing_only"] else list(SETS))
    judged = [_judge(predictor, task, names, given) for task in tasks]
    report = {
        "bundle": predictor.info.to_dict(),
        "variant": predictor.variant,
        "split": given["split"],
        "tasks": {item.task: item.summary() for item in judged},
        "cost": cost(predictor, "breast-ultrasound", given["rounds"]),
        "memory_bytes": memory(given["bundle"], "breast-ultrasound"),
    }
    out: Path = given["out"]
    out.mkdir(parents=True, exist_ok=True)
    texts = {"explain.json": json.dumps(report, indent=1), "explain.md": markdown(report)}
    texts["proof.json"] = json.dumps(proof(report), indent=1)
    for name, content in texts.items():
        write_whole(out / name, content.rstrip().encode() + b"\n")
    if not given["pointing_only"]:
        temporary = out / ".explain.png"
        plot(judged, temporary)
        os.replace(temporary, out / "explain.png")
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
