"""The default bundle on real validation records, judged on patients left out of the fit."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from support.requirements import lacking
from umd_edge._postprocess import probabilities
from umd_edge_export.trust import fit_bundle
from umd_edge_export.trust_proof import prove_task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def figures(shared_data: Path) -> dict[str, Any]:
    bundle = Path(str(files("umd_edge") / "bundles" / "default.umd"))
    if not bundle.is_file():
        lacking("default", "this checkout has no default bundle")
    data = [shared_data / name / "val.jsonl" for name in ("busi", "padufes")]
    _, fitted = fit_bundle(bundle, data)
    return {name: (item, prove_task(item.records, item).figures) for name, item in fitted.items()}


TASKS = pytest.mark.parametrize("task", ["breast-ultrasound", "skin-lesion"])


@TASKS
def test_scores_fall_and_calibration_is_as_good_as_chance_allows(
    figures: dict[str, Any], task: str
):
    _, found = figures[task]
    if found["scaling"] == "identity":  # nothing to mend, in no fold
        assert found["scaling_of_folds"] == {"identity": 10}
        assert found["after"]["nll"] == found["before"]["nll"]
        assert found["after"]["brier"] == found["before"]["brier"]
    else:
        assert found["after"]["nll"] < found["before"]["nll"]
        assert found["after"]["brier"] < found["before"]["brier"]
    assert found["after"]["calibration_error"] <= found["after"]["perfect_95"]


@TASKS
@pytest.mark.parametrize("nominal", ["0.8", "0.9", "0.95"])
def test_sets_cover_what_they_promise(figures: dict[str, Any], task: str, nominal: str):
    coverage = figures[task][1]["coverage"][nominal]
    assert coverage["splits"] == 200
    assert abs(coverage["mean"] - float(nominal)) <= 0.02


@TASKS
def test_confidence_puts_wrong_answers_last(figures: dict[str, Any], task: str):
    assert figures[task][1]["risk_coverage"]["high"] < 0


@TASKS
def test_scaling_changes_no_decision_and_few_abstain(figures: dict[str, Any], task: str):
    item, found = figures[task]
    assert found["scaling"] in ("identity", "temperature")
    before = probabilities(item.records.logits, item.records.task).argmax(axis=1)
    assert (probabilities(item.records.logits, item.task).argmax(axis=1) == before).all()
    assert found["abstention"]["share"] <= 0.2
    if found["abstention"]["share"]:
        assert found["abstention"]["risk_answered"] < found["abstention"]["risk_all"]
    else:  # the rule found no threshold, so all are answered
        assert found["abstention"]["threshold"] is None
        assert found["abstention"]["risk_answered"] == found["abstention"]["risk_all"]
