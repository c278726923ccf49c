"""The floor of an answer: its multiply-adds over the rate at which this machine makes 8-bit ones.

`python -m benchmarks.floor [--bundle model.umd]` prints for each graph the multiply-adds in 8 bits
and in float, the time that all of them would take at the rate of one large 8-bit matrix product of
ONNX Runtime on one thread, the time that the graph takes, and how many times that is the floor.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from umd_edge import Predictor
from umd_edge._tokenizer import TextTokenizer

from .prepare import make_inputs

__all__ = ["int8_rate", "main", "multiply_adds"]

ROOT = Path(__file__).resolve().parent.parent
_PRODUCTS = ("Conv", "MatMul", "Gemm")
_ROWS, _INNER, _COLUMNS = 256, 1024, 1024


def _session(model: onnx.ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _shapes(
    model: onnx.ModelProto, names: list[str], feeds: dict[str, npt.NDArray[Any]]
) -> dict[str, tuple[int, ...]]:
    """Shapes of those tensors in a run: no inference of shapes knows all of them."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {item.name for item in watched.graph.output}
    watched.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in known
    )
    values = _session(watched).run(names, feeds)
    return {name: value.shape for name, value in zip(names, values, strict=True)}


def multiply_adds(model: onnx.ModelProto, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, int]:
    """Multiply-adds of the convolutions and products of one run.

    Args:
        model: A graph in float, or with QuantizeLinear and DequantizeLinear pairs.
        feeds: Inputs of the run.

    Returns:
        `int8`, of those that read a DequantizeLinear on both sides, and `float`.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if node.op_type in _PRODUCTS]
    constants = {item.name: tuple(item.dims) for item in model.graph.initializer}

    def quantised(name: str) -> bool:
        return name in makers and makers[name].op_type == "DequantizeLinear"

    def weight_name(name: str) -> str:
        return makers[name].input[0] if quantised(name) else name

    wanted = {node.output[0] for node in products}
    wanted |= {node.input[0] for node in products if node.op_type != "Conv"}
    fed = {name: array.shape for name, array in feeds.items()}
    shapes = {**fed, **_shapes(model, sorted(wanted - set(fed)), feeds)}
    counts = {"int8": 0, "float": 0}
    for node in products:
        if node.op_type == "Conv":  # (outputs, inputs / groups, rows, columns)
            inner = int(np.prod(constants[weight_name(node.input[1])][1:]))
        else:
            inner = shapes[node.input[0]][-1]
        kind = "int8" if all(quantised(name) for name in node.input[:2]) else "float"
        counts[kind] += int(np.prod(shapes[node.output[0]])) * inner
    return counts


def int8_rate() -> float:
    """Multiply-adds a second of one large product of unsigned by signed bytes, on one thread."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (_INNER, _COLUMNS), dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [_ROWS, _INNER])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [_ROWS, _COLUMNS])],
        [numpy_helper.from_array(weights, "b")],
    )
    opset = helper.make_opsetid("", 20)
    session = _session(helper.make_model(graph, opset_imports=[opset], ir_version=10))
    feeds = {"a": rng.integers(0, 256, (_ROWS, _INNER), dtype=np.uint8)}
    return _ROWS * _INNER * _COLUMNS / _median_seconds(lambda: session.run(None, feeds), 200)


def _median_seconds(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@click.command()
@click.option("--bundle", type=Path, default=ROOT / "umd_edge" / "bundles" / "default.umd")
@click.option("--repeats", type=click.IntRange(3), default=300)
def main(bundle: Path, repeats: int) -> None:
    """Print the floor of each graph and the distance to it."""
    predictor = Predictor.load(bundle, threads=1)
    opened, graphs = predictor.bundle, predictor._engine.graphs
    spec = predictor.manifest.tokenizer
    tokenizer = TextTokenizer.from_bytes(opened.read(spec.file), spec.max_length)
    feeds = make_inputs(predictor.manifest, tokenizer, 1, seed=0)
    feeds["image_tokens"] = graphs.vision.run({"pixel_values": feeds["pixel_values"]})[0]
    words = {name: feeds[name] for name in ("input_ids", "attention_mask")}
    feeds["text_tokens"] = graphs.text.run(words)[0]
    rate = int8_rate()
    click.echo(f"8-bit products: {rate / 1e9:.0f} G multiply-adds/s\n")
    click.echo("| graph | int8 M | float M | floor ms | measured ms | distance |")
    click.echo("| --- | --- | --- | --- | --- | --- |")
    for part in ("vision", "text", "fusion"):
        graph = getattr(graphs, part)
        model = onnx.load_model_from_string(opened.read(graph.name))
        given = {item.name: feeds[item.name] for item in model.graph.input}
        counts = multiply_adds(model, given)
        floor = sum(counts.values()) / rate
        spent = _median_seconds(partial(graph.run, given), repeats)
        click.echo(
            f"| {part} | {counts['int8'] / 1e6:.1f} | {counts['float'] / 1e6:.1f} "
            f"| {floor * 1e3:.3f} | {spent * 1e3:.3f} | {spent / floor:.1f} |"
        )


if __name__ == "__main__":
    main()
