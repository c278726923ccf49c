"""A small convolutional network without attention: the baseline that a transformer must beat.

It has the model's own convolutional stem and task heads; the mean of the stem's feature map and the
mean of the word embeddings take the place of everything in between. It is trained on the same
batches, pictures, augmentation, losses, optimiser and number of steps as the model of the recipe.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from umd_edge._structured import StructuredField
from umd_edge._task import TaskSpec, output_name
from umd_edge.errors import UsageError

from ..checkpoint import Checkpoint, CheckpointError, load_weights, read_settings
from ..config import ModelConfig
from ..evaluate import evaluate_task
from ..losses import SupervisedStep
from ..models import UMDModel
from ..models.heads import TaskHead
from ..models.vision_encoder import ConvStem
from ..objectives import SupervisedObjective
from ..recipe import Recipe
from ..run import Run

__all__ = ["SmallCNN", "is_cnn", "load_cnn", "train_cnn"]


class SmallCNN(nn.Module):
    """Stem, mean, bag of words and task heads, called in the way of `UMDModel`.

    Args:
        config: Sizes; those of the transformer parts are not used.
        tasks: One head each.
        fields: Structured values; at least one.

    Raises:
        UsageError: The config has no convolutional stem, or a task is retrieval.
    """

    def __init__(
        self,
        config: ModelConfig,
        tasks: tuple[TaskSpec, ...],
        fields: tuple[StructuredField, ...],
    ) -> None:
        super().__init__()
        if config.vision.stem != "conv":
            raise UsageError("the CNN baseline needs model.vision.stem = 'conv'")
        if any(task.kind == "retrieval" for task in tasks):
            raise UsageError("the CNN baseline answers and classifies; leave retrieval tasks out")
        self.config = config
        width = config.fusion.hidden_size
        vision = config.vision
        # names decide how `build_optimizer` treats the stem, the words and the heads
        stem = ConvStem(vision.stem_channels, vision.stem_convolutions)
        self.vision_encoder = nn.ModuleDict({"stem": stem})
        self.word_embeddings = nn.Embedding(config.vocabulary_size, width)
        self.image = nn.Linear(vision.stem_channels[-1], width)
        self.structured = nn.Linear(2 * len(fields), width)
        self.task_heads = nn.ModuleDict(
            {
                output_name(task.name): TaskHead(2 * width, len(task.outputs), config.dropout)
                for task in tasks
            }
        )
        nn.init.normal_(self.word_embeddings.weight, std=config.initializer_range)

    def enable_gradient_checkpointing(self) -> None:
        """Nothing to do: it has no deep encoder."""

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> the mean of the feature map as one token (B, 1, C), and as (B, C)."""
        mean = self.vision_encoder["stem"](pixel_values).mean(dim=(2, 3))
        return mean[:, None], mean

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) ids and mask -> word embeddings (B, L, D) and their mean (B, D)."""
        tokens = self.word_embeddings(input_ids)
        weight = attention_mask[..., None].to(tokens.dtype)
        return tokens, (tokens * weight).sum(dim=1) / weight.sum(dim=1)

    def fuse_tokens(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        attention_mask: Tensor,
        structured_values: Tensor,
        structured_mask: Tensor,
    ) -> Tensor:
        """Joint vectors (B, 2 D): words and structured values, then picture."""
        weight = attention_mask[..., None].to(text_tokens.dtype)
        text = (text_tokens * weight).sum(dim=1) / weight.sum(dim=1)
        shown = torch.cat([structured_values * structured_mask, structured_mask], dim=1)
        return torch.cat([text + self.structured(shown), self.image(image_tokens[:, 0])], dim=-1)


def is_cnn(folder: Path) -> bool:
    """Whether a checkpoint is that of a `SmallCNN`.

    Raises:
        CheckpointError: The folder holds no readable provenance.
    """
    try:
        provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} holds no readable provenance.json"
        ) from error
    return bool(provenance.get("baseline") == "cnn")


def load_cnn(folder: Path) -> Checkpoint:
    """Load what `train_cnn` wrote, for evaluation only.

    Raises:
        CheckpointError: A file is missing or damaged, or the weights do not fit.
    """
    settings = read_settings(folder)
    with torch.random.fork_rng(devices=[]):
        model = SmallCNN(settings.model, settings.tasks, settings.structured_fields)
    try:
        model.load_state_dict(load_weights(folder), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r}: weights do not fit") from error
    model.eval()
    return Checkpoint(
        model=cast(UMDModel, model),
        tokenizer_json=settings.tokenizer_json,
        tasks=settings.tasks,
        structured_fields=settings.structured_fields,
        preprocess=settings.preprocess,
        max_length=settings.max_length,
        provenance=json.loads((folder / "provenance.json").read_text(encoding="utf-8")),
    )


class CNNRun(Run):
    """A fine-tuning run with the CNN in the model's place."""

    def __init__(self, recipe: Recipe, data: Path, out: Path) -> None:
        super().__init__(recipe, data, out, init=None)
        provenance = {**self.checkpoint.provenance, "baseline": "cnn"}
        self.checkpoint = replace(self.checkpoint, provenance=provenance)

    def build(self) -> nn.Module:
        """The CNN and the supervised objective; the model itself is let go."""
        torch.manual_seed(self.recipe.seed)
        cnn = SmallCNN(self.model.config, self.corpus.tasks, self.corpus.fields)
        self.model = cast(UMDModel, cnn)
        objective = SupervisedObjective(self.recipe, self.corpus, self.tokenizer)
        return SupervisedStep(self.model, objective, self.optim.precision)

    def validate(self) -> dict[str, Any]:
        """Validation metrics of every task, by task and metric name."""
        model = self.averaged_model()
        report: dict[str, Any] = {}
        for task, sets in zip(self.corpus.tasks, self.corpus.validation, strict=True):
            examples = [example for part in sets for example in part.examples]
            if examples:
                metrics = evaluate_task(
                    model, task, examples, self.held_out, self.tokenizer, self.spec
                )
                report[task.name] = {name: value.to_dict() for name, value in metrics.items()}
        return report


def train_cnn(recipe: Recipe, data: Path, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train the CNN of a recipe; the run folder is that of `finetune`.

    Args:
        recipe: As for `finetune`.
        data: Folder of the data sets.
        out: Run folder; created.
        resume: Continue the run in `out` where its newest checkpoint stands.

    Returns:
        Validation metrics at the end, by task.

    Raises:
        UsageError: The folder holds another run, or the recipe asks for what a CNN has not.
        DataError: The data do not fit the recipe.
        TrainingDivergedError: The loss is not finite.
    """
    return CNNRun(recipe, data, out).execute(resume=resume)
