"""Optimiser groups, learning-rate schedule and the running average of the weights."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from umd_edge.errors import UsageError

from .muon import Muon
from .recipe import OptimConfig

__all__ = ["WeightAverage", "build_optimizer", "learning_rate"]

# Parts of the model that may learn faster than the encoders, by components of a parameter's name.
_FUSION = {"fusion", "text_pooler", "image_pooler", "image_shortcut"}
_HEADS = {"task_heads", "text_embedding", "image_embedding"}


def _part(name: str) -> str:
    """Which rate a parameter learns at: `rest`, `stem`, `fusion` or `head`."""
    components = name.split(".")
    if "vision_encoder.stem." in name:
        return "stem"
    if any(c in _HEADS or c.endswith(("_head", "_decoder")) for c in components):
        return "head"
    # the type embedding learns with the encoders, as in the released code
    if _FUSION.intersection(components) and "type_embedding" not in components:
        return "fusion"
    return "rest"


def _orthogonalise(name: str, parameter: Tensor) -> bool:
    """Whether Muon moves it: inner matrices, not embeddings, heads or what reads the pixels."""
    components = name.split(".")
    outer = any(
        "embedding" in c or c in _HEADS or c == "structured" or c.endswith("_head")
        for c in components
    )
    return parameter.ndim > 1 and not outer and "stem.layers.0." not in name


def build_optimizer(
    model: nn.Module, config: OptimConfig, *, head_rate: float = 1.0, fusion_rate: float = 1.0
) -> torch.optim.AdamW:
    """AdamW with betas 0.9, 0.98; vectors (biases, norms, single embeddings) are not decayed.

    With `optim.algorithm = "muon"` inner matrices follow Muon; see `muon.py`.

    Args:
        model: A `UMDModel`, or a module that holds one and more heads.
        config: Rates and decay; each group keeps its `rate`, the multiple of the learning rate.
        head_rate: Of task heads, embeddings for retrieval, and every module whose name ends in
            `_head` or `_decoder`. The paper's recipes: 50 for VQA, 10 for classification, 5 else.
        fusion_rate: Of projections, fusion layers, structured values, poolers and the shortcut;
            not of the type embedding. The paper's recipes: 5.

    Returns:
        Groups of matrices and of vectors, in this order, for the rest, the stem, the fusion and
        the heads. Fusion and heads belong to the rest while their rate is 1. With Muon the
        matrices are two groups, those that it moves first.

    Raises:
        UsageError: A rate is negative or not finite.
    """
    for name, given in (("head_rate", head_rate), ("fusion_rate", fusion_rate)):
        if not (math.isfinite(given) and given >= 0.0):
            raise UsageError(f"{name}: {given} given; a finite number, 0 or more, is allowed")
    rates = {"rest": 1.0, "stem": config.stem_rate}
    # A saved optimiser finds its moments by a parameter's place: equal rates add no groups.
    rates.update({"fusion": fusion_rate} if fusion_rate != 1.0 else {})
    rates.update({"head": head_rate} if head_rate != 1.0 else {})
    muon = config.algorithm == "muon"
    members: dict[str, list[tuple[str, nn.Parameter]]] = {part: [] for part in rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = _part(name)
            members[part if part in rates else "rest"].append((name, parameter))
    groups: list[dict[str, Any]] = []
    for part, rate in rates.items():
        matrices = [(name, p) for name, p in members[part] if p.ndim > 1]
        vectors = [p for _, p in members[part] if p.ndim <= 1]
        inner = [p for name, p in matrices if muon and _orthogonalise(name, p)]
        outer = [p for name, p in matrices if not (muon and _orthogonalise(name, p))]
        common = {"rate": rate}
        if muon:
            groups.append(
                {"params": inner, "weight_decay": config.weight_decay, "orthogonalise": True}
                | common
            )
        groups.append({"params": outer, "weight_decay": config.weight_decay} | common)
        groups.append({"params": vectors, "weight_decay": 0.0} | common)
    kind = Muon if muon else torch.optim.AdamW
    return kind(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-8)


def learning_rate(
    step: int, total: int, config: OptimConfig, kind: Literal["cosine", "linear"] = "cosine"
) -> float:
    """Linear warm-up, then half a cosine or a straight line to zero; `step` counts from 0.

    Raises:
        UsageError: `kind` is no schedule.
    """
    warmup = max(1, round(config.warmup_fraction * total))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if kind == "cosine":
        return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    if kind == "linear":
        return config.learning_rate * (1.0 - progress)
    raise UsageError(f"schedule {kind!r} given; 'cosine' or 'linear' is allowed")


class WeightAverage:
    """Exponential moving average of all floating-point tensors of a model.

    Early on the decay is (1 + step) / (10 + step), so that the random start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: t.detach().clone() for name, t in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's tensors; integers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1.0 - decay)
            else:
                self.tensors[name].copy_(tensor)

    def to(self, device: torch.device) -> None:
        """Move the average to a device."""
        self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a saved average."""
        self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
