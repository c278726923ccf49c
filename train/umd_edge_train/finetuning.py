"""Supervised fine-tuning of several tasks on several data sets in one run.

A run folder holds `recipe.json` (every setting), `history.jsonl`, `curves.png`, `metrics.json`,
`checkpoints/step-*` (resumable) and, at the end, `final` (the averaged weights, to be exported).
"""

from __future__ import annotations

import copy
import json
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from umd_edge._preprocess import PreprocessSpec
from umd_edge._task import output_name
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import DataError, UmdEdgeError, UsageError

from .batches import Batch, epoch_batches, pictures_of, steps_per_epoch
from .checkpoint import (
    Checkpoint,
    CheckpointError,
    commit,
    load_checkpoint,
    load_weights,
    read_settings,
    save_checkpoint,
    save_weights,
    settings_of,
    write_directory_atomically,
    write_json,
)
from .config import model_config
from .corpus import Corpus, load_corpus
from .evaluate import evaluate_task
from .history import History
from .losses import batch_loss
from .models import UMDModel
from .objectives import SupervisedObjective
from .optim import WeightAverage, build_optimizer, learning_rate
from .pictures import PictureStore, augment
from .recipe import Recipe
from .tokenizer import published_tokenizer, train_wordpiece

__all__ = ["TrainingDivergedError", "finetune"]

_KEPT_CHECKPOINTS = 2
# Pictures are kept this much larger than the model's input, so that a crop has pixels to spare.
_STORE_SCALE = 1.25


class TrainingDivergedError(UmdEdgeError):
    """The loss is no longer finite; the last good checkpoint is kept."""

    exit_code: ClassVar[int] = 1


def _provenance(recipe: Recipe, corpus: Corpus, parent: str) -> dict[str, Any]:
    return {
        "created": datetime.now(timezone.utc).replace(microsecond=0).isoformat(),
        "recipe": recipe.to_dict(),
        "commit": commit(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "initialised_from": parent,
        "data": corpus.sources,
    }


class FineTuning:
    """One run: everything that changes from step to step, and how it is saved."""

    def __init__(self, recipe: Recipe, data: Path, out: Path, init: Path | None) -> None:
        self.recipe, self.out = recipe, out
        self.optim = recipe.optim
        parent = load_checkpoint(init) if init else None
        self.corpus = load_corpus(
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
            tokenizer_json = train_wordpiece(self.corpus.texts, config.vocabulary_size)
        self.tokenizer = TextTokenizer.from_bytes(tokenizer_json, config.max_length)
        config = replace(config, vocabulary_size=self.tokenizer.vocabulary_size)
        self.spec = PreprocessSpec(height=config.image_size, width=config.image_size)
        torch.manual_seed(recipe.seed)
        self.model = UMDModel(config, self.corpus.tasks, self.corpus.fields)
        if parent:
            self._initialise_from(parent)
        self.optimizer = build_optimizer(self.model, self.optim)
        self.average = WeightAverage(self.model, self.optim.average_decay)
        self.objective = SupervisedObjective(recipe, self.corpus)
        self.pictures = pictures_of(recipe, self.corpus)
        self.per_epoch = steps_per_epoch(self.pictures, self.optim)
        self.total = self.per_epoch * self.optim.epochs
        if not self.total:
            raise DataError(f"{len(self.pictures)} training pictures; at least 2 are needed")
        self.step = 0
        self.checkpoint = Checkpoint(
            model=self.model,
            tokenizer_json=tokenizer_json,
            tasks=self.corpus.tasks,
            structured_fields=self.corpus.fields,
            preprocess=self.spec,
            max_length=config.max_length,
            provenance=_provenance(recipe, self.corpus, str(init.name) if init else ""),
        )

    def _initialise_from(self, parent: Checkpoint) -> None:
        """Take over the parent's weights; heads of tasks with other outputs start anew."""
        own = self.model.state_dict()
        outputs = {output_name(task.name): task.outputs for task in parent.tasks}
        anew = tuple(
            f"task_heads.{output_name(task.name)}."
            for task in self.corpus.tasks
            if outputs.get(output_name(task.name)) != task.outputs
        )
        if self.corpus.fields != parent.structured_fields:
            anew += ("fusion.structured.",)
        given = parent.model.state_dict()
        fitting = {
            key: value
            for key, value in given.items()
            if key in own and own[key].shape == value.shape and not key.startswith(anew)
        }
        bad = [key for key in own if key not in fitting and not key.startswith(anew)]
        if bad:
            raise CheckpointError(
                f"the initial checkpoint does not fit this model: {len(bad)} tensors differ, such "
                f"as {bad[0]!r}; use the same [model] settings"
            )
        self.model.load_state_dict({**own, **fitting}, strict=True)

    # --- pictures -------------------------------------------------------------------------------

    def load_pictures(self) -> None:
        """Read training and validation pictures."""
        scale = 1.0 if self.recipe.augment.is_off else _STORE_SCALE
        side, bits = round(self.spec.height * scale), self.spec.coefficient_bits
        train = [picture.path for picture in self.pictures]
        self.store = PictureStore(train, side, side, bits)
        held_out = sorted(
            {e.image_path for sets in self.corpus.validation for s in sets for e in s.examples}
        )
        self.held_out = PictureStore(held_out, self.spec.height, self.spec.width, bits)

    # --- one step -------------------------------------------------------------------------------

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; all randomness comes from the seed and the step's number."""
        self.model.train()
        seed = self.recipe.seed * 1_000_003 + self.step
        torch.manual_seed(seed)
        rate = learning_rate(self.step, self.total, self.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        rng = torch.Generator().manual_seed(seed)
        pixel_values = augment(
            self.store.pixels[batch.rows], batch.flips, self.spec, self.recipe.augment, rng
        )
        loss, named = batch_loss(
            self.model, self.objective, batch, pixel_values, self.optim.precision, rng
        )
        self._require_finite("loss", loss.detach())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.gradient_clip)
        self._require_finite("gradient", norm)
        self.optimizer.step()
        self.step += 1
        self.average.update(self.model, self.step)
        return named

    def _require_finite(self, what: str, value: Tensor) -> None:
        if not torch.isfinite(value):
            raise TrainingDivergedError(
                f"the {what} is {float(value)} at step {self.step + 1}; checkpoints up to here are "
                f"kept in {str(self.out / 'checkpoints')!r}: start a run in another folder from "
                "the last one (--init) with a lower optim.learning_rate or with "
                "optim.precision = float32"
            )

    # --- evaluation -----------------------------------------------------------------------------

    def averaged_model(self) -> UMDModel:
        """A copy of the model with the averaged weights."""
        model = copy.deepcopy(self.model)
        if self.optim.average_decay > 0:
            model.load_state_dict(self.average.tensors, strict=True)
        return model.eval()

    def validate(self) -> dict[str, Any]:
        """Validation metrics of every task, by task and metric name."""
        model = self.averaged_model()
        report: dict[str, Any] = {}
        for task, sets in zip(self.corpus.tasks, self.corpus.validation, strict=True):
            if task.kind == "retrieval":  # ranked by its own evaluation, not by these metrics
                continue
            examples = [e for s in sets for e in s.examples]
            parts = {"": examples}
            if len(sets) > 1:
                names = self.objective.training[self.corpus.tasks.index(task)].datasets
                parts = {f"/{n}": list(s.examples) for n, s in zip(names, sets, strict=True)}
            for suffix, part in parts.items():
                if not part:
                    continue
                metrics = evaluate_task(model, task, part, self.held_out, self.tokenizer, self.spec)
                report[task.name + suffix] = {k: v.to_dict() for k, v in metrics.items()}
        return report

    # --- saving and resuming --------------------------------------------------------------------

    def save(self) -> None:
        """Write a resumable checkpoint and drop all but the newest two."""
        folder = self.out / "checkpoints" / f"step-{self.step:07d}"

        def write(path: Path) -> None:
            save_checkpoint(path, self.checkpoint, self.average.tensors)
            state = path / "state"
            state.mkdir()
            save_weights(state, self.model.state_dict(), "weights")
            moments: dict[str, Tensor] = {}
            for index, entry in self.optimizer.state_dict()["state"].items():
                moments.update({f"{index}.{key}": value for key, value in entry.items()})
            save_weights(state, moments, "optimizer")
            (state / "run.json").write_text(json.dumps({"step": self.step}), encoding="utf-8")

        write_directory_atomically(folder, write)
        kept = sorted((self.out / "checkpoints").glob("step-*"))
        for old in kept[:-_KEPT_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)

    def resume(self) -> bool:
        """Continue from the newest checkpoint; False where there is none."""
        folders = sorted((self.out / "checkpoints").glob("step-*"))
        if not folders:
            return False
        provenance = json.loads((folders[-1] / "provenance.json").read_text(encoding="utf-8"))
        if (
            read_settings(folders[-1]) != settings_of(self.checkpoint)
            or provenance["data"] != self.corpus.sources
        ):
            raise UsageError(
                f"{str(folders[-1])!r} has other data, another model or another vocabulary than "
                "this run; resume with the same data and the same --init, or start in another "
                "folder"
            )
        state = folders[-1] / "state"
        self.model.load_state_dict(load_weights(state, "weights"), strict=True)
        self.average.load(load_weights(folders[-1]))
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in load_weights(state, "optimizer").items():
            index, name = key.split(".", 1)
            entries.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.step = int(json.loads((state / "run.json").read_text(encoding="utf-8"))["step"])
        return True

    def save_final(self, metrics: dict[str, Any]) -> None:
        """Write the averaged weights as the run's result, with its metrics."""
        provenance = {**self.checkpoint.provenance, "step": self.step, "validation": metrics}
        final = replace(self.checkpoint, provenance=provenance)
        tensors = self.averaged_model().state_dict()
        write_directory_atomically(
            self.out / "final", lambda path: save_checkpoint(path, final, tensors)
        )


def _start(run: FineTuning, resume: bool) -> None:
    """Check the run folder against what was asked, and load a checkpoint to resume from."""
    saved = run.out / "recipe.json"
    recipe = json.loads(json.dumps(run.recipe.to_dict()))
    if resume:
        if saved.exists() and json.loads(saved.read_text(encoding="utf-8")) != recipe:
            raise UsageError(
                f"{saved} differs from the recipe given; resume with the same settings, or start "
                "in another folder"
            )
        if not run.resume():
            tqdm.write("no checkpoint to resume from; starting afresh", file=sys.stderr)
    elif (run.out / "checkpoints").exists():
        raise UsageError(
            f"{run.out} already holds a run; continue it with --resume or give another folder"
        )
    run.out.mkdir(parents=True, exist_ok=True)
    write_json(saved, recipe)


def finetune(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    init: Path | None = None,
    resume: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train, evaluate and save.

    Args:
        recipe: All settings.
        data: Folder of the data sets.
        out: Run folder; created.
        init: Checkpoint whose weights the model starts from.
        resume: Continue the run in `out` where its newest checkpoint stands; the losses are those
            of a run that was never stopped.
        on_step: Called after each optimiser step with its number.

    Returns:
        Validation metrics at the end, by task.

    Raises:
        UsageError: The folder holds another run.
        DataError: The data do not fit the recipe.
        TrainingDivergedError: The loss is not finite.
    """
    run = FineTuning(recipe, data, out, init)
    _start(run, resume)
    history = History(out, run.step)
    run.load_pictures()
    metrics: dict[str, Any] = {}
    with tqdm(
        total=run.total, initial=run.step, unit="step", desc=recipe.name, smoothing=0.05
    ) as bar:
        while run.step < run.total:
            epoch, skip = divmod(run.step, run.per_epoch)
            batches = epoch_batches(
                run.pictures, run.store.index, run.tokenizer, run.optim, recipe.seed, epoch
            )
            for position, batch in enumerate(batches):
                if position < skip:
                    continue
                losses = run.train_step(batch)
                history.add(kind="train", step=run.step, losses=losses)
                bar.set_postfix(epoch=epoch + 1, loss=f"{losses['loss']:.3f}")
                bar.update()
                at_end = run.step == run.total
                if at_end or run.step % (run.per_epoch * recipe.run.evaluate_every_epochs) == 0:
                    metrics = run.validate()
                    history.add(kind="validation", step=run.step, tasks=metrics)
                    history.draw(out / "curves.png")
                if at_end or run.step % recipe.run.checkpoint_every_steps == 0:
                    run.save()
                if on_step:
                    on_step(run.step)
    if not metrics:
        metrics = run.validate()
    write_json(out / "metrics.json", {"step": run.step, "validation": metrics})
    history.draw(out / "curves.png")
    run.save_final(metrics)
    return metrics
