"""A small convolutional network without attention: the baseline that a transformer must beat.

It has the model's own convolutional stem and task heads; the mean of the stem's feature map and the
mean of the word embeddings take the place of everything in between. It is trained on the same
batches, pictures, augmentation, losses, optimiser and number of steps as the model of the recipe.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from umd_edge._preprocess import PreprocessSpec
from umd_edge._structured import StructuredField
from umd_edge._task import TaskSpec, output_name
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import UsageError

from ..batches import Batch, epoch_batches, pictures_of, steps_per_epoch
from ..checkpoint import (
    Checkpoint,
    CheckpointError,
    commit,
    load_weights,
    read_settings,
    save_checkpoint,
    write_directory_atomically,
    write_json,
)
from ..config import ModelConfig, model_config
from ..corpus import load_corpus
from ..evaluate import evaluate_task
from ..finetuning import TrainingDivergedError
from ..history import History
from ..losses import batch_loss
from ..models import UMDModel
from ..models.heads import TaskHead
from ..models.vision_encoder import ConvStem
from ..objectives import SupervisedObjective
from ..optim import WeightAverage, build_optimizer, learning_rate
from ..pictures import PictureStore, augment
from ..recipe import Recipe
from ..tokenizer import train_wordpiece

__all__ = ["SmallCNN", "is_cnn", "load_cnn", "train_cnn"]

_STORE_SCALE = 1.25  # as in fine-tuning: room for crops


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
        # the name decides the stem's learning rate (see `build_optimizer`)
        stem = ConvStem(vision.stem_channels, vision.stem_convolutions)
        self.vision_encoder = nn.ModuleDict({"stem": stem})
        self.words = nn.Embedding(config.vocabulary_size, width)
        self.image = nn.Linear(vision.stem_channels[-1], width)
        self.structured = nn.Linear(2 * len(fields), width)
        self.task_heads = nn.ModuleDict(
            {
                output_name(task.name): TaskHead(2 * width, len(task.outputs), config.dropout)
                for task in tasks
            }
        )
        nn.init.normal_(self.words.weight, std=config.initializer_range)

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> the mean of the feature map as one token (B, 1, C), and as (B, C)."""
        mean = self.vision_encoder["stem"](pixel_values).mean(dim=(2, 3))
        return mean[:, None], mean

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) ids and mask -> word embeddings (B, L, D) and their mean (B, D)."""
        tokens = self.words(input_ids)
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


class _Training:
    """One training of the CNN; mirrors a fine-tuning run step by step."""

    def __init__(self, recipe: Recipe, data: Path) -> None:
        self.recipe, self.optim = recipe, recipe.optim
        self.corpus = load_corpus(recipe, data)
        config = model_config(recipe.model)
        tokenizer_json = train_wordpiece(self.corpus.texts, config.vocabulary_size)
        self.tokenizer = TextTokenizer.from_bytes(tokenizer_json, config.max_length)
        config = replace(config, vocabulary_size=self.tokenizer.vocabulary_size)
        self.spec = PreprocessSpec(height=config.image_size, width=config.image_size)
        torch.manual_seed(recipe.seed)
        self.model = SmallCNN(config, self.corpus.tasks, self.corpus.fields)
        self.optimizer = build_optimizer(self.model, self.optim)
        self.average = WeightAverage(self.model, self.optim.average_decay)
        self.objective = SupervisedObjective(recipe, self.corpus)
        self.pictures = pictures_of(recipe, self.corpus)
        self.total = steps_per_epoch(self.pictures, self.optim) * self.optim.epochs
        side = round(self.spec.height * (1.0 if recipe.augment.is_off else _STORE_SCALE))
        paths = [picture.path for picture in self.pictures]
        self.store = PictureStore(paths, side, side, self.spec.coefficient_bits)
        self.checkpoint = Checkpoint(
            model=cast(UMDModel, self.model),
            tokenizer_json=tokenizer_json,
            tasks=self.corpus.tasks,
            structured_fields=self.corpus.fields,
            preprocess=self.spec,
            max_length=config.max_length,
            provenance={
                "baseline": "cnn",
                "created": datetime.now(timezone.utc).replace(microsecond=0).isoformat(),
                "recipe": recipe.to_dict(),
                "commit": commit(),
                "data": self.corpus.sources,
            },
        )

    def run(self, history: History) -> None:
        step = 0
        with tqdm(total=self.total, unit="step", desc=f"{self.recipe.name} (CNN)") as bar:
            for epoch in range(self.optim.epochs):
                for batch in epoch_batches(
                    self.pictures,
                    self.store.index,
                    self.tokenizer,
                    self.optim,
                    self.recipe.seed,
                    epoch,
                ):
                    losses = self._step(batch, step)
                    step += 1
                    history.add(kind="train", step=step, losses=losses)
                    bar.update()

    def _step(self, batch: Batch, step: int) -> dict[str, float]:
        self.model.train()
        seed = self.recipe.seed * 1_000_003 + step
        torch.manual_seed(seed)
        rate = learning_rate(step, self.total, self.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        rng = torch.Generator().manual_seed(seed)
        pixel_values = augment(
            self.store.pixels[batch.rows], batch.flips, self.spec, self.recipe.augment, rng
        )
        loss, named = batch_loss(
            cast(UMDModel, self.model),
            self.objective,
            batch,
            pixel_values,
            self.optim.precision,
            rng,
        )
        if not torch.isfinite(loss.detach()):
            raise TrainingDivergedError(
                f"the CNN baseline's loss is {float(loss)} at step {step + 1}; lower "
                "optim.learning_rate or set optim.precision = float32"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.gradient_clip)
        self.optimizer.step()
        self.average.update(self.model, step + 1)
        return named

    def validate(self) -> dict[str, Any]:
        """Validation metrics of every task, by task and metric name."""
        self.model.load_state_dict(self.weights())
        report: dict[str, Any] = {}
        bits = self.spec.coefficient_bits
        for task, sets in zip(self.corpus.tasks, self.corpus.validation, strict=True):
            examples = [example for part in sets for example in part.examples]
            if not examples:
                continue
            paths = sorted({example.image_path for example in examples})
            store = PictureStore(paths, self.spec.height, self.spec.width, bits)
            model = cast(UMDModel, self.model)
            metrics = evaluate_task(model, task, examples, store, self.tokenizer, self.spec)
            report[task.name] = {name: metric.to_dict() for name, metric in metrics.items()}
        return report

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights, as fine-tuning keeps them."""
        return self.average.tensors if self.optim.average_decay > 0 else self.model.state_dict()


def train_cnn(recipe: Recipe, data: Path, out: Path) -> dict[str, Any]:
    """Train the CNN of a recipe; the run folder is that of `finetune`, without its checkpoints.

    A training that was stopped starts again: it takes a fraction of the model's time.

    Args:
        recipe: As for `finetune`.
        data: Folder of the data sets.
        out: Run folder; what an unfinished training left there is removed.

    Returns:
        Validation metrics at the end, by task.

    Raises:
        UsageError: The folder holds a finished run, or the recipe asks for what a CNN has not.
        TrainingDivergedError: The loss is not finite.
    """
    final = out / "final"
    if final.exists():
        raise UsageError(f"{str(out)!r} already holds a run; give another folder")
    training = _Training(recipe, data)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "recipe.json", json.loads(json.dumps(recipe.to_dict())))
    history = History(out, 0)
    training.run(history)
    metrics = training.validate()
    history.add(kind="validation", step=training.total, tasks=metrics)
    history.draw(out / "curves.png")
    write_json(out / "metrics.json", {"step": training.total, "validation": metrics})
    write_directory_atomically(
        final, lambda path: save_checkpoint(path, training.checkpoint, training.weights())
    )
    return metrics
