"""A task: what is read from a record, what comes out, and how it is decided.

The same object stands in a checkpoint's `tasks.json` and in a bundle's manifest, and turns a JSONL
record into an example in training, in evaluation and on the device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt

from ._ood_spec import OodSpec
from ._record import dataclass
from ._trust_curves import OperatingCurve
from ._trust_sets import ConformalSpec
from .errors import ManifestError

__all__ = ["Kind", "OnUnmapped", "TargetSpec", "TaskSpec", "compose_text", "output_name"]

Absent = Literal["negative", "unknown", "error"]
OnUnmapped = Literal["error", "drop"]
Kind = Literal["classification", "vqa", "retrieval"]

_KINDS = ("classification", "vqa", "retrieval")
_APPLIES_TO = ("dicom_modality", "body_part", "view", "burned_in_annotation")
_TEXT_PATHS = frozenset(
    {"text", "caption", "note", "findings", "impression", "question"}
    | {"note_masked", "findings_masked"}
)


def compose_text(prompt: str, texts: Iterable[str]) -> str:
    """The text that the model reads: the prompt, then each text given."""
    return " ".join(part.strip() for part in (prompt, *texts) if part.strip())


def output_name(task_name: str) -> str:
    """Name of the task's output in the fusion graph: `logits_<task>`, with `-` as `_`."""
    return "logits_" + task_name.replace("-", "_")


def _fail(path: str, problem: str) -> ManifestError:
    return ManifestError(f"{path}: {problem}")


def _check_keys(data: object, allowed: set[str], needed: set[str], path: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _fail(path, f"an object is needed, {type(data).__name__} given")
    unknown, missing = sorted(set(data) - allowed), sorted(needed - set(data))
    if unknown:
        raise _fail(path, f"unknown keys {unknown}; allowed are {sorted(allowed)}")
    if missing:
        raise _fail(path, f"missing keys {missing}")
    return data


def _strings(value: object, path: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _fail(path, "a list of strings is needed")
    return tuple(value)


def _numbers(value: object, path: str) -> dict[str, float]:
    if not isinstance(value, dict) or not all(
        isinstance(key, str) and type(number) in (int, float) for key, number in value.items()
    ):
        raise _fail(path, "an object of numbers is needed")
    return {key: float(number) for key, number in value.items()}


def _scaling(data: object, path: str) -> dict[str, Any]:
    """The fields of a `TaskSpec` that turn logits into probabilities."""
    keys = {"kind", "temperature", "scale", "bias", "other", "platt"}
    probability = _check_keys(data, keys, {"kind"}, path)
    temperature = probability.get("temperature", 1.0)
    if type(temperature) not in (int, float):
        raise _fail(f"{path}.temperature", "a number is needed")
    return {
        "probability_kind": probability["kind"],
        "temperature": float(temperature),
        "scale": _vector(probability, "scale", path),
        "bias": _vector(probability, "bias", path),
        "other": _other(probability, path),
        "platt": _platt(probability, path),
    }


def _decisions(given: Mapping[str, Any], outputs: tuple[str, ...], path: str) -> dict[str, Any]:
    """The fields of a `TaskSpec` that turn probabilities into what is said."""
    fields: dict[str, Any] = {
        key: _numbers(given.get(key, {}), f"{path}.{key}")
        for key in ("operating_points", "thresholds")
    }
    if "operating_curves" in given:
        fields["operating_curves"] = _curves(given["operating_curves"], f"{path}.operating_curves")
    if "conformal" in given:
        place = f"{path}.conformal"
        fields["conformal"] = ConformalSpec.from_dict(given["conformal"], place, outputs)
    if "out_of_distribution" in given:
        place = f"{path}.out_of_distribution"
        fields["out_of_distribution"] = OodSpec.from_dict(given["out_of_distribution"], place)
    return fields


def _vector(probability: Mapping[str, Any], key: str, path: str) -> tuple[float, ...]:
    if key not in probability:
        return ()
    values = probability[key]
    if (
        not isinstance(values, list)
        or not values
        or any(type(v) not in (int, float) for v in values)
    ):
        raise _fail(f"{path}.{key}", "a list of numbers, one for each output, is needed")
    return tuple(float(value) for value in values)


def _other(probability: Mapping[str, Any], path: str) -> float | None:
    value = probability.get("other")
    if "other" in probability and type(value) not in (int, float):
        raise _fail(f"{path}.other", "a number is needed")
    return None if value is None else float(value)


def _platt(probability: Mapping[str, Any], path: str) -> tuple[float, float] | None:
    if "platt" not in probability:
        return None
    keys = {"a", "b"}
    given = _check_keys(probability["platt"], keys, keys, f"{path}.platt")
    numbers = _numbers(given, f"{path}.platt")
    return numbers["a"], numbers["b"]


def _curves(data: object, path: str) -> dict[str, OperatingCurve]:
    if not isinstance(data, dict):
        raise _fail(path, "an object of operating curves is needed")
    return {name: OperatingCurve.from_dict(item, f"{path}.{name}") for name, item in data.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    """Where the answer stands in a record and how it maps to outputs."""

    field: str
    """Dotted path: `labels`, `answer`, ..."""
    map: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    """Source value -> output; `None` says: known, and not an output of this task."""
    absent: Absent = "error"
    """What a label that is not listed means in a multi-label task."""
    on_unmapped: OnUnmapped = "error"
    """What to do with a value that is neither an output nor in `map`."""

    @classmethod
    def from_dict(cls, data: object, path: str) -> TargetSpec:
        """Read the `target` object; `path` is its JSON path, for errors."""
        given = _check_keys(data, {"field", "map", "absent", "on_unmapped"}, {"field"}, path)
        mapping = given.get("map", {})
        if not isinstance(given["field"], str) or not given["field"]:
            raise _fail(f"{path}.field", "a record path is needed")
        if not isinstance(mapping, dict) or not all(
            value is None or isinstance(value, str) for value in mapping.values()
        ):
            raise _fail(f"{path}.map", "an object of strings or nulls is needed")
        absent = given.get("absent", "error")
        if absent not in ("negative", "unknown", "error"):
            raise _fail(f"{path}.absent", f"{absent!r} given; negative, unknown or error allowed")
        on_unmapped = given.get("on_unmapped", "error")
        if on_unmapped not in ("error", "drop"):
            raise _fail(f"{path}.on_unmapped", f"{on_unmapped!r} given; error or drop allowed")
        return cls(
            field=given["field"],
            map=dict(mapping),
            absent=cast("Absent", absent),
            on_unmapped=cast("OnUnmapped", on_unmapped),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "field": self.field,
            "map": dict(self.map),
            "absent": self.absent,
            "on_unmapped": self.on_unmapped,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One task of a model. See `docs/bundle-format.md` for every key."""

    name: str
    kind: Kind
    outputs: tuple[str, ...]
    """Labels of a classification, answers of a VQA task; in the order of the logits."""
    multi_label: bool = False
    prompt: str = ""
    """Text given to the fusion where the user gives none; never empty unless a question is read."""
    select: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """Record path -> values; a record takes part when every path has one of its values."""
    reads: tuple[str, ...] = ()
    """Record paths that are fed to the model beside the image."""
    target: TargetSpec = dataclasses.field(default_factory=lambda: TargetSpec(field="labels"))
    group: str = "patient_id"
    probability_kind: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = 1.0
    """Logits are divided by it."""
    scale: tuple[float, ...] = ()
    """One for each output, applied after the temperature: logit * scale + bias; empty = all 1."""
    bias: tuple[float, ...] = ()
    """One for each output; there whenever `scale` is."""
    other: float | None = None
    """Scaled logit of all answers that are not among `outputs` (softmax); None: there are none."""
    platt: tuple[float, float] | None = None
    """`a`, `b`: at last p becomes the sigmoid of a * ln(p / (1 - p)) + b."""
    operating_points: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Output -> probability from which a multi-label finding is positive; 0.5 where absent."""
    operating_curves: Mapping[str, OperatingCurve] = dataclasses.field(default_factory=dict)
    """Output -> where to decide for a sensitivity or specificity; only those with both classes."""
    conformal: ConformalSpec | None = None
    out_of_distribution: OodSpec | None = None
    thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    applies_to: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """`dicom_modality`, `body_part`, `view`: header values the task is meant for; absent = any.
    `burned_in_annotation`: absent = NO."""
    affine: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = dataclasses.field(
        init=False, repr=False, compare=False, default=None
    )
    """`scale` and `bias` as arrays, made once; None where there are none."""
    limits: npt.NDArray[np.float64] = dataclasses.field(init=False, repr=False, compare=False)
    """Operating point of every output, in order."""

    _ALLOWED: ClassVar[frozenset[str]] = frozenset(
        {"name", "kind", "labels", "answers", "multi_label", "prompt", "select", "reads", "target"}
        | {"group", "probability", "operating_points", "thresholds", "applies_to"}
        | {"operating_curves", "conformal", "out_of_distribution"}
    )

    def __post_init__(self) -> None:
        path = f"task {self.name!r}"
        if not self.name or not all(c.isascii() and (c.isalnum() or c == "-") for c in self.name):
            raise _fail(path, "a name holds ASCII letters, digits and '-' only")
        if self.kind not in _KINDS:
            raise _fail(path, f"kind {self.kind!r} given; one of {_KINDS} allowed")
        if self.kind != "retrieval" and len(self.outputs) < 1:
            raise _fail(path, "at least one label or answer is needed")
        if len(set(self.outputs)) != len(self.outputs):
            raise _fail(path, "labels or answers occur twice")
        if self.kind == "classification" and not self.prompt.strip():
            raise _fail(path, "a classification task needs a prompt (at least one real token)")
        if not (0.0 < self.temperature < float("inf")):
            raise _fail(path, f"temperature {self.temperature!r} given; above 0 allowed")
        if self.probability_kind not in ("softmax", "sigmoid"):
            raise _fail(path, f"probability kind {self.probability_kind!r}; softmax or sigmoid")
        if not set(self.applies_to) <= set(_APPLIES_TO):
            raise _fail(path, f"applies_to may hold {', '.join(_APPLIES_TO)} only")
        self._prepare(path)

    def _prepare(self, path: str) -> None:
        """Check what is fitted, and keep as arrays what every sample needs."""
        for key in ("operating_points", "operating_curves"):
            strangers = sorted(set(getattr(self, key)) - set(self.outputs))
            if strangers:
                raise _fail(path, f"{key.replace('_', ' ')} of unknown outputs {strangers}")
        if self.conformal is not None and self.multi_label is (self.conformal.method == "lac"):
            raise _fail(path, "conformal: multi-label tasks need lac_by_class, others lac")
        if self.scale or self.bias:
            pair = np.asarray(self.scale, np.float64), np.asarray(self.bias, np.float64)
            if any(column.shape != (len(self.outputs),) for column in pair):
                raise _fail(path, "scale and bias need one number for each output, both or neither")
            if not (np.isfinite(pair).all() and (pair[0] > 0).all()):
                raise _fail(path, "scale must be above 0 and bias finite")
            object.__setattr__(self, "affine", pair)
        if self.other is not None and (
            self.probability_kind != "softmax" or not math.isfinite(self.other)
        ):
            raise _fail(path, "probability.other belongs to a softmax, and must be finite")
        if self.platt is not None and not (
            0 < self.platt[0] < math.inf and math.isfinite(self.platt[1])
        ):
            raise _fail(path, "probability.platt: a must be above 0, and both finite")
        limits = [self.operating_points.get(name, 0.5) for name in self.outputs]
        object.__setattr__(self, "limits", np.asarray(limits, np.float64))

    @property
    def text_paths(self) -> tuple[str, ...]:
        """Those of `reads` that hold free text."""
        return tuple(path for path in self.reads if path.rsplit(".", 1)[-1] in _TEXT_PATHS)

    @property
    def structured_paths(self) -> tuple[str, ...]:
        """Those of `reads` that hold one value."""
        return tuple(path for path in self.reads if path not in self.text_paths)

    @classmethod
    def from_dict(cls, data: object, path: str = "task") -> TaskSpec:
        """Read a task object; unknown keys are refused.

        Raises:
            ManifestError: With the JSON path of what is wrong.
        """
        given = _check_keys(data, set(cls._ALLOWED), {"name", "kind"}, path)
        if not isinstance(given["name"], str):
            raise _fail(f"{path}.name", "a string is needed")
        kind = given["kind"]
        key, other = ("answers", "labels") if kind == "vqa" else ("labels", "answers")
        if other in given or (kind != "retrieval" and key not in given):
            raise _fail(path, f"a task of kind {kind!r} has {key!r} and no {other!r}")
        select = given.get("select", {})
        applies_to = given.get("applies_to", {})
        if not isinstance(select, dict) or not all(isinstance(v, list) for v in select.values()):
            raise _fail(f"{path}.select", "an object of lists is needed")
        if not isinstance(applies_to, dict):
            raise _fail(f"{path}.applies_to", "an object of lists is needed")
        for name in ("prompt", "group"):
            if not isinstance(given.get(name, ""), str):
                raise _fail(f"{path}.{name}", "a string is needed")
        if not isinstance(given.get("multi_label", False), bool):
            raise _fail(f"{path}.multi_label", "true or false is needed")
        outputs = _strings(given.get(key, []), f"{path}.{key}")
        default_target = {"field": "answer" if kind == "vqa" else "labels"}
        return cls(
            name=given["name"],
            kind=kind,
            outputs=outputs,
            multi_label=given.get("multi_label", False),
            prompt=given.get("prompt", ""),
            select={name: tuple(values) for name, values in select.items()},
            reads=_strings(given.get("reads", []), f"{path}.reads"),
            target=TargetSpec.from_dict(given.get("target", default_target), f"{path}.target"),
            group=given.get("group", "patient_id"),
            **_scaling(given.get("probability", {"kind": "softmax"}), f"{path}.probability"),
            **_decisions(given, outputs, path),
            applies_to={
                name: _strings(values, f"{path}.applies_to.{name}")
                for name, values in applies_to.items()
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `from_dict` gives an equal task back.

        What is fitted on validation records stands in it only where it was fitted.
        """
        probability: dict[str, Any] = {
            "kind": self.probability_kind,
            "temperature": self.temperature,
        }
        if self.scale:
            probability |= {"scale": list(self.scale), "bias": list(self.bias)}
        if self.other is not None:
            probability["other"] = self.other
        if self.platt is not None:
            probability["platt"] = dict(zip("ab", self.platt, strict=True))
        fitted: dict[str, Any] = {}
        if self.operating_curves:
            fitted["operating_curves"] = {
                name: curve.to_dict() for name, curve in self.operating_curves.items()
            }
        if self.conformal is not None:
            fitted["conformal"] = self.conformal.to_dict()
        if self.out_of_distribution is not None:
            fitted["out_of_distribution"] = self.out_of_distribution.to_dict()
        return {
            "name": self.name,
            "kind": self.kind,
            ("answers" if self.kind == "vqa" else "labels"): list(self.outputs),
            "multi_label": self.multi_label,
            "prompt": self.prompt,
            "select": {name: list(values) for name, values in self.select.items()},
            "reads": list(self.reads),
            "target": self.target.to_dict(),
            "group": self.group,
            "probability": probability,
            "operating_points": dict(self.operating_points),
            **fitted,
            "thresholds": dict(self.thresholds),
            "applies_to": {name: list(values) for name, values in self.applies_to.items()},
        }
