from __future__ import annotations

import json

import numpy as np
import pytest

import umd_edge
from support.export_fixtures import make_records
from umd_edge._bundle import Bundle, file_entries, write_bundle
from umd_edge.errors import DataError, SelfTestError, UsageError
from umd_edge_export.bundle import build_bundle
from umd_edge_export.card import read_metrics
from umd_edge_export.errors import AccuracyError, InvarianceError, ParityError, SpeedError
from umd_edge_export.gates import GateOptions
from umd_edge_export.speed import SpeedReport


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
    gates = {(item["gate"], item["variant"]): item["status"] for item in report["gates"]}
    assert gates == {
        ("parity", "fp32"): "passed",
        ("invariance", "fp32"): "passed",
        ("invariance", "int8"): "passed",
        ("accuracy", "int8"): "not_run",
        ("speed", "int8"): "waived",
    }
    assert manifest.variants["int8"].notes["size_only"] is True
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
        checkpoint_dir,
        [records],
        tmp_path / "b.umd",
        name="tiny-test",
        version="1.2.3",
        gates=GateOptions(size_only=("int8",)),
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


def test_restricted_records_are_refused_unless_allowed(checkpoint_dir, tmp_path):
    from umd_edge_export.samples import read_free_records

    data = make_records(tmp_path / "data", 3, non_commercial=True)
    _refused(DataError, checkpoint_dir, [data], tmp_path, "allow-non-commercial")
    assert len(read_free_records([data], allow_non_commercial=True)[0]) == 3


class _Slow:
    """Says that every variant takes twice the time of float32."""

    @staticmethod
    def measure(reference, variant, **_):
        return SpeedReport(1.0, 2.0, 2.0, 1.9, 2.1, 16)


def _decisions(bundle, records, folder):
    """The records with float32's own answers: its accuracy on them is 1."""
    predictor = umd_edge.Predictor.load(bundle.path, variant="fp32")
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    for line in lines:
        if "answer" in line:
            picture = records.parent / line["image"]
            line["answer"] = predictor.ask(picture, line["question"]).answer
    path = records.parent / f"{folder.name}.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines if "answer" in line))
    return path


def test_a_variant_that_loses_accuracy_or_time_writes_nothing_but_the_report(
    traced, bundle, checkpoint_dir, records, tmp_path, monkeypatch
):
    """Planted defects: the last layer of the answers negated, and a slow machine."""
    import onnx

    from umd_edge_export import bundle as module

    made = module.quantise_variant

    def negate(graphs, *args):
        result = made(graphs, *args)
        fusion = onnx.ModelProto()
        fusion.CopyFrom(result.graphs["fusion"])
        for node in fusion.graph.node:
            node.output[:] = ["before" if name == "logits_vqa" else name for name in node.output]
        fusion.graph.node.add(op_type="Neg", input=["before"], output=["logits_vqa"], name="neg")
        result.graphs["fusion"] = fusion
        return result

    monkeypatch.setattr(module, "quantise_variant", negate)
    monkeypatch.setattr("umd_edge_export.candidate.measure_speed", _Slow.measure)
    data = _decisions(bundle, records, tmp_path)
    page = tmp_path.parent / f"{tmp_path.name}.html"
    results = []
    _refused(
        AccuracyError,
        checkpoint_dir,
        [records],
        tmp_path,
        r"-100\.00 points",
        gates=GateOptions(data=(data,), size_only=("int8",)),
        report=page,
        on_gate=results.append,
    )
    assert [item.status for item in results] == ["passed"] * 3 + ["failed", "waived"]
    text = page.read_text()
    assert "-100.00 points" in text and "r0" in text


def test_gate_data_that_set_the_ranges_are_refused(checkpoint_dir, records, tmp_path):
    match = "on which nothing was tuned"
    gates = GateOptions(data=(records,))
    _refused(UsageError, checkpoint_dir, [records], tmp_path, match, gates=gates)


def test_missing_gate_data_are_told_before_the_work(checkpoint_dir, records, tmp_path, monkeypatch):
    monkeypatch.setattr("umd_edge_export.bundle.load_checkpoint", None)  # never reached
    gates = GateOptions(data=(tmp_path / "nothing.jsonl",))
    _refused(DataError, checkpoint_dir, [records], tmp_path, "cannot be read", gates=gates)


def test_a_slow_variant_writes_nothing(traced, checkpoint_dir, records, tmp_path, monkeypatch):
    monkeypatch.setattr("umd_edge_export.candidate.measure_speed", _Slow.measure)
    _refused(SpeedError, checkpoint_dir, [records], tmp_path, "--size-only int8")


def test_the_accuracy_gate_passes_what_changes_nothing(
    traced, bundle, checkpoint_dir, records, tmp_path, monkeypatch
):
    """Negative control: the same records, and the float32 graphs under another name."""
    from umd_edge_export import bundle as module
    from umd_edge_export.quantize import QuantisedVariant

    monkeypatch.setattr(
        module,
        "quantise_variant",
        lambda graphs, *args: QuantisedVariant(graphs=dict(graphs), notes={}),
    )
    data = _decisions(bundle, records, tmp_path)
    built = build_bundle(
        checkpoint_dir,
        [records],
        tmp_path / "model.umd",
        variants=["cpu"],
        gates=GateOptions(data=(data,), size_only=("int8",)),
    )
    assert set(built.manifest.variants) == {"int8"}
    report = json.loads(built.read("report.json"))
    found = next(item for item in report["gates"] if item["gate"] == "accuracy")
    assert (found["status"], found["figures"]["shown"]) == ("passed", False)
    assert found["figures"]["pooled"]["accuracy_a"] == 1.0
    assert report["gate_data"]["files"][0]["name"].endswith(data.name)


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


@pytest.mark.parametrize(
    ("place", "options", "match"),
    [
        ("no/folder/model.umd", {}, "existing folder"),
        ("", {}, "existing folder"),
        ("model.umd", {"gates": GateOptions(size_only=("int8-trt",))}, "this build makes"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(
    checkpoint_dir, records, tmp_path, monkeypatch, place, options, match
):
    monkeypatch.setattr("umd_edge_export.bundle.load_checkpoint", None)  # never reached
    with pytest.raises(UsageError, match=match):
        build_bundle(checkpoint_dir, [records], tmp_path / place, **options)
