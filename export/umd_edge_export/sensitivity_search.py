"""Which layers stay in float so that no task loses more than its budget.

Layers are put in one order: the changed decisions that a layer answers for, for each unit of work
that quantising it saves, largest first. As noises add up, the first layers of that order are the
cheapest way to few changes. How many of them stay in float is decided by labelled records: the
fewest with which every task keeps its budget. Only that one number is fitted, so that a small set
of records cannot be fitted by chance layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from umd_edge._postprocess import probabilities
from umd_edge._task import output_name
from umd_edge.errors import DataError

from .compare import PairedDifference, paired_difference, record_score
from .drift import changed_decisions
from .quantize_layers import Layer
from .sensitivity import GraphRunner, LayerNoise

if TYPE_CHECKING:
    from .samples import SampleSource

__all__ = ["BudgetBench", "Choice", "Loss", "choose_float", "rank_layers"]

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What quantised graphs lose on labelled records."""

    tasks: Mapping[str, PairedDifference]
    pooled: PairedDifference

    def worst(self) -> float:
        """Points of accuracy that the worst task loses; negative where all gain."""
        return max(100 * (value.accuracy_a - value.accuracy_b) for value in self.tasks.values())

    def changed(self) -> float:
        """Percent of all decisions that changed."""
        return 100 * self.pooled.changed_decisions

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "tasks": {name: value.to_dict() for name, value in sorted(self.tasks.items())},
            "pooled": self.pooled.to_dict(),
        }


@dataclass(slots=True)
class _Scores:
    groups: list[str] = field(default_factory=list)
    wanted: list[float] = field(default_factory=list)
    given: list[float] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)

    def difference(self) -> PairedDifference:
        return paired_difference(self.wanted, self.given, self.changed, self.groups)


class BudgetBench:
    """Labelled records and how the float32 graphs decide them.

    Args:
        graphs: Part -> float32 graph.
        source: Records with targets; those of one picture should follow each other, so that it is
            encoded once.

    Raises:
        DataError: No record has a target.
    """

    def __init__(self, graphs: Mapping[str, onnx.ModelProto], source: SampleSource) -> None:
        self._source = source
        self._wanted = self._decide(graphs)
        if not any(row is not None for row in self._wanted):
            raise DataError(
                "no record of the budget data has a target that a task knows; give labelled "
                "records with --budget-data"
            )

    def __len__(self) -> int:
        return len(self._wanted)

    def _decide(self, graphs: Mapping[str, onnx.ModelProto]) -> list[Float64Array | None]:
        """Probabilities (K,) of each record, None where it has no target."""
        vision, text = GraphRunner(graphs["vision"]), GraphRunner(graphs["text"])
        fusion = GraphRunner(graphs["fusion"])
        found: list[Float64Array | None] = []
        picture: Path | None = None
        for item, sample in zip(self._source.chosen, self._source, strict=True):
            target = item.example.target
            if target is not None and not np.isfinite(target).any():
                found.append(None)
                continue
            inputs = sample.inputs()
            if item.example.image_path != picture:
                picture, image = item.example.image_path, vision.run(inputs)
            outputs = fusion.run({**inputs, **image, **text.run(inputs)})
            found.append(probabilities(outputs[output_name(item.task.name)][0], item.task))
        return found

    def measure(self, graphs: Mapping[str, onnx.ModelProto]) -> Loss:
        """Compare graphs with the float32 ones, record by record."""
        tasks: dict[str, _Scores] = {}
        pooled = _Scores()
        rows = zip(self._source.chosen, self._wanted, self._decide(graphs), strict=True)
        for item, wanted, given in rows:
            if wanted is None or given is None:
                continue
            task, example = item.task, item.example
            for scores in (tasks.setdefault(task.name, _Scores()), pooled):
                scores.groups.append(example.group)
                scores.wanted.append(record_score(task, example, wanted))
                scores.given.append(record_score(task, example, given))
                scores.changed.append(changed_decisions(task, wanted, given))
        return Loss(
            tasks={name: scores.difference() for name, scores in tasks.items()},
            pooled=pooled.difference(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which layers stay in float, and what was measured on the way."""

    float_layers: tuple[Layer, ...]
    loss: Loss | None
    """Of the outcome; None where every layer stays in float."""
    steps: tuple[tuple[int, Loss], ...]
    """Number of layers in float and the loss, in the order of the search."""


def rank_layers(
    noises: Sequence[LayerNoise],
    multiplications: Callable[[Layer], int],
    expected_changes: Callable[[str, float], float],
    tasks: Sequence[str],
) -> tuple[LayerNoise, ...]:
    """Layers by the changed decisions that they answer for, for each unit of work saved.

    A layer answers for its share of a task's noise; every task counts the same.

    Args:
        noises: Of each layer.
        multiplications: Of one sample in a layer.
        expected_changes: Task and noise -> share of decisions that change.
        tasks: Those that count.
    """
    total = {name: sum(item.noise[name] for item in noises) for name in tasks}
    changes = {name: expected_changes(name, total[name]) for name in tasks}
    arithmetic = max(sum(multiplications(item.layer) for item in noises), 1)
    weights = sum(item.layer.weights for item in noises)

    def ratio(item: LayerNoise) -> float:
        lost = sum(changes[name] * item.noise[name] / total[name] for name in tasks if total[name])
        # Time and size count the same.
        saved = multiplications(item.layer) / arithmetic + item.layer.weights / weights
        return lost / saved

    return tuple(sorted(noises, key=ratio, reverse=True))


def choose_float(
    ranked: Sequence[LayerNoise],
    measure: Callable[[Sequence[Layer]], Loss],
    *,
    budget: float,
    max_changed: float | None,
) -> Choice:
    """The fewest layers of the ranking with which every task keeps its budget.

    Args:
        ranked: As `rank_layers` gives them.
        measure: Loss with these layers in float.
        budget: Points of accuracy that any task may lose.
        max_changed: Percent of all decisions that may change; None for any.
    """
    layers = [item.layer for item in ranked]
    steps: dict[int, Loss] = {}

    def is_kept(count: int) -> bool:
        if count == len(layers):
            return True  # float32 itself
        loss = steps[count] = measure(layers[:count])
        return loss.worst() <= budget and (max_changed is None or loss.changed() <= max_changed)

    low, high = 0, len(layers)
    while low < high:
        # The answer is mostly near the beginning: double the reach before halving it.
        middle = 0 if not steps else min((low + high) // 2, max(2 * low, 1))
        if is_kept(middle):
            high = middle
        else:
            low = middle + 1
    return Choice(float_layers=tuple(layers[:low]), loss=steps.get(low), steps=tuple(steps.items()))
