"""Multi-level reconstruction: the objectives of MR-Pretrain and TD-Calib.

A step sees a pair up to three times: masked by the student, clean by the momentum teacher, and, for
image-text matching, clean by the student with half of the pictures swapped. Source: UMD
(arXiv 2404.06057); `ReconstructionConfig` holds every point on which its sources differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from umd_edge.errors import UsageError

from ..masking import Vocabulary, mask_patches, mask_words, visible_patches
from ..models import UMDModel
from ..models.decoders import MIMDecoder, MLMHead
from ..momentum_teacher import MomentumTeacher
from ..reconstruction_config import ReconstructionConfig
from .base import CleanFeatures, ObjectiveOutput, PairBatch, PairFeatures
from .contrast import batch_contrast
from .feature_mim import FeatureMIM
from .feature_mlm import FeatureMLM
from .itm import draw_matches, itm_loss
from .mim import mim_loss, patch_pixels
from .mlm import mlm_loss

__all__ = ["MultiLevelReconstruction", "ReconstructionConfig"]

_Losses = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Losses by name, and what else is worth a look."""


def _decoder(model: UMDModel, config: ReconstructionConfig) -> MIMDecoder:
    sizes, fusion = model.config, model.config.fusion
    return MIMDecoder(
        fusion.hidden_size,
        config.decoder_width or fusion.hidden_size // 2,
        config.decoder_layers,
        config.decoder_heads or max(1, fusion.num_heads // 2),
        sizes.image_size // sizes.vision.patch_size,
        sizes.vision.patch_size,
        sizes.initializer_range,
    )


class MultiLevelReconstruction(nn.Module):
    """All losses of a pre-training step, and the heads and the teacher that they need.

    Its parameters are the student's, the heads' and the teacher's; the last do not require
    gradients and must not be optimised. Its state is all that a resumed run needs of it.

    Args:
        model: The student; task heads and embeddings for retrieval take no part.
        config: Settings.
        vocabulary: Of the tokenizer that makes the ids.
        itm: Whether image-text matching takes part: yes in MR-Pretrain, no in TD-Calib.
        objectives: Further ones by name, each called with a `PairBatch` and its `PairFeatures`. It
            returns its loss, a scalar with its graph, which is added as it is, or None where the
            batch has nothing for it. They belong to this module and are saved with it.

    Raises:
        UsageError: The settings do not fit the model, or a further objective has no name of its
            own.
    """

    def __init__(
        self,
        model: UMDModel,
        config: ReconstructionConfig,
        vocabulary: Vocabulary,
        *,
        itm: bool,
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.vocabulary, self.itm = config, vocabulary, itm
        sizes, width = model.config, model.config.fusion.hidden_size
        self.num_patches = (sizes.image_size // sizes.vision.patch_size) ** 2
        self._check(sizes.vocabulary_size, sizes.fusion.num_layers)
        self.model = model
        model.vision_encoder.masked_stem = config.stem
        self.mim_decoder = _decoder(model, config)
        self.mlm_head = MLMHead(width, sizes.vocabulary_size, sizes.initializer_range)
        self.feature_mim: FeatureMIM | None = None
        if config.feature_mim != "none":
            self.feature_mim = FeatureMIM(
                config.feature_mim, width, self.mim_decoder.width, config.feature_target
            )
        self.feature_mlm: FeatureMLM | None = None
        if config.feature_mlm != "none":
            self.feature_mlm = FeatureMLM(config.feature_mlm, width)
        self.teacher: MomentumTeacher | None = None
        if config.has_teacher:
            self.teacher = MomentumTeacher(model, config.teacher_decay, config.teacher_init)
        self.further = nn.ModuleDict(self._named(objectives or {}))

    def _named(self, objectives: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Further objectives by the names of their losses."""
        taken = sorted(name.removesuffix("_loss") for name in self.config.weights)
        for name in objectives:
            if name in taken or not name.isidentifier():
                raise UsageError(
                    f"objectives: {name!r} given; letters, digits and underscores are allowed in "
                    f"the name of one, other than {taken}"
                )
        return {f"{name}_loss": objective for name, objective in objectives.items()}

    def _check(self, vocabulary_size: int, num_layers: int) -> None:
        ratio, layer = self.config.image_mask_ratio, self.config.mim_layer
        if not visible_patches(self.num_patches, ratio):
            raise UsageError(
                f"reconstruction.image_mask_ratio: {ratio} given, which leaves none of "
                f"{self.num_patches} patches; lower it, or use larger pictures"
            )
        if visible_patches(self.num_patches, ratio) == self.num_patches:
            raise UsageError(
                f"reconstruction.image_mask_ratio: {ratio} given, which removes none of "
                f"{self.num_patches} patches; raise it"
            )
        if not -1 <= layer <= num_layers:
            raise UsageError(
                f"reconstruction.mim_layer: {layer} given; -1..{num_layers} is allowed, as the "
                f"fusion has {num_layers} layers"
            )
        if self.vocabulary.size > vocabulary_size:
            raise UsageError(
                f"model.vocabulary_size: {vocabulary_size} given; the tokenizer has "
                f"{self.vocabulary.size} tokens: use the tokenizer that belongs to the model"
            )

    # --- views ----------------------------------------------------------------------------------

    def _masked_views(self, batch: PairBatch, rng: torch.Generator) -> PairFeatures:
        """The student's tokens of masked pictures and texts."""
        clean = CleanFeatures(self.model, batch)
        model, mask, config = self.model, batch.attention_mask, self.config
        keep, removed = mask_patches(
            len(mask), self.num_patches, config.image_mask_ratio, rng, mask.device
        )
        corrupted, targets = mask_words(
            batch.input_ids, batch.word_ids, config.text_mask_ratio, self.vocabulary, rng
        )
        image, _ = model.encode_image(batch.pixel_values, keep)
        text, _ = model.encode_text(corrupted, mask)
        if config.views == "joint":
            of_image = of_text = model.fusion_states(image, text, mask)
        else:
            of_image = model.fusion_states(image, clean.text_tokens, mask)
            of_text = model.fusion_states(clean.image_tokens, text, mask)
        return PairFeatures(
            clean=clean,
            keep=keep,
            removed=removed,
            targets=targets,
            image_tokens=of_image[-1][1],
            decoder_input=of_image[config.mim_layer][1],
            text_tokens=of_text[-1][0],
        )

    def _add_teacher(self, batch: PairBatch, features: PairFeatures) -> PairFeatures:
        if self.teacher is None:
            return features
        text, image = self.teacher(batch.pixel_values, batch.input_ids, batch.attention_mask)
        return replace(features, teacher_text=text, teacher_image=image)

    def _match_logits(
        self, batch: PairBatch, clean: CleanFeatures, picture: Tensor, texts: Tensor
    ) -> Tensor:
        """Logits (M,) of the texts (M,) with their pictures (M,), rows of the batch."""
        absent = self.model.match_head.weight.new_zeros(len(texts), self.model.num_fields)
        joint = self.model.fuse_tokens(
            clean.image_tokens[picture],
            clean.text_tokens[texts],
            batch.attention_mask[texts],
            absent,
            absent,
        )
        logits: Tensor = self.model.match_head(joint)[:, 0]
        return logits

    # --- losses ---------------------------------------------------------------------------------

    def _reconstruct(
        self, batch: PairBatch, features: PairFeatures
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        decoder = self.mim_decoder
        decoded = decoder(features.decoder_input, features.keep)
        pixels = patch_pixels(batch.pixel_values, self.model.config.vision.patch_size)
        parts = {"mim_loss": mim_loss(decoder.pixels(decoded), pixels, features.removed)}
        parts["mlm_loss"], accuracy = mlm_loss(
            self.mlm_head, features.text_tokens, features.targets
        )
        if self.feature_mim is not None:
            parts["feature_mim_loss"] = self.feature_mim(features, decoder, decoded)
        if self.feature_mlm is not None:
            parts["feature_mlm_loss"] = self.feature_mlm(batch, features)
        aux = {"keep": features.keep, "targets": features.targets, "mlm_accuracy": accuracy}
        return parts, aux

    def _match(self, batch: PairBatch, features: PairFeatures, rng: torch.Generator) -> _Losses:
        """Does this picture belong to this text? Nothing where no picture is wrong."""
        picture, counted = draw_matches(batch, rng)
        texts = torch.nonzero(counted).flatten()
        if not len(texts):
            return {}, {}
        logits = self._match_logits(batch, features.clean, picture[texts], texts)
        loss, accuracy = itm_loss(logits, picture[texts] == texts)
        return {"itm_loss": loss}, {"itm_accuracy": accuracy}

    def _contrast(self, batch: PairBatch, features: PairFeatures) -> _Losses:
        found = batch_contrast(batch, features) if self.config.contrast_weight else None
        if found is None:
            return {}, {}
        return {"contrast_loss": found[0]}, {"contrast_accuracy": found[1]}

    def _further(self, batch: PairBatch, features: PairFeatures) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = {}
        for name, objective in self.further.items():
            loss = objective(batch, features)
            if loss is None:
                continue
            if loss.ndim:
                raise ValueError(
                    f"{name}: {tuple(loss.shape)} given; a scalar is needed, such as the mean"
                )
            parts[name] = loss.float()
        return parts

    def forward(self, batch: PairBatch, rng: torch.Generator) -> ObjectiveOutput:
        """The losses of a batch.

        Masks and swapped pictures come from `rng` alone; dropout, where the model has any, comes
        from torch's global generator. Under autocast the losses are float32 all the same.

        Args:
            batch: B pairs.
            rng: Source of randomness; one on the CPU gives the same masks on every device.

        Returns:
            Parts `mim_loss`, `mlm_loss`, and `feature_mim_loss`, `feature_mlm_loss`, `itm_loss`,
            `contrast_loss` where they take part; a batch in which no picture is wrong, such as one
            of a single pair, has neither of the last two. Then `<name>_loss` of each further
            objective. Aux: `mlm_accuracy`, `itm_accuracy`,
            `contrast_accuracy`, `keep` (B, K), `targets` (B, L).
        """
        features = self._add_teacher(batch, self._masked_views(batch, rng))
        parts, aux = self._reconstruct(batch, features)
        if self.itm:
            for losses in (self._match(batch, features, rng), self._contrast(batch, features)):
                parts |= losses[0]
                aux |= losses[1]
        parts |= self._further(batch, features)
        if not features.clean.has_image:
            # A quarter of the pictures is enough for a running average.
            self.model.vision_encoder.refresh_statistics(
                batch.pixel_values[: max(1, len(batch.pixel_values) // 4)]
            )
        weights = self.config.weights
        loss = torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()
        return ObjectiveOutput(loss, parts, aux)

    def update_teacher(self) -> None:
        """Move the teacher towards the student; nothing where no loss needs a teacher."""
        if self.teacher is not None:
            self.teacher.update(self.model)
