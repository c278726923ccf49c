"""The model card: what the bundle is, where it comes from, what it reaches, and its limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from umd_edge._manifest import IntendedUse
from umd_edge._task import TaskSpec
from umd_edge.errors import DataError
from umd_edge_train.lineage import distinct_sources

__all__ = ["Metrics", "intended_use", "model_card", "read_metrics", "with_trust_section"]

Metrics = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Task -> metric -> {value, low, high, n}."""

_LIMITS = (
    "Not a medical device; not cleared, certified or clinically validated by anybody.",
    "Trained on small public collections of few hospitals; expect worse elsewhere until measured.",
    "Answers and findings outside the trained vocabulary cannot come out.",
    "No analysis by sex, age or skin type is claimed.",
)


def intended_use(tasks: tuple[TaskSpec, ...]) -> IntendedUse:
    """The manifest's statement, with the headers that each task is meant for."""
    scopes = []
    for task in tasks:
        scope = "; ".join(
            f"{key.replace('_', ' ')}: {', '.join(values)}"
            for key, values in sorted(task.applies_to.items())
        )
        scopes.append(f"{task.name} ({scope or 'any image of the kind it was trained on'})")
    return IntendedUse(
        statement=(
            "Research, teaching and software integration. Not for diagnosis, treatment, triage or "
            "monitoring of a person."
        ),
        users=("researchers", "software developers"),
        population="; ".join(scopes),
        limits=_LIMITS,
    )


def read_metrics(path: Path) -> Metrics:
    """Read measured metrics: one JSON object of task -> metric -> {value, low, high, n}.

    Raises:
        DataError: No such file, or another form.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"metrics file {str(path)!r} cannot be read as JSON") from error
    if not isinstance(data, dict) or not all(_is_task(task) for task in data.values()):
        raise DataError(
            f"metrics file {str(path)!r}: an object of task -> metric -> "
            '{"value", "low", "high", "n"} is needed, as `evaluate --json` gives under "metrics"'
        )
    return data


def _is_task(metrics: object) -> bool:
    return isinstance(metrics, dict) and all(
        isinstance(metric, dict) and {"value", "low", "high", "n"} <= set(metric)
        for metric in metrics.values()
    )


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


def _metrics_section(metrics: Metrics) -> list[str]:
    if not metrics:
        return ["No metrics were given when this bundle was built: measure before use.", ""]
    lines = [
        "95 % intervals from patient-wise resampling.",
        "",
        "| task | metric | value | interval | n |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task in sorted(metrics):
        for name, metric in metrics[task].items():
            interval = f"{_number(metric['low'])} to {_number(metric['high'])}"
            lines.append(
                f"| `{task}` | `{name}` | {_number(metric['value'])} | {interval} | {metric['n']} |"
            )
    return [*lines, ""]


def _data_section(provenance: Mapping[str, Any]) -> list[str]:
    data = provenance.get("data")
    if not isinstance(data, dict) or not data:
        return ["The checkpoint names no data.", ""]
    lines = ["| source | pictures | records | licences |", "| --- | --- | --- | --- |"]
    sources = distinct_sources(data)
    for name in sorted(sources):
        entry = sources[name]
        licences = ", ".join(f"{k} ({v})" for k, v in sorted(entry.get("licences", {}).items()))
        pictures, records = entry.get("train_pictures", "?"), entry.get("train_records", "?")
        lines.append(f"| {name} | {pictures} | {records} | {licences or 'not stated'} |")
    bound = sum(entry.get("non_commercial_records", 0) for entry in sources.values())
    note = f"{bound} of the records are restricted to non-commercial use."
    lines += ["", note if bound else "No record is restricted to non-commercial use."]
    behind = [name for name, entry in data.items() if "data" in entry]
    if behind:
        lines.append(
            f"The sources of the models behind it ({', '.join(sorted(behind))}) are among these."
        )
    return [*lines, ""]


def _costs(provenance: Mapping[str, Any]) -> list[str]:
    """Which labels are decided for sooner than their probability alone asks."""
    lines = []
    for table in provenance.get("recipe", {}).get("tasks", ()):
        costs = table.get("label_cost", {})
        if costs:
            listed = ", ".join(f"{label} {cost:g}" for label, cost in costs.items())
            lines.append(
                f"* `{table['name']}` leans: missing a label counts as so many of the others "
                f"({listed}; the rest 1), in its probabilities too."
            )
    return ["", *lines] if lines else []


def _drift_section(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for variant, tasks in sorted(report.get("against_fp32", {}).items()):
        lines += [
            f"Against float32, on the records that set the ranges (`{variant}`):",
            "",
            "| task | records | mean logit difference | changed decisions |",
            "| --- | --- | --- | --- |",
        ]
        for task, drift in sorted(tasks.items()):
            share = 100 * drift["changed_decisions"]
            mean = drift["mean_logit_difference"]
            lines.append(f"| `{task}` | {drift['records']} | {mean:.4f} | {share:.2f} % |")
        lines.append("")
    return lines


def _gates_section(report: Mapping[str, Any]) -> list[str]:
    gates = report.get("gates", [])
    if not gates:
        return []
    lines = ["| gate | variant | result | what was found |", "| --- | --- | --- | --- |"]
    for item in gates:
        result, found = item["status"].replace("_", " "), item["message"].replace("|", "/")
        lines.append(f"| {item['gate']} | `{item['variant']}` | {result} | {found} |")
    return [*lines, ""]


_TRUST_TITLE = "## Probabilities and doubt"


def _trust_section(report: Mapping[str, Any]) -> list[str]:
    tasks = report.get("trust", {}).get("tasks", {})
    if not tasks:
        return []
    lines = [
        "Fitted on validation records of patients that the model was not trained on; negative "
        "log-likelihood (NLL) and Brier score are those of patients left out of the fit. Metrics "
        "above that depend on probabilities or operating points (Brier, ECE, decisions on several "
        "labels) were measured without it.",
        "",
        "| task | records | patients | scaling | NLL | Brier | abstains from |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, item in sorted(tasks.items()):
        kind = item["scaling"]
        nll, brier = item["cross_fitted_nll"], item["cross_fitted_brier"]
        lines.append(
            f"| `{name}` | {item['records']} | {item['groups']} | {kind} "
            f"| {nll['identity']:.3f} to {nll[kind]:.3f} "
            f"| {brier['identity']:.3f} to {brier[kind]:.3f} "
            f"| {100 * item['abstained_share']:.0f} % |"
        )
    return [*lines, ""]


def with_trust_section(card: str, report: Mapping[str, Any]) -> str:
    """The card with the section on what `report` says was fitted, in place of an earlier one."""
    section = [_TRUST_TITLE, "", *_trust_section(report)]
    lines = card.split("\n")
    if _TRUST_TITLE in lines:
        first = lines.index(_TRUST_TITLE)
        rest = [row for row in range(first + 1, len(lines)) if lines[row].startswith("## ")]
        last = rest[0] if rest else len(lines)
    else:
        first = last = lines.index("## Limits") if "## Limits" in lines else len(lines)
    return "\n".join([*lines[:first], *section, *lines[last:]])


def model_card(
    name: str,
    version: str,
    tasks: tuple[TaskSpec, ...],
    provenance: Mapping[str, Any],
    report: Mapping[str, Any],
    metrics: Metrics,
) -> str:
    """`MODEL_CARD.md`.

    Args:
        name: Of the bundle.
        version: Of the model.
        tasks: In the manifest's order.
        provenance: Of the checkpoint.
        report: The export's report.
        metrics: Measured elsewhere; may be empty.
    """
    use = intended_use(tasks)
    lines = [f"# {name} {version}", "", f"**Not a medical device.** {use.statement}", ""]
    lines += ["## Tasks", "", "| task | kind | outputs | reads beside the image |"]
    lines += ["| --- | --- | --- | --- |"]
    for task in tasks:
        shown = ", ".join(task.outputs[:8])
        more = f" and {len(task.outputs) - 8} more" if len(task.outputs) > 8 else ""
        reads = ", ".join(f"`{path}`" for path in task.reads) or "nothing"
        lines.append(f"| `{task.name}` | {task.kind} | {shown}{more} | {reads} |")
    lines += _costs(provenance)
    lines += ["", "## Measured accuracy", "", *_metrics_section(metrics)]
    lines += ["## Variants", "", f"In this bundle: {', '.join(sorted(report['sizes']))}.", ""]
    lines += [*_gates_section(report), *_drift_section(report)]
    lines += ["## Training data", "", *_data_section(provenance)]
    lines += ["## Limits", "", *(f"* {limit}" for limit in use.limits), ""]
    return "\n".join(lines)
