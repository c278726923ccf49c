"""What each processor wants of an INT8 graph, as data.

A target is what the user names, a variant is what the bundle holds: `tensorrt` and `openvino` share
one file. The columns differ because the processors do, not because the model does:

* ONNX Runtime on x86 multiplies unsigned activations by signed weights; with signed activations
  most products stay in float and the graph is slower than float32.
* TensorRT takes no zero point other than 0 and no int32 bias behind a DequantizeLinear, and
  computes in the types that the graph states: float16 around its 8-bit products. A Gemm, one row a
  sample, gains nothing there; and where ONNX Runtime runs the file it would compute it in float
  from weights that it cannot pack, whose sums depend on the batch.
* ARM's dot product instructions multiply signed by signed. The zero point is free there, so the
  grids are those of x86, moved by 128: the two give the same answers.
* Ranges taken at run time need no range data, and make a result depend on its batch and padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from umd_edge.errors import UsageError

__all__ = ["TARGETS", "Target", "find_target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One row of the table. Weights are S8, symmetric, with one scale a channel, everywhere."""

    name: str
    variant: str
    """Name of the variant in the bundle."""
    activations: Literal["uint8", "int8"]
    symmetric: bool
    """Ranges of activations lie evenly about 0, so that the zero point is 0."""
    bias: bool
    """The bias of a quantised convolution or Gemm is int32 behind a DequantizeLinear."""
    operators: tuple[str, ...] = ("Conv", "MatMul", "Gemm")
    """Operators that are quantised."""
    outputs: tuple[str, ...]
    """Operators whose output is quantised too; a sum of the others goes straight to float."""
    tables: bool = True
    """Large embedding tables are int8 in the file, one scale a row."""
    stored: bool = True
    """Products that stay in float keep their weights in int8 in the file, one scale an output."""
    half: bool = False
    """What is not in 8 bits is computed in float16, not in float32."""
    early_float: bool = False
    """The first convolutions stay in float: with few channels they are faster so, and finer."""
    dynamic: bool = False
    """Ranges are taken at run time: refused unless asked for."""
    weight_bits: int = 8

    def to_dict(self) -> dict[str, Any]:
        """What the variant's notes say of the target."""
        sign = "symmetric" if self.symmetric else "asymmetric"
        return {
            "target": self.name,
            "activations": f"{self.activations}, {sign}, "
            + ("one range a run" if self.dynamic else "one range a tensor"),
            "weights": "int8, symmetric, one scale a channel",
            "weight_bits": self.weight_bits,
            "tables": "int8, one scale a row" if self.tables else self._float_weights(),
            "float_weights": self._float_weights(),
        }

    def _float_weights(self) -> str:
        if self.half:
            return "float16"
        return "int8 in the file, one scale an output" if self.stored else "float32"


_TENSORRT = Target(
    name="tensorrt",
    variant="int8-trt",
    activations="int8",
    symmetric=True,
    bias=False,
    operators=("Conv", "MatMul"),
    outputs=(),
    tables=False,
    stored=False,
    half=True,
)
# OpenVINO takes what TensorRT takes, so one variant serves both.
_ROWS = (
    Target(
        name="cpu",
        variant="int8",
        activations="uint8",
        symmetric=False,
        bias=True,
        # QLinearConv is the only 8-bit convolution there is.
        outputs=("Conv",),
        early_float=True,
    ),
    _TENSORRT,
    replace(_TENSORRT, name="openvino"),
    Target(
        name="arm64",
        variant="int8-arm64",
        activations="int8",
        symmetric=False,
        bias=True,
        outputs=("Conv",),
    ),
    Target(
        name="dynamic",
        variant="int8-dynamic",
        activations="uint8",
        symmetric=False,
        bias=False,
        operators=("MatMul", "Gemm"),
        outputs=(),
        dynamic=True,
    ),
)

TARGETS: Mapping[str, Target] = MappingProxyType({row.name: row for row in _ROWS})


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in TARGETS:
        raise UsageError(f"target {name!r} given; one of {list(TARGETS)} is allowed")
    return TARGETS[name]
