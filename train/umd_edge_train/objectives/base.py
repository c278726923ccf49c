"""What an objective receives and returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..models import UMDModel

__all__ = ["CleanFeatures", "ObjectiveOutput", "PairBatch", "PairFeatures"]


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


class CleanFeatures:
    """The student's encodings of whole pictures and texts, before the fusion.

    An encoder runs when something of it is first asked for, and once a step: all objectives share
    what it gave, with its graph, whoever asked first. What nobody asks for costs nothing. Under
    autocast the tokens have its type.

    Args:
        model: The student.
        batch: B pairs.
    """

    def __init__(self, model: UMDModel, batch: PairBatch) -> None:
        self._model, self._batch = model, batch
        self._with_graph = torch.is_grad_enabled()

    @cached_property
    def _image(self) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(self._with_graph):
            return self._model.encode_image(self._batch.pixel_values)

    @cached_property
    def _text(self) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(self._with_graph):
            return self._model.encode_text(self._batch.input_ids, self._batch.attention_mask)

    @property
    def has_image(self) -> bool:
        """Whether the pictures have been encoded."""
        return "_image" in self.__dict__

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the N patches."""
        height, width = self._batch.pixel_values.shape[2:]
        side = self._model.config.vision.patch_size
        return height // side, width // side

    @property
    def image_tokens(self) -> Tensor:
        """(B, 1 + N, Dv): the class token, then the patches row by row, as the fusion takes them.

        Behind a convolutional stem one more comes last, the mean of its feature map.
        """
        return self._image[0]

    @property
    def image_patches(self) -> Tensor:
        """(B, N, Dv): the tokens of the patches alone, row by row; see `grid`."""
        rows, columns = self.grid
        return self.image_tokens[:, 1 : 1 + rows * columns]

    @cached_property
    def image_global(self) -> Tensor:
        """(B, Dv): the mean of `image_tokens`, before any projection."""
        with torch.set_grad_enabled(self._with_graph):
            return self.image_tokens.mean(dim=1)

    @property
    def image_embedding(self) -> Tensor:
        """(B, E): `image_global` behind the model's projection for retrieval, of unit length."""
        return self._image[1]

    @property
    def text_tokens(self) -> Tensor:
        """(B, L, Dt), class token first, as the fusion takes them; padding included."""
        return self._text[0]

    @property
    def text_global(self) -> Tensor:
        """(B, Dt): the class token, before any projection."""
        return self.text_tokens[:, 0]

    @property
    def text_embedding(self) -> Tensor:
        """(B, E): `text_global` behind the model's projection for retrieval, of unit length."""
        return self._text[1]


@dataclass(frozen=True, slots=True)
class PairFeatures:
    """What a step makes of a `PairBatch`: K of N patches visible, some tokens to be predicted."""

    clean: CleanFeatures
    """The student's encodings of the whole pair before the fusion, made when asked for."""
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
