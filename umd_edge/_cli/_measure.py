"""`umd-edge evaluate` and `umd-edge bench`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from .._bench import run_bench
from .._evaluate import Evaluation, evaluate_file
from .._predictor import Predictor
from ._options import as_json, with_predictor
from ._output import emit, note, progress, table

__all__ = ["bench", "evaluate"]


@click.command()
@click.option(
    "--task", required=True, metavar="NAME", help="Task of the bundle; see umd-edge info."
)
@click.option(
    "--data", required=True, metavar="FILE.jsonl", help="Records; images are relative to the file."
)
@click.option(
    "--drop-unmapped", is_flag=True, help="Leave out records whose label the task does not know."
)
@with_predictor
@as_json
def evaluate(
    predictor: Predictor, task: str, data: str, drop_unmapped: bool, as_json: bool
) -> None:
    """Measure accuracy on your own records.

    Every metric comes with a 95 % interval over patients (1,000 resamples).

    \b
    umd-edge evaluate --task vqa --data test.jsonl --json

    Nothing leaves this machine. The JSON object has a value, an interval and the number of records
    for every metric; a metric that the records do not define is null.
    """
    with progress("evaluating") as advance:
        result = evaluate_file(
            predictor,
            task,
            data,
            on_unmapped="drop" if drop_unmapped else None,
            on_progress=advance,
        )
    for reason, count in result.dropped.items():
        note(f"left out: {count} ({reason})")
    if as_json:
        emit(result.to_dict())
    else:
        _show_evaluation(result)


def _show_evaluation(result: Evaluation) -> None:
    click.echo(f"{result.task}: {result.n} records, {sum(result.dropped.values())} left out")
    rows = [("metric", "value", "95 % interval", "n")]
    for name, metric in result.metrics.items():
        value = "-" if metric.value is None else f"{metric.value:.3f}"
        known = metric.low is not None and metric.high is not None
        interval = f"{metric.low:.3f} to {metric.high:.3f}" if known else "-"
        rows.append((name, value, interval, str(metric.n)))
    click.echo(table(rows, indent=2, right=[1, 3]))


@click.command()
@click.option("--runs", type=click.IntRange(10, 100_000), default=100, help="Rounds. [100]")
@click.option("--image", metavar="IMAGE", help="Image to use. [a generated 1024 x 1024 PNG]")
@with_predictor
@as_json
def bench(predictor: Predictor, runs: int, image: str | None, as_json: bool) -> None:
    """Measure speed and memory here.

    Latency of each stage, size on disk, peak memory, and the SDK's overhead.

    The overhead compares calls of the SDK with the same session.run calls made bare, one after the
    other in the same process; close other programs for steady figures.
    """
    with progress("measuring") as advance:
        report = run_bench(predictor, image=image, runs=runs, on_progress=advance).to_dict()
    if as_json:
        emit(report)
    else:
        _show_bench(report)


def _show_bench(report: Mapping[str, Any]) -> None:
    info, machine = report["bundle"], report["machine"]
    click.echo(
        f"{info['name']} {info['version']} {report['variant']} on {report['provider']}, "
        f"{report['threads']} thread(s), {machine['system']}, onnxruntime {machine['onnxruntime']}"
    )
    times = {
        **report["stages_ms"],
        "first answer": report["first_answer_ms"],
        "further answer": report["further_answer_ms"],
        "repeated question": report["repeated_question_ms"],
    }
    rows = [("milliseconds", "p50", "p95", "p99")]
    rows += [
        (name, *(f"{value[q]:.2f}" for q in ("p50", "p95", "p99"))) for name, value in times.items()
    ]
    click.echo(table(rows, indent=2, right=[1, 2, 3]))
    for name, value in report["overhead"].items():
        click.echo(
            f"  SDK over bare session.run, {name.replace('_', ' ')}: {value['ratio']:.3f} "
            f"({value['low']:.3f} to {value['high']:.3f})"
        )
    memory = report["peak_memory_bytes"]
    shown = "unknown" if memory is None else f"{memory / 1e6:.0f} MB"
    click.echo(f"  size on disk {report['size_bytes'] / 1e6:.1f} MB, peak memory {shown}")
