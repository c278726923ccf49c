"""The loss of one batch: encode each picture once, fuse it with its texts, score every task."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from umd_edge._task import output_name

from .batches import Batch
from .models import UMDModel
from .objectives import SupervisedObjective, contrastive_loss, match_loss, wrong_texts

__all__ = [
    "Features",
    "Precision",
    "SupervisedStep",
    "attention",
    "autocast",
    "batch_features",
    "batch_loss",
]

Precision = Literal["float32", "bfloat16", "float16"]
Observer = Callable[[nn.Module, Tensor, Tensor], None]


@dataclass(frozen=True, slots=True)
class Features:
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


def attention(device: torch.device) -> AbstractContextManager[Any]:
    """The attention that suits the device.

    A backward pass needs it too: where gradients are checkpointed it runs the blocks once more, and
    must find them the same.
    """
    if device.type == "cpu":
        # The fused attention's backward is slower there than plain products at our lengths.
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Lower precision for encoders and fusion, and the attention that suits the device."""
    stack = ExitStack()
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    stack.enter_context(torch.autocast(device.type, dtype, enabled=precision != "float32"))
    stack.enter_context(attention(device))
    return stack


def batch_features(
    model: UMDModel, batch: Batch, pixel_values: Tensor, precision: Precision
) -> Features:
    """Encode the pictures (B, 3, H, W) of a batch and fuse them with its texts."""
    with autocast(pixel_values.device, precision):
        image_tokens, image_embedding = model.encode_image(pixel_values)
        text_tokens, text_embedding = model.encode_text(batch.input_ids, batch.attention_mask)
        joint = model.fuse_tokens(
            image_tokens[batch.owner],
            text_tokens,
            batch.attention_mask,
            batch.structured_values,
            batch.structured_mask,
        )
    return Features(image_tokens, image_embedding, text_tokens, text_embedding, joint.float())


def _retrieval_loss(
    model: UMDModel,
    objective: SupervisedObjective,
    index: int,
    batch: Batch,
    rows: Tensor,
    features: Features,
    precision: Precision,
    rng: torch.Generator,
    observe: Observer | None,
) -> Tensor:
    """Contrastive plus match loss of the retrieval pairs of a batch (mean over the pairs)."""
    texts = [batch.examples[i].text for i in rows]
    same = torch.tensor([[a == b for b in texts] for a in texts])
    drawn = objective.drawn[index]
    if drawn is None:
        match = _match_within_batch(model, batch, rows, features, same, rng, observe)
    else:
        wrong = drawn.draw(texts, rng)
        match = _match_among_drawn(model, batch, rows, features, wrong, precision, observe)
    weight = objective.training[index].contrast_weight
    if not weight:
        return match
    contrastive = contrastive_loss(
        features.image_embedding[batch.owner[rows]].float(),
        features.text_embedding[rows].float(),
        same.to(rows.device),
    ).mean()
    return weight * contrastive + match


def _match_within_batch(
    model: UMDModel,
    batch: Batch,
    rows: Tensor,
    features: Features,
    same: Tensor,
    rng: torch.Generator,
    observe: Observer | None,
) -> Tensor:
    """Right pairs against pictures with another text of the batch: binary cross-entropy."""
    owner = batch.owner[rows]
    wrong = wrong_texts(same, rng).to(rows.device)
    usable = torch.nonzero(wrong >= 0).flatten()
    other = rows[wrong[usable]]
    true_logits = model.match_head(features.joint[rows])[:, 0]
    if not len(usable):
        return match_loss(true_logits, true_logits[:0])
    wrong_joint = model.fuse_tokens(
        features.image_tokens[owner[usable]].float(),
        features.text_tokens[other].float(),
        batch.attention_mask[other],
        batch.structured_values[other],
        batch.structured_mask[other],
    )
    if observe is not None:
        # two candidates, the true one first
        candidates = torch.stack([features.joint[rows][usable], wrong_joint], dim=1)
        first = torch.zeros(len(usable), dtype=torch.int64, device=rows.device)
        observe(model.match_head, candidates, first)
    return match_loss(true_logits, model.match_head(wrong_joint)[:, 0])


def _match_among_drawn(
    model: UMDModel,
    batch: Batch,
    rows: Tensor,
    features: Features,
    wrong: tuple[Tensor, Tensor],
    precision: Precision,
    observe: Observer | None,
) -> Tensor:
    """Right text against those drawn for the same picture: cross-entropy over all candidates."""
    ids, mask = (tensor.to(rows.device) for tensor in wrong)
    count = len(ids) // len(rows)
    pair = rows.repeat_interleave(count)
    with autocast(rows.device, precision):
        joint = model.fuse_tokens(
            features.image_tokens[batch.owner[pair]],
            model.encode_text(ids, mask)[0],
            mask,
            batch.structured_values[pair],
            batch.structured_mask[pair],
        ).float()
    own = features.joint[rows][:, None]
    candidates = torch.cat([own, joint.view(len(rows), count, -1)], dim=1)
    first = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    if observe is not None:
        observe(model.match_head, candidates, first)
    return functional.cross_entropy(model.match_head(candidates)[..., 0], first)


def batch_loss(
    model: UMDModel,
    objective: SupervisedObjective,
    batch: Batch,
    pixel_values: Tensor,
    precision: Precision,
    rng: torch.Generator,
    *,
    pictures: float | None = None,
    observe: Observer | None = None,
    features: Features | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of a batch, and the unweighted mean of each task by name.

    Args:
        model: In training mode.
        objective: Losses and weights of the tasks.
        batch: B pictures with E examples.
        pixel_values: (B, 3, H, W) float32.
        precision: Of the encoders and the fusion; heads and losses are always float32.
        rng: Chooses the wrong texts of retrieval tasks.
        pictures: What the sum is divided by, where the batch is a part of a larger one; B if None.
        observe: Called with head, joint vectors and targets of each supervised task.
        features: Of this batch, where they are known already.

    Returns:
        The scalar to minimise: the sum over all examples of their weighted losses, divided by the
        number of pictures; and `{"<task>_loss": mean, ..., "loss": total}`.
    """
    if features is None:
        features = batch_features(model, batch, pixel_values, precision)
    total = features.joint.new_zeros(())
    named: dict[str, float] = {}
    with torch.autocast(pixel_values.device.type, enabled=False):
        for index, task in enumerate(objective.tasks):
            rows = torch.nonzero(batch.task == index).flatten()
            if not len(rows):
                continue
            if task.kind == "retrieval":
                loss = _retrieval_loss(
                    model, objective, index, batch, rows, features, precision, rng, observe
                )
                losses = loss.expand(len(rows))
            else:
                head = model.task_heads[output_name(task.name)]
                examples = [batch.examples[i] for i in rows.tolist()]
                targets = objective.targets(index, examples).to(rows.device)
                losses = objective.losses(index, head(features.joint[rows]), targets)
                if observe is not None:
                    observe(head, features.joint[rows], targets)
            named[f"{task.name}_loss"] = float(losses.detach().mean())
            total = total + objective.training[index].loss_weight * losses.sum()
    total = total / (pictures or len(batch.rows))
    named["loss"] = float(total.detach())
    return total, named


class SupervisedStep(nn.Module):
    """Model and objective as one module whose forward is the loss, as data parallelism needs it."""

    def __init__(
        self, model: UMDModel, objective: SupervisedObjective, precision: Precision
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.precision: Precision = precision
        self.observe: Observer | None = None

    def forward(
        self, batch: Batch, pixel_values: Tensor, rng: torch.Generator, pictures: float
    ) -> tuple[Tensor, dict[str, float]]:
        """See `batch_loss`."""
        return batch_loss(
            self.model,
            self.objective,
            batch,
            pixel_values,
            self.precision,
            rng,
            pictures=pictures,
            observe=self.observe,
        )
