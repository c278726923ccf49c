"""What missing a label costs, set on a finished checkpoint (`TaskTraining.label_cost`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from umd_edge._task import output_name
from umd_edge.errors import UsageError

from .checkpoint import Checkpoint
from .evaluate import find_task
from .objectives.supervised import label_lean
from .task_training import TaskTraining

__all__ = ["set_label_costs"]


def set_label_costs(checkpoint: Checkpoint, task: str, costs: Mapping[str, float]) -> Checkpoint:
    """The checkpoint with other costs of one task, as if it had been trained with them.

    The head's bias moves by the logarithm of the new cost over the old one, which is just what
    training with the new cost would have asked of it. The model's weights are changed in place; the
    recipe in the provenance tells the new costs.

    Args:
        checkpoint: Finished; its provenance holds its recipe.
        task: A classification.
        costs: Label -> cost, above 0; labels that are not named cost 1.

    Raises:
        UnknownTaskError: The checkpoint has no such classification.
        UsageError: A label that the task has not, or a cost that is not above 0.
    """
    spec = find_task(checkpoint.tasks, task, ("classification",))
    provenance: dict[str, Any] = copy.deepcopy(checkpoint.provenance)
    table = _task_table(provenance, task)
    TaskTraining(datasets=(), label_cost=dict(costs))  # says which costs are allowed
    moves = label_lean(spec, costs) - label_lean(spec, table.get("label_cost", {}))
    with torch.no_grad():
        bias = list(checkpoint.model.task_heads[output_name(task)].parameters())[-1]
        bias.add_(moves.to(bias))
    table["label_cost"] = dict(costs)
    return replace(checkpoint, provenance=provenance)


def _task_table(provenance: dict[str, Any], task: str) -> dict[str, Any]:
    """The task's table of the recipe in a provenance."""
    tables: list[dict[str, Any]] = provenance.get("recipe", {}).get("tasks", [])
    for table in tables:
        if table.get("name") == task:
            return table
    raise UsageError(
        f"the checkpoint's provenance holds no recipe of task {task!r}, so its costs are not "
        "known; give a checkpoint of a run"
    )
