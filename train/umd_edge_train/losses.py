"""The loss of one batch: encode each picture once, fuse it with its texts, score every task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from umd_edge._task import output_name

from .batches import Batch
from .models import UMDModel
from .objectives import SupervisedObjective, contrastive_loss, match_loss, wrong_texts

__all__ = ["batch_loss"]


@dataclass(frozen=True, slots=True)
class _Features:
    """What the encoders and the fusion make of a batch of B pictures and E examples."""

    image_tokens: Tensor
    """(B, 1 + N, Dv)."""
    image_embedding: Tensor
    """(B, D)."""
    text_tokens: Tensor
    """(E, L, Dt)."""
    text_embedding: Tensor
    """(E, D)."""
    joint: Tensor
    """(E, 2 D) float32."""


def _features(
    model: UMDModel, batch: Batch, pixel_values: Tensor, precision: Literal["float32", "bfloat16"]
) -> _Features:
    enabled = precision == "bfloat16"
    # On a CPU the fused attention's backward is slower than plain products at our lengths.
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled), sdpa_kernel(SDPBackend.MATH):
        image_tokens, image_embedding = model.encode_image(pixel_values)
        text_tokens, text_embedding = model.encode_text(batch.input_ids, batch.attention_mask)
        joint = model.fuse_tokens(
            image_tokens[batch.owner],
            text_tokens,
            batch.attention_mask,
            batch.structured_values,
            batch.structured_mask,
        )
    return _Features(image_tokens, image_embedding, text_tokens, text_embedding, joint.float())


def _retrieval_loss(
    model: UMDModel, batch: Batch, rows: Tensor, features: _Features, rng: torch.Generator
) -> Tensor:
    """Contrastive plus match loss of the retrieval pairs of a batch (mean over the pairs)."""
    texts = [batch.examples[i].text for i in rows]
    same = torch.tensor([[a == b for b in texts] for a in texts])
    owner = batch.owner[rows]
    contrastive = contrastive_loss(
        features.image_embedding[owner].float(), features.text_embedding[rows].float(), same
    ).mean()
    wrong = wrong_texts(same, rng)
    usable = torch.nonzero(wrong >= 0).flatten()
    other = rows[wrong[usable]]
    true_logits = model.match_head(features.joint[rows])[:, 0]
    if not len(usable):
        return contrastive + match_loss(true_logits, true_logits[:0])
    wrong_joint = model.fuse_tokens(
        features.image_tokens[owner[usable]].float(),
        features.text_tokens[other].float(),
        batch.attention_mask[other],
        batch.structured_values[other],
        batch.structured_mask[other],
    )
    return contrastive + match_loss(true_logits, model.match_head(wrong_joint)[:, 0])


def batch_loss(
    model: UMDModel,
    objective: SupervisedObjective,
    batch: Batch,
    pixel_values: Tensor,
    precision: Literal["float32", "bfloat16"],
    rng: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of a batch, and the unweighted mean of each task by name.

    Args:
        model: In training mode.
        objective: Losses and weights of the tasks.
        batch: B pictures with E examples.
        pixel_values: (B, 3, H, W) float32.
        precision: Of the encoders and the fusion; heads and losses are always float32.
        rng: Chooses the wrong texts of retrieval tasks.

    Returns:
        The scalar to minimise: the sum over all examples of their weighted losses, divided by the
        number of pictures; and `{"<task>_loss": mean, ..., "loss": total}`.
    """
    features = _features(model, batch, pixel_values, precision)
    total = features.joint.new_zeros(())
    named: dict[str, float] = {}
    for index, task in enumerate(objective.tasks):
        rows = torch.nonzero(batch.task == index).flatten()
        if not len(rows):
            continue
        if task.kind == "retrieval":
            losses = _retrieval_loss(model, batch, rows, features, rng).expand(len(rows))
        else:
            logits = model.task_heads[output_name(task.name)](features.joint[rows])
            losses = objective.losses(index, logits, [batch.examples[i] for i in rows])
        named[f"{task.name}_loss"] = float(losses.detach().mean())
        total = total + objective.training[index].loss_weight * losses.sum()
    total = total / len(batch.rows)
    named["loss"] = float(total.detach())
    return total, named
