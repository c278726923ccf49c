"""`quantise_variant`, `quantise_bundle` and the command, on a checkpoint with random weights."""

from __future__ import annotations

import errno
import json

import numpy as np
import onnx
import pytest

import umd_edge
from support.export_fixtures import make_records
from umd_edge._bundle import Bundle
from umd_edge._options import SessionOptions
from umd_edge._session import GraphSession
from umd_edge.errors import DataError, UsageError
from umd_edge_export.cli import run
from umd_edge_export.errors import ExportError
from umd_edge_export.graphs import PARTS
from umd_edge_export.invariance import measure_invariance
from umd_edge_export.quantize import QuantiseOptions, early_convolutions, quantise_variant
from umd_edge_export.ranges import RangeOptions
from umd_edge_export.runner import GraphTrio, graph_spec
from umd_edge_export.targets import TARGETS, find_target

STATIC = [name for name, target in TARGETS.items() if not target.dynamic]


def _bytes(models) -> dict[str, bytes]:
    return {part: models[part].SerializeToString(deterministic=True) for part in PARTS}


@pytest.fixture(scope="module")
def reference(graphs, parts):
    return GraphTrio(graphs, parts)


@pytest.fixture(scope="module")
def make(models, source, reference):
    """Target -> quantised variant, each made once."""
    made = {}

    def get(name: str):
        if name not in made:
            options = QuantiseOptions(allow_batch_dependence=True)
            made[name] = quantise_variant(models, source, reference, find_target(name), options)
        return made[name]

    return get


@pytest.mark.parametrize("name", STATIC)
def test_no_bit_depends_on_company_or_padding(name, make, parts, samples):
    found = measure_invariance(
        _bytes(make(name).graphs), parts, samples[:5], max_length=24, pad_id=0
    )
    assert found.differing == {}


def test_ranges_taken_at_run_time_depend_on_both(make, parts, samples):
    made = make("dynamic")
    found = measure_invariance(_bytes(made.graphs), parts, samples[:5], max_length=24, pad_id=0)
    assert any(name.startswith("logits_") for name in found.differing)
    assert "batch" in made.notes["batch_dependent"]
    types = {node.op_type for model in made.graphs.values() for node in model.graph.node}
    assert "DynamicQuantizeLinear" in types and "QuantizeLinear" not in types


def test_every_target_is_near_float32(make, reference, parts, samples):
    for name in TARGETS:
        trio = GraphTrio(_bytes(make(name).graphs), parts)
        for sample in samples[:4]:
            wanted, found = reference.run(sample.inputs()), trio.run(sample.inputs())
            for key in ("logits_vqa", "logits_skin_lesion"):
                scale = np.abs(wanted[key] - wanted[key].mean()).max()
                difference = np.abs(wanted[key] - found[key]).max()
                assert 0 < difference < 0.3 * scale, (name, key)


def test_processors_without_vnni_get_the_same_answers(make, parts, samples):
    data = _bytes(make("cpu").graphs)["vision"]
    options = SessionOptions()
    native, safe = (
        GraphSession(data, "vision", graph_spec(parts["vision"]), options, u8u8=u8u8)
        for u8u8 in (False, True)
    )
    for sample in samples[:3]:
        feeds = {"pixel_values": sample.pixel_values}
        for first, second in zip(native.run(feeds), safe.run(feeds), strict=True):
            np.testing.assert_allclose(first, second, atol=0.02 * np.abs(first).max())


def test_notes_say_what_was_done(make):
    notes = make("tensorrt").notes
    assert notes["target"] == "tensorrt" and notes["ranges"] == "minmax"
    assert notes["activations"].startswith("int8, symmetric")
    assert notes["float_by"] == "rule" and "products of one row a sample" in notes["float"]
    assert notes["weight_bits"] == 8
    json.dumps(notes)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_ranges_by_histograms_are_no_wider(method, models, source, reference, make):
    options = QuantiseOptions(ranges=RangeOptions(method=method, percentile=99.0))
    target = find_target("cpu")
    cut = quantise_variant(models, source, reference, target, options).graphs
    narrower = 0
    for part in ("vision", "fusion"):
        scales = [
            {
                item.name: float(onnx.numpy_helper.to_array(item))
                for item in graphs[part].graph.initializer
                if item.name.endswith("_scale") and not item.dims
            }
            for graphs in (cut, make("cpu").graphs)
        ]
        assert scales[0].keys() == scales[1].keys()
        assert all(scales[0][name] <= scales[1][name] * 1.0001 for name in scales[0])
        narrower += sum(scales[0][name] < 0.99 * scales[1][name] for name in scales[0])
    assert narrower > 3


def test_a_tight_budget_leaves_more_in_float(models, source, reference, parts, samples):
    def choose(max_changed):
        options = QuantiseOptions(
            budget=100.0, max_changed=max_changed, budget_source=source, noise_samples=6
        )
        return quantise_variant(models, source, reference, find_target("cpu"), options)

    free, none = choose(None), choose(0.0)
    counts = [sum(x["float"] for x in item.sensitivity["layers"]) for item in (free, none)]
    assert counts[0] == 0 and len(free.sensitivity["steps"]) == 1
    assert counts[1] >= counts[0]
    assert none.notes["float_by"].startswith("budget of 100 points")
    last = min(none.sensitivity["steps"], key=lambda step: abs(step["float_layers"] - counts[1]))
    if last["float_layers"] == counts[1]:
        assert last["pooled"]["changed_decisions"] == 0.0
    noise, predicted = free.sensitivity["noise"], free.sensitivity["predicted_noise"]
    for task in ("vqa", "chest-xray", "skin-lesion"):
        assert 0.2 * predicted[task] < noise[task] < 5 * predicted[task]
    json.dumps(none.sensitivity)
    # of the first convolutions not even one is tried: they are faster in float
    early = set(early_convolutions(models["vision"]))
    assert early and "first convolutions" in free.notes["float"]
    assert early.isdisjoint(row["node"] for row in free.sensitivity["layers"])


@pytest.mark.parametrize("name", ["cpu", "tensorrt"])
def test_float_products_keep_eight_bits_in_the_file_where_the_target_allows_it(
    name, models, source, reference, monkeypatch
):
    monkeypatch.setattr("umd_edge_export.stored_weights._SMALLEST", 64)
    target = find_target(name)
    made = quantise_variant(models, source, reference, target, QuantiseOptions()).graphs
    stored = [
        item.name
        for part in ("text", "fusion")  # by rule the text graph and the heads stay in float
        for item in made[part].graph.initializer
        if item.name.endswith("_stored")
    ]
    assert bool(stored) == target.stored


def test_quantising_twice_gives_the_same_bytes(models, source, reference, make):
    again = quantise_variant(models, source, reference, find_target("arm64"), QuantiseOptions())
    assert _bytes(again.graphs) == _bytes(make("arm64").graphs)
    assert again.notes == make("arm64").notes


def test_ranges_at_run_time_are_refused_unless_accepted(models, source, reference):
    target = find_target("dynamic")
    with pytest.raises(UsageError, match="--allow-batch-dependence"):
        quantise_variant(models, source, reference, target, QuantiseOptions())


def test_a_model_left_in_float_altogether_is_refused(models, source, reference):
    names = tuple(node.name for model in models.values() for node in model.graph.node)
    with pytest.raises(ExportError, match="no layer that target 'cpu' can quantise"):
        quantise_variant(
            models, source, reference, find_target("cpu"), QuantiseOptions(keep_float=names)
        )


def _arguments(model, records, out, *more):
    required = ["quantize", str(model), "--range-data", str(records), "--out", str(out)]
    return [*required, "--size-only", "int8", *more]


def test_the_command_adds_variants_to_a_bundle(bundle, records, tmp_path, capsys):
    out, folder = tmp_path / "more.umd", tmp_path / "map"
    arguments = _arguments(bundle.path, records, out, "--target", "cpu", "--target", "arm64")
    arguments += ["--target", "tensorrt", "--budget-data", str(records), "--budget", "50"]
    assert run([*arguments, "--max-changed", "100", "--report", str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    made = Bundle.open(out)
    made.check_files()
    assert set(made.manifest.variants) == {"fp32", "int8", "int8-arm64", "int8-trt"}
    assert made.manifest.default_variant == "int8"
    assert result["bundle"]["sha256"] == made.sha256 != bundle.sha256
    assert set(result["report"]["sensitivity"]) == {"int8", "int8-arm64", "int8-trt"}
    assert result["report"]["invariance"]["int8-trt"]["bit_identical"]
    for variant in ("fp32", "int8", "int8-arm64", "int8-trt"):
        assert umd_edge.Predictor.load(out, variant=variant).verify().variant == variant
    names = {item.name for item in folder.iterdir()}
    assert "sensitivity.int8.png" in names and "sensitivity.int8-trt.json" in names
    assert len(names) == 6


def test_the_float32_graphs_can_be_left_out(bundle, records, tmp_path):
    out = tmp_path / "small.umd"
    arguments = _arguments(bundle.path, records, out, "--target", "cpu", "--without-fp32")
    assert run(arguments) == 0
    made = Bundle.open(out)
    assert set(made.manifest.variants) == {"int8"}
    assert not any("fp32" in name for name in made.manifest.files)
    umd_edge.Predictor.load(out).verify()


def _refused(arguments, out, code, capsys, match) -> None:
    out.write_bytes(b"the bundle of yesterday")
    assert run(arguments) == code
    assert match in capsys.readouterr().err
    assert out.read_bytes() == b"the bundle of yesterday"
    assert [item.name for item in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("more", "code", "match"),
    [
        (["--target", "dynamic"], 2, "--allow-batch-dependence"),
        (["--target", "npu"], 2, "npu"),
        (["--target", "cpu", "--ranges", "percentile", "--percentile", "20"], 2, "more than 50"),
        (["--target", "cpu", "--size-only", "int8-trt"], 2, "--size-only"),
    ],
)
def test_a_wrong_request_writes_nothing(bundle, records, tmp_path, capsys, more, code, match):
    folder = tmp_path / "place"
    folder.mkdir()
    out = folder / "out.umd"
    arguments = ["quantize", str(bundle.path), "--range-data", str(records), "--out", str(out)]
    _refused([*arguments, *more], out, code, capsys, match)


def test_a_full_disk_leaves_what_was_there(bundle, records, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("umd_edge_export.quantize_bundle.write_bundle", full)
    folder = tmp_path / "place"
    folder.mkdir()
    out = folder / "out.umd"
    arguments = _arguments(bundle.path, records, out, "--target", "cpu")
    _refused(arguments, out, 3, capsys, "free some space")


@pytest.mark.parametrize("option", ["--range-data", "--budget-data"])
def test_records_of_another_kind_are_refused(option, bundle, records, tmp_path, capsys):
    data = make_records(tmp_path / "films", 6)
    films = [line for line in data.read_text().splitlines() if "X-ray" in line]
    data.write_text("\n".join(films) + "\n")
    folder = tmp_path / "place"
    folder.mkdir()
    out = folder / "out.umd"
    ranges = data if option == "--range-data" else records
    arguments = _arguments(bundle.path, ranges, out, "--target", "cpu", "--budget-data", str(data))
    _refused(arguments, out, DataError.exit_code, capsys, f"give {option} for every task")


def test_a_bundle_without_float32_is_refused(bundle, records, tmp_path, capsys):
    small = tmp_path / "small.umd"
    assert run(_arguments(bundle.path, records, small, "--target", "cpu", "--without-fp32")) == 0
    folder = tmp_path / "place"
    folder.mkdir()
    out = folder / "out.umd"
    _refused(_arguments(small, records, out, "--target", "cpu"), out, 2, capsys, "no float32")
