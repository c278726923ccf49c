from __future__ import annotations

import json

import numpy as np
import pytest

import umd_edge
from umd_edge.errors import DataError, UnknownTaskError
from umd_edge_export.cli import run
from umd_edge_export.compare import compare, paired_difference


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


def test_patients_are_resampled_and_not_records():
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(20), 30)
    per_patient = rng.normal(size=20)[patients]
    clustered = paired_difference(np.zeros(600), per_patient, np.zeros(600), patients.astype(str))
    single = np.arange(600).astype(str)
    naive = paired_difference(np.zeros(600), per_patient, np.zeros(600), single)
    assert clustered.high - clustered.low > 3 * (naive.high - naive.low)


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
