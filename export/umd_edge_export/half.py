"""Float16 around the 8-bit products of a graph, for processors that multiply halves fast.

Softmax stays in float32, so that padding changes no bit. What goes in and out stays float32 too, so
that every variant of a bundle is called alike. The conversion is ONNX Runtime's own.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper

from .errors import ExportError

__all__ = ["to_half"]

_LARGEST = float(np.finfo(np.float16).max)
# Where a processor has no such kernel for halves, ONNX Runtime writes it out, and the sum then
# depends on how far a text is padded: a bit of float32, which can move a rounded half by a step.
_FLOAT = ("Softmax",)


def _check_weights(model: onnx.ModelProto) -> None:
    """Refuse a weight that float16 cannot hold. Masks, which hold one value, become the largest."""
    for item in model.graph.initializer:
        if item.data_type != TensorProto.FLOAT:
            continue
        values = np.abs(numpy_helper.to_array(item))
        if float(values.max(initial=0.0)) > _LARGEST and values.min() != values.max():
            raise ExportError(
                f"weight {item.name!r} holds {float(values.max()):.3g}, more than float16 can "
                f"({_LARGEST:g}); the checkpoint is damaged, or was not trained to an end"
            )


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph that computes in float16 where it computed in float32.

    Args:
        model: Float32, or with QuantizeLinear/DequantizeLinear pairs, at opset 19 or newer; left as
            it is. Inputs and outputs keep their types behind a Cast, and a Softmax its own.

    Raises:
        ExportError: A weight is larger than float16 can hold.
    """
    # 0.5 s to import, and needed for one target only
    from onnxruntime.transformers.float16 import (
        DEFAULT_OP_BLOCK_LIST,
        convert_float_to_float16,
    )

    _check_weights(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    converted = ir.from_proto(
        convert_float_to_float16(
            copy, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FLOAT]
        )
    )
    converted.graph.sort()  # the casts of inputs stand behind their readers
    return ir.to_proto(converted)
