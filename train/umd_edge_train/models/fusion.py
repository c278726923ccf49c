"""Co-attention fusion of text, structured values and image.

Two streams without shared weights. Each layer of each stream: self-attention, cross-attention to
the other stream, feed-forward; all post-LN as in BERT. Both streams of layer k read the other
stream's output of layer k-1. Source: UMD (arXiv 2404.06057) after METER and M3AE. Structured values
are one token each at the front of the text stream, ours: the paper has none. They stand in front so
that padding of the text stays last and never moves a real token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from umd_edge._structured import StructuredField

from ..config import FusionConfig

__all__ = ["Attention", "CoAttention", "CrossModalLayer", "StructuredEmbedding"]


class Attention(nn.Module):
    """Multi-head attention, residual and post-normalised."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def _split(self, x: Tensor) -> Tensor:
        # (B, N, D) -> (B, H, N, D / H)
        batch, length, width = x.shape
        heads = x.view(batch, length, self.num_heads, width // self.num_heads)
        return heads.transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        """`x` (B, N, D) reads `context` (B, M, D); `bias` (B, 1, 1, M) hides with -inf-like."""
        attended = functional.scaled_dot_product_attention(
            self._split(self.query(x)),
            self._split(self.key(context)),
            self._split(self.value(context)),
            attn_mask=bias,
        )
        mixed = self.output(attended.transpose(1, 2).flatten(2))
        normed: Tensor = self.norm(x + self.dropout(mixed))
        return normed


class CrossModalLayer(nn.Module):
    """One layer of one stream."""

    def __init__(self, config: FusionConfig, dropout: float) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attention = Attention(width, config.num_heads, dropout)
        self.cross_attention = Attention(width, config.num_heads, dropout)
        self.intermediate = nn.Linear(width, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, other: Tensor, bias: Tensor | None, other_bias: Tensor | None
    ) -> Tensor:
        """`x` (B, N, D) attends to itself, then to `other` (B, M, D)."""
        x = self.self_attention(x, x, bias)
        x = self.cross_attention(x, other, other_bias)
        inner = functional.gelu(self.intermediate(x))
        normed: Tensor = self.norm(x + self.dropout(self.output(inner)))
        return normed


class StructuredEmbedding(nn.Module):
    """One token for each structured field: its own vector plus its value's."""

    offset: Tensor
    last: Tensor
    is_categorical: Tensor

    def __init__(self, fields: tuple[StructuredField, ...], width: int) -> None:
        super().__init__()
        self.name = nn.Parameter(torch.zeros(len(fields), width))
        self.slope = nn.Parameter(torch.zeros(len(fields), width))
        counts = [len(field.categories) for field in fields]
        offsets = [sum(counts[:i]) for i in range(len(fields))]
        self.category = nn.Embedding(max(1, sum(counts)), width)
        self.register_buffer("offset", torch.tensor(offsets), persistent=False)
        self.register_buffer(
            "last", torch.tensor([max(0, count - 1) for count in counts]), persistent=False
        )
        self.register_buffer(
            "is_categorical", torch.tensor([float(count > 0) for count in counts]), persistent=False
        )
        nn.init.normal_(self.name, std=0.02)
        nn.init.normal_(self.slope, std=0.02)
        nn.init.normal_(self.category.weight, std=0.02)

    def forward(self, values: Tensor) -> Tensor:
        """(B, F) float32 -> (B, F, D) float32."""
        index = torch.minimum(values.clamp(min=0.0).round().long(), self.last) + self.offset
        kind = self.is_categorical[None, :, None]
        by_category = self.category(index.clamp(max=self.category.num_embeddings - 1))
        by_value = values[..., None] * self.slope
        tokens: Tensor = self.name + kind * by_category + (1.0 - kind) * by_value
        return tokens


class CoAttention(nn.Module):
    """Projects both streams to one width, marks them, and runs the co-attention layers."""

    def __init__(
        self,
        config: FusionConfig,
        image_width: int,
        text_width: int,
        fields: tuple[StructuredField, ...],
        dropout: float,
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.image_projection = nn.Linear(image_width, width)
        self.text_projection = nn.Linear(text_width, width)
        # 0 text, 1 image (as in M3AE), 2 structured values (ours)
        self.type_embedding = nn.Parameter(torch.zeros(3, width))
        self.structured = StructuredEmbedding(fields, width)
        self.image_layers = nn.ModuleList(
            CrossModalLayer(config, dropout) for _ in range(config.num_layers)
        )
        self.text_layers = nn.ModuleList(
            CrossModalLayer(config, dropout) for _ in range(config.num_layers)
        )
        nn.init.normal_(self.type_embedding, std=0.02)

    def states(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        attention_mask: Tensor,
        structured_values: Tensor,
        structured_mask: Tensor,
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Fuse the streams, and keep them as they are in between.

        Args:
            image_tokens: (B, N, Dv) float32.
            text_tokens: (B, L, Dt) float32.
            attention_mask: (B, L) int64, 1 = real token.
            structured_values: (B, F) float32.
            structured_mask: (B, F) float32, 1 = present.

        Returns:
            Text (B, F + L, D; structured values first) and image (B, N, D) before layer k at index
            k, after the last layer at the end; and the mask of the text (B, F + L) float32.
        """
        image = self.image_projection(image_tokens) + self.type_embedding[1]
        text = self.text_projection(text_tokens) + self.type_embedding[0]
        # A hidden value is not even there for a pooling that reads padding.
        table = self.structured(structured_values * structured_mask) + self.type_embedding[2]
        text = torch.cat([table, text], dim=1)
        mask = torch.cat([structured_mask, attention_mask.to(structured_mask.dtype)], dim=1)
        # A large finite number: exp() of it is exactly 0, and it stays finite in float16.
        bias = ((1.0 - mask) * -3.0e4)[:, None, None, :]
        states = [(text, image)]
        for image_layer, text_layer in zip(self.image_layers, self.text_layers, strict=True):
            image, text = (
                image_layer(image, text, None, bias),
                text_layer(text, image, bias, None),
            )
            states.append((text, image))
        return states, mask

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        attention_mask: Tensor,
        structured_values: Tensor,
        structured_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fuse the streams; inputs as for `states`.

        Returns:
            Fused text (B, F + L, D; structured values first), fused image (B, N, D), and the mask
            of the fused text (B, F + L) float32.
        """
        states, mask = self.states(
            image_tokens, text_tokens, attention_mask, structured_values, structured_mask
        )
        text, image = states[-1]
        return text, image, mask
