"""Makes a bundle's answers trustworthy: fits what its tasks say of probabilities, and packs it.

The fit sees a bundle as a device does: the runtime's logits of its default variant on labelled
records. Nothing of the graphs changes, so the golden vectors stay as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from umd_edge._bundle import Bundle, file_entries, write_bundle
from umd_edge._json import dump_canonical
from umd_edge._manifest import Manifest
from umd_edge._postprocess import probabilities
from umd_edge._predictor import Predictor
from umd_edge._task import TaskSpec

from .card import with_trust_section
from .ood import OodFit
from .places import check_place, full_disk_told
from .trust_decisions import (
    AbstainRule,
    abstain_threshold,
    conformal_spec,
    operating_curves,
    operating_points,
    record_risks,
)
from .trust_records import TaskRecords, read_task_records
from .trust_scaling import Selection, fit_scaling, select_scaling

__all__ = ["FittedTask", "fit_bundle", "fit_task", "write_fitted"]

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FittedTask:
    """A task with everything that is fitted, and what was found on the way."""

    task: TaskSpec
    records: TaskRecords = field(repr=False)
    selection: Selection

    def to_dict(self) -> dict[str, Any]:
        """The entry in `report.json`."""
        task, records = self.task, self.records
        scaled = probabilities(records.logits, task)
        before = probabilities(records.logits, records.task)
        changed = scaled.argmax(axis=1) != before.argmax(axis=1)
        certain, _ = record_risks(task, records.targets, scaled)
        threshold = task.thresholds.get("abstain", 0.0)
        result: dict[str, Any] = {
            "records": len(records),
            "groups": len(set(records.groups)),
            "scaling": self.selection.kind,
            "cross_fitted_nll": self.selection.nll,
            "cross_fitted_brier": self.selection.brier,
            "changed_decisions": 0.0 if task.multi_label else float(changed.mean()),
            "abstained_share": float((certain < threshold).mean()),
        }
        if task.kind == "vqa":
            result["answers_not_listed"] = float((records.targets == 0).all(axis=1).mean())
        else:
            counts = (records.targets == 1).sum(axis=0).tolist()
            result["positives"] = dict(zip(task.outputs, counts, strict=True))
        return result


def fit_task(records: TaskRecords, rule: AbstainRule | None = None) -> FittedTask:
    """Fit one task.

    Args:
        records: Of patients that the model was not trained on.
        rule: When to abstain; `AbstainRule()` where None.

    Raises:
        ExportError: The risk that the rule asks for cannot be reached.
    """
    selection = select_scaling(records)
    task = fit_scaling(records, selection.kind)
    scaled, targets = probabilities(records.logits, task), records.targets
    limit = abstain_threshold(task, targets, scaled, rule or AbstainRule())
    task = replace(
        task,
        operating_points=operating_points(task, targets),
        operating_curves=operating_curves(task, targets, scaled),
        conformal=conformal_spec(task, records, scaled),
        thresholds={**task.thresholds, **({} if limit is None else {"abstain": limit})},
    )
    return FittedTask(task, records, selection)


def _describe(paths: Sequence[Path]) -> list[dict[str, str]]:
    return [
        {
            "name": f"{path.resolve().parent.name}/{path.name}",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
    ]


def fit_bundle(
    path: Path,
    data: Sequence[Path],
    *,
    rule: AbstainRule | None = None,
    allow_non_commercial: bool = False,
    progress: Progress = lambda message: None,
) -> tuple[Bundle, dict[str, FittedTask]]:
    """Fit every task of a bundle that the records fit.

    Args:
        path: The bundle; its default variant is run on one thread.
        data: JSONL manifests of labelled records that the model was not trained on.
        rule: When to abstain.
        allow_non_commercial: Also take records that are not marked `non_commercial: false`.
        progress: Called with a line for each step.

    Returns:
        The bundle as it is, and task name -> what was fitted.

    Raises:
        BundleError: The bundle is missing or damaged.
        DataError: The records are unreadable, restricted, or fit no task.
        ExportError: The risk that the rule asks for cannot be reached.
    """
    predictor = Predictor.load(path)
    predictor.bundle.check_files()

    def count(task: str, done: int, total: int) -> None:
        if done == total:
            progress(f"ran {task}: {total} records")

    records = read_task_records(
        predictor, data, allow_non_commercial=allow_non_commercial, on_progress=count
    )
    fitted = {}
    for name, item in records.items():
        fitted[name] = fit_task(item, rule)
        progress(f"fitted {name}: {fitted[name].selection.kind} scaling")
    for task in predictor.tasks:
        if task.kind != "retrieval" and task.name not in records:
            progress(f"no record fits task {task.name!r}: it stays as it is")
    return predictor.bundle, fitted


def write_fitted(
    bundle: Bundle,
    fitted: Mapping[str, FittedTask],
    data: Sequence[Path],
    out: Path,
    *,
    rule: AbstainRule | None = None,
    ood: OodFit | None = None,
) -> Bundle:
    """Write a bundle with the fitted tasks; graphs and golden vectors stay byte for byte.

    A signature does not: it was made for the manifest as it was.

    Args:
        bundle: As `fit_bundle` gives it.
        fitted: As `fit_bundle` gives it.
        data: Its records, for the report.
        out: The `.umd` file; replaced in one step.
        rule: When to abstain, for the report.
        ood: Out-of-distribution scores to put in; None leaves them as they are.

    Raises:
        UsageError: The place cannot be written.
        ExportError: The disk is full.
    """
    check_place(out)
    manifest = bundle.manifest
    files = {name: bundle.read(name) for name in manifest.files}
    report = json.loads(files["report.json"]) if "report.json" in files else {}
    chosen = rule or AbstainRule()
    report["trust"] = {
        "data": _describe(data),
        "variant": manifest.default_variant,
        "abstain_rule": {
            "max_risk": chosen.max_risk,
            "max_share": chosen.max_share,
            "min_records": chosen.min_records,
        },
        "tasks": {name: item.to_dict() for name, item in sorted(fitted.items())},
    }
    if ood is not None:
        report["trust"]["out_of_distribution"] = dict(ood.report)
    files["report.json"] = dump_canonical(report)
    if "MODEL_CARD.md" in files:
        card = files["MODEL_CARD.md"].decode("utf-8")
        files["MODEL_CARD.md"] = with_trust_section(card, report).encode("utf-8")
    tasks = tuple(
        fitted[task.name].task if task.name in fitted else task for task in manifest.tasks
    )
    if ood is not None:
        tasks, files = ood.apply(tasks, files)
    changed = replace(manifest, tasks=tasks, files=file_entries(files))
    # Read back: what the runtime would refuse is not written.
    checked = Manifest.from_bytes(changed.to_bytes()).to_bytes()
    with full_disk_told(out):
        return write_bundle({**files, "manifest.json": checked}, out)
