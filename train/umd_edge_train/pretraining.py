"""Self-supervised runs: MR-Pretrain on pairs of picture and text, TD-Calib on one downstream set.

A pair is any example of any task of the recipe: its picture with the text that the task reads
(caption, question or prompt). Labels and answers are never used. A task that reads no text
gives pictures alone: its prompt, the same for each, is nothing to learn from, and a picture that
another task has a text for is shown with that. Source: UMD (arXiv 2404.06057).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from umd_edge._preprocess import PreprocessSpec
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import UsageError

from .batches import Batch, Picture
from .checkpoint import load_weights
from .config import ModelConfig
from .losses import Precision, autocast
from .masking import NO_WORD, Vocabulary, word_ids
from .objectives import MultiLevelReconstruction, PairBatch
from .pictures import PictureSource
from .recipe import Recipe
from .run import Run

__all__ = ["Objectives", "PreTraining", "adapt", "pretrain"]

_STUDENT = "model."
_TEACHER = "teacher."
_VALIDATED_PER_BATCH = 64

Objectives = Mapping[str, Callable[[ModelConfig], nn.Module]]
"""Name -> what builds a further objective from the model's sizes."""


class _PairStep(nn.Module):
    """The reconstruction objective on a run's batches."""

    def __init__(
        self,
        objective: MultiLevelReconstruction,
        tokenizer: TextTokenizer,
        precision: Precision,
        prompts: frozenset[str],
    ) -> None:
        super().__init__()
        self.objective = objective
        self.tokenizer = tokenizer
        self.precision: Precision = precision
        self.prompts = prompts

    def pairs(self, texts: list[str], pixel_values: Tensor) -> PairBatch:
        """Pictures with their texts, on the pictures' device; a prompt alone has no words."""
        ids, mask, words = word_ids(self.tokenizer, texts)
        words[[text in self.prompts for text in texts]] = NO_WORD
        device = pixel_values.device
        return PairBatch(pixel_values, ids.to(device), mask.to(device), words.to(device))

    def forward(
        self, batch: Batch, pixel_values: Tensor, rng: torch.Generator, pictures: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss, scaled to the batch's share of all `pictures` of a step, and its parts."""
        pairs = self.pairs([example.text for example in batch.examples], pixel_values)
        with autocast(pixel_values.device, self.precision):
            output = self.objective(pairs, rng)
        loss = output.loss * (len(batch.rows) / pictures)
        if self.objective.config.teacher_update == "micro_batch" and self.training:
            self.objective.update_teacher()
        named = {name: float(part.detach()) for name, part in output.parts.items()}
        return loss, {**named, "loss": float(loss.detach())}


class PreTraining(Run):
    """A self-supervised run; `itm` says whether image-text matching takes part."""

    def __init__(
        self,
        recipe: Recipe,
        data: Path,
        out: Path,
        init: Path | None,
        *,
        itm: bool,
        objectives: Objectives | None = None,
    ) -> None:
        self.itm = itm
        self._further = objectives or {}
        self._init_state = init / "state" if init else None
        # one text for each picture: a pair is masked as a whole
        super().__init__(
            replace(recipe, optim=replace(recipe.optim, texts_per_image=1)), data, out, init
        )
        if self._further:
            self.checkpoint.provenance["objectives"] = sorted(self._further)

    def training_pictures(self) -> list[Picture]:
        """Those of the corpus, each with its texts where it has any."""
        return [self._with_its_texts(picture) for picture in super().training_pictures()]

    def _with_its_texts(self, picture: Picture) -> Picture:
        """A picture that has texts is never shown without."""
        tasks = self.corpus.tasks
        worded = tuple(pair for pair in picture.examples if tasks[pair[0]].text_paths)
        return replace(picture, examples=worded or picture.examples)

    def build(self) -> nn.Module:
        """The model with the heads, the decoder and the teacher of the objective."""
        sizes = self.model.config
        self.objective = MultiLevelReconstruction(
            self.model,
            self.recipe.reconstruction,
            Vocabulary.of(self.tokenizer),
            itm=self.itm,
            objectives={name: make(sizes) for name, make in self._further.items()},
        )
        self._continue_heads()
        return self._pair_step()

    def _pair_step(self) -> _PairStep:
        prompts = frozenset(task.prompt for task in self.corpus.tasks if not task.text_paths)
        return _PairStep(self.objective, self.tokenizer, self.optim.precision, prompts)

    def _continue_heads(self) -> None:
        """Heads and decoder of the run that this one starts from, where they are of this shape."""
        if self._init_state is None or not any(self._init_state.glob("kept*.safetensors")):
            return
        own = self.objective.state_dict()
        given = load_weights(self._init_state, "kept")
        fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
        self.objective.load_state_dict({**own, **fitting}, strict=True)

    def extra_tensors(self) -> dict[str, Tensor]:
        """Heads, decoder and teacher."""
        state = self.objective.state_dict()
        return {name: tensor for name, tensor in state.items() if not name.startswith(_STUDENT)}

    def load_extra(self, tensors: dict[str, Tensor]) -> None:
        """Continue with those of a checkpoint."""
        self.objective.load_state_dict({**self.objective.state_dict(), **tensors}, strict=True)

    def kept_tensors(self) -> dict[str, Tensor]:
        """Heads and decoder, for the calibration that starts from here; it has a new teacher."""
        extra = self.extra_tensors()
        return {name: tensor for name, tensor in extra.items() if not name.startswith(_TEACHER)}

    def after_update(self) -> None:
        """Move the teacher."""
        if self.recipe.reconstruction.teacher_update == "step":
            self.objective.update_teacher()

    def execute(
        self, *, resume: bool = False, on_step: Callable[[int], None] | None = None
    ) -> dict[str, Any]:
        """See `Run.execute`; a run is resumed with the further objectives that it was begun with.

        Raises:
            UsageError: Those given are others.
        """
        given = sorted(self._further)
        saved = sorted((self.out / "checkpoints").glob("step-*/provenance.json"))
        if resume and saved:
            begun = json.loads(saved[-1].read_text(encoding="utf-8")).get("objectives", [])
            if begun != given:
                raise UsageError(
                    f"objectives: {given} given, and the run in {str(self.out)!r} was begun with "
                    f"{begun}; resume with the same, or start in another folder"
                )
        return super().execute(resume=resume, on_step=on_step)

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Losses and accuracies on the validation pairs, under masks that never change."""
        listed = zip(self.corpus.tasks, self.corpus.validation, strict=True)
        # texts last, so that they count where a picture also stands without
        by_text = sorted(listed, key=lambda pair: bool(pair[0].text_paths))
        examples = {e.image_path: e for _, sets in by_text for s in sets for e in s.examples}
        paths = sorted(examples)
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        self.objective.eval()
        step = self._pair_step()
        for start in range(0, len(paths), _VALIDATED_PER_BATCH):
            chosen = paths[start : start + _VALIDATED_PER_BATCH]
            pixel_values = _pixel_values(self.held_out, chosen, self.spec)
            pairs = step.pairs(
                [examples[path].text for path in chosen], pixel_values.to(self.accelerator.device)
            )
            rng = torch.Generator().manual_seed(start)
            with autocast(pairs.pixel_values.device, self.optim.precision):
                output = self.objective(pairs, rng)
            accuracies = {k: v for k, v in output.aux.items() if k.endswith("_accuracy")}
            for name, value in (*output.parts.items(), *accuracies.items()):
                totals[name] = totals.get(name, 0.0) + float(value) * len(chosen)
                counts[name] = counts.get(name, 0) + len(chosen)
        self.objective.train()
        metrics = {
            name: {"value": totals[name] / counts[name], "low": None, "high": None, "n": n}
            for name, n in counts.items()
        }
        return {"reconstruction": metrics} if metrics else {}


def _pixel_values(store: PictureSource, paths: list[Path], spec: PreprocessSpec) -> Tensor:
    return store.pixel_values([store.index[path] for path in paths], spec)


def pretrain(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    init: Path | None = None,
    resume: bool = False,
    on_step: Callable[[int], None] | None = None,
    objectives: Objectives | None = None,
) -> dict[str, Any]:
    """MR-Pretrain: masked picture and text at the level of data and of features, and matching.

    Args:
        recipe: All settings; `[reconstruction]` holds those of the objective.
        data: Folder of the data sets.
        out: Run folder; created. Its `final` also holds heads and decoder, in `state`.
        init: Checkpoint whose weights the model starts from.
        resume: Continue the run in `out`, with the losses of a run that was never stopped.
        on_step: Called after each optimiser step with its number.
        objectives: Further ones; see `MultiLevelReconstruction`. The provenance keeps their names.

    Returns:
        Validation losses and accuracies at the end.

    Raises:
        UsageError: The folder holds another run, or the settings do not fit the model.
        DataError: The data do not fit the recipe.
        TrainingDivergedError: The loss is not finite.
    """
    run = PreTraining(recipe, data, out, init, itm=True, objectives=objectives)
    return run.execute(resume=resume, on_step=on_step)


def _require_one_set(recipe: Recipe) -> None:
    paths = list(dict.fromkeys(str(PurePosixPath(d.path)) for d in recipe.datasets))
    if len(paths) > 1:
        raise UsageError(
            f"datasets.path: {paths} given; adapt calibrates to one downstream set: leave the "
            "others out and adapt to each in a run of its own, or use pretrain with --init for all "
            "of them (several [[datasets]] of one path are allowed)"
        )


def adapt(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    init: Path | None,
    resume: bool = False,
    on_step: Callable[[int], None] | None = None,
    objectives: Objectives | None = None,
) -> dict[str, Any]:
    """TD-Calib: `pretrain` without matching, on the train split of one downstream set.

    Args, returns and errors as `pretrain`; `init` is needed, since this continues a pre-training.
    A recipe whose data sets lie at more than one path is refused (`UsageError`).
    """
    if init is None:
        raise UsageError("adapt continues a pre-training; give its checkpoint as --init")
    _require_one_set(recipe)
    run = PreTraining(recipe, data, out, init, itm=False, objectives=objectives)
    return run.execute(resume=resume, on_step=on_step)
