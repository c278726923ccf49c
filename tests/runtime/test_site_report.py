"""The figures of a site report against scikit-learn, scipy and definitions written out."""

from __future__ import annotations

import itertools
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_edge import BundleInfo, UsageError
from umd_edge._evaluate import EvaluatedRecords, Evaluation, example_metrics
from umd_edge._evaluation import MetricValue
from umd_edge._records import build_examples, read_records
from umd_edge._site_report import site_report
from umd_edge._site_report_figures import (
    binomial_band,
    decisions,
    reliability,
    risk_coverage,
    roc_curve,
    set_coverage,
    wilson,
)
from umd_edge._site_report_groups import check_fields, subgroups
from umd_edge._site_report_page import render_page, write_page
from umd_edge._site_report_rules import judge, read_rule
from umd_edge._task import TaskSpec

LABELS = ["benign", "malignant", "normal"]
ONE = TaskSpec.from_dict(
    {"name": "breast", "kind": "classification", "labels": LABELS, "prompt": "p"}
)
SEVERAL = TaskSpec.from_dict(
    {
        "name": "chest",
        "kind": "classification",
        "labels": ["a", "b"],
        "prompt": "p",
        "multi_label": True,
        "probability": {"kind": "sigmoid"},
        "operating_points": {"b": 0.3},
        "target": {"field": "labels", "absent": "negative"},
        "thresholds": {"abstain": 0.6},
    }
)
QUESTIONS = TaskSpec.from_dict(
    {"name": "vqa", "kind": "vqa", "answers": ["yes", "no", "ct"], "reads": ["question"]}
)


def evaluated(task: TaskSpec, records: list[dict], p, folder: Path, statuses=None):
    """What `evaluate_records` gives for these probabilities."""
    path = folder / "site.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    read = read_records(path)
    examples = build_examples(read, task, []).examples
    assert len(examples) == len(records)
    p = np.asarray(p, float)
    odds = 1 - p if task.multi_label else 1.0
    evaluation = Evaluation(
        task=task.name,
        n=len(records),
        dropped={},
        metrics=example_metrics(task, examples, p),
        bundle=BundleInfo("b", "1.0.0", "ab" * 32),
        variant="int8",
        provider="cpu",
    )
    rows = EvaluatedRecords(
        task=task,
        examples=examples,
        records=tuple(read),
        logits=np.log(p / odds).astype(np.float32),
        probabilities=p,
        statuses=tuple(statuses or ["ok"] * len(records)),
    )
    return evaluation, rows, path


def record(index: int, label: str, **more) -> dict:
    return {
        "id": f"SECRET-{index}",
        "patient_id": f"P{index}",
        "image": "x.png",
        "labels": [label],
        **more,
    }


def some_records(folder: Path, n: int = 60):
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, n)
    p = rng.dirichlet(np.ones(3), n) * 0.5 + 0.5 * np.eye(3)[truth] * rng.random((n, 1))
    p /= p.sum(axis=1, keepdims=True)
    records = [
        record(k, LABELS[t], age=int(20 + k), sex="FM"[k % 2], device=f"dev {k % 3}")
        for k, t in enumerate(truth)
    ]
    return evaluated(ONE, records, p, folder), truth, p


@pytest.mark.parametrize(
    ("n", "p"), list(itertools.product([1, 7, 60, 5000], [0.0, 0.03, 0.5, 0.97, 1]))
)
def test_the_band_is_that_of_the_binomial_distribution(n, p):
    binom = pytest.importorskip("scipy.stats").binom
    low, high = binomial_band(n, p)
    assert binom.cdf(round(low * n) - 1, n, p) <= 0.025 + 1e-9
    assert binom.sf(round(high * n), n, p) <= 0.025 + 1e-9
    # No narrower band would do.
    assert p in (0, 1) or binom.cdf(round(low * n), n, p) > 0.025 - 1e-9
    assert p in (0, 1) or binom.sf(round(high * n) - 1, n, p) > 0.025 - 1e-9


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (271, 300)])
def test_wilson_solves_its_own_equation(hits, n):
    z = pytest.importorskip("scipy.stats").norm.ppf(0.975)
    for end in wilson(hits, n):
        assert (hits / n - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


def test_bins_hold_every_cell_once_and_a_perfect_promise_lies_in_its_band():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    exact = reliability(p, rng.random(20_000) < p)
    assert sum(item.n for item in exact) == 20_000
    assert sum(item.within for item in exact) >= 8
    too_sure = reliability(p, rng.random(20_000) < p**3)
    assert sum(item.within for item in too_sure) <= 3
    (only,) = reliability(np.ones(4), np.array([True, True, True, False]))
    assert (only.low, only.n, only.observed, only.within) == (0.9, 4, 0.75, False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=6))
def test_risk_coverage_is_the_mean_over_every_order_of_equal_confidences(pairs):
    confidence = np.array([c for c, _ in pairs])
    risk = np.array([float(w) for _, w in pairs])
    found = risk_coverage(confidence, risk, [str(k) for k in range(len(pairs))])
    orders = [
        order
        for order in itertools.permutations(range(len(pairs)))
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order))
    ]
    curves = [[risk[list(order[: k + 1])].mean() for k in range(len(pairs))] for order in orders]
    assert found.risk == pytest.approx(np.mean(curves, axis=0))
    assert found.area.value == pytest.approx(np.mean(curves))
    assert found.best - 1e-12 <= found.area.value
    assert found.random == pytest.approx(risk.mean())


def test_the_interval_of_the_area_does_not_depend_on_how_it_is_cut(monkeypatch):
    rng = np.random.default_rng(1)
    given = rng.random(50), (rng.random(50) < 0.3).astype(float), [str(k // 2) for k in range(50)]
    whole = risk_coverage(*given).area
    monkeypatch.setattr("umd_edge._site_report_figures._CHUNK_CELLS", 120)
    assert risk_coverage(*given).area == whole
    assert whole.low < whole.value < whole.high


def test_risk_coverage_needs_records():
    assert risk_coverage(np.empty(0), np.empty(0), []) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.4, 0.6, 0.8]), st.booleans()), min_size=2))
def test_roc_is_that_of_scikit_learn(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    scores = np.array([s for s, _ in pairs])
    positive = np.array([p for _, p in pairs])
    found = roc_curve(scores, positive)
    if positive.all() or not positive.any():
        assert found is None
        return
    alarms, hits, _ = metrics.roc_curve(positive, scores, drop_intermediate=False)
    assert found[0] == pytest.approx(alarms)
    assert found[1] == pytest.approx(hits)


def test_decisions_count_known_cells_alone():
    truth = np.array([[1], [1], [0], [0], [1]], bool)
    called = np.array([[1], [0], [0], [1], [1]], bool)
    known = np.array([[1], [1], [1], [1], [0]], bool)
    (found,) = decisions(["x"], called, truth, known)
    assert (found.sensitivity, found.specificity) == ((1, 2), (1, 2))


def conformal(task: TaskSpec, **spec) -> TaskSpec:
    return TaskSpec.from_dict({**task.to_dict(), "conformal": spec})


def test_sets_of_one_right_output_are_counted_as_defined():
    task = conformal(
        ONE, method="lac", coverages=[0.5, 0.9, 0.99], n=20, thresholds=[0.6, 0.2, None]
    )
    p = np.array([[0.7, 0.21, 0.09], [0.5, 0.4, 0.1], [0.1, 0.15, 0.75]])
    truth = np.eye(3, dtype=bool)[[0, 1, 1]]
    logits = np.log(p).astype(np.float32)
    found = {i.nominal: i for i in set_coverage(task, logits, truth, np.ones_like(truth))}
    got = {c: (found[c].what, found[c].covered, found[c].n) for c in (0.5, 0.9, 0.99)}
    assert got == {0.5: ("all", 1, 3), 0.9: ("all", 2, 3), 0.99: ("all", 3, 3)}
    assert [found[c].size for c in (0.5, 0.9, 0.99)] == pytest.approx([2 / 3, 5 / 3, 3.0])


def test_answers_that_are_not_listed_are_covered_only_by_saying_so():
    spec = {"method": "lac", "coverages": [0.9], "n": 20, "thresholds": [0.2]}
    truth = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
    # exp(0) of other answers against these logits: 0.02, then more than half
    logits = np.array([[4.0, 1, 0], [4.0, 1, 0], [-1.0, -1, -1]], np.float32)

    def counts(task):
        sets = set_coverage(task, logits, truth, np.ones_like(truth))
        return {i.what: (i.covered, i.n) for i in sets if i.nominal == 0.9}

    silent = conformal(QUESTIONS, **spec)
    assert counts(silent) == {
        "all": (1, 3), "all: answers listed": (1, 1), "all: answers not listed": (0, 2),
    }  # fmt: skip
    knowing = TaskSpec.from_dict(
        {
            **QUESTIONS.to_dict(),
            "probability": {"kind": "softmax", "temperature": 1.0, "other": 0.0},
            "conformal": {**spec, "other": {"n": 9, "thresholds": [0.3]}},
        }
    )
    assert counts(knowing)["all: answers not listed"] == (1, 2)


def test_sets_of_several_labels_are_counted_by_label_and_state():
    thresholds = {"present": {"n": 9, "thresholds": [0.5]}, "absent": {"n": 9, "thresholds": [0.7]}}
    labels = {"a": thresholds, "b": thresholds}
    task = conformal(SEVERAL, method="lac_by_class", coverages=[0.9], labels=labels)
    p = np.array([[0.6, 0.2], [0.4, 0.6], [0.9, 0.1]])
    logits = np.log(p / (1 - p)).astype(np.float32)
    truth = np.array([[1, 0], [1, 1], [0, 0]], bool)
    known = np.array([[1, 1], [1, 1], [1, 0]], bool)
    sets = set_coverage(task, logits, truth, known)
    assert {i.what: (i.covered, i.n) for i in sets if i.nominal == 0.9} == {
        "a: present": (1, 2), "a: absent": (0, 1), "b: present": (1, 1), "b: absent": (1, 1),
        "present": (2, 3), "absent": (1, 2), "all": (3, 5),
    }  # fmt: skip


def test_without_thresholds_or_records_there_are_no_sets():
    truth = np.eye(3, dtype=bool)[:1]
    assert set_coverage(ONE, np.zeros((1, 3), np.float32), truth, truth) == []
    spec = conformal(ONE, method="lac", coverages=[0.9], n=9, thresholds=[0.1])
    assert set_coverage(spec, np.zeros((0, 3), np.float32), truth[:0], truth[:0]) == []


def test_subgroups_by_age_band_value_and_quantile(tmp_path):
    (_, rows, _), _, p = some_records(tmp_path)
    fields = check_fields(["device", "age"], ONE)
    found = subgroups(ONE, rows.examples, rows.records, p, fields)
    ages = [item for item in found if item.field == "age"]
    assert [(item.value, item.n) for item in ages] == [
        ("18 to 39", 20), ("40 to 59", 20), ("60 to 79", 20),
    ]  # fmt: skip
    assert [(i.value, i.n) for i in found if i.field == "sex"] == [("F", 30), ("M", 30)]
    assert sum(item.n for item in found if item.field == "device") == 60
    women = [k for k in range(60) if k % 2 == 0]
    wanted = example_metrics(ONE, [rows.examples[k] for k in women], p[women])
    assert next(i for i in found if i.value == "F").metrics == wanted
    # A field that no record has makes no group.
    assert not [item for item in found if item.field in ("view", "modality", "region")]


def test_numbers_of_many_values_fall_into_quarters_and_rare_values_together(tmp_path):
    records = [record(k, "benign", dose=k + 0.5, room=f"r{k % 30}") for k in range(40)]
    records[0].pop("dose")
    _, rows, _ = evaluated(ONE, records, np.tile([0.5, 0.3, 0.2], (40, 1)), tmp_path)
    found = subgroups(ONE, rows.examples, rows.records, rows.probabilities, ["dose", "room"])
    doses = [item for item in found if item.field == "dose"]
    assert sorted(item.n for item in doses) == [1, 9, 10, 10, 10]
    assert doses[0].value.startswith("under ")
    assert doses[-1].value == "not known"
    rooms = [item for item in found if item.field == "room"]
    assert len(rooms) == 13
    assert rooms[-1].value == "other values"
    assert sum(item.n for item in rooms) == 40
    assert all(item.is_small for item in rooms)


@pytest.mark.parametrize("field", ["id", "patient_id", "image", "note.patient_id"])
def test_no_group_is_made_by_what_identifies(field):
    with pytest.raises(UsageError, match="identifies records or patients"):
        check_fields([field], ONE)


@pytest.mark.parametrize(
    ("given", "side", "comparison", "limit"),
    [
        ("accuracy>=0.5", "value", ">=", 0.5),
        (" accuracy.low > .25 ", "low", ">", 0.25),
        ("auroc_Pleural Thickening.value>=7e-1", "value", ">=", 0.7),
        ("ece.high<=0.1", "high", "<=", 0.1),
        ("set_size_90<2", "value", "<", 2.0),
    ],
)
def test_rules_are_read(given, side, comparison, limit):
    rule = read_rule(given)
    assert (rule.side, rule.comparison, rule.limit) == (side, comparison, limit)
    assert read_rule(str(rule)) == rule


@pytest.mark.parametrize(
    "given", ["accuracy", "accuracy=0.5", ">=0.5", "a>=x", "a>=nan", "a>=inf", ""]
)
def test_what_is_no_rule_is_refused_with_an_example(given):
    with pytest.raises(UsageError, match=r"cannot be read; write for instance accuracy>=0\.8"):
        read_rule(given)


def test_verdicts_compare_the_side_that_was_named():
    metrics = {
        "accuracy": MetricValue(0.8, 0.7, 0.9, 50),
        "auroc_x": MetricValue(None, None, None, 0),
        "alone": MetricValue(0.9, None, None, 3),
    }

    def passed(rule):
        return judge([read_rule(rule)], metrics)[0].passed

    assert passed("accuracy>=0.8")
    assert not passed("accuracy>0.8")
    assert not passed("accuracy.low>=0.75")
    assert passed("accuracy.high>=0.9")
    assert passed("accuracy.low<0.71")
    assert not passed("auroc_x>=0")  # what is not defined is not met
    assert not passed("alone.low>=0")
    with pytest.raises(UsageError, match=r"no figure 'acuracy' .* it has .'accuracy'"):
        judge([read_rule("acuracy>=0.1")], metrics)


class _Page(HTMLParser):
    """Tags and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "data", "xlink:href")]


def page_of(report) -> tuple[str, _Page]:
    html = render_page(report)
    page = _Page()
    page.feed(html)
    return html, page


def test_the_page_shows_every_part_and_fetches_nothing(tmp_path):
    (evaluation, rows, path), _, _ = some_records(tmp_path)
    report = site_report(evaluation, rows, path, by=["device"], rules=[read_rule("accuracy>=0.99")])
    html, page = page_of(report)
    for head in (
        "Acceptance rules",
        "Statuses",
        "Metrics",
        "Reliability",
        "Risk and coverage",
        "Coverage of the prediction sets",
        "Confusion matrix",
        "ROC curves",
        "Subgroups",
    ):
        assert f"<h2>{head}</h2>" in html
    assert page.tags.count("svg") >= 6
    assert page.fetched == []
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert "http" not in html.replace("http-equiv", "")
    assert "FAIL: 0 of 1 rules met" in html
    assert report.accepted is False
    assert evaluation.bundle.sha256 in html


def test_the_page_names_records_only_where_asked(tmp_path):
    (evaluation, rows, path), truth, p = some_records(tmp_path)
    html, _ = page_of(site_report(evaluation, rows, path))
    assert "SECRET" not in html
    assert "P1<" not in html
    named = site_report(evaluation, rows, path, with_ids=True)
    wrong = {f"SECRET-{k}" for k in np.flatnonzero(p.argmax(axis=1) != truth)}
    assert {item.id for item in named.wrong} == wrong
    assert "SECRET" in page_of(named)[0]
    assert "SECRET" not in repr(named)


def test_a_worse_group_is_marked_and_one_or_two_persons_are_not_told(tmp_path):
    records = [
        record(k, "benign", sex="F" if k < 30 else "M" if k < 60 else "X") for k in range(62)
    ]
    p = np.tile([0.9, 0.06, 0.04], (62, 1))
    p[30:40] = [0.1, 0.5, 0.4]
    evaluation, rows, path = evaluated(ONE, records, p, tmp_path)
    rules = ["accuracy[sex=F]>=1", "accuracy[sex=M].low>=0.7", "accuracy[sex=X]>=0"]
    found = site_report(evaluation, rows, path, rules=[read_rule(rule) for rule in rules])
    assert [item.passed for item in found.verdicts] == [True, False, False]
    html, _ = page_of(found)
    cells = {row[4]: row for row in html.split("<td>sex</td>")[1:]}
    assert set(cells) == {"F", "M", "X"}
    assert 'class="worse">0.667' in cells["M"]
    assert "worse" not in cells["F"].split("</tr>")[0]
    assert "2 of 2 (few)" in cells["X"]
    assert "1.000" not in cells["X"].split("</tr>")[0]
    assert "1.000" in cells["F"].split("</tr>")[0]


def test_text_of_the_records_cannot_become_markup(tmp_path):
    bad = "<script>alert(1)</script>"
    records = [record(k, "benign", sex=bad) for k in range(4)]
    evaluation, rows, path = evaluated(ONE, records, np.tile([0.5, 0.3, 0.2], (4, 1)), tmp_path)
    html, page = page_of(site_report(evaluation, rows, path))
    assert "script" not in page.tags
    assert "&lt;script&gt;" in html


def test_confusion_counts_every_record_at_truth_and_decision(tmp_path):
    (evaluation, rows, path), truth, p = some_records(tmp_path)
    confusion = pytest.importorskip("sklearn.metrics").confusion_matrix
    found = site_report(evaluation, rows, path)
    assert np.array_equal(found.confusion.counts, confusion(truth, p.argmax(axis=1)))
    own = found.metrics["accuracy"].value
    assert np.trace(found.confusion.counts) / 60 == pytest.approx(own)


def test_of_several_labels_unknown_ones_are_left_out_and_the_points_decide(tmp_path):
    records = [
        {"id": str(k), "image": "x.png", "labels": labels}
        for k, labels in enumerate([["a"], ["a", "b"], ["b"], ["a"]])
    ]
    p = [[0.9, 0.35], [0.6, 0.2], [0.1, 0.8], [0.45, 0.1]]
    states = ["ok", "abstain", "ok", "ok"]
    evaluation, rows, path = evaluated(SEVERAL, records, p, tmp_path, states)
    found = site_report(evaluation, rows, path)
    assert found.confusion is None
    assert [
        (d.true_positive, d.false_negative, d.true_negative, d.false_positive)
        for d in found.decisions
    ] == [(2, 1, 1, 0), (1, 1, 1, 1)]
    assert found.statuses["abstain"] == 1
    assert found.metrics["abstained"].value == 0.25
    assert found.right["abstain"] == pytest.approx(0.5)
    assert found.right["ok"] == pytest.approx(4 / 6)
    assert found.right["out_of_distribution"] is None
    assert found.risk.random == pytest.approx(3 / 8)
    assert "<h2>Confusion matrix</h2>" not in page_of(found)[0]


def test_questions_get_a_matrix_of_yes_and_no_and_outside_answers_are_never_covered(tmp_path):
    task = conformal(QUESTIONS, method="lac", coverages=[0.9], n=9, thresholds=[0.1])
    asked = [("yes", "yes"), ("no", "yes"), ("no", "ct"), ("xr", "ct")]
    records = [
        {"id": str(k), "image": "x.png", "question": "q ?", "answer": answer}
        for k, (answer, _) in enumerate(asked)
    ]
    rows = {"yes": [0.8, 0.15, 0.05], "ct": [0.1, 0.05, 0.85]}
    p = [rows[said] for _, said in asked]
    evaluation, evaluated_rows, path = evaluated(task, records, p, tmp_path)
    found = site_report(evaluation, evaluated_rows, path)
    assert found.confusion.counts == ((1, 0, 0), (1, 0, 1))
    (sets,) = [item for item in found.sets if (item.nominal, item.what) == (0.9, "all")]
    assert (sets.covered, sets.n) == (2, 4)
    assert found.metrics["set_coverage_90"].value == 0.5
    assert found.rocs == []
    page_of(found)


def test_a_page_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    (evaluation, rows, path), _, _ = some_records(tmp_path)
    report = site_report(evaluation, rows, path)
    target = tmp_path / "site.html"
    target.write_text("older")
    monkeypatch.setattr("umd_edge._files.os.replace", _full)
    with pytest.raises(OSError, match="No space"):
        write_page(target, report)
    assert target.read_text() == "older"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["site.html", "site.jsonl"]


def _full(*_):
    raise OSError(28, "No space left on device")
