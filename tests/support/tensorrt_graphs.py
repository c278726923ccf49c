"""Graphs as TensorRT wants them, made with onnxruntime's own quantiser."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

Feeds = Mapping[str, np.ndarray]


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: Iterable[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


def random_feeds(model: onnx.ModelProto, count: int = 2) -> Iterator[Feeds]:
    """Inputs of batch 2 and 8 tokens within the usual ranges."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        feeds: dict[str, np.ndarray] = {}
        for item in model.graph.input:
            dims = enumerate(item.type.tensor_type.shape.dim)
            shape = [d.dim_value or (2 if axis == 0 else 8) for axis, d in dims]
            if item.type.tensor_type.elem_type == TensorProto.INT64:
                high = 2 if item.name == "attention_mask" else 20
                feeds[item.name] = np.maximum(rng.integers(0, high, shape), 1)
            else:
                feeds[item.name] = rng.normal(size=shape).astype(np.float32)
        yield feeds


def quantise(model: onnx.ModelProto, *, symmetric: bool = True, **options: Any) -> onnx.ModelProto:
    """S8/S8 with zero points of 0 and float biases; `options` go to the quantiser."""
    constants = {item.name for item in model.graph.initializer}
    products = ("Conv", "MatMul", "Gemm")
    excluded = [
        node.name
        for node in model.graph.node
        if node.op_type in products and node.input[1] not in constants
    ]
    kind = QuantType.QInt8 if symmetric else QuantType.QUInt8
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, result = Path(folder, "a.onnx"), Path(folder, "b.onnx")
            onnx.save(model, str(source))
            quantize_static(
                str(source),
                str(result),
                _Reader(random_feeds(model)),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(products),
                per_channel=True,
                activation_type=kind,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
                extra_options={
                    "ActivationSymmetric": symmetric,
                    "WeightSymmetric": True,
                    "QuantizeBias": not symmetric,
                    "OpTypesToExcludeOutputQuantization": list(products),
                    **options,
                },
            )
            return onnx.load(str(result))
    finally:
        logging.disable(logging.NOTSET)
