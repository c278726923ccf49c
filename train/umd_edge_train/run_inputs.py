"""What a run begins with: its data, its vocabulary, and the checkpoint before it."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from umd_edge._preprocess import PreprocessSpec
from umd_edge._tokenizer import TextTokenizer

from .checkpoint import Checkpoint, commit, load_checkpoint
from .config import ModelConfig, model_config
from .corpus import Corpus, load_corpus
from .lineage import BEFORE, ancestor, distinct_sources, weights_of
from .models import UMDModel
from .recipe import Recipe
from .split_scheme import split_scheme
from .tokenizer import published_tokenizer, train_wordpiece

__all__ = ["RunInputs", "read_inputs"]


@dataclass(frozen=True)
class RunInputs:
    """Everything that is read before the model is made."""

    parent: Checkpoint | None
    """The checkpoint that the run starts from."""
    corpus: Corpus
    config: ModelConfig
    """The recipe's, with the size of the vocabulary as it came out."""
    tokenizer_json: bytes = field(repr=False)
    """The parent's, the published encoder's, or one trained on the corpus."""
    tokenizer: TextTokenizer
    preprocess: PreprocessSpec
    provenance: dict[str, Any] = field(repr=False)
    """All of it but the data."""
    before: dict[str, Any] = field(repr=False)
    """What the parent learnt from, as an entry of the data; empty without one."""

    def checkpoint(self, model: UMDModel, corpus: Corpus) -> Checkpoint:
        """The checkpoint of a run whose model is this one.

        `corpus` is that of the run, whose sources may have grown by those behind its teachers.
        """
        data = {**corpus.sources, **self.before}
        bound = sum(
            int(entry.get("non_commercial_records", 0)) for entry in distinct_sources(data).values()
        )
        return Checkpoint(
            model=model,
            tokenizer_json=self.tokenizer_json,
            tasks=corpus.tasks,
            structured_fields=corpus.fields,
            preprocess=self.preprocess,
            max_length=self.config.max_length,
            provenance={**self.provenance, "data": data, "non_commercial": bound > 0},
        )


def read_inputs(recipe: Recipe, data: Path, init: Path | None) -> RunInputs:
    """Read data and parent, and train a tokenizer where neither parent nor encoder has one.

    Args:
        recipe: All settings.
        data: Folder of the data sets.
        init: Checkpoint that the run starts from.

    Raises:
        DataError: The data do not fit the recipe.
        CheckpointError: The checkpoint is missing or incomplete.
    """
    parent = load_checkpoint(init) if init else None
    corpus = load_corpus(
        recipe,
        data,
        parent.tasks if parent else (),
        parent.structured_fields if parent else (),
    )
    config = model_config(recipe.model)
    if parent:
        tokenizer_json = parent.tokenizer_json
    elif config.text.pretrained:
        tokenizer_json = published_tokenizer(config.text.pretrained)
    else:
        tokenizer_json = train_wordpiece(corpus.texts, config.vocabulary_size)
    tokenizer = TextTokenizer.from_bytes(tokenizer_json, config.max_length)
    return RunInputs(
        parent=parent,
        corpus=corpus,
        config=replace(config, vocabulary_size=tokenizer.vocabulary_size),
        tokenizer_json=tokenizer_json,
        tokenizer=tokenizer,
        preprocess=PreprocessSpec(
            height=config.image_size,
            width=config.image_size,
            mean=recipe.normalise.mean,
            std=recipe.normalise.std,
        ),
        provenance=_provenance(recipe, data, str(init.name) if init else ""),
        before=_before(parent, init),
    )


def _before(parent: Checkpoint | None, init: Path | None) -> dict[str, Any]:
    if parent is None or init is None:
        return {}
    return {BEFORE: ancestor(parent.provenance.get("data", {}), weights_of(init))}


def _provenance(recipe: Recipe, data: Path, parent: str) -> dict[str, Any]:
    return {
        "created": datetime.now(timezone.utc).replace(microsecond=0).isoformat(),
        "recipe": recipe.to_dict(),
        "commit": commit(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "initialised_from": parent,
        "splits": {d.name: split_scheme(data / d.path) for d in recipe.datasets},
    }
