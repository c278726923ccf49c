"""Feature-level masked image modelling: the teacher's image tokens.

The paper's figure lets the gradient reach the encoders; its released code does not. Both are here,
and two readings that do what the figure shows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models.decoders import MIMDecoder
from .base import PairFeatures

__all__ = ["FeatureMIM"]


def _at(tokens: Tensor, patches: Tensor) -> Tensor:
    """(B, N, D) at (B, M) -> (B, M, D) float32."""
    return tokens.float().gather(1, patches[..., None].expand(-1, -1, tokens.shape[2]))


class FeatureMIM(nn.Module):
    """Mean squared error to the teacher's tokens T of the clean picture.

    * `released`: on the removed patches, the decoder's mask token against its embedding of T. The
      decoder's blocks take no part, so the student's encoders and fusion get no gradient at all;
      only the mask token and, through the target, the embedding do.
    * `decoder`: on the removed patches, a linear predictor behind the decoder's last LayerNorm
      against T after a LayerNorm without weights.
    * `visible`: on the visible patches, the student's tokens against T.

    Args:
        kind: Which of these.
        width: D, the fusion's.
        decoder_width: W, the MIM decoder's.
    """

    def __init__(
        self, kind: Literal["released", "decoder", "visible"], width: int, decoder_width: int
    ) -> None:
        super().__init__()
        self.kind = kind
        if kind == "decoder":
            self.predictor = nn.Linear(decoder_width, width)

    def forward(self, features: PairFeatures, decoder: MIMDecoder, decoded: Tensor) -> Tensor:
        """The loss.

        Args:
            features: With the teacher's tokens.
            decoder: The MIM decoder; it belongs to masked image modelling.
            decoded: (B, N, W), what it made of the masked picture.

        Returns:
            Scalar float32, mean over dimensions, patches and batch.
        """
        if features.teacher_image is None:
            raise ValueError("feature_mim needs the teacher's image tokens")
        teacher = features.teacher_image[:, 1:].detach()
        if self.kind == "visible":
            difference = features.image_tokens[:, 1:].float() - _at(teacher, features.keep)
        elif self.kind == "decoder":
            target = functional.layer_norm(teacher.float(), teacher.shape[-1:])
            predicted = self.predictor(decoded)
            difference = _at(predicted, features.removed) - _at(target, features.removed)
        else:
            target = decoder.embedding(_at(teacher, features.removed)).float()
            difference = decoder.mask_token.float() - target
        return torch.square(difference).mean()
