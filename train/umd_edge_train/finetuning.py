"""Supervised fine-tuning of several tasks on several data sets in one run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from umd_edge._evaluation import MetricValue
from umd_edge._records import Example
from umd_edge._retrieval_metrics import RetrievalItems, retrieval_items, retrieval_metrics

from .evaluate import evaluate_task
from .gm_coord import GradientCoordination
from .losses import SupervisedStep
from .models import UMDModel
from .objectives import SupervisedObjective
from .recipe import Recipe
from .retrieval import score_items
from .run import Run, TrainingDivergedError

__all__ = [
    "FineTuning",
    "TrainingDivergedError",
    "finetune",
]

# As many as the published protocol ranks. More would take longer than an epoch, and the pairs of a
# large set are too many to be ranked at once.
_RANKED_RECORDS = 2000


class FineTuning(Run):
    """A supervised run, with its modalities coordinated where the recipe says so."""

    def __init__(self, recipe: Recipe, data: Path, out: Path, init: Path | None) -> None:
        super().__init__(recipe, data, out, init)
        self.coordination = GradientCoordination(self.model, recipe.coordination, self.optimizer)
        self._step.observe = self.coordination.observe
        self._pools: dict[str, RetrievalItems] = {}

    def build(self) -> nn.Module:
        """Model and supervised objective."""
        self.objective = SupervisedObjective(self.recipe, self.corpus, self.tokenizer)
        self._step = SupervisedStep(self.model, self.objective, self.optim.precision)
        return self._step

    def before_part(self) -> None:
        """Each part of a batch has its own scores."""
        self.coordination.begin_micro_batch()

    def before_update(self, rng: torch.Generator) -> None:
        """Turn the scores into coefficients."""
        self.coordination.before_update(rng)

    def after_update(self) -> None:
        """Scale the optimiser's update, where that is how the coefficients act."""
        self.coordination.after_update()

    def notes(self) -> dict[str, Any]:
        """Ratio and coefficients of a coordinated step."""
        report = self.coordination.report()
        return {"coordination": report} if report else {}

    def extra_tensors(self) -> dict[str, Tensor]:
        """The probes of the coordination, where it has any."""
        return self.coordination.state_dict()

    def load_extra(self, tensors: dict[str, Tensor]) -> None:
        """Continue with those of a checkpoint."""
        self.coordination.load_state_dict(tensors)

    def validate(self) -> dict[str, Any]:
        """Validation metrics of every task, by task and metric name."""
        model = self.averaged_model()
        report: dict[str, Any] = {}
        for task, sets in zip(self.corpus.tasks, self.corpus.validation, strict=True):
            examples = [e for s in sets for e in s.examples]
            parts = {"": examples}
            if len(sets) > 1:
                names = self.objective.training[self.corpus.tasks.index(task)].datasets
                parts = {f"/{n}": list(s.examples) for n, s in zip(names, sets, strict=True)}
            for suffix, part in parts.items():
                if not part:
                    continue
                name = task.name + suffix
                if task.kind == "retrieval":
                    metrics = self._validate_retrieval(model, name, part)
                else:
                    metrics = evaluate_task(
                        model, task, part, self.held_out, self.tokenizer, self.spec
                    )
                report[name] = {k: v.to_dict() for k, v in metrics.items()}
        return report

    def _validate_retrieval(
        self, model: UMDModel, name: str, examples: Sequence[Example]
    ) -> dict[str, MetricValue]:
        if name not in self._pools:  # finding equal pictures reads them all
            self._pools[name] = retrieval_items(_ranked(name, examples))
        items = self._pools[name]
        scores = score_items(model, items, self.held_out, self.tokenizer, self.spec)
        return retrieval_metrics(items, scores)


def _ranked(name: str, examples: Sequence[Example]) -> Sequence[Example]:
    """The validation records of a retrieval task, or as many of them as are ranked."""
    if len(examples) <= _RANKED_RECORDS:
        return examples
    tqdm.write(
        f"{name}: validation ranks {_RANKED_RECORDS} of {len(examples)} records, the same ones in "
        "every run; `umd-edge-train evaluate` and `report` rank all",
        file=sys.stderr,
    )
    # not by the recipe's seed: arms and seeds are compared by these figures
    rows = np.random.default_rng(0).choice(len(examples), _RANKED_RECORDS, replace=False)
    return [examples[row] for row in sorted(rows.tolist())]


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
    return FineTuning(recipe, data, out, init).execute(resume=resume, on_step=on_step)
