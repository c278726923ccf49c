"""`umd-edge evaluate` and `umd-edge bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from .._bench import run_bench
from .._evaluate import Evaluation, evaluate_file, evaluate_records
from .._predictor import Predictor
from .._site_report_rules import Verdict, read_rule
from ..errors import UsageError
from ._options import as_json, with_audited_predictor, with_predictor
from ._output import emit, note, progress, table
from ._places import check_place

__all__ = ["bench", "evaluate"]

NOT_ACCEPTED = 6
"""Exit code where an acceptance rule is not met."""


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
@click.option(
    "--report", metavar="FILE.html", help="Write a page with charts, subgroups and the verdict."
)
@click.option(
    "--by",
    multiple=True,
    metavar="FIELD",
    help="Group by this field of the records too, beside age, sex, view ...; repeatable.",
)
@click.option(
    "--accept",
    multiple=True,
    metavar="RULE",
    help="What must hold, such as accuracy>=0.8 or accuracy.low>=0.7; repeatable.",
)
@click.option("--with-ids", is_flag=True, help="Name the records that were not right in the page.")
@with_audited_predictor
@as_json
def evaluate(
    predictor: Predictor,
    task: str,
    data: str,
    drop_unmapped: bool,
    report: str | None,
    by: tuple[str, ...],
    accept: tuple[str, ...],
    with_ids: bool,
    as_json: bool,
) -> int:
    """Measure accuracy on your own records.

    Every metric comes with a 95 % interval over patients (1,000 resamples).

    \b
    umd-edge evaluate --task vqa --data test.jsonl --json
    umd-edge evaluate --task chest-xray --data site.jsonl --report site.html \\
        --accept "macro_auroc.low>=0.7" --accept "ece<=0.1" --by device

    Nothing leaves this machine. The JSON object has a value, an interval and the number of records
    for every metric; a metric that the records do not define is null. The exit code is 6 where an
    acceptance rule is not met.
    """
    on_unmapped: Any = "drop" if drop_unmapped else None
    if report is None and not accept:
        if by or with_ids:
            raise UsageError("--by and --with-ids are for the page; give --report FILE.html")
        with progress("evaluating") as advance:
            result = evaluate_file(
                predictor, task, data, on_unmapped=on_unmapped, on_progress=advance
            )
        return _tell(result, {}, (), as_json)
    from .._site_report import site_report
    from .._site_report_groups import check_fields
    from .._site_report_page import write_page

    rules = [read_rule(given) for given in accept]
    known = predictor.manifest.task(task)
    if known is not None:
        check_fields(by, known)
    if report is not None:
        check_place("--report", report, sources=[data])
    with progress("evaluating") as advance:
        result, evaluated = evaluate_records(
            predictor, task, data, on_unmapped=on_unmapped, on_progress=advance
        )
    site = site_report(result, evaluated, data, by=by, rules=rules, with_ids=with_ids)
    if report is not None:
        write_page(report, site)
    more = {**site.to_dict(), "report": report}
    return _tell(result, more, site.verdicts, as_json)


def _tell(
    result: Evaluation, more: Mapping[str, Any], verdicts: Sequence[Verdict], as_json: bool
) -> int:
    for reason, count in result.dropped.items():
        note(f"left out: {count} ({reason})")
    if as_json:
        emit({**result.to_dict(), **more})
    else:
        _show_evaluation(result)
        for verdict in verdicts:
            value = verdict.compared
            shown = "-" if value is None else f"{value:.3f}"
            told = "passed" if verdict.passed else "FAILED"
            click.echo(f"  {told}  {verdict.rule}  (measured {shown})")
        if more.get("report"):
            click.echo(f"  report in {more['report']}")
    return 0 if all(verdict.passed for verdict in verdicts) else NOT_ACCEPTED


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
