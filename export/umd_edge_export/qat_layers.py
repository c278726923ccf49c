"""Fake quantisation: layers that compute in float what the INT8 graph computes on its grids.

Which layers these are, and their grids of activations, is read off the quantised graph itself, so
that nothing is quantised in training that is not in the export, and nothing is forgotten. A grid of
a weight follows the weight as it is trained: int8 in -127..127, one scale a channel. Gradients pass
through the rounding, and are 0 where a value lies beyond its grid ("straight-through estimator",
arXiv 1308.3432; "Quantization and training of neural networks for efficient integer-arithmetic-only
inference", arXiv 1712.05877).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from umd_edge_train.models import UMDModel
from umd_edge_train.models.vision_encoder import ConvStem

from .equalise import equalise_stem
from .errors import ExportError
from .rewrite import prepare_model

__all__ = ["Grid", "LayerGrids", "attach_grids", "fake_quantise", "fold_stem", "read_grids"]

_LAYERS = ("Conv", "MatMul", "Gemm")
_LARGEST_LEVEL = 127
_PASSES = 60
_STILL = 1e-5
"""Relative change of a weight that no 8-bit level shows."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Levels of an activation: value = (level - zero) * scale, level in lowest..highest."""

    scale: float
    zero: int
    lowest: int
    highest: int


@dataclass(frozen=True, slots=True)
class LayerGrids:
    """How one quantised layer of the model reads and gives activations."""

    module: str
    """Name of the linear layer or convolution in the model."""
    activation: Grid
    output: Grid | None
    """Where the graph rounds what the layer gives, behind its ReLU if it has one."""


class _Rounding(torch.autograd.Function):
    """(round(x / scale) + zero) within the levels, as values again; gradients pass within them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: int, lowest: int, highest: int) -> Tensor:
        levels = torch.round(x / scale) + zero
        ctx.save_for_backward((levels >= lowest) & (levels <= highest))
        return (levels.clamp(lowest, highest) - zero) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None


def fake_quantise(x: Tensor, grid: Grid) -> Tensor:
    """Round values to a grid, in float32; gradients pass where they lie within it."""
    scale = torch.tensor(grid.scale, dtype=torch.float32, device=x.device)
    rounded: Tensor = _Rounding.apply(  # type: ignore[no-untyped-call]
        x, scale, grid.zero, grid.lowest, grid.highest
    )
    return rounded


def fake_quantise_weight(weight: Tensor) -> Tensor:
    """Round a weight (C, ...) to int8 levels with one scale for each of the C channels."""
    others = tuple(range(1, weight.ndim))
    scale = weight.detach().abs().amax(dim=others, keepdim=True) / _LARGEST_LEVEL
    scale = torch.where(scale == 0.0, 1.0, scale)
    rounded: Tensor = _Rounding.apply(  # type: ignore[no-untyped-call]
        weight, scale, 0, -_LARGEST_LEVEL, _LARGEST_LEVEL
    )
    return rounded


# The layers below take the place of a module's class: its parameters, their names, and with them
# the checkpoint stay what they are.


class _QuantisedLinear(nn.Linear):
    grids: LayerGrids

    def forward(self, input: Tensor) -> Tensor:
        x = fake_quantise(input, self.grids.activation)
        y = functional.linear(x, fake_quantise_weight(self.weight), self.bias)
        return y if self.grids.output is None else fake_quantise(y, self.grids.output)


class _QuantisedConv2d(nn.Conv2d):
    grids: LayerGrids

    def forward(self, input: Tensor) -> Tensor:
        x = fake_quantise(input, self.grids.activation)
        y = self._conv_forward(x, fake_quantise_weight(self.weight), self.bias)
        return y if self.grids.output is None else fake_quantise(y, self.grids.output)


class _RoundedNorm(nn.BatchNorm2d):
    """What is left of a batch normalisation once it is folded: the bias, and the rounding."""

    output: Grid

    def forward(self, input: Tensor) -> Tensor:
        return fake_quantise(super().forward(input), self.output)


class _FoldedStem(ConvStem):
    """A stem in evaluation mode always: its normalisation is part of its convolutions."""

    def train(self, mode: bool = True) -> _FoldedStem:
        super().train(False)
        return self

    def forward(self, pixel_values: Tensor, of_patches: bool = False) -> Tensor:
        # on a CPU the convolutions are half as fast again in this layout
        return super().forward(
            pixel_values.contiguous(memory_format=torch.channels_last), of_patches
        )


def _equalise_fully(stem: ConvStem, pictures: Sequence[npt.NDArray[np.float32]]) -> None:
    """Equalise until it changes nothing more: to scale a layer upsets the balance before it."""
    for _ in range(_PASSES):
        before = [parameter.clone() for parameter in stem.parameters()]
        equalise_stem(stem, pictures)
        pairs = zip(before, stem.parameters(), strict=True)
        if all(torch.allclose(a, b, rtol=_STILL, atol=0.0) for a, b in pairs):
            return


@torch.no_grad()
def fold_stem(model: UMDModel, pictures: Iterable[npt.NDArray[np.float32]]) -> None:
    """Give the stem the weights that its graph will have, in place; the function stays the same.

    Batch normalisation goes into the convolutions and their channels are equalised, as at export,
    until nothing changes any more; what is left of the normalisation adds a bias. Doing so again at
    export then changes nothing.

    Args:
        model: A model of ours; one without a stem stays as it is.
        pictures: `pixel_values` (1, 3, H, W) float32 of the records that set the ranges.
    """
    stem = model.vision_encoder.stem
    if stem is None:
        return
    folded = cast(ConvStem, prepare_model(model).vision_encoder.stem)
    _equalise_fully(folded, list(pictures))
    for layer, ready in zip(stem.layers, folded.layers, strict=True):
        convolution, norm = cast(nn.Conv2d, layer.convolution), cast(nn.BatchNorm2d, layer.norm)
        given = cast(nn.Conv2d, ready.convolution)
        convolution.weight.copy_(given.weight)
        cast(Tensor, norm.bias).copy_(cast(Tensor, given.bias))
        cast(Tensor, norm.weight).fill_(1.0).requires_grad_(False)
        cast(Tensor, norm.running_mean).zero_()
        cast(Tensor, norm.running_var).fill_(1.0 - norm.eps)
    stem.__class__ = _FoldedStem
    stem.train()


def _constant(name: str, constants: Mapping[str, onnx.TensorProto]) -> npt.NDArray[Any]:
    return np.asarray(numpy_helper.to_array(constants[name]))


def _grid(pair: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Grid:
    zero = _constant(pair.input[2], constants)
    limits = np.iinfo(zero.dtype)
    scale = float(_constant(pair.input[1], constants))
    return Grid(scale, int(zero), int(limits.min), int(limits.max))


def _weight(
    node: onnx.NodeProto, pair: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The layer's weight (C, ...) as rounded, and the scale (C,) of its channels."""
    levels = _constant(pair.input[0], constants).astype(np.float64)
    scale = np.atleast_1d(_constant(pair.input[1], constants)).astype(np.float64)
    transposed = any(item.name == "transB" and item.i for item in node.attribute)
    if node.op_type != "Conv" and not transposed:
        levels = levels.T
    return levels * scale.reshape(-1, *[1] * (levels.ndim - 1)), scale


def read_grids(graph: onnx.ModelProto, model: nn.Module) -> list[LayerGrids]:
    """The quantised layers of a graph with QuantizeLinear pairs, and which modules they are.

    Args:
        graph: Quantised from this model's own graph.
        model: Its linear layers and convolutions are compared with the graph's weights; a weight of
            the graph may hold those of several layers side by side.

    Raises:
        ExportError: A quantised layer of the graph has the weight of no module.
    """
    constants = {item.name: item for item in graph.graph.initializer}
    makers = {name: node for node in graph.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    modules = {
        name: module.weight.detach().double().cpu().numpy()
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    found = []
    for node in graph.graph.node:
        if node.op_type not in _LAYERS:
            continue
        inputs = [makers.get(name) for name in node.input[:2]]
        if any(maker is None or maker.op_type != "DequantizeLinear" for maker in inputs):
            continue
        activation, weight = cast("list[onnx.NodeProto]", inputs)
        if weight.input[0] not in constants:  # a product of two activations
            continue
        names = _matching(modules, *_weight(node, weight, constants))
        if not names:
            raise ExportError(
                f"the quantised layer {node.name!r} has the weight of no layer of the model, so it "
                "cannot be trained; export and train with the same version of umd-edge"
            )
        grid, output = _grid(activation, constants), _output_grid(node, readers, constants)
        found += [LayerGrids(name, grid, output) for name in names]
    return found


def _output_grid(
    node: onnx.NodeProto,
    readers: Mapping[str, list[onnx.NodeProto]],
    constants: Mapping[str, onnx.TensorProto],
) -> Grid | None:
    following = readers.get(node.output[0], [])
    if len(following) == 1 and following[0].op_type == "Relu":
        following = readers.get(following[0].output[0], [])
    if len(following) == 1 and following[0].op_type == "QuantizeLinear":
        # A product's sum goes on in float; what its reader rounds is the reader's own input.
        return _grid(following[0], constants) if node.op_type == "Conv" else None
    return None


def _matching(
    modules: Mapping[str, npt.NDArray[np.float64]],
    weight: npt.NDArray[np.float64],
    scale: npt.NDArray[np.float64],
) -> list[str]:
    """Modules whose weights, rounded, are this one or stand side by side in it."""
    matching = []
    room = 0.501 * scale.reshape(-1, *[1] * (weight.ndim - 1)) + 1e-7
    for name, own in modules.items():
        count = len(own)
        if own.shape[1:] != weight.shape[1:] or len(weight) % count:
            continue
        for start in range(0, len(weight), count):
            part = slice(start, start + count)
            near = room[part] if len(room) == len(weight) else room
            if bool((np.abs(weight[part] - own) <= near).all()):
                matching.append(name)
                break
    return matching


def attach_grids(model: UMDModel, layers: Iterable[LayerGrids]) -> None:
    """Let these layers of a model compute as the INT8 graph does, in place.

    Raises:
        ExportError: A name is that of no linear layer or convolution.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    for layer in layers:
        module = modules.get(layer.module)
        norm = modules.get(layer.module.rsplit(".", 1)[0] + ".norm")
        if isinstance(module, nn.Linear):
            cast(Any, module).__class__ = _QuantisedLinear
        elif isinstance(module, nn.Conv2d):
            module.__class__ = _QuantisedConv2d
        else:
            raise ExportError(f"{layer.module!r} is no layer of the model that can be quantised")
        cast(Any, module).grids = layer
        if isinstance(norm, nn.BatchNorm2d):
            # in the graph the bias is the convolution's own, and the rounding follows it
            cast(Any, module).grids = replace(layer, output=None)
            if layer.output is not None:
                cast(Any, norm).__class__ = _RoundedNorm
                cast(Any, norm).output = layer.output
