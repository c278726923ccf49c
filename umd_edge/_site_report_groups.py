"""Accuracy by age, sex, view and other metadata of the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._evaluate import example_metrics
from ._evaluation import MetricValue
from ._records import Example, Record
from ._task import TaskSpec
from .errors import UsageError

__all__ = [
    "DEFAULT_FIELDS",
    "FEW_PATIENTS",
    "TOLD_PATIENTS",
    "Subgroup",
    "check_fields",
    "subgroups",
]

DEFAULT_FIELDS = ("age", "sex", "view", "modality", "region")
FEW_PATIENTS = 20
"""Below this a group is marked: its interval says little."""
TOLD_PATIENTS = 3
"""Below this the page gives no figure: it would be that of a person."""
_MOST_VALUES = 12
_UNKNOWN = "not known"
_OTHER = "other values"
_AGES = ((0, 18), (18, 40), (40, 60), (60, 80), (80, 200))
_QUANTILES = 4
_IDENTIFIERS = frozenset({"id", "patient_id", "image", "mask", "source_url", "lesion_id"})


@dataclass(frozen=True, slots=True)
class Subgroup:
    """The records with one value of one field."""

    field: str
    value: str
    n: int
    """Records."""
    patients: int
    metrics: Mapping[str, MetricValue]

    @property
    def is_small(self) -> bool:
        """Whether there are too few patients to say much."""
        return self.patients < FEW_PATIENTS


def check_fields(fields: Sequence[str], task: TaskSpec) -> tuple[str, ...]:
    """The fields to group by, the default ones first.

    Raises:
        UsageError: A field identifies records or patients.
    """
    names = _IDENTIFIERS | {task.group}
    bad = [name for name in fields if name in names or name.split(".")[-1] in names]
    if bad:
        raise UsageError(
            f"{bad} identifies records or patients, and the report holds counts alone; group by "
            "metadata such as age, sex, view, region or structured.itch"
        )
    return tuple(dict.fromkeys((*DEFAULT_FIELDS, *fields)))


def subgroups(
    task: TaskSpec,
    examples: Sequence[Example],
    records: Sequence[Record],
    probabilities: npt.NDArray[np.float64],
    fields: Sequence[str],
) -> list[Subgroup]:
    """Metrics of each group of each field that at least one record has.

    Args:
        task: What was evaluated.
        examples: N.
        records: N, in the same order.
        probabilities: (N, K) float64.
        fields: Record paths.
    """
    found = []
    for name in fields:
        values = [record.get(name) for record in records]
        if all(value is None for value in values):
            continue
        found += _groups_of(task, name, _names(name, values), examples, probabilities)
    return found


def _groups_of(
    task: TaskSpec,
    field: str,
    names: Sequence[str],
    examples: Sequence[Example],
    probabilities: npt.NDArray[np.float64],
) -> list[Subgroup]:
    groups = []
    for value in _ordered(names):
        rows = [row for row, name in enumerate(names) if name == value]
        chosen = [examples[row] for row in rows]
        groups.append(
            Subgroup(
                field,
                value,
                len(rows),
                len({example.group for example in chosen}),
                example_metrics(task, chosen, probabilities[rows]),
            )
        )
    return groups


def _ordered(names: Sequence[str]) -> list[str]:
    """In the order in which they were made, what is not known last."""
    known = sorted(set(names) - {_UNKNOWN, _OTHER}, key=_band_start)
    return known + [name for name in (_OTHER, _UNKNOWN) if name in names]


def _band_start(name: str) -> tuple[float, str]:
    if name.startswith("under "):
        return -np.inf, name
    try:
        return float(name.split(" ")[0]), name
    except ValueError:
        return 0.0, name


def _names(field: str, values: Sequence[Any]) -> list[str]:
    """The group of each record."""
    known = [value for value in values if value is not None]
    numeric = all(type(value) in (int, float) and np.isfinite(value) for value in known)
    if numeric and field.split(".")[-1] == "age":
        return [_UNKNOWN if value is None else _age_band(float(value)) for value in values]
    if numeric and len(set(known)) > _MOST_VALUES:
        return _quantile_bands(values)
    listed = [_value_names(value) for value in values]
    common = {name for name, _ in Counter(listed).most_common(_MOST_VALUES)}
    return [name if name in common or name == _UNKNOWN else _OTHER for name in listed]


def _value_names(value: Any) -> str:
    if value is None or value == []:
        return _UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(sorted(str(item) for item in value))[:60]
    return " ".join(str(value).split())[:60] or _UNKNOWN


def _age_band(age: float) -> str:
    for low, high in _AGES:
        if low <= age < high:
            return f"{low} to {high - 1}" if high < 200 else f"{low} and over"
    return _UNKNOWN


def _quantile_bands(values: Sequence[Any]) -> list[str]:
    """Four bands that hold about as many records each."""
    known = np.asarray([value for value in values if value is not None], dtype=np.float64)
    cuts = np.unique(np.quantile(known, np.arange(1, _QUANTILES) / _QUANTILES))
    edges = [-np.inf, *cuts.tolist(), np.inf]
    names = []
    for value in values:
        if value is None:
            names.append(_UNKNOWN)
            continue
        row = int(np.searchsorted(cuts, value, side="right"))
        low, high = edges[row], edges[row + 1]
        if low == -np.inf:
            names.append(f"under {high:g}")
        elif high == np.inf:
            names.append(f"{low:g} and over")
        else:
            names.append(f"{low:g} to under {high:g}")
    return names
