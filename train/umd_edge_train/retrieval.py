"""Evaluation of a torch model's retrieval by the runtime's own scores and metrics.

The paper's evaluation runs the whole model for every pair. Here pictures and texts are encoded once
each, and the fusion runs for the shortlists of two-stage ranking, as on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from umd_edge._defaults import CANDIDATES
from umd_edge._evaluation import MetricValue
from umd_edge._preprocess import PreprocessSpec
from umd_edge._rank import Method, PairScores, score_pairs
from umd_edge._records import Example
from umd_edge._retrieval_metrics import RetrievalItems, retrieval_items, retrieval_metrics
from umd_edge._tokenizer import TextTokenizer

from .devices import device_of
from .models import UMDModel
from .pictures import PictureSource, PictureStore
from .progress import Bar, late_bar

__all__ = ["evaluate_retrieval_task", "score_items"]

_ITEMS_PER_BATCH = 64
_PAIRS_PER_BATCH = 128


def _encode_images(
    model: UMDModel, items: RetrievalItems, store: PictureSource, spec: PreprocessSpec, bar: Bar
) -> tuple[Tensor, Tensor]:
    """Tokens (I, N, D) and embeddings (I, E), on the CPU."""
    device = device_of(model)
    tokens, embeddings = [], []
    for start in range(0, len(items.images), _ITEMS_PER_BATCH):
        rows = [store.index[path] for path in items.images[start : start + _ITEMS_PER_BATCH]]
        batch = model.encode_image(store.pixel_values(rows, spec).to(device))
        tokens.append(batch[0].cpu())
        embeddings.append(batch[1].float().cpu())
        bar.update(len(rows))
    return torch.cat(tokens), torch.cat(embeddings)


def _encode_texts(
    model: UMDModel, items: RetrievalItems, tokenizer: TextTokenizer, bar: Bar
) -> tuple[list[Tensor], Tensor]:
    """Tokens (L, D) of each text, without padding, and embeddings (T, E), on the CPU."""
    device = device_of(model)
    tokens, embeddings = [], []
    for start in range(0, len(items.texts), _ITEMS_PER_BATCH):
        ids, mask = tokenizer.encode(items.texts[start : start + _ITEMS_PER_BATCH])
        batch, embedding = model.encode_text(
            torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
        )
        lengths = mask.sum(axis=1).tolist()
        tokens += [row[:length] for row, length in zip(batch.cpu(), lengths, strict=True)]
        embeddings.append(embedding.float().cpu())
        bar.update(len(ids))
    return tokens, torch.cat(embeddings)


def _match_logits(
    model: UMDModel, image_tokens: Tensor, text_tokens: Sequence[Tensor]
) -> npt.NDArray[np.float32]:
    """`match_logit` (P,) of pictures (P, N, D) and as many texts (L, D)."""
    device = device_of(model)
    tokens = pad_sequence(list(text_tokens), batch_first=True)
    mask = pad_sequence(
        [torch.ones(len(one), dtype=torch.long) for one in text_tokens], batch_first=True
    )
    missing = torch.zeros(len(text_tokens), model.num_fields, device=device)
    joint = model.fuse_tokens(
        image_tokens.to(device), tokens.to(device), mask.to(device), missing, missing
    )
    logits: npt.NDArray[np.float32] = model.match_head(joint)[:, 0].float().cpu().numpy()
    return logits


@torch.inference_mode()
def score_items(
    model: UMDModel,
    items: RetrievalItems,
    store: PictureSource,
    tokenizer: TextTokenizer,
    spec: PreprocessSpec,
    *,
    method: Method = "two_stage",
    candidates: int = CANDIDATES,
) -> PairScores:
    """Score the pictures and texts of a pool; structured values are missing to the model.

    The model computes on its own device. What it made of pictures and texts waits in main memory,
    so that a pool of any size needs no more of the device than one batch.

    Args:
        model: Put into evaluation mode.
        items: The pool.
        store: Holds the pictures of the pool.
        tokenizer: The model's.
        spec: The model's preprocessing.
        method: As in `Predictor.rank`.
        candidates: As in `Predictor.rank`.

    Raises:
        InferenceError: The model gives something that is not finite.
    """
    model.eval()
    with late_bar(len(items.images) + len(items.texts), "encoding", "item") as bar:
        image_tokens, image_embeddings = _encode_images(model, items, store, spec, bar)
        text_tokens, text_embeddings = _encode_texts(model, items, tokenizer, bar)

    def fuse(
        images: npt.NDArray[np.int64], texts: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        result = np.empty(len(images), np.float32)
        with late_bar(len(images), "fusing", "pair") as bar:
            for start in range(0, len(images), _PAIRS_PER_BATCH):
                rows = slice(start, start + _PAIRS_PER_BATCH)
                chosen = [text_tokens[text] for text in texts[rows].tolist()]
                pictures = image_tokens[torch.from_numpy(images[rows])]
                result[rows] = _match_logits(model, pictures, chosen)
                bar.update(len(chosen))
        return result

    return score_pairs(
        image_embeddings.numpy(),
        text_embeddings.numpy(),
        fuse,
        method=method,
        candidates=candidates,
    )


def evaluate_retrieval_task(
    model: UMDModel,
    examples: Sequence[Example],
    tokenizer: TextTokenizer,
    spec: PreprocessSpec,
    store: PictureSource | None = None,
) -> dict[str, MetricValue]:
    """Metrics of a retrieval task by two-stage ranking; see `umd_edge._retrieval_metrics`.

    Args:
        model: Computes on its own device.
        examples: Pictures with their texts.
        tokenizer: The model's.
        spec: The model's preprocessing.
        store: Holds the pictures of the examples; they are read where None.

    Raises:
        DataError: A picture cannot be read.
    """
    items = retrieval_items(examples)
    if store is None:
        store = PictureStore(items.images, spec.height, spec.width, spec.coefficient_bits)
    return retrieval_metrics(items, score_items(model, items, store, tokenizer, spec))
