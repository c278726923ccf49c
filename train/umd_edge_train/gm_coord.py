"""GM-Coord: gradient-guided coordination of the text and image modality while fine-tuning.

The modality that answers better by itself is slowed down, so that the other one keeps learning.
Before each optimiser step its halves of the joint vector are scored against the labels, the ratio
of the two scores gives one coefficient a modality, and the coefficient acts on the gradients of
that modality's parameters (with noise, as released) or on the optimiser's update.

Invariant: all randomness comes from the generator given, and the coefficients from scores summed
over all processes, so that equal seeds keep processes equal and a resumed run is exact.

Source: UMD (arXiv 2404.06057), its released code by way of its description; formulas after OGM-GE
(CVPR 2022). What is ours is said where it stands and in docs/gm-coord.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from umd_edge.errors import UsageError

from ._modality_scores import (
    Probes,
    split_last_linear,
    sum_over_processes,
    true_probabilities,
    zero_out,
)

if TYPE_CHECKING:
    from .models import UMDModel

__all__ = [
    "CoordinationConfig",
    "GradientCoordination",
    "ModalityCoefficients",
    "modality_coefficients",
    "modality_parameters",
]

# A modality that is never right still has a finite ratio.
_SMALLEST_SCORE = 1e-12
_NOISE_FLOOR = 1e-8

_MODALITIES = {
    "text": (
        "text_encoder.",
        "fusion.text_projection.",
        "fusion.text_layers.",
        # ours: structured values are tokens of the text stream, so their part in a right answer
        # is counted in the text's score, and is slowed down with it
        "fusion.structured.",
    ),
    "image": ("vision_encoder.", "fusion.image_projection.", "fusion.image_layers."),
}
# What marks, pools or reads out the streams. The shortcut (ours) adds to the pooled image vector.
_UNMODULATED = (
    "fusion.type_embedding",
    "text_pooler.",
    "image_pooler.",
    "image_shortcut.",
    "text_embedding.",
    "image_embedding.",
    "match_head.",
    "task_heads.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinationConfig:
    """Which coordination a fine-tuning run uses; the recipe's `[coordination]` table."""

    application: Literal["none", "measure", "released", "scale_only", "post_update"] = "none"
    """What the coefficient k of a modality acts on. `released`: gradients, g <- k g + noise.
    `scale_only`: gradients without the noise, a control that AdamW divides out. `post_update`
    (ours): the optimiser's update. `measure`: nothing, ratio and coefficients are only reported."""
    score: Literal["released", "zero_out", "linear_head"] = "zero_out"
    """How one half of the joint vector is scored. `released`: by its columns of the head's last
    linear layer, whatever stands before that. `zero_out`: by the whole head, the other half being
    zero. `linear_head`: by its columns of a linear probe trained beside the model."""
    scores: Literal["accumulated", "last"] = "accumulated"
    """Whether all micro-batches of a step are scored, or the last one (as released)."""
    alpha: float = 0.1
    """Strength; 0.1 as released, 0 leaves both modalities alone."""
    probe_learning_rate: float = 1e-3
    """Of the linear probes of `linear_head` (Adam)."""

    def __post_init__(self) -> None:
        for name, value in (
            ("alpha", self.alpha),
            ("probe_learning_rate", self.probe_learning_rate),
        ):
            if not (math.isfinite(value) and value >= 0.0):
                raise UsageError(
                    f"coordination.{name}: {value} given; a finite number, 0 or more, is allowed"
                )


class ModalityCoefficients(NamedTuple):
    """What one optimiser step multiplies each modality by."""

    ratio_text: float
    """Score of the text over score of the image; NaN where nothing was scored."""
    text: float
    image: float


def modality_coefficients(
    score_text: float, score_image: float, alpha: float
) -> ModalityCoefficients:
    """The modality with the higher score gets 1 - tanh(alpha x its ratio), the other one 1.

    At a tie the image is damped, as in the released code.

    Args:
        score_text: Sum of the text half's probabilities of the right answer, 0 or more.
        score_image: The same of the image half.
        alpha: Strength, 0 or more.

    Returns:
        Coefficients from 0 to 1; both 1 where a score is not finite.

    Source: OGM-GE's discrepancy ratio and coefficient, which UMD's released code uses unchanged.
    """
    if not (math.isfinite(score_text) and math.isfinite(score_image)):
        return ModalityCoefficients(math.nan, 1.0, 1.0)
    ratio = max(score_text, _SMALLEST_SCORE) / max(score_image, _SMALLEST_SCORE)
    if ratio > 1.0:
        return ModalityCoefficients(ratio, 1.0 - math.tanh(alpha * ratio), 1.0)
    return ModalityCoefficients(ratio, 1.0, 1.0 - math.tanh(alpha / ratio))


def modality_parameters(model: UMDModel) -> dict[str, dict[str, nn.Parameter]]:
    """The model's parameters by what they belong to: `text`, `image` or `none`.

    Text: its encoder, projection, fusion layers and the structured values. Image: its encoder with
    the stem, projection and fusion layers. None: type embeddings, poolers, shortcut, embeddings for
    retrieval, heads.

    Returns:
        For each of the three, parameters by name in the model's order.

    Raises:
        UsageError: A modality lacks one of its parts, or a parameter belongs nowhere.
    """
    sets: dict[str, dict[str, nn.Parameter]] = {"text": {}, "image": {}, "none": {}}
    prefixes = {**_MODALITIES, "none": _UNMODULATED}
    for name, parameter in model.named_parameters():
        homes = [home for home, starts in prefixes.items() if name.startswith(starts)]
        if len(homes) != 1:
            raise UsageError(
                f"coordination: parameter {name!r} belongs to neither modality nor to what is left "
                "alone; name its part in umd_edge_train/gm_coord.py"
            )
        sets[homes[0]][name] = parameter
    for modality, starts in _MODALITIES.items():
        for start in starts:
            if not any(name.startswith(start) for name in sets[modality]):
                raise UsageError(
                    f"coordination: no parameter of the model starts with {start!r}, a part of the "
                    f"{modality} modality; use a UMDModel"
                )
    return sets


def _generator_on(device: torch.device, rng: torch.Generator) -> torch.Generator:
    """A generator on the gradients' device: noise for a whole model is slow to draw elsewhere."""
    if rng.device.type == device.type:
        return rng
    seed = int(torch.randint(2**62, (), generator=rng, device=rng.device))
    return torch.Generator(device).manual_seed(seed)


class GradientCoordination:
    """Coordinates the modalities of one fine-tuning run.

    In each optimiser step: `begin_micro_batch` and `observe` (once a task) for every micro-batch,
    `before_update` after the last backward pass and before gradients are clipped, the optimiser's
    step, `after_update`.

    Args:
        model: What is trained.
        config: Score, application and strength.
        optimizer: Updates the model; only asked whether it has the modalities' parameters.

    Raises:
        UsageError: The model is not divided into modalities, or the optimiser lacks a parameter.
    """

    def __init__(
        self, model: UMDModel, config: CoordinationConfig, optimizer: torch.optim.Optimizer
    ) -> None:
        self.config = config
        sets = modality_parameters(model)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for modality in ("text", "image"):
            for name, parameter in sets[modality].items():
                if parameter.requires_grad and id(parameter) not in held:
                    raise UsageError(
                        f"coordination: the optimiser does not update {name!r} of the {modality} "
                        "modality; give the optimiser that trains this model"
                    )
        self._text = list(sets["text"].values())
        self._image = list(sets["image"].values())
        uses_probes = config.score == "linear_head" and config.application != "none"
        self._probes = Probes(model, config.probe_learning_rate) if uses_probes else None
        self._before: list[tuple[nn.Parameter, Tensor, float]] = []
        self._coefficients = ModalityCoefficients(math.nan, 1.0, 1.0)
        self._clear()

    def _clear(self) -> None:
        # score of the text, of the image, number of scored examples
        self._sums = torch.zeros(3, dtype=torch.float64)

    def begin_micro_batch(self) -> None:
        """Say that the next scores are of another micro-batch of the same step."""
        if self.config.scores == "last":
            self._clear()

    @torch.no_grad()
    def observe(self, head: nn.Module, joint: Tensor, targets: Tensor) -> None:
        """Add the scores of both halves of the joint vectors to the step's; no graph is kept.

        Args:
            head: A task head of the model, or its match head.
            joint: (E, 2 D) text half first; or (E, C, 2 D) for C candidates, which a head with one
                output tells apart (retrieval: a picture with its own and other texts).
            targets: (E,) int64 right answer or candidate, -100 is ignored; or (E, K) float for
                several labels, NaN is unknown.

        Raises:
            UsageError: Shapes disagree, or the head does not suit the score.
        """
        if self.config.application == "none":
            return
        if joint.ndim not in (2, 3) or joint.shape[-1] % 2 or len(joint) != len(targets):
            raise UsageError(
                f"coordination: joint vectors {tuple(joint.shape)} and targets "
                f"{tuple(targets.shape)} given; (E, 2 D) or (E, C, 2 D) and E targets are allowed"
            )
        joint = joint.detach()
        pair = self._logits(head, joint)
        if joint.ndim == 3:
            if pair[0].shape[-1] != 1:
                raise UsageError(
                    f"coordination: a head with {pair[0].shape[-1]} outputs given for candidates; "
                    "one with a single output is allowed"
                )
            pair = pair[0][..., 0], pair[1][..., 0]
        text, image = (true_probabilities(logits, targets) for logits in pair)
        added = torch.stack([text.sum(), image.sum(), text.new_tensor(float(len(text)))])
        self._sums = self._sums.to(added.device) + added
        if self._probes is not None:
            self._probes.learn(head, joint, targets)

    def _logits(self, head: nn.Module, joint: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.score == "zero_out":
            return zero_out(head, joint)
        return split_last_linear(self._probes.of(head) if self._probes else head, joint)

    @torch.no_grad()
    def before_update(self, rng: torch.Generator) -> None:
        """Turn the step's scores into coefficients and, where gradients are rewritten, do it.

        `released` replaces each gradient g by k g + n, n from a normal distribution with the
        standard deviation of g's own entries plus 1e-8, for both modalities, also where k is 1 and
        where nothing was scored. Tensors of one element have no deviation and stay as they are.

        Args:
            rng: Source of the noise, on any device; what is drawn does not depend on the scores.
        """
        if self.config.application == "none":
            return
        sum_over_processes(self._sums)
        text, image, count = self._sums.tolist()
        if count:
            self._coefficients = modality_coefficients(text, image, self.config.alpha)
        else:
            self._coefficients = ModalityCoefficients(math.nan, 1.0, 1.0)
        self._clear()
        if self._probes is not None:
            self._probes.step()
        rng = _generator_on(self._text[0].device, rng)
        for parameters, k in (
            (self._text, self._coefficients.text),
            (self._image, self._coefficients.image),
        ):
            trained = [p for p in parameters if p.grad is not None]
            if self.config.application == "post_update" and k != 1.0:
                self._before += [(p, p.detach().clone(), k) for p in trained]
            elif self.config.application in ("released", "scale_only"):
                self._rewrite(trained, k, rng)

    def _rewrite(self, parameters: list[nn.Parameter], k: float, rng: torch.Generator) -> None:
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None or gradient.numel() < 2:
                continue
            deviation = gradient.std() + _NOISE_FLOOR
            gradient.mul_(k)
            if self.config.application == "released":
                noise = torch.empty_like(gradient).normal_(generator=rng)
                gradient.addcmul_(noise, deviation)

    @torch.no_grad()
    def after_update(self) -> None:
        """`post_update`: p <- p_before + k (p_after - p_before), right after the optimiser's step.

        Decoupled weight decay is part of the update, so this is k times the learning rate for the
        modality's parameters; the optimiser's moments see the gradients as they are.
        """
        for parameter, before, k in self._before:
            parameter.copy_(before + k * (parameter - before))
        self._before = []

    def report(self) -> dict[str, float]:
        """The last step's `ratio_text`, `coefficient_text`, `coefficient_image`.

        Without `ratio_text` where no example was scored, and empty for `application = "none"`; all
        numbers are finite.
        """
        if self.config.application == "none":
            return {}
        ratio, text, image = self._coefficients
        ratios = {} if math.isnan(ratio) else {"ratio_text": ratio}
        return {**ratios, "coefficient_text": text, "coefficient_image": image}

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs: the probes of `linear_head` by name, else nothing."""
        return self._probes.state_dict() if self._probes is not None else {}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict`.

        Raises:
            UsageError: The state is of a run with other tasks or another score.
        """
        if self._probes is not None:
            self._probes.load_state_dict(tensors)
        elif tensors:
            raise UsageError(
                f"coordination: the saved state has probes, and score = {self.config.score!r} "
                "uses none; resume with the same [coordination]"
            )
