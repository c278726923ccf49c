"""Features of teachers and students: image tokens on their grid, pooled vectors, relations.

A teacher for features is one of our checkpoints or any vision or vision-language model of
`transformers`. Widths and grids may differ: a projection brings the student's features to the
teacher's width, and the finer grid of tokens is averaged to the coarser one.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from umd_edge._preprocess import PreprocessSpec
from umd_edge.errors import UsageError
from umd_edge_train.distillation_config import DistillationConfig
from umd_edge_train.losses import Features
from umd_edge_train.models import UMDModel

from .distil_losses import pooled_loss, relation_loss, resize_grid, token_loss

__all__ = [
    "Encoded",
    "FeatureHeads",
    "FeatureTeacher",
    "patch_grid",
    "recorded_relations",
    "student_features",
    "weights_digest",
]

# What `transformers` and we call the projections of a self-attention.
_PROJECTIONS = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))


class Encoded(NamedTuple):
    """What a vision encoder makes of B pictures."""

    tokens: Tensor
    """(B, N, D) as the encoder gives them."""
    grid: Tensor
    """(B, M * M, D), the patches alone, row by row."""
    pooled: Mapping[str, Tensor]
    """`image` (B, W) and `text` (E, W), where the teacher has such vectors by itself."""
    relations: tuple[Tensor, ...]
    """Queries, keys and values (B, M * M, W) of the last block; empty where nobody asked."""
    embedding: Tensor | None = None
    """(B, D) of unit length, for retrieval; of our own checkpoints alone."""


class FeatureTeacher(Protocol):
    """What the losses need to know of a teacher."""

    spec: PreprocessSpec
    grid_width: int
    pooled_widths: Mapping[str, int]
    """Of the pooled vectors that it has: `joint`, or `image` and perhaps `text`."""


def patch_grid(tokens: Tensor) -> Tensor:
    """The last tokens (B, N, D) that make a square: class and register tokens stand in front."""
    side = math.isqrt(tokens.shape[1])
    return tokens[:, tokens.shape[1] - side * side :]


def _last_projections(encoder: nn.Module) -> list[nn.Module]:
    found: dict[str, nn.Module] = dict(encoder.named_modules())
    chosen = []
    for names in _PROJECTIONS:
        matching = [m for key, m in found.items() if key.rsplit(".", 1)[-1] in names]
        if not matching:
            raise UsageError(
                f"distillation.relation_weight: {type(encoder).__name__} has no attention with "
                f"projections called {' or '.join(names)}; set the weight to 0"
            )
        chosen.append(matching[-1])
    return chosen


@contextlib.contextmanager
def recorded_relations(encoder: nn.Module, *, wanted: bool) -> Iterator[list[Tensor]]:
    """A list that holds queries, keys and values of the last block once the encoder has run."""
    record: list[Tensor] = []
    if not wanted:
        yield record
        return

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        record.append(output)

    handles = [m.register_forward_hook(keep) for m in _last_projections(encoder)]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def student_features(model: UMDModel, features: Features) -> dict[str, Tensor]:
    """`grid`, and the pooled vectors `image`, `text` and `joint`, of a batch's features."""
    tokens = features.image_tokens[:, :-1] if model.has_summary else features.image_tokens
    grid = tokens[:, 1:].float()
    return {
        "grid": grid,
        "image": grid.mean(dim=1),
        "text": features.text_tokens[:, 0].float(),
        "joint": features.joint,
    }


class FeatureHeads(nn.Module):
    """The student's projections to each teacher, and the losses behind them.

    They serve the training only and are in no checkpoint's model.

    Raises:
        UsageError: A width is no multiple of `relation_heads`, where relations are compared.
    """

    def __init__(
        self, student: UMDModel, teachers: Sequence[FeatureTeacher], config: DistillationConfig
    ) -> None:
        super().__init__()
        self.config = config
        widths = {
            "grid": student.vision_encoder.hidden_size,
            "image": student.vision_encoder.hidden_size,
            "text": student.text_encoder.hidden_size,
            "joint": student.match_head.in_features,
        }
        _check_heads(config, [widths["grid"], *(teacher.grid_width for teacher in teachers)])
        self.projections = nn.ModuleDict()
        for number, teacher in enumerate(teachers):
            wanted = {"grid": teacher.grid_width} if config.token_weight else {}
            if config.pooled_weight:
                wanted |= dict(teacher.pooled_widths)
            for name, width in wanted.items():
                self.projections[f"{name}_{number}"] = nn.Linear(widths[name], width)

    def tokens(self, number: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss (B,) of grids (B, N, Ds) and (B, M, Dt) of teacher `number`."""
        side = math.isqrt(min(student.shape[1], teacher.shape[1]))
        projected = self.projections[f"grid_{number}"](resize_grid(student, side))
        return token_loss(projected, resize_grid(teacher.float(), side))

    def pooled(self, number: int, name: str, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss (E,) of pooled vectors (E, Ds) and (E, Dt) called `name`."""
        return pooled_loss(self.projections[f"{name}_{number}"](student), teacher.float())

    def relations(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Loss (B,): mean over queries, keys and values."""
        terms = []
        for own, theirs in zip(student, teacher, strict=True):
            a, b = patch_grid(own).float(), patch_grid(theirs).float()
            side = math.isqrt(min(a.shape[1], b.shape[1]))
            heads = self.config.relation_heads
            terms.append(relation_loss(resize_grid(a, side), resize_grid(b, side), heads))
        return torch.stack(terms).mean(dim=0)


def _check_heads(config: DistillationConfig, widths: Sequence[int]) -> None:
    heads = config.relation_heads
    if config.relation_weight and any(width % heads for width in widths):
        raise UsageError(
            f"distillation.relation_heads: {heads} given; the widths {sorted(set(widths))} of the "
            "vision encoders of student and teachers must be multiples of it"
        )


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over all tensors of a module, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
