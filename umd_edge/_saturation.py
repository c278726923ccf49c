"""Whether products of unsigned and signed bytes come out right on this processor, by trying them.

x86-64 without VNNI instructions adds two such products in 16 bits: 2 x 255 x 127 becomes 32,767,
and a model answers something else without an error. The list of a processor's features tells of
that, but it is wrong in emulators and some virtual machines; the sum itself is not.
"""

from __future__ import annotations

import numpy as np

from ._graphs import weight_bits
from ._manifest import VariantSpec
from ._options import SessionOptions
from ._session import GraphSession, GraphSpec

__all__ = ["saturation_error"]

# An ONNX graph of one MatMulInteger, `y` (1, 16) int32 = `a` (1, 16) uint8 x `b` (16, 16) int8. The
# weights `b` lie between the two parts. `a` is an input and `b` is not, as in a quantised model:
# only then does onnxruntime choose between the ways of multiplying.
_SIDE = 16
_BEFORE = bytes.fromhex(
    "08083ad6020a180a01610a0162120179220d4d61744d756c496e74656765721201702a8c020810081010034201624a"
    "8002"
)
_BEHIND = bytes.fromhex(
    "5a130a0161120e0a0c080212080a0208010a02081062130a0179120e0a0c080612080a0208010a02081042040a0010"
    "11"
)
_SPEC = GraphSpec({"a": ("uint8", 2)}, ("y",))


def saturation_error(variant: VariantSpec, options: SessionOptions, *, u8u8: bool) -> float:
    """How far the largest sum of 8-bit products that a variant's weights can give is off.

    Args:
        variant: Its `weight_bits` say how large a weight can be.
        options: Provider and threads of the graphs.
        u8u8: How the graphs were opened, as for `GraphSession`.

    Returns:
        0.0 where the sum is right.
    """
    largest = 2 ** (min(weight_bits(variant), 8) - 1) - 1
    graph = _BEFORE + bytes([largest]) * _SIDE**2 + _BEHIND
    session = GraphSession(graph, "8-bit sums", _SPEC, options, u8u8=u8u8)
    (sums,) = session.run({"a": np.full((1, _SIDE), 255, np.uint8)})
    return float(np.abs(sums.astype(np.float64) - _SIDE * 255 * largest).max())
