"""Quantised graphs against the arithmetic of their definition in NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from support.small_graphs import convolution_graph, dense_graph, make_graph, table_graph
from umd_edge.errors import UsageError
from umd_edge_export.errors import ExportError
from umd_edge_export.quantize_dynamic import write_dynamic
from umd_edge_export.quantize_layers import find_layers
from umd_edge_export.quantize_pairs import activation_step, quantise_weight, write_pairs
from umd_edge_export.ranges import RangeOptions, measure_ranges
from umd_edge_export.targets import TARGETS, find_target

STATIC = [name for name, target in TARGETS.items() if not target.dynamic]


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], *, exact: bool = True) -> np.ndarray:
    """The first output; `exact` computes each operator as it stands in the file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def ranges_of(model, feeds):
    layers = [layer for layer in find_layers("vision", model) if not layer.is_table]
    tensors = [name for layer in layers for name in (layer.activation, layer.output)]
    records = measure_ranges(model, tensors, [feeds], RangeOptions())
    return {name: record.range(RangeOptions()) for name, record in records.items()}


def quantised(model, feeds, target: str):
    layers = find_layers("vision", model)
    result = write_pairs(model, layers, ranges_of(model, feeds), find_target(target))
    onnx.checker.check_model(result)
    return result


def constants_of(model) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def rounded(x: np.ndarray, *, unsigned: bool, symmetric: bool) -> np.ndarray:
    """The definition: a grid over the values' own range with 0 on it."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    lowest = 0 if unsigned else -128
    if symmetric:
        scale, zero = max(-low, high) / 127, 0
    else:
        scale = (high - low) / 255
        zero = lowest + round(-low / scale)
    scale = np.float32(scale)
    levels = np.clip(np.rint(x / scale) + zero, lowest, lowest + 255)
    return ((levels - zero) * scale).astype(np.float32)


def rounded_weight(w: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(index for index in range(w.ndim) if index != axis)
    scale = (np.abs(w).max(axis=others, keepdims=True) / 127).astype(np.float32)
    return np.rint(w / scale) * scale


@settings(max_examples=80, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.sampled_from(STATIC), st.floats(0, 1))
def test_a_grid_holds_zero_exactly_and_its_range_within_half_a_step(first, second, name, place):
    low, high = sorted((first, second))
    step = activation_step(low, high, find_target(name))
    limits = np.iinfo(step.zero.dtype)
    assert limits.min <= int(step.zero) <= limits.max
    value = low + (high - low) * place
    level = np.clip(np.rint(value / float(step.scale)) + int(step.zero), limits.min, limits.max)
    given_back = (level - int(step.zero)) * float(step.scale)
    # The zero point is rounded too: half a step more at the ends.
    assert abs(given_back - value) <= float(step.scale) * 1.001 + 1e-12
    if find_target(name).symmetric:
        assert int(step.zero) == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2**31 - 1))
def test_a_weight_is_within_half_a_step_of_its_channel(axis, seed):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(3, 4, 5)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    weight[(0,) * axis] *= 0  # a channel, or a corner, of zeros
    levels, scale = quantise_weight(weight, axis)
    shape = [1, 1, 1]
    shape[axis] = -1
    assert levels.dtype == np.int8 and np.abs(levels.astype(int)).max() <= 127
    error = np.abs(levels * scale.reshape(shape) - weight)
    assert (error <= 0.501 * scale.reshape(shape)).all()


@pytest.mark.parametrize("name", STATIC)
def test_products_compute_what_the_definition_says(name):
    target = find_target(name)
    model = dense_graph()
    x = np.random.default_rng(8).normal(size=(6, 8)).astype(np.float32)
    given_values = constants_of(model)
    kind = {"unsigned": target.activations == "uint8", "symmetric": target.symmetric}
    hidden = rounded(x, **kind) @ rounded_weight(given_values["first"], 1)
    # The ranges are those of the float32 graph.
    float_hidden = x @ given_values["first"]
    gelu = run(
        make_graph([helper.make_node("Gelu", ["a"], ["b"])], {"a": [6, 16]}, {"b": [6, 16]}, {}),
        {"a": hidden.astype(np.float32)},
    )
    float_gelu = run(
        make_graph([helper.make_node("Gelu", ["a"], ["b"])], {"a": [6, 16]}, {"b": [6, 16]}, {}),
        {"a": float_hidden.astype(np.float32)},
    )
    low, high = float(float_gelu.min()), float(float_gelu.max())
    step = activation_step(low, high, target)
    limits = np.iinfo(step.zero.dtype)
    levels = np.clip(np.rint(gelu / step.scale) + int(step.zero), limits.min, limits.max)
    gelu = (levels - int(step.zero)) * step.scale
    dense = gelu @ rounded_weight(given_values["block.dense.weight"], 0).T
    dense = dense + given_values["block.dense.bias"]
    wanted = dense.T @ dense
    found = run(quantised(model, {"x": x}, name), {"x": x})
    # An int32 bias is rounded to a step of the product; sums of floats differ in the last bits.
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)
    float_result = run(model, {"x": x})
    assert 1e-3 < np.abs(found - float_result).max() < 0.2 * np.abs(float_result).max()


def test_pairs_sit_behind_the_relu_and_pooling_keeps_the_grid():
    model = convolution_graph()
    x = np.random.default_rng(9).normal(size=(2, 3, 8, 8)).astype(np.float32)
    result = quantised(model, {"x": x}, "cpu")
    found = constants_of(result)
    read = {node.input[0] for node in result.graph.node if node.op_type == "QuantizeLinear"}
    assert read == {"x", "r1", "p1", "c2"}
    assert found["r1_zero_point"] == 0
    assert found["p1_scale"] == found["r1_scale"]
    # Rounding behind the pool changes nothing then: one pair less gives the same numbers.
    bare = onnx.ModelProto()
    bare.CopyFrom(result)
    for node in bare.graph.node:
        for index, name in enumerate(node.input):
            if name == "p1_dequantized":
                node.input[index] = "p1"
    assert np.array_equal(run(result, {"x": x}), run(bare, {"x": x}))


def test_a_bias_too_large_for_its_scale_does_not_overflow():
    model = convolution_graph()
    for item in model.graph.initializer:
        if item.name == "w1":
            weight = numpy_helper.to_array(item).copy()
            weight[0] *= 1e-9
            item.CopyFrom(numpy_helper.from_array(weight, "w1"))
    x = np.random.default_rng(10).normal(size=(2, 3, 8, 8)).astype(np.float32)
    found, wanted = run(quantised(model, {"x": x}, "cpu"), {"x": x}), run(model, {"x": x})
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("name", STATIC)
def test_each_target_has_the_form_that_its_row_says(name):
    target = find_target(name)
    model = convolution_graph()
    x = np.random.default_rng(11).normal(size=(2, 3, 8, 8)).astype(np.float32)
    result = quantised(model, {"x": x}, name)
    found = constants_of(result)
    levels = {"uint8": np.uint8, "int8": np.int8}[target.activations]
    quantise = [node for node in result.graph.node if node.op_type == "QuantizeLinear"]
    assert {found[node.input[2]].dtype.type for node in quantise} == {levels}
    zeros = [int(found[node.input[2]]) for node in quantise]
    assert any(zeros) != target.symmetric
    biases = [
        node
        for node in result.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in found
        and found[node.input[0]].dtype == np.int32
    ]
    assert bool(biases) == target.bias
    assert ("r1" in {node.input[0] for node in quantise}) == ("Conv" in target.outputs)
    assert all(item.version <= 20 for item in result.opset_import)


def test_arm_and_x86_give_the_same_answers():
    model = convolution_graph()
    x = np.random.default_rng(12).normal(size=(2, 3, 8, 8)).astype(np.float32)
    arm, x86 = (run(quantised(model, {"x": x}, name), {"x": x}) for name in ("arm64", "cpu"))
    np.testing.assert_allclose(arm, x86, atol=1e-5)


@pytest.mark.parametrize("make", [dense_graph, convolution_graph])
def test_integer_kernels_agree_with_the_graph_as_written(make):
    model = make()
    name = model.graph.input[0].name
    shape = [
        4 if item.dim_param else item.dim_value
        for item in model.graph.input[0].type.tensor_type.shape.dim
    ]
    x = np.random.default_rng(13).normal(size=shape).astype(np.float32)
    result = quantised(model, {name: x}, "cpu")
    exact, fast = run(result, {name: x}), run(result, {name: x}, exact=False)
    np.testing.assert_allclose(fast, exact, atol=0.02 * np.abs(exact).max())


@pytest.mark.parametrize("dynamic", [False, True])
def test_rows_of_a_table_come_back_within_half_their_step(dynamic):
    model = table_graph()
    layers = find_layers("text", model)
    assert [layer.is_table for layer in layers] == [True]
    result = (
        write_dynamic(model, layers)
        if dynamic
        else write_pairs(model, layers, {}, find_target("cpu"))
    )
    onnx.checker.check_model(result)
    assert len(result.SerializeToString()) < 0.35 * len(model.SerializeToString())
    ids = np.array([[0, 299, 5], [7, 7, 1]], dtype=np.int64)
    table = constants_of(model)["words.weight"]
    step = np.abs(table).max(axis=1)[ids][..., None] / 127
    error = np.abs(run(result, {"ids": ids}) + table[ids])
    assert (error <= 0.501 * step).all() and error.max() > 0
    assert found_types(result) == {"Gather", "Cast", "Mul", "Neg"}


def found_types(model) -> set[str]:
    return {node.op_type for node in model.graph.node}


def test_small_and_shared_tables_stay_as_they_are():
    assert find_layers("text", table_graph(rows=20)) == ()
    shared = table_graph()
    shared.graph.node.append(helper.make_node("MatMul", ["y", "words.weight"], ["z"], "tied"))
    assert not any(layer.is_table for layer in find_layers("text", shared, ["tied"]))


def _until_dense(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without its product of two activations."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    nodes = [node for node in model.graph.node if node.name not in ("turn", "pair")]
    del cut.graph.node[:], cut.graph.output[:]
    cut.graph.node.extend(nodes)
    cut.graph.output.append(
        helper.make_tensor_value_info("dense", onnx.TensorProto.FLOAT, ["n", 4])
    )
    return cut


def test_ranges_at_run_time_follow_the_batch():
    model = dense_graph()
    result = write_dynamic(model, find_layers("fusion", model))
    onnx.checker.check_model(result)
    head = _until_dense(result)
    alone = np.random.default_rng(14).normal(size=(1, 8)).astype(np.float32)
    company = np.concatenate([alone, 50 * alone])
    wanted = run(_until_dense(model), {"x": alone})
    single, batch = run(head, {"x": alone}), run(head, {"x": company})[:1]
    assert np.abs(single - wanted).max() < 0.1 * np.abs(wanted).max()
    assert np.abs(batch - single).max() > 0.1 * np.abs(single).max()


def test_layers_know_their_names_and_shapes():
    layers = {layer.node: layer for layer in find_layers("fusion", dense_graph())}
    assert set(layers) == {"product", "gemm"}  # `pair` multiplies two activations
    assert layers["gemm"].label == "block.dense" and layers["gemm"].axis == 0
    assert layers["product"].axis == 1 and layers["product"].weights == 128
    convolutions = find_layers("vision", convolution_graph())
    assert [layer.output for layer in convolutions] == ["r1", "c2"]


def test_the_given_graph_stays_as_it_is():
    model = dense_graph()
    before = model.SerializeToString(deterministic=True)
    x = np.ones((2, 8), dtype=np.float32)
    quantised(model, {"x": x}, "cpu")
    write_dynamic(model, find_layers("vision", model))
    assert model.SerializeToString(deterministic=True) == before


def _transposed_graph():
    weight = np.ones((16, 16, 3, 3), dtype=np.float32)
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "grow")
    return make_graph([node], {"x": [1, 16, 4, 4]}, {"y": [1, 16, 6, 6]}, {"w": weight})


def test_an_unsupported_layer_is_refused_with_a_way_out():
    model = _transposed_graph()
    with pytest.raises(ExportError, match=r"'grow'.*ConvTranspose.*--keep-float grow"):
        find_layers("vision", model)
    assert find_layers("vision", model, ["grow"]) == ()


def test_a_quantised_graph_is_refused():
    x = np.ones((2, 8), dtype=np.float32)
    again = quantised(dense_graph(), {"x": x}, "cpu")
    with pytest.raises(ExportError, match="already holds QuantizeLinear"):
        find_layers("vision", again)


def test_a_gemm_without_an_8_bit_form_is_refused():
    model = dense_graph()
    next(node for node in model.graph.node if node.name == "gemm").attribute.append(
        helper.make_attribute("alpha", 2.0)
    )
    with pytest.raises(ExportError, match="alpha"):
        find_layers("vision", model)
    assert [layer.node for layer in find_layers("vision", model, ["gemm"])] == ["product"]


def test_missing_and_infinite_ranges_are_refused():
    model = dense_graph()
    layers = find_layers("vision", model)
    with pytest.raises(ExportError, match="no range was taken for tensor 'x'"):
        write_pairs(model, layers, {}, find_target("cpu"))
    with pytest.raises(ExportError, match="not finite"):
        activation_step(0.0, float("inf"), find_target("cpu"))


def test_an_unknown_target_is_refused():
    with pytest.raises(UsageError, match=r"'npu'.*cpu.*tensorrt"):
        find_target("npu")


def test_openvino_and_tensorrt_share_one_file():
    first, second = find_target("tensorrt"), find_target("openvino")
    assert first.variant == second.variant == "int8-trt"
    same = {item for item in first.__slots__ if item != "name"}
    assert all(getattr(first, item) == getattr(second, item) for item in same)
