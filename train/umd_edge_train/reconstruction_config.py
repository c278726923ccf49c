"""Settings of masked pre-training, read from a recipe's `[reconstruction]` table.

Every point on which the paper, its released code and its figure differ is a switch; the released
behaviour is one of its values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from umd_edge.errors import UsageError

__all__ = ["ReconstructionConfig"]


def _require(path: str, given: float, allowed: str, *, holds: bool) -> None:
    if not holds:
        raise UsageError(f"reconstruction.{path}: {given} given; {allowed} is allowed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionConfig:
    """MR-Pretrain and TD-Calib of UMD (arXiv 2404.06057).

    Defaults are the released values, but for the teacher's start and the time of its updates.

    The M3AE baseline is `views = "separate"`, `mim_layer = 3`, both feature losses `"none"` and
    weights of 1.
    """

    image_mask_ratio: float = 0.75
    """Part of a picture's patches that is removed."""
    text_mask_ratio: float = 0.15
    """Part of a text's words that is to be predicted; at least one word is."""
    alpha: float = 0.5
    """Balance: weight of pixels and words against that of features."""
    mim_weight: float = -1.0
    """Weight of masked image modelling; negative: `alpha`."""
    mlm_weight: float = -1.0
    """Weight of masked language modelling; negative: `alpha`."""
    feature_weight: float = -1.0
    """Weight of each feature loss; negative: 1 - `alpha`. Released for TD-Calib: 1e-5."""
    itm_weight: float = 1.0
    """Weight of image-text matching, where it takes part."""
    contrast_weight: float = 0.0
    """Weight of the contrast between the unfused embeddings of clean pictures and texts of a batch,
    where matching takes part. Released: 0; the authors tried it and switched it off."""
    mim_layer: int = -1
    """Fusion layer whose input the MIM decoder reads; -1: the last one's output. M3AE: 3."""
    feature_mim: Literal["released", "decoder", "visible", "none"] = "released"
    """`released`: the mask token against the teacher's embedded patches, which teaches the encoders
    nothing. `decoder`: a predictor behind the decoder. `visible`: the visible patches alone."""
    feature_target: Literal["token", "channel"] = "token"
    """What `decoder` normalises the teacher's tokens over. `token`: the channels of each, so that a
    teacher whose tokens are all alike is met by a constant. `channel`: each channel over all
    removed patches of the batch, so that what tells them apart has unit variance."""
    feature_mlm: Literal["projected", "predictor", "predictor_masked", "none"] = "projected"
    """`projected`: one projection of both sides, all positions, as released. `predictor`: on the
    student's side only, real tokens. `predictor_masked`: the same on the predicted tokens alone."""
    views: Literal["joint", "separate"] = "joint"
    """`joint`: one forward with picture and text masked together. `separate`: masked text with the
    whole picture, and masked picture with the whole text, as M3AE."""
    stem: Literal["patchwise", "blanked"] = "patchwise"
    """What a convolutional stem makes of a masked picture. `patchwise`: each visible patch is a
    picture of its own. `blanked`: the whole picture with its removed patches blank, so that the
    stem keeps the surroundings and borders that it has in fine-tuning. Either way visible patches
    alone enter the transformer. Without such a stem both are the same."""
    teacher_init: Literal["student", "random"] = "student"
    """Where the teacher starts: as a copy, or newly built (released)."""
    teacher_decay: float = 0.995
    teacher_update: Literal["step", "micro_batch"] = "step"
    """After each optimiser step, or after each micro-batch of it (released)."""
    decoder_width: int = 0
    """Width of the MIM decoder; 0: half the fusion's (384 for the paper's 768)."""
    decoder_layers: int = 4
    decoder_heads: int = 0
    """0: half the fusion's (6 for the paper's 12)."""

    def __post_init__(self) -> None:
        for path in ("image_mask_ratio", "text_mask_ratio"):
            ratio = float(getattr(self, path))
            _require(path, ratio, "more than 0 and less than 1", holds=0.0 < ratio < 1.0)
        _require("alpha", self.alpha, "0..1", holds=0.0 <= self.alpha <= 1.0)
        _require(
            "teacher_decay",
            self.teacher_decay,
            "0 or more and less than 1",
            holds=0.0 <= self.teacher_decay < 1.0,
        )
        for path in ("itm_weight", "contrast_weight"):
            weight = float(getattr(self, path))
            _require(path, weight, "0 or more", holds=weight >= 0.0)
        _require("decoder_layers", self.decoder_layers, "1 or more", holds=self.decoder_layers >= 1)
        for path in ("decoder_width", "decoder_heads"):
            size = int(getattr(self, path))
            _require(path, size, "0 or more", holds=size >= 0)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each loss in the total, by its name in `ObjectiveOutput.parts`."""

        def of(given: float, otherwise: float) -> float:
            return given if given >= 0.0 else otherwise

        feature = of(self.feature_weight, 1.0 - self.alpha)
        return {
            "mim_loss": of(self.mim_weight, self.alpha),
            "mlm_loss": of(self.mlm_weight, self.alpha),
            "feature_mim_loss": feature,
            "feature_mlm_loss": feature,
            "itm_loss": self.itm_weight,
            "contrast_loss": self.contrast_weight,
        }

    @property
    def has_teacher(self) -> bool:
        """Whether a feature loss takes part."""
        return self.feature_mim != "none" or self.feature_mlm != "none"
