"""The real parser and builder of TensorRT-RTX, which need no GPU, on the graphs of the checkpoint.

What it cannot show: that engines load and run, and what TensorRT 10.3 thinks of the same graphs;
`script/jetson-check` does that on a board.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support.requirements import lacking
from support.tensorrt_graphs import quantise
from umd_edge import BundleIntegrityError, ProviderUnavailableError
from umd_edge._tensorrt_builder import Profile
from umd_edge._tensorrt_job import build_in_child
from umd_edge_export.graphs import PARTS, export_graphs, graph_io
from umd_edge_export.quantize import QuantiseOptions, quantise_variant
from umd_edge_export.runner import GraphTrio
from umd_edge_export.samples import SampleSource, choose_samples, read_free_records
from umd_edge_export.targets import find_target
from umd_edge_export.tensorrt_linter import lint_graph
from umd_edge_train.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARY = "tensorrt_rtx"
SETS = ("vqamed19", "nihcxr", "busi", "padufes")
"""Every task of the checkpoint reads one of them."""
GPUS = {"8.6": (8, 6), "8.9": (8, 9), "12.0": (12, 0)}


@pytest.fixture(scope="module", autouse=True)
def _rtx():
    if importlib.util.find_spec(LIBRARY) is None:
        lacking("tensorrt", 'tensorrt-rtx is not installed: pip install "umd-edge[tensorrt]"')


@pytest.fixture(scope="module")
def variants(_rtx, shared_data):
    """Variant -> part -> graph of the default checkpoint, as the export makes them."""
    checkpoint = load_checkpoint(REPOSITORY / "checkpoints" / "default")
    floats = export_graphs(checkpoint)
    reference = GraphTrio(
        {part: floats[part].SerializeToString() for part in PARTS}, graph_io(checkpoint)
    )
    files = [shared_data / name / "train.jsonl" for name in SETS]
    records = read_free_records(files, allow_non_commercial=False)
    source = SampleSource(checkpoint, choose_samples(records, checkpoint, 8))
    target = find_target("tensorrt")
    quantised = quantise_variant(floats, source, reference, target, QuantiseOptions())
    return {"fp32": floats, target.variant: quantised.graphs}


def build(model: onnx.ModelProto, gpu: tuple[int, int]) -> bytes:
    return build_in_child(
        LIBRARY, model.SerializeToString(), Profile(16, 32), name="g", compute_capability=gpu
    ).plan


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("variant", ["fp32", "int8-trt"])
def test_every_graph_is_parsed_and_built(variants, variant, part, gpu):
    model = variants[variant][part]
    assert lint_graph(model) == []
    plan = build(model, GPUS[gpu])
    assert len(plan) > len(model.SerializeToString()) // 4


def test_orin(variants):
    try:
        assert build(variants["int8-trt"]["vision"], (8, 7))
    except ProviderUnavailableError as error:
        assert "SM87" in str(error)
        pytest.skip(f"compute capability 8.7: {error}")


def test_linter_and_parser_refuse_unsigned_bytes(variants):
    model = quantise(variants["fp32"]["vision"], symmetric=False)
    assert {item.rule for item in lint_graph(model)} == {"zero-point", "bias"}
    with pytest.raises(BundleIntegrityError, match="DequantizeLinear"):
        build(model, (8, 6))


def test_linter_and_parser_refuse_dynamic_quantisation(variants, tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    source, result = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(variants["fp32"]["fusion"], str(source))
    quantize_dynamic(str(source), str(result))
    model = onnx.load(str(result))
    assert "dynamic-quantisation" in {item.rule for item in lint_graph(model)}
    with pytest.raises(BundleIntegrityError, match="DynamicQuantizeLinear"):
        build(model, (8, 6))


def test_linter_and_parser_refuse_an_antialiased_resize():
    node = helper.make_node(
        "Resize", ["x", "", "", "n"], ["y"], name="r", mode="linear", antialias=1
    )
    sizes = numpy_helper.from_array(np.array([1, 3, 4, 4], np.int64), "n")
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, side, side])
        for name, side in (("x", 8), ("y", 4))
    ]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], [sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert {item.rule for item in lint_graph(model)} == {"antialias"}
    with pytest.raises(BundleIntegrityError, match=r"(?i)antialias"):
        build(model, (8, 6))
