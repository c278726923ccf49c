"""Cutting parts out of ONNX files, against the `onnx` package and against plain arithmetic."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx")

import numpy as np
import onnx
import onnx.utils
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from support.bundles import tiny_files
from umd_edge._subgraph import extract
from umd_edge.errors import BundleIntegrityError


def _run(graph: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def _sums(pairs: list[tuple[int, int]]) -> tuple[bytes, list[str]]:
    """A graph that adds: node k adds two earlier tensors and its own constant k."""
    names = ["x", "y"]
    nodes, weights = [], []
    for index, (a, b) in enumerate(pairs):
        left, right = names[a % len(names)], names[b % len(names)]
        weights.append(numpy_helper.from_array(np.float32([index + 1]), f"w{index}"))
        nodes.append(helper.make_node("Add", [left, right], [f"s{index}"]))
        nodes.append(helper.make_node("Add", [f"s{index}", f"w{index}"], [f"t{index}"]))
        names.append(f"t{index}")
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in ("x", "y")]
    out = helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["n"])
    graph = helper.make_graph(nodes, "sums", infos, [out], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString(), names


def _sum(name: str, pairs: list[tuple[int, int]], names: list[str], known: dict) -> np.ndarray:
    """The same by recursion."""
    if name in known:
        return known[name]
    index = int(name[1:])
    before = names[: index + 2]
    a, b = (before[k % len(before)] for k in pairs[index])
    return _sum(a, pairs, names, known) + _sum(b, pairs, names, known) + np.float32(index + 1)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_part_computes_what_the_whole_computes(data):
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6)
    )
    graph, names = _sums(pairs)
    inner = names[2:]
    output = data.draw(st.sampled_from(inner))
    cut = data.draw(st.sets(st.sampled_from(inner)).map(lambda found: sorted(found - {output})))
    part, fed = extract(graph, dict.fromkeys(cut, 1), [output])
    values = {name: np.float32([k, -k]) for k, name in enumerate(["x", "y", *cut], start=3)}
    (found,) = _run(part, {name: values[name] for name in fed if _uses(part, name)})
    np.testing.assert_array_equal(found, _sum(output, pairs, names, values))


def _uses(graph: bytes, name: str) -> bool:
    return name in {item.name for item in onnx.load_model_from_string(graph).graph.input}


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_part_is_the_one_that_the_onnx_package_extracts(variant: str, tmp_path):
    data = tiny_files()[f"graphs/vision.{variant}.onnx"]
    part, fed = extract(data, {"pooled": 4}, ["image_tokens"])
    whole = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data))
    theirs = onnx.utils.Extractor(whole).extract_model(["pooled"], ["image_tokens"])
    ours = onnx.load_model_from_string(part)
    assert fed == ("pooled",)
    assert [n.SerializeToString() for n in ours.graph.node] == [
        n.SerializeToString() for n in theirs.graph.node
    ]
    assert {w.name for w in ours.graph.initializer} == {w.name for w in theirs.graph.initializer}
    assert ours.opset_import == theirs.opset_import


def test_part_is_smaller_and_drops_what_it_does_not_need():
    data = tiny_files()["graphs/fusion.fp32.onnx"]
    part, fed = extract(data, {}, ["text_mean"])
    assert set(fed) == {"text_tokens", "attention_mask"}
    assert len(part) < len(data) / 2


@pytest.mark.parametrize(("inputs", "outputs"), [({}, ["nothing"]), ({"nothing": 4}, ["pooled"])])
def test_unknown_tensor_is_named_in_the_error(inputs, outputs):
    with pytest.raises(BundleIntegrityError, match="no tensor \\['nothing'\\]"):
        extract(tiny_files()["graphs/vision.fp32.onnx"], inputs, outputs)


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=64))
def test_bytes_that_are_no_graph_are_refused(data: bytes):
    with pytest.raises(BundleIntegrityError):
        extract(data, {}, ["pooled"])


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_damaged_graph_is_refused_or_cut_but_never_crashes(data):
    graph = bytearray(tiny_files()["graphs/vision.fp32.onnx"])
    for _ in range(data.draw(st.integers(1, 4))):
        graph[data.draw(st.integers(0, len(graph) - 1))] = data.draw(st.integers(0, 255))
    try:
        extract(bytes(graph), {"pooled": 4}, ["image_tokens"])
    except BundleIntegrityError:
        pass
