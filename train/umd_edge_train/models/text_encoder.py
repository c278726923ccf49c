"""The text encoder: token ids to text tokens, a `transformers` BERT or RoBERTa."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, BertConfig, BertModel, RobertaConfig, RobertaModel

from ..config import ModelConfig
from .pretrained import check_sizes, copy_weights, load_published

__all__ = ["TextEncoder"]

# RoBERTa leaves the first rows of its position table unused.
_ROBERTA_OFFSET = 2
_SIZES = {
    "architecture": "model_type",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}


def _adapt(name: str, published: Tensor, own: Tensor) -> Tensor:
    """Shorter texts, fewer words and a single type of token need only a table's first rows."""
    return published[: len(own)] if name.endswith("_embeddings.weight") else published


def _build(config: ModelConfig) -> nn.Module:
    text = config.text
    positions = text.positions or config.max_length
    sizes: dict[str, Any] = {
        "vocab_size": config.vocabulary_size,
        "hidden_size": text.hidden_size,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "intermediate_size": text.intermediate_size,
        "hidden_act": text.activation,
        "layer_norm_eps": text.layer_norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": config.initializer_range,
    }
    if text.architecture == "bert":
        settings = BertConfig(max_position_embeddings=positions, **sizes)
        return cast(nn.Module, BertModel(settings, add_pooling_layer=False))
    settings = RobertaConfig(
        max_position_embeddings=positions + _ROBERTA_OFFSET,
        # No row is special: a WordPiece vocabulary and RoBERTa's own pad with different ids.
        pad_token_id=None,
        type_vocab_size=1,
        **sizes,
    )
    return cast(nn.Module, RobertaModel(settings, add_pooling_layer=False))


class TextEncoder(nn.Module):
    """Token ids to one vector a token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = _build(config)
        self.hidden_size = config.text.hidden_size
        # Positions count from the first token. RoBERTa would count from the padding id, which is
        # the same where padding stands last, and wrong for a vocabulary that pads with another id.
        self.position_offset = _ROBERTA_OFFSET if config.text.architecture == "roberta" else 0
        if config.text.pretrained:
            self._fill(config)

    def _fill(self, config: ModelConfig) -> None:
        text, setting = config.text, "model.text.pretrained"
        name = text.pretrained
        found = load_published(setting, name, lambda: AutoConfig.from_pretrained(name))
        check_sizes(
            "text",
            {own: getattr(text, own) for own in _SIZES},
            {own: getattr(found, theirs, None) for own, theirs in _SIZES.items()},
        )
        cls = {"bert": BertModel, "roberta": RobertaModel}[text.architecture]
        published = load_published(
            setting, name, lambda: cls.from_pretrained(name, add_pooling_layer=False)
        )
        copy_weights("text", self.backbone, published, _adapt)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) int64 ids and mask (1 = real token) -> (B, L, D) float32."""
        positions: dict[str, Tensor] = {}
        if self.position_offset:
            length = torch.arange(input_ids.shape[1], device=input_ids.device)
            positions["position_ids"] = (length + self.position_offset)[None]
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **positions)
        return cast(Tensor, output.last_hidden_state)
