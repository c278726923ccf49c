from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from umd_edge_export.drift import measure_drift
from umd_edge_export.errors import InvarianceError
from umd_edge_export.golden import golden_inputs, golden_outputs, golden_tolerance
from umd_edge_export.graphs import PARTS
from umd_edge_export.invariance import check_invariance, measure_invariance
from umd_edge_export.quantize import (
    QUANTISED_PARTS,
    early_convolutions,
    float_nodes,
    head_products,
    quantize_graphs,
)
from umd_edge_export.runner import GraphTrio, largest_difference


@pytest.fixture(scope="session")
def int8_models(models, graphs, parts, source):
    return quantize_graphs(models, source, GraphTrio(graphs, parts))


@pytest.fixture(scope="session")
def int8(int8_models) -> dict[str, bytes]:
    return {part: int8_models[part].SerializeToString(deterministic=True) for part in PARTS}


def _weights(model):
    """(name, values) of the S8 weights; int8 zero points are scalars or vectors."""
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.int8 and value.ndim >= 2:
            yield tensor.name, value


def test_every_product_with_a_constant_weight_is_quantised(int8_models, models):
    for part in QUANTISED_PARTS:
        wanted = sum(node.op_type in ("Conv", "MatMul", "Gemm") for node in models[part].graph.node)
        wanted -= len(float_nodes(models[part])) + len(head_products(models[part]))
        wanted -= len(early_convolutions(models[part]))
        assert wanted == len(list(_weights(int8_models[part]))) > 0


def test_weights_have_eight_bits_and_a_scale_for_each_channel(int8_models):
    for part in QUANTISED_PARTS:
        model = int8_models[part]
        scales = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        for name, value in _weights(model):
            assert 64 < int(np.abs(value.astype(int)).max()) <= 127
            scale = scales[name.replace("_quantized", "_scale")]
            assert scale.shape in ((value.shape[0],), (value.shape[-1],))


def test_activations_are_unsigned_bytes(int8_models):
    for part in QUANTISED_PARTS:
        graph = int8_models[part].graph
        points = {t.name: t.data_type for t in graph.initializer}
        nodes = [node for node in graph.node if node.op_type == "QuantizeLinear"]
        assert nodes
        assert {points[node.input[2]] for node in nodes} == {onnx.TensorProto.UINT8}


def test_products_of_two_activations_stay_in_float(int8_models, models):
    for part in QUANTISED_PARTS:
        kept = set(float_nodes(models[part]))
        assert kept
        made = {
            o
            for n in int8_models[part].graph.node
            if n.op_type == "DequantizeLinear"
            for o in n.output
        }
        for node in int8_models[part].graph.node:
            if node.name in kept:
                assert not made & set(node.input)


def test_quantising_twice_gives_the_same_bytes(models, graphs, parts, source, int8):
    again = quantize_graphs(models, source, GraphTrio(graphs, parts))
    assert {p: again[p].SerializeToString(deterministic=True) for p in PARTS} == int8


def test_other_ranges_give_other_bytes(models, graphs, parts, source, int8):
    one = {"fusion": models["fusion"]}
    other = quantize_graphs(one, source.head(1), GraphTrio(graphs, parts))
    assert other["fusion"].SerializeToString(deterministic=True) != int8["fusion"]


def test_int8_is_close_to_float_and_not_the_same(graphs, int8, parts, source):
    drift = measure_drift(GraphTrio(graphs, parts), GraphTrio(int8, parts), source)
    assert set(drift) == {"vqa", "chest-xray", "skin-lesion"}
    for value in drift.values():
        figures = value.to_dict()
        assert 0 < figures["mean_logit_difference"] < 0.2 * figures["mean_logit_spread"]


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_company_and_padding_change_no_bit(variant, graphs, int8, parts, samples, checkpoint):
    chosen = graphs if variant == "fp32" else int8
    report = measure_invariance(chosen, parts, samples, max_length=checkpoint.max_length, pad_id=0)
    assert report.differing == {}
    assert report.comparisons > 200
    check_invariance(report, variant)


def _leaky_fusion(model):
    """A fusion whose match depends on the whole batch: the fault that the gate must find."""
    changed = copy.deepcopy(model)
    graph = changed.graph
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name == "match_logit":
                node.output[index] = "own_match"
    graph.node.append(onnx.helper.make_node("ReduceMean", ["own_match"], ["all"], keepdims=1))
    graph.node.append(onnx.helper.make_node("Sub", ["own_match", "all"], ["match_logit"]))
    return changed


def test_a_result_that_depends_on_its_batch_is_refused(models, graphs, parts, samples):
    leaky = {**graphs, "fusion": _leaky_fusion(models["fusion"]).SerializeToString()}
    report = measure_invariance(leaky, parts, samples[:4], max_length=24, pad_id=0)
    with pytest.raises(InvarianceError, match="match_logit") as raised:
        check_invariance(report, "fp32")
    assert raised.value.exit_code == 3


def _blind_to_the_mask(model):
    """A text graph that takes padding for words."""
    changed = copy.deepcopy(model)
    graph = changed.graph
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[index] = "full_mask"
    for position, made in enumerate(
        [
            onnx.helper.make_node("Mul", ["attention_mask", "number_0"], ["no_mask"]),
            onnx.helper.make_node("Add", ["no_mask", "number_1"], ["full_mask"]),
        ]
    ):
        graph.node.insert(position, made)
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "number_0"))
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "number_1"))
    return changed


def test_a_result_that_depends_on_padding_is_refused(models, graphs, parts, samples):
    blind = {**graphs, "text": _blind_to_the_mask(models["text"]).SerializeToString()}
    report = measure_invariance(blind, parts, samples[:2], max_length=24, pad_id=0)
    with pytest.raises(InvarianceError, match="text_tokens"):
        check_invariance(report, "fp32")


def test_golden_tolerance_passes_other_arithmetic_and_finds_a_changed_weight(
    checkpoint, int8, int8_models, parts
):
    inputs = golden_inputs(checkpoint)
    stored = golden_outputs(GraphTrio(int8, parts), inputs)
    tolerance = golden_tolerance("int8", int8, inputs, stored)
    assert 0.01 <= tolerance < 1.0
    changed = copy.deepcopy(int8_models["fusion"])
    for tensor in changed.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.int8 and value.ndim == 2:
            value = value.copy()
            value[:, 0] = 64
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    other = golden_outputs(
        GraphTrio({**int8, "fusion": changed.SerializeToString()}, parts), inputs
    )
    assert max(largest_difference(other[name], stored[name]) for name in stored) > tolerance


def test_golden_inputs_are_generated_and_always_the_same(checkpoint):
    first, second = golden_inputs(checkpoint), golden_inputs(checkpoint)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert 0 < first["structured_mask"].mean() < 1
    assert first["image"].shape[:2] != (checkpoint.preprocess.height, checkpoint.preprocess.width)


def test_task_heads_and_the_early_convolutions_stay_in_float(int8_models, models):
    heads = head_products(models["fusion"])
    outputs = {output.name for output in models["fusion"].graph.output}
    assert len(heads) == 2 * len(outputs) - 1  # the match head is one product
    first = early_convolutions(models["vision"])
    assert len(first) == 1
    for part, names in (("fusion", heads), ("vision", first)):
        graph = int8_models[part].graph
        floats = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
        weights = {node.name: node.input[1] for node in graph.node if node.name in names}
        assert len(weights) == len(names)
        assert all(weights[name] in floats for name in names)
    assert not head_products(models["vision"]) and not early_convolutions(models["fusion"])
