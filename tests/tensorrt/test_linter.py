from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper

from support.tensorrt_graphs import quantise
from umd_edge_export.errors import LinterError
from umd_edge_export.tensorrt_linter import MAX_OPSET, check_tensorrt, lint_graph


def _constant(name, value):
    return numpy_helper.from_array(np.asarray(value), name)


def _model(nodes, weights=(), *, opset=20, inputs=None, outputs=("y",), domain=None):
    inputs = inputs or [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8]),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, infos, list(weights))
    sets = [helper.make_opsetid("", opset)]
    sets += [helper.make_opsetid(domain, 1)] if domain else []
    return helper.make_model(graph, opset_imports=sets, ir_version=10)


def _node(op, inputs, outputs=("y",), **attributes):
    return helper.make_node(op, list(inputs), list(outputs), name=f"the_{op}", **attributes)


ZERO, SCALE = np.int8(0), np.float32(0.1)


def _pair(zero=ZERO, scale=SCALE):
    """QuantizeLinear and DequantizeLinear of the input."""
    weights = [_constant("s", scale), _constant("z", zero)]
    nodes = [_node("QuantizeLinear", "xsz", "q"), _node("DequantizeLinear", "qsz")]
    return _model(nodes, weights)


def _rules(model):
    return {finding.rule for finding in lint_graph(model)}


def small_network():
    """A convolution, a product and a bias, in float."""
    rng = np.random.default_rng(0)
    weights = [
        _constant("w", rng.normal(size=(4, 3, 3, 3)).astype(np.float32)),
        _constant("b", rng.normal(size=4).astype(np.float32)),
        _constant("m", rng.normal(size=(36, 5)).astype(np.float32)),
        _constant("shape", np.array([0, -1], np.int64)),
    ]
    nodes = [
        _node("Conv", "xwb", ["c"], strides=[2, 2]),
        helper.make_node("Reshape", ["c", "shape"], ["flat"], name="the_Reshape"),
        helper.make_node("MatMul", ["flat", "m"], ["y"], name="the_MatMul"),
    ]
    return _model(nodes, weights)


def test_symmetric_signed_bytes_pass():
    assert lint_graph(_pair()) == []
    quantised = quantise(small_network())
    assert {n.op_type for n in quantised.graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    assert lint_graph(quantised) == []


def test_what_onnxruntime_wants_is_refused_with_the_reasons():
    found = lint_graph(quantise(small_network(), symmetric=False))
    assert {item.rule for item in found} == {"zero-point", "bias"}
    assert any("UINT8" in item.message for item in found)
    assert any("QuantizeBias=False" in item.message for item in found)


@pytest.mark.parametrize(
    ("zero", "reason"),
    [
        (np.uint8(0), "UINT8"),  # even of 0: TensorRT has no unsigned bytes here
        (np.uint8(128), "UINT8"),
        (np.int8(-3), "not 0"),
        (np.array([0, 1, 0], np.int8), "not 0"),
    ],
)
def test_zero_point_is_refused(zero, reason):
    found = [item for item in lint_graph(_pair(zero)) if item.rule == "zero-point"]
    assert len(found) == 2  # both nodes of the pair
    assert reason in found[0].message
    assert found[0].place == "the_QuantizeLinear"


def test_zero_point_that_is_computed_is_refused():
    model = _pair()
    model.graph.node[0].input[2] = "x"
    assert "zero-point" in _rules(model)


@pytest.mark.parametrize("opset", [7, 12, 21, 23])
def test_opset_is_refused(opset):
    (found,) = lint_graph(_model([_node("Relu", "x")], opset=opset))
    assert found.rule == "opset"
    assert str(opset) in found.message and str(MAX_OPSET) in found.message


@pytest.mark.parametrize("opset", [13, 20])
def test_opset_is_accepted(opset):
    assert lint_graph(_model([_node("Relu", "x")], opset=opset)) == []


def test_attention_of_opset_23_is_refused_twice():
    model = _model([_node("Attention", "xxx")], opset=23)
    assert _rules(model) == {"opset", "operator"}


def test_dynamic_quantisation_is_refused():
    nodes = [
        _node("DynamicQuantizeLinear", "x", "qsz"),
        _node("MatMulInteger", ["q", "q"], "i"),
        _node("Cast", "i", to=TensorProto.FLOAT),
    ]
    found = lint_graph(_model(nodes))
    assert [item.rule for item in found] == ["dynamic-quantisation"] * 2
    assert "fixed ranges" in found[0].message


@pytest.mark.parametrize(
    ("attributes", "rules"),
    [
        ({"mode": "linear"}, set()),
        ({"mode": "linear", "antialias": 0}, set()),
        ({"mode": "linear", "antialias": 1}, {"antialias"}),
        ({"mode": "cubic"}, {"resize-mode"}),
        ({"mode": "cubic", "antialias": 1}, {"antialias", "resize-mode"}),
    ],
)
def test_resize(attributes, rules):
    sizes = _constant("sizes", np.array([1, 3, 4, 4], np.int64))
    node = _node("Resize", ["x", "", "", "sizes"], **attributes)
    assert _rules(_model([node], [sizes])) == rules


def test_operator_of_another_domain_is_refused():
    node = _node("FusedMatMul", "xx", domain="com.microsoft")
    (found,) = lint_graph(_model([node], domain="com.microsoft"))
    assert "com.microsoft" in found.message


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scale_that_is_no_positive_number_is_refused(scale):
    assert _rules(_pair(scale=np.float32(scale))) == {"scale"}


def test_activation_with_several_scales_is_refused():
    model = _pair(np.zeros(3, np.int8), np.full(3, 0.1, np.float32))
    assert _rules(model) == {"scale-per-channel"}


def test_sixteen_bit_scale_needs_its_opset():
    model = _pair(scale=np.float16(0.1))
    assert lint_graph(model) == []
    model.opset_import[0].version = 18
    assert _rules(model) == {"scale"}


def test_quantised_value_that_goes_elsewhere_is_refused():
    model = _pair()
    model.graph.node.append(_node("Shape", "q", ["length"]))
    (found,) = lint_graph(model)
    assert (found.rule, found.place) == ("pair", "the_QuantizeLinear")


def test_double_and_external_values_are_refused():
    model = _model([_node("Add", "xd")], [_constant("d", np.float64(1))])
    assert _rules(model) == {"type"}
    model = _model([_node("Add", "xd")], [_constant("d", np.float32(1))])
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    assert _rules(model) == {"external-data"}


def test_axis_that_no_profile_covers_is_refused():
    shape = ["batch", 3, "height", 8]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    (found,) = lint_graph(_model([_node("Relu", "x")], inputs=inputs))
    assert (found.rule, found.place) == ("dynamic-axis", "x")
    assert "axis 2" in found.message


def test_text_may_have_any_length():
    inputs = [helper.make_tensor_value_info("text_tokens", TensorProto.FLOAT, ["batch", "l", 4])]
    assert lint_graph(_model([_node("Relu", ["text_tokens"])], inputs=inputs)) == []
    inputs = [helper.make_tensor_value_info("image_tokens", TensorProto.FLOAT, ["batch", "n", 4])]
    assert _rules(_model([_node("Relu", ["image_tokens"])], inputs=inputs)) == {"dynamic-axis"}


def test_input_of_an_unknown_type_is_refused():
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 3])]
    assert "input" in _rules(_model([_node("Identity", "x")], inputs=inputs))


def test_check_names_the_graph_and_counts():
    check_tensorrt({"vision": _pair()})
    with pytest.raises(LinterError, match=r"2 thing.*vision: zero-point: the_QuantizeLinear") as it:
        check_tensorrt({"text": _pair(), "vision": _pair(np.uint8(3))})
    assert it.value.exit_code == 3
