"""`umd-edge evaluate --report --accept --by`: the page, the JSON keys and the exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from support.command import png, run, run_json
from umd_edge import Predictor
from umd_edge._cli._measure import NOT_ACCEPTED
from umd_edge._evaluate import evaluate_file, evaluate_records
from umd_edge.errors import UsageError


@pytest.fixture
def records(tmp_path: Path) -> Path:
    lines = []
    for index in range(24):
        png(tmp_path / f"{index}.png", side=30 + index)
        record = {
            "id": f"SECRET-{index}",
            "patient_id": f"P{index // 2}",
            "image": f"{index}.png",
            "labels": [["benign", "malignant", "normal"][index % 3]],
            "age": 20 + 3 * index,
            "sex": "FM"[index % 2],
        }
        lines.append(json.dumps(record))
    (tmp_path / "site.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "site.jsonl"


@pytest.fixture
def command(tiny_bundle, records):
    return (
        *("evaluate", "--task", "breast-ultrasound"),
        *("--data", records, "--bundle", tiny_bundle),
    )


def test_a_page_is_written_and_the_metrics_are_those_without_it(command, tmp_path):
    (plain,) = run_json(*command)
    (found,) = run_json(*command, "--report", tmp_path / "site.html")
    assert {name: found[name] for name in plain} == plain
    assert found["report"] == str(tmp_path / "site.html")
    assert (found["accepted"], found["acceptance"]) == (None, [])
    assert (found["patients"], sum(found["statuses"].values())) == (12, 24)
    assert {"aurc", "abstained"} <= set(found["site_metrics"])
    html = (tmp_path / "site.html").read_text(encoding="utf-8")
    assert html.startswith("<!DOCTYPE html>")
    assert "SECRET" not in html
    assert not re.search(r"(src|href)=", html)


def test_rules_that_hold_are_exit_0_and_one_that_does_not_is_exit_6(command, tmp_path):
    done = run(*command, "--accept", "accuracy>=0", "--accept", "brier<=2")
    assert done.code == 0
    assert done.out.count("passed") == 2
    done = run(*command, "--accept", "accuracy>=0", "--accept", "accuracy.low>=1.01", "--json")
    assert done.code == NOT_ACCEPTED == 6
    found = json.loads(done.out)
    assert [item["passed"] for item in found["acceptance"]] == [True, False]
    assert found["accepted"] is False
    done = run(*command, "--accept", "accuracy>1", "--report", tmp_path / "site.html")
    assert done.code == 6
    assert "FAILED" in done.out
    assert "FAIL: 0 of 1 rules met" in (tmp_path / "site.html").read_text(encoding="utf-8")


def test_records_are_grouped_and_named_as_asked(command, tmp_path):
    out = tmp_path / "site.html"
    assert run(*command, "--report", out, "--with-ids", "--by", "labels").code == 0
    html = out.read_text(encoding="utf-8")
    assert "SECRET-" in html
    assert "<td>labels</td><td>malignant</td>" in html
    assert "80 and over" in html


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--accept", "accuracy"), "cannot be read"),
        (("--accept", "acuracy>=0.1"), "no figure"),
        (("--report", "x.html", "--by", "patient_id"), "identifies records or patients"),
        (("--report", "x.html", "--by", "devise"), "no record has a value of ['devise']"),
        (("--by", "sex"), "give --report"),
        (("--with-ids",), "give --report"),
        (("--report", "missing/x.html"), "no file can be written there"),
        (("--report", "."), "no file can be written there"),
        (("--report", "site.jsonl"), "would replace what is read"),
    ],
)
def test_what_was_not_meant_is_a_usage_error(command, records, options, said, monkeypatch):
    before = records.read_bytes()
    monkeypatch.chdir(records.parent)
    done = run(*command, *options)
    assert done.code == 2
    assert said in done.err
    assert records.read_bytes() == before
    assert not list(records.parent.glob("*.html"))


def test_a_bad_rule_is_told_before_the_work(command, records, monkeypatch):
    def never(*_):
        raise AssertionError("an image was looked at")

    monkeypatch.setattr(Predictor, "encode", never)
    assert run(*command, "--accept", "nonsense").code == 2
    assert run(*command, "--report", records.parent / "x.html", "--by", "id").code == 2


def test_a_retrieval_has_no_site_report(tmp_path, records):
    default = Predictor.default()
    with pytest.raises(UsageError, match="is a retrieval"):
        evaluate_records(default, "retrieval", records)


def test_the_statuses_are_those_that_a_call_gives(tiny_bundle, records):
    predictor = Predictor.load(tiny_bundle)
    evaluation, rows = evaluate_records(predictor, "breast-ultrasound", records)
    called = [
        predictor.classify(example.image_path, "breast-ultrasound") for example in rows.examples
    ]
    assert list(rows.statuses) == [result.status for result in called]
    assert set(rows.statuses) >= {"ok"}
    top = [max(f.probability for f in result.findings) for result in called]
    assert rows.probabilities.max(axis=1).tolist() == top
    assert evaluation == evaluate_file(predictor, "breast-ultrasound", records)


@pytest.mark.parametrize(
    ("task", "data", "head"),
    [
        ("chest-xray", "nihcxr", "Decisions for each label"),
        ("breast-ultrasound", "busi", "Confusion matrix"),
    ],
)
def test_real_records_with_the_packaged_bundle(shared_data, tmp_path, task, data, head):
    out = tmp_path / "site.html"
    done = run(
        *("evaluate", "--task", task, "--data", shared_data / data / "val.jsonl"),
        *("--report", out, "--accept", "macro_auroc>=0.5"),
    )
    assert done.code == 0, done.err
    html = out.read_text(encoding="utf-8")
    assert f"<h2>{head}</h2>" in html
    assert "PASS: 1 of 1 rules met" in html
    first = json.loads((shared_data / data / "val.jsonl").read_text().splitlines()[0])
    assert first["id"] not in html
    assert first["patient_id"] not in html
