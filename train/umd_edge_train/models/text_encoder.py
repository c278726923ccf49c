"""The text encoder: token ids to text tokens, a `transformers` BERT or RoBERTa."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel, RobertaConfig, RobertaModel

from umd_edge.errors import UsageError

from ..config import ModelConfig

__all__ = ["TextEncoder"]


class TextEncoder(nn.Module):
    """Token ids to one vector a token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text
        if text.pretrained:
            self.backbone = AutoModel.from_pretrained(text.pretrained, add_pooling_layer=False)
        else:
            sizes = {
                "vocab_size": config.vocabulary_size,
                "hidden_size": text.hidden_size,
                "num_hidden_layers": text.num_layers,
                "num_attention_heads": text.num_heads,
                "intermediate_size": text.intermediate_size,
                "hidden_dropout_prob": config.dropout,
                "attention_probs_dropout_prob": 0.0,
            }
            if text.architecture == "bert":
                self.backbone = BertModel(
                    BertConfig(max_position_embeddings=config.max_length, **sizes),
                    add_pooling_layer=False,
                )
            else:
                # RoBERTa counts positions from padding_idx + 1
                self.backbone = RobertaModel(
                    RobertaConfig(
                        max_position_embeddings=config.max_length + 2,
                        pad_token_id=1,
                        type_vocab_size=1,
                        **sizes,
                    ),
                    add_pooling_layer=False,
                )
        self.hidden_size = int(self.backbone.config.hidden_size)
        if self.hidden_size != text.hidden_size:
            raise UsageError(
                f"model.text.hidden_size is {text.hidden_size}, and the checkpoint's is "
                f"{self.hidden_size}; set it to the checkpoint's"
            )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) int64 ids and mask (1 = real token) -> (B, L, D) float32."""
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        return cast(Tensor, output.last_hidden_state)
