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

_EPS = 1e-5


def _at(tokens: Tensor, patches: Tensor) -> Tensor:
    """(B, N, D) at (B, M) -> (B, M, D) float32."""
    return tokens.float().gather(1, patches[..., None].expand(-1, -1, tokens.shape[2]))


class FeatureMIM(nn.Module):
    """Mean squared error to the teacher's tokens T of the clean picture.

    * `released`: on the removed patches, the decoder's mask token against its embedding of T. The
      decoder's blocks take no part, so the student's encoders and fusion get no gradient at all;
      only the mask token and, through the target, the embedding do.
    * `decoder`: on the removed patches, a linear predictor behind the decoder's last LayerNorm
      against normalised T: each token over its channels, or each channel over the tokens.
    * `visible`: on the visible patches, the student's tokens against T.

    Args:
        kind: Which of these.
        width: D, the fusion's.
        decoder_width: W, the MIM decoder's.
        target: What `decoder` normalises T over; see `ReconstructionConfig.feature_target`.
    """

    def __init__(
        self,
        kind: Literal["released", "decoder", "visible"],
        width: int,
        decoder_width: int,
        target: Literal["token", "channel"] = "token",
    ) -> None:
        super().__init__()
        self.kind = kind
        self.target = target
        if kind == "decoder":
            self.predictor = nn.Linear(decoder_width, width)

    def _normalise(self, teacher: Tensor) -> Tensor:
        """(B, M, D) -> (B, M, D)."""
        if self.target == "token":
            return functional.layer_norm(teacher, teacher.shape[-1:])
        variance, mean = torch.var_mean(teacher, dim=(0, 1), correction=0)
        return (teacher - mean) / torch.sqrt(variance + _EPS)

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
            target = self._normalise(_at(teacher, features.removed))
            difference = _at(self.predictor(decoded), features.removed) - target
        else:
            target = decoder.embedding(_at(teacher, features.removed)).float()
            difference = decoder.mask_token.float() - target
        return torch.square(difference).mean()
