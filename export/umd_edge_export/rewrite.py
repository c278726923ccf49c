"""Rewrites of the model before it is traced: the same numbers, in operations that suit the runtime.

* Batch normalisation becomes part of the convolution before it.
* Attention is written as two products and a softmax: fewer nodes than the fused operator's
  expansion.
* Means over tokens are written as a product with two equal rows of weights. ONNX Runtime sums a
  reduction, and a product with a single row, in an order that depends on batch size and padded
  length; with two rows or more the order is fixed and padding adds exact zeros at the end. That is
  what makes a sample's result independent of its company to the last bit.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from umd_edge_train.models import UMDModel
from umd_edge_train.models.fusion import Attention
from umd_edge_train.models.heads import Pooler

from .errors import ExportError

__all__ = ["Seen", "prepare_model", "stable_mean", "watch_attention"]


class Seen:
    """A tensor that passed by while the model was traced."""

    tensor: Tensor

    def keep(self, tensor: Tensor) -> None:
        """Take the one that passes; the last one counts."""
        self.tensor = tensor


def stable_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (B, N, D) over the tokens whose `mask` (B, N) is 1, or over all -> (B, D)."""
    if mask is None:
        rows = tokens.new_full((1, 2, tokens.shape[1]), 1.0 / tokens.shape[1])
    else:
        weight = mask / mask.sum(dim=1, keepdim=True)
        rows = torch.stack([weight, weight], dim=1)
    return torch.matmul(rows, tokens)[:, 0]


class _StablePooler(nn.Module):
    """`Pooler` with `stable_mean`."""

    def __init__(self, pooler: Pooler) -> None:
        super().__init__()
        self.pooling = pooler.pooling
        self.dense = pooler.dense

    def forward(self, tokens: Tensor, mask: Tensor | None, first: int) -> Tensor:
        if self.pooling == "first":
            pooled = tokens[:, first]
        else:
            pooled = stable_mean(tokens, mask if self.pooling == "masked_mean" else None)
        return torch.tanh(self.dense(pooled))


class _PlainAttention(nn.Module):
    """The fusion's attention without `scaled_dot_product_attention`."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.query, self.key = attention.query, attention.key
        self.value, self.output = attention.value, attention.output
        self.norm = attention.norm
        self.seen: Seen | None = None

    def _split(self, x: Tensor) -> Tensor:
        # (B, N, D) -> (B, H, N, D / H)
        heads = x.reshape(x.shape[0], x.shape[1], self.num_heads, x.shape[2] // self.num_heads)
        return heads.transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        query, key = self._split(self.query(x)), self._split(self.key(context))
        scores = torch.matmul(query, key.transpose(2, 3)) * (1.0 / math.sqrt(query.shape[-1]))
        if bias is not None:
            scores = scores + bias
        weights = torch.softmax(scores, dim=-1)
        if self.seen is not None:
            self.seen.keep(weights)
        attended = torch.matmul(weights, self._split(self.value(context)))
        mixed: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        normed: Tensor = self.norm(x + mixed)
        return normed


def watch_attention(model: UMDModel) -> Seen:
    """Where the text's attention to the image in the last layer of a prepared model is kept."""
    last = cast(_PlainAttention, cast(Any, model.fusion.text_layers[-1]).cross_attention)
    last.seen = Seen()
    return last.seen


def _fold_batch_norm(model: nn.Module) -> None:
    for module in model.modules():
        previous = ""
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                convolution = getattr(module, previous, None) if previous else None
                if not isinstance(convolution, nn.Conv2d):
                    raise ExportError(
                        f"the batch normalisation {name!r} of {type(module).__name__} follows no "
                        "convolution and cannot be folded; write the two one after the other"
                    )
                setattr(module, previous, fuse_conv_bn_eval(convolution, child))
                setattr(module, name, nn.Identity())
            previous = name


def _replace(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Pooler):
                setattr(module, name, _StablePooler(child))
            elif isinstance(child, Attention):
                setattr(module, name, _PlainAttention(child))


def prepare_model(model: UMDModel) -> UMDModel:
    """A rewritten copy of the model in evaluation mode; see above for what changes.

    Raises:
        ExportError: A batch normalisation follows no convolution.
    """
    prepared = copy.deepcopy(model).eval()
    _fold_batch_norm(prepared)
    _replace(prepared)
    for encoder in (prepared.vision_encoder, prepared.text_encoder):
        backbone: Any = encoder.backbone
        backbone.set_attn_implementation("eager")
    return prepared
