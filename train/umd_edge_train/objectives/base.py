"""What an objective receives and returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["ObjectiveOutput", "PairBatch", "PairFeatures"]


@dataclass(frozen=True, slots=True)
class PairBatch:
    """B pairs of picture and text."""

    pixel_values: Tensor
    """(B, 3, H, W) float32, normalised."""
    input_ids: Tensor
    """(B, L) int64."""
    attention_mask: Tensor
    """(B, L) int64, 1 = real token."""
    word_ids: Tensor
    """(B, L) int64: index of the word that a token belongs to, -1 for special tokens and padding
    (see `masking.word_ids`)."""

    @property
    def is_worded(self) -> Tensor:
        """(B,) bool: which texts say something of their picture."""
        return (self.word_ids >= 0).any(dim=1)


@dataclass(frozen=True, slots=True)
class PairFeatures:
    """What a step makes of a `PairBatch`: K of N patches visible, some tokens to be predicted."""

    keep: Tensor
    """(B, K) int64: visible patches."""
    removed: Tensor
    """(B, N - K) int64: the others."""
    targets: Tensor
    """(B, L) int64: original ids of the tokens to be predicted, -100 elsewhere."""
    image_tokens: Tensor
    """(B, 1 + K, D): the student's fused tokens of the masked picture, class token first."""
    decoder_input: Tensor
    """(B, 1 + K, D): the same after the fusion layer that the MIM decoder reads."""
    text_tokens: Tensor
    """(B, L, D): the student's fused tokens of the masked text."""
    teacher_image: Tensor | None = None
    """(B, 1 + N, D): the teacher's, of the clean pair, without gradient."""
    teacher_text: Tensor | None = None
    """(B, L, D)."""


@dataclass(frozen=True, slots=True)
class ObjectiveOutput:
    """Losses are float32 scalars."""

    loss: Tensor
    """To be minimised: the weighted sum of the parts."""
    parts: dict[str, Tensor]
    """Each loss by name, unweighted and with its graph; `detach` it for a log."""
    aux: dict[str, Tensor] = field(default_factory=dict)
    """Anything else worth a look, without gradient: accuracies, masks."""
