"""Structured values (history, signs, laboratory values) as numbers with a mask of what is there.

A missing value is missing: its mask is 0 and the model never sees its number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ._record import dataclass
from .errors import ManifestError, StructuredInputError

__all__ = ["StructuredField", "encode_structured"]

# What float32 holds with room to spare; no measurement lies this many deviations off.
_LARGEST = 1e30

# UCUM codes that do not read as the units they are.
_UNIT_NAMES = {
    "a": "years",
    "mo": "months",
    "wk": "weeks",
    "d": "days",
    "h": "hours",
    "min": "minutes",
    "s": "seconds",
    "Cel": "degrees Celsius",
    "[degF]": "degrees Fahrenheit",
    "mm[Hg]": "millimetres of mercury",
    "cm[H2O]": "centimetres of water",
    "/min": "per minute",
    "{beats}/min": "beats per minute",
    "[lb_av]": "pounds",
    "[in_i]": "inches",
    "10*9/L": "thousand millions per litre",
    "10*12/L": "million millions per litre",
    "1": "",
}

FieldKind = Literal["binary", "numeric", "categorical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredField:
    """One value that a model may be given beside the image."""

    name: str
    """Dotted record path, such as `structured.itch` or `age`."""
    kind: FieldKind
    unit: str = ""
    """Unit of a numeric field, in UCUM notation where there is one (`a` for years)."""
    mean: float = 0.0
    std: float = 1.0
    """Numeric fields are fed as (value - mean) / std."""
    categories: tuple[str, ...] = ()
    """Of a categorical field, in the order of the model's indices."""

    def __post_init__(self) -> None:
        where = f"structured field {self.name!r}"
        if self.kind not in ("binary", "numeric", "categorical"):
            raise ManifestError(f"{where}: kind {self.kind!r}; binary, numeric or categorical")
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ManifestError(f"{where}: mean must be finite and std positive")
        if (self.kind == "categorical") != bool(self.categories):
            raise ManifestError(
                f"{where}: categories belong to a categorical field, and only there"
            )

    @property
    def unit_name(self) -> str:
        """The unit as people write it: `years` for the code `a`; other codes as they are."""
        return _UNIT_NAMES.get(self.unit, self.unit)

    def _in_unit(self) -> str:
        name = self.unit_name
        return f" in {name}" + (f" ({self.unit})" if name != self.unit else "") if name else ""

    @classmethod
    def from_dict(cls, data: object, path: str = "structured_fields[]") -> StructuredField:
        """Read the JSON object; unknown keys are refused."""
        allowed = {"name", "kind", "unit", "mean", "std", "categories"}
        if not isinstance(data, dict) or set(data) - allowed or not {"name", "kind"} <= set(data):
            raise ManifestError(f"{path}: name and kind are needed, and only {sorted(allowed)}")
        categories = data.get("categories", [])
        if not isinstance(categories, list) or not all(isinstance(c, str) for c in categories):
            raise ManifestError(f"{path}.categories: a list of strings is needed")
        if not isinstance(data["name"], str) or not isinstance(data.get("unit", ""), str):
            raise ManifestError(f"{path}: name and unit must be strings")
        numbers = [data.get("mean", 0.0), data.get("std", 1.0)]
        if any(type(number) not in (int, float) for number in numbers):
            raise ManifestError(f"{path}: mean and std must be numbers")
        return cls(
            name=data["name"],
            kind=data["kind"],
            unit=data.get("unit", ""),
            mean=float(numbers[0]),
            std=float(numbers[1]),
            categories=tuple(categories),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "name": self.name,
            "kind": self.kind,
            "unit": self.unit,
            "mean": self.mean,
            "std": self.std,
            "categories": list(self.categories),
        }

    def encode(self, value: object) -> float | None:
        """The number fed for `value`, or None where a categorical field does not know it.

        Raises:
            StructuredInputError: The value is of a wrong type or not finite.
        """
        if self.kind == "binary":
            if isinstance(value, (bool, np.bool_)) or value in (0, 1):
                return float(bool(value))
            raise StructuredInputError(f"{self.name}: true, false, 0 or 1 is needed")
        if self.kind == "numeric":
            number = math.nan
            if isinstance(value, (int, float, np.integer, np.floating)) and value is not True:
                number = float(value)
            if value is False or not math.isfinite(number):
                raise StructuredInputError(
                    f"{self.name}: a finite number{self._in_unit()} is needed"
                )
            scaled = (number - self.mean) / self.std
            if abs(scaled) > _LARGEST:
                raise StructuredInputError(f"{self.name}: the number is beyond any real value")
            return scaled
        if not isinstance(value, str):
            raise StructuredInputError(f"{self.name}: one of {list(self.categories)} is needed")
        folded = value.strip().casefold()
        for index, category in enumerate(self.categories):
            if category.casefold() == folded:
                return float(index)
        return None


def _by_name(fields: Sequence[StructuredField]) -> dict[str, int]:
    """Index by full path, and by the last component where that is unique."""
    last = [field.name.rsplit(".", 1)[-1] for field in fields]
    names = {short: i for i, short in enumerate(last) if last.count(short) == 1}
    names.update({field.name: i for i, field in enumerate(fields)})
    return names


def encode_structured(
    values: Mapping[str, Any],
    fields: Sequence[StructuredField],
    *,
    allowed: Sequence[str] | None = None,
    on_unknown: Literal["error", "missing"] = "error",
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Numbers and mask of one sample.

    Args:
        values: Field name (full path, or its last part where unique) -> value; None means missing.
        fields: The model's fields, in order.
        allowed: Field names that the task reads; None allows all.
        on_unknown: What to do with a category that the field does not know.

    Returns:
        values (F,) float32 and mask (F,) float32 with 1 = present.

    Raises:
        StructuredInputError: Unknown or unwanted field, wrong type, or unknown category.
    """
    numbers = np.zeros(len(fields), dtype=np.float32)
    mask = np.zeros(len(fields), dtype=np.float32)
    names = _by_name(fields)
    wanted = {field.name for field in fields} if allowed is None else set(allowed)
    for name, value in values.items():
        index = names.get(name)
        if index is None or fields[index].name not in wanted:
            known = sorted(field.name for field in fields if field.name in wanted)
            raise StructuredInputError(
                f"structured value {name!r} is not read by this task; it reads {known or 'none'}"
            )
        if value is None:
            continue
        number = fields[index].encode(value)
        if number is None:
            if on_unknown == "error":
                options = list(fields[index].categories)
                raise StructuredInputError(f"{name}: unknown category; one of {options} is allowed")
            continue
        numbers[index], mask[index] = number, 1.0
    return numbers, mask
