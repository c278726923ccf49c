"""`UMDModel`: vision encoder, text encoder, co-attention fusion and task heads.

* Encoders are `transformers` models; fusion and heads are ours.
* An image is encoded once and fused with any number of texts.
* Behind a convolutional stem, the mean of its feature map reaches the heads through a linear
  shortcut as well: layer normalisation hides how strong a feature is, and small sets need that.
* The joint vector is [pooled text ; pooled image]; each task reads it through its own head.
* `image_embedding` and `text_embedding` are unit vectors for retrieval without fusion.
* `match_logit` says how well image and text belong together (retrieval with fusion).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from umd_edge._structured import StructuredField
from umd_edge._task import TaskSpec, output_name

from ..config import ModelConfig
from .fusion import CoAttention
from .heads import Pooler, TaskHead
from .text_encoder import TextEncoder
from .vision_encoder import VisionEncoder

__all__ = ["UMDModel", "unit_vectors"]


def unit_vectors(x: Tensor) -> Tensor:
    """Vectors (..., D) at length 1, of any float type."""
    # eps as large as float16 can hold, so that the exported graph survives that precision
    unit: Tensor = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-4)
    return unit


def _initialise(module: nn.Module, std: float) -> None:
    """N(0, std) and zero biases, as the paper's new modules (its std is 0.02)."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class UMDModel(nn.Module):
    """The whole model.

    Args:
        config: Sizes.
        tasks: One head each; retrieval tasks share the match head.
        fields: Structured values that the fusion may be given; at least one.
    """

    def __init__(
        self,
        config: ModelConfig,
        tasks: tuple[TaskSpec, ...],
        fields: tuple[StructuredField, ...],
    ) -> None:
        super().__init__()
        self.config = config
        self.tasks, self.fields = tasks, fields
        self.vision_encoder = VisionEncoder(config)
        self.text_encoder = TextEncoder(config)
        fusion = config.fusion
        self.num_fields = len(fields)
        self.fusion = CoAttention(
            fusion,
            self.vision_encoder.hidden_size,
            self.text_encoder.hidden_size,
            fields,
            config.dropout,
        )
        self.text_pooler = Pooler(fusion.hidden_size, fusion.pooling)
        self.image_pooler = Pooler(fusion.hidden_size, fusion.pooling)
        self.image_embedding = nn.Linear(self.vision_encoder.hidden_size, fusion.embedding_size)
        self.text_embedding = nn.Linear(self.text_encoder.hidden_size, fusion.embedding_size)
        self.has_summary = config.vision.stem == "conv"
        if self.has_summary:
            self.image_shortcut = nn.Linear(self.vision_encoder.hidden_size, fusion.hidden_size)
        self.match_head = nn.Linear(2 * fusion.hidden_size, 1)
        self.task_heads = nn.ModuleDict(
            {
                output_name(task.name): TaskHead(
                    2 * fusion.hidden_size, len(task.outputs), config.dropout
                )
                for task in tasks
                if task.kind != "retrieval"
            }
        )
        for name, part in self.named_children():
            if name not in ("vision_encoder", "text_encoder"):  # these initialise themselves
                part.apply(partial(_initialise, std=config.initializer_range))
        if self.has_summary:  # starts as nothing
            nn.init.zeros_(self.image_shortcut.weight)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks of both encoders in the backward pass instead of keeping them."""
        for encoder in (self.vision_encoder, self.text_encoder):
            backbone: Any = encoder.backbone
            # renamed in `transformers` 5
            name = "activation_checkpointing_enable"
            if not hasattr(backbone, name):
                name = "gradient_checkpointing_enable"
            getattr(backbone, name)({"use_reentrant": False})
            if hasattr(backbone.config, "use_cache"):  # of decoders; it only earns a warning
                backbone.config.use_cache = False

    def encode_image(
        self, pixel_values: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> image_tokens (B, 1 + N, Dv) and unit image_embedding (B, E).

        With `keep` (B, K) int64 only these patches take part; see `VisionEncoder.forward`.
        """
        tokens = self.vision_encoder(pixel_values, keep)
        return tokens, unit_vectors(self.image_embedding(tokens.mean(dim=1)))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) ids and mask -> text_tokens (B, L, Dt) and unit text_embedding (B, E)."""
        tokens = self.text_encoder(input_ids, attention_mask)
        return tokens, unit_vectors(self.text_embedding(tokens[:, 0]))

    def fusion_states(
        self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Both streams before each layer of the fusion and after the last.

        Structured values are absent.

        Returns:
            Text (B, L, D) and image (B, 1 + N, D; without a summary token) before layer k at index
            k, after the last layer at the end.
        """
        if self.has_summary:
            image_tokens = image_tokens[:, :-1]
        absent = self.fusion.type_embedding.new_zeros(len(image_tokens), self.num_fields)
        states, _ = self.fusion.states(image_tokens, text_tokens, attention_mask, absent, absent)
        return [(text[:, self.num_fields :], image) for text, image in states]

    def fuse_tokens(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        attention_mask: Tensor,
        structured_values: Tensor,
        structured_mask: Tensor,
    ) -> Tensor:
        """Joint vectors (B, 2 D): pooled text, then pooled image."""
        summary = image_tokens[:, -1]
        if self.has_summary:
            image_tokens = image_tokens[:, :-1]
        text, image, mask = self.fusion(
            image_tokens, text_tokens, attention_mask, structured_values, structured_mask
        )
        # the text's class token follows the structured values
        pooled_text = self.text_pooler(text, mask, self.num_fields)
        pooled_image = self.image_pooler(image, None, 0)
        if self.has_summary:
            pooled_image = pooled_image + self.image_shortcut(summary)
        return torch.cat([pooled_text, pooled_image], dim=-1)

    def fuse(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        attention_mask: Tensor,
        structured_values: Tensor,
        structured_mask: Tensor,
    ) -> dict[str, Tensor]:
        """All outputs of the fusion graph: `logits_<task>` (B, K) and `match_logit` (B,)."""
        joint = self.fuse_tokens(
            image_tokens, text_tokens, attention_mask, structured_values, structured_mask
        )
        outputs = {name: head(joint) for name, head in self.task_heads.items()}
        outputs["match_logit"] = self.match_head(joint)[:, 0]
        return outputs
