from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import umd_edge
from support.export_fixtures import make_records
from umd_edge._bundle import Bundle, file_entries, write_bundle
from umd_edge.errors import DataError, SelfTestError, UsageError
from umd_edge_export.bundle import build_bundle
from umd_edge_export.card import read_metrics
from umd_edge_export.errors import ExportError, InvarianceError, ParityError
from umd_edge_train.checkpoint import CheckpointError


def test_bundle_runs_in_the_runtime(bundle):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for variant in ("fp32", "int8"):
        predictor = umd_edge.Predictor.load(bundle.path, variant=variant)
        assert predictor.verify().variant == variant
        assert predictor.ask(pixels, "is this image normal?").status == "ok"
        findings = predictor.classify(pixels, "skin-lesion", structured={"age": 70}).findings
        assert [finding.label for finding in findings] == ["benign", "malignant", "unclear"]


def test_manifest_and_report_say_what_was_done(bundle):
    manifest = bundle.manifest
    assert (manifest.name, manifest.version) == ("tiny-test", "1.2.3")
    assert manifest.created == "2026-01-31T12:00:00Z"
    assert manifest.default_variant == "int8"
    assert manifest.variants["int8"].notes["weight_bits"] == 8
    report = json.loads(bundle.read("report.json"))
    assert report["parity"]["max_difference"] <= report["parity"]["tolerance"] == 1e-4
    assert all(report["invariance"][name]["bit_identical"] for name in ("fp32", "int8"))
    assert set(report["against_fp32"]["int8"]) == {"vqa", "chest-xray", "skin-lesion"}
    card = bundle.read("MODEL_CARD.md").decode()
    assert "Not a medical device" in card and "`chest-xray`" in card


def test_bundle_holds_nothing_of_the_records(bundle, records):
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    for name in bundle.manifest.files:
        data = bundle.read(name)
        for record in lines:
            assert str(record["patient_id"] + '"').encode() not in data
        assert str(records.parent).encode() not in data


def test_building_again_gives_the_same_bytes(bundle, checkpoint_dir, records, tmp_path):
    again = build_bundle(
        checkpoint_dir, [records], tmp_path / "b.umd", name="tiny-test", version="1.2.3"
    )
    assert again.path.read_bytes() == bundle.path.read_bytes()
    assert again.sha256 == bundle.sha256


def test_self_test_finds_a_changed_golden_output(bundle, tmp_path):
    """Negative control of `verify`: another picture's outputs, everything hashed correctly."""
    from umd_edge._selftest import read_golden, write_golden

    files = {name: bundle.read(name) for name in bundle.manifest.files}
    golden = dict(read_golden(files["golden.npz"]))
    golden["int8/logits_vqa"] = golden["int8/logits_vqa"] + np.float32(1.0)
    files["golden.npz"] = write_golden(golden)
    manifest = json.loads(bundle.manifest_bytes)
    manifest["files"] = {name: entry.to_dict() for name, entry in file_entries(files).items()}
    changed = write_bundle(
        {**files, "manifest.json": json.dumps(manifest).encode()}, tmp_path / "x.umd"
    )
    with pytest.raises(SelfTestError, match="logits_vqa"):
        umd_edge.Predictor.load(changed.path).verify()


@pytest.fixture
def traced(models, monkeypatch):
    """The graphs of the session's checkpoint, traced once."""
    monkeypatch.setattr(
        "umd_edge_export.bundle.export_graphs", lambda checkpoint, pictures=(): models
    )


def _refused(error, checkpoint_dir, data, folder, match, **options):
    out = folder / "model.umd"
    out.write_bytes(b"the bundle of yesterday")
    with pytest.raises(error, match=match):
        build_bundle(checkpoint_dir, data, out, **options)
    assert out.read_bytes() == b"the bundle of yesterday"
    assert [item.name for item in folder.iterdir() if item.is_file()] == ["model.umd"]


def test_parity_failure_writes_nothing(traced, checkpoint_dir, records, tmp_path, monkeypatch):
    monkeypatch.setattr("umd_edge_export.parity.ParityReport.__init__.__defaults__", (0.0,))
    _refused(ParityError, checkpoint_dir, [records], tmp_path, "at most 0 is allowed")


def test_invariance_failure_writes_nothing(traced, checkpoint_dir, records, tmp_path, monkeypatch):
    from umd_edge_export import bundle as module

    measured = module.measure_invariance

    def leaky(*args, **kwargs):
        report = measured(*args, **kwargs)
        report.differing["match_logit"] = 0.02
        return report

    monkeypatch.setattr(module, "measure_invariance", leaky)
    _refused(
        InvarianceError,
        checkpoint_dir,
        [records],
        tmp_path,
        "match_logit by 0.02",
        variants=("fp32",),
    )


def test_a_corrupted_weight_is_refused(checkpoint_dir, records, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(checkpoint_dir, broken)
    weights = load_file(str(broken / "model.safetensors"))
    weights["match_head.weight"][0, 0] = float("inf")
    save_file(weights, str(broken / "model.safetensors"))
    _refused(ExportError, broken, [records], tmp_path, "not finite")


def test_a_truncated_checkpoint_is_refused(checkpoint_dir, records, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint_dir, broken)
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    _refused(CheckpointError, broken, [records], tmp_path, "damaged")


def test_a_checkpoint_without_its_date_is_refused(checkpoint_dir, records, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint_dir, broken)
    (broken / "provenance.json").write_text("{}")
    _refused(ExportError, broken, [records], tmp_path, "created")


def test_range_data_that_fits_no_task_is_refused(checkpoint_dir, tmp_path):
    data = tmp_path / "data" / "train.jsonl"
    data.parent.mkdir()
    data.write_text('{"id": "1", "image": "a.png", "non_commercial": false}\n')
    _refused(DataError, checkpoint_dir, [data], tmp_path, "no record that one of the tasks")


def test_missing_range_data_is_refused(checkpoint_dir, tmp_path):
    _refused(DataError, checkpoint_dir, [tmp_path / "no.jsonl"], tmp_path, "cannot be read")


def test_a_missing_picture_is_refused(traced, checkpoint_dir, tmp_path):
    data = make_records(tmp_path / "data")
    (data.parent / "000.png").unlink()
    _refused(DataError, checkpoint_dir, [data], tmp_path, "train.jsonl:1", variants=("fp32",))


def test_restricted_records_are_refused_unless_allowed(checkpoint_dir, tmp_path):
    from umd_edge_export.samples import read_free_records

    data = make_records(tmp_path / "data", 3, non_commercial=True)
    _refused(DataError, checkpoint_dir, [data], tmp_path, "allow-non-commercial")
    assert len(read_free_records([data], allow_non_commercial=True)[0]) == 3


@pytest.mark.parametrize("variants", [(), ("int4",)])
def test_unknown_variants_are_refused(checkpoint_dir, records, tmp_path, variants):
    _refused(UsageError, checkpoint_dir, [records], tmp_path, "fp32", variants=variants)


@pytest.mark.parametrize("text", ["[]", '{"vqa": {"accuracy": 0.5}}', "no json"])
def test_metrics_of_another_form_are_refused(tmp_path, text):
    path = tmp_path / "metrics.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"metrics\.json"):
        read_metrics(path)


def test_opened_bundle_is_whole(bundle):
    Bundle.open(bundle.path).check_files()
