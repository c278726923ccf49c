from __future__ import annotations

import json

import numpy as np
import pytest

import umd_edge
from support.labelled import make_labelled
from umd_edge.errors import BundleNotFoundError, DataError, UnknownTaskError, UsageError
from umd_edge_export.cli import run
from umd_edge_export.compare import compare, paired_difference
from umd_edge_export.sides import open_side


def _predictor(bundle, variant):
    return umd_edge.Predictor.load(bundle.path, variant=variant)


def test_a_variant_compared_with_itself_differs_in_nothing(bundle, records):
    result = compare(_predictor(bundle, "int8"), _predictor(bundle, "int8"), [records])
    assert set(result.tasks) == {"vqa", "chest-xray", "skin-lesion"}
    assert result.pooled.n == sum(value.n for value in result.tasks.values()) == 18
    assert result.pooled.difference == 0.0
    assert result.disagreements == ()
    assert result.pooled.changed_decisions == 0.0
    assert result.dropped == 2 * 18


def test_paired_difference_on_a_case_worked_by_hand():
    a, b = [1, 1, 0, 0], [1, 0, 1, 1]
    result = paired_difference(a, b, [0, 1, 1, 1], ["p", "p", "q", "q"])
    assert (result.n, result.groups) == (4, 2)
    assert (result.accuracy_a, result.accuracy_b, result.difference) == (0.5, 0.75, 0.25)
    # resamples: p twice -0.5, one of each 0.25, q twice 1
    assert (result.low, result.high) == (-0.5, 1.0)
    assert result.changed_decisions == 0.75


@pytest.mark.parametrize("patients", [2, 9, 700])
def test_records_without_a_difference_give_the_exact_bound_and_not_zero(patients):
    names = [str(index) for index in range(patients)]
    result = paired_difference([1] * patients, [1] * patients, [0] * patients, names)
    assert result.low == -result.high < 0
    # A loss at that rate would leave so many patients untouched once in 40 times.
    assert (1 - result.high) ** patients == pytest.approx(0.025)


def test_patients_are_resampled_and_not_records():
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(20), 30)
    per_patient = rng.normal(size=20)[patients]
    clustered = paired_difference(np.zeros(600), per_patient, np.zeros(600), patients.astype(str))
    single = np.arange(600).astype(str)
    naive = paired_difference(np.zeros(600), per_patient, np.zeros(600), single)
    assert clustered.high - clustered.low > 3 * (naive.high - naive.low)


@pytest.fixture(scope="module")
def tiny(tiny_bundle):
    return {
        name: umd_edge.Predictor.load(tiny_bundle, variant=name, threads=1)
        for name in ("fp32", "int8")
    }


def test_records_that_disagree_are_listed_worst_first_and_named_nowhere_else(tiny, tmp_path):
    data = make_labelled(tmp_path / "data", tiny["fp32"], 12)
    result = compare(tiny["fp32"], tiny["int8"], [data], tasks=["vqa"])
    worst = [(-item.changed, -item.distance) for item in result.disagreements]
    assert worst == sorted(worst) and len(worst) == 12
    assert all(item.distance > 0 for item in result.disagreements)
    changed = sum(item.changed for item in result.disagreements) / 12
    assert result.pooled.changed_decisions == pytest.approx(changed)
    assert "record-" not in json.dumps(result.to_dict()) + repr(result)


def test_accuracy_is_one_where_the_records_say_what_the_reference_says(tiny, tmp_path):
    """Negative control beside it: every answer wrong gives 0."""
    right = make_labelled(tmp_path / "right", tiny["fp32"], 6)
    assert compare(tiny["fp32"], tiny["int8"], [right], tasks=["vqa"]).pooled.accuracy_a == 1.0

    def spoil(index, record):
        record["answer"] = "something else"

    wrong = make_labelled(tmp_path / "wrong", tiny["fp32"], 6, spoil)
    assert compare(tiny["fp32"], tiny["int8"], [wrong], tasks=["vqa"]).pooled.accuracy_a == 0.0


def test_a_variant_of_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="runs in torch and has none"):
        open_side(tmp_path, variant="int8")


def test_a_folder_that_is_neither_bundle_nor_checkpoint_is_refused(tmp_path):
    with pytest.raises(BundleNotFoundError):
        open_side(tmp_path)


def test_a_checkpoint_and_its_float_bundle_decide_alike(bundle, checkpoint_dir, records, capsys):
    arguments = ["compare", str(checkpoint_dir), str(bundle.path), "--data", str(records)]
    assert run([*arguments, "--task", "skin-lesion", "--task", "vqa", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["a"]["variant"] == "torch"
    assert result["a"]["checkpoint"]["created"] == "2026-01-31T12:00:00+00:00"
    checkpoint = open_side(checkpoint_dir)
    same = compare(checkpoint, _predictor(bundle, "fp32"), [records])
    assert same.pooled.changed_decisions == 0.0
    assert all(item.distance < 1e-4 for item in same.disagreements)


def test_unknown_task_is_refused(bundle, records):
    with pytest.raises(UnknownTaskError, match="liver"):
        compare(_predictor(bundle, "fp32"), _predictor(bundle, "int8"), [records], tasks=["liver"])


def test_data_that_fits_no_task_is_refused(bundle, tmp_path):
    data = tmp_path / "a.jsonl"
    data.write_text('{"id": "1", "image": "a.png"}\n')
    with pytest.raises(DataError, match="no record of the data fits"):
        compare(_predictor(bundle, "fp32"), _predictor(bundle, "int8"), [data])


def test_command_prints_one_json_object(bundle, records, capsys):
    arguments = ["compare", str(bundle.path), "--variants", "fp32", "int8"]
    assert run([*arguments, "--data", str(records), "--task", "vqa", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["a"]["variant"], result["b"]["variant"]) == ("fp32", "int8")
    assert set(result["tasks"]) == {"vqa"}
    assert "vqa: 12 of 12 runs" in err


def test_command_without_json_prints_a_line_for_each_task(bundle, records, capsys):
    assert run(["compare", str(bundle.path), str(bundle.path), "--data", str(records)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["vqa", "chest-xray", "skin-lesion", "pooled"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["compare", "BUNDLE", "--data", "DATA"], 2),
        (["compare", "BUNDLE", "BUNDLE", "BUNDLE", "--data", "DATA"], 2),
        (["compare", "BUNDLE", "--variants", "fp32", "int4", "--data", "DATA"], 2),
        (["compare", "nothing.umd", "--variants", "fp32", "int8", "--data", "DATA"], 3),
        (["compare", "BUNDLE", "--variants", "fp32", "int8", "--data", "nothing.jsonl"], 4),
        (["bundle", "nothing", "--range-data", "DATA", "--out", "x.umd"], 3),
        (["bundle", "CHECKPOINT", "--range-data", "nothing.jsonl", "--out", "x.umd"], 4),
        (["bundle", "CHECKPOINT", "--range-data", "DATA", "--out", "x.umd", "--variants", "a"], 2),
        (["bundle", "CHECKPOINT", "--out", "x.umd"], 2),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    arguments, code, bundle, records, checkpoint_dir, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    names = {"BUNDLE": bundle.path, "DATA": records, "CHECKPOINT": checkpoint_dir}
    assert run([str(names.get(item, item)) for item in arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert len([line for line in err.splitlines() if line.lower().startswith("error")]) == 1
    assert not list(tmp_path.iterdir())
