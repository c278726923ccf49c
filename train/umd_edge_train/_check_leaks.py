"""Fields that give the answer away: by being there at all, by their value, or by naming it.

All three tests count patients rather than records: the records of one patient that have one answer
are a single unit, so ten frames of a clip do not pass for ten observations.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Leak",
    "Sample",
    "find_leaks",
    "flatten",
]

PRESENCE_LIMIT = 0.55
"""Balanced accuracy, for one label against the rest, from which presence is reported."""
DETERMINES_LIMIT = 0.7
"""Share of the answer's entropy that a field's values explain, beyond chance."""
EXCLUDES_LIMIT = 0.08
"""Share of the units that a field's values keep from labels they would have by chance."""
MENTION_LIMIT = 0.1
"""Share of the records whose text names the answer."""

_PERMUTATIONS = 4999
_VALUE_PERMUTATIONS = 99
_ALPHA = 0.02
_MAX_UNITS = 4000
_MAX_LABELS = 30
_MIN_UNITS = 5
_BINS = 8
_EXPECTED = 8.0

# These identify a record or ask for the answer; that they go with it says nothing.
_UNTESTED = frozenset({"id", "patient_id", "image", "split", "official_split", "mask", "question"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One record as the leak tests see it."""

    patient: str
    labels: tuple[str, ...]
    """The answer: one or several labels, or the normalised answer of a question."""
    fields: Mapping[str, Any]
    """Dotted path -> value; absent when the record does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A field that says more about the answer than it should."""

    field: str
    kind: str
    """`presence`, `determines`, `excludes` or `mentions`."""
    strength: float
    """Balanced accuracy (presence), or share (the other three); 0 to 1."""
    label: str
    """The label that is given away most, where there is one."""
    read_by: tuple[str, ...] = ()
    """Tasks that read the field."""


def is_given(value: object) -> bool:
    """Whether a manifest value says anything: absent, null and empty all mean "not known"."""
    return value is not None and value not in ("", [], {})


def flatten(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted paths and values that are given; an object is yielded along with its parts."""
    for key, value in raw.items():
        if not is_given(value):
            continue
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
            yield prefix + key, True
        else:
            yield prefix + key, value


@dataclass(frozen=True, slots=True)
class _Units:
    """Distinct (patient, answer) pairs, with the samples that belong to each."""

    labels: list[str]
    targets: npt.NDArray[np.float32]  # (N, K), 1 where the unit has the label
    members: list[list[Sample]]


def _units(samples: Sequence[Sample], rng: np.random.Generator) -> _Units:
    grouped: dict[tuple[str, tuple[str, ...]], list[Sample]] = defaultdict(list)
    for sample in samples:
        grouped[sample.patient, sample.labels].append(sample)
    keys = list(grouped)
    if len(keys) > _MAX_UNITS:
        keys = [keys[i] for i in sorted(rng.choice(len(keys), _MAX_UNITS, replace=False))]
    counts = Counter(label for _, labels in keys for label in labels)
    common = [k for k, n in counts.most_common(_MAX_LABELS) if n >= _MIN_UNITS and n < len(keys)]
    column = {label: index for index, label in enumerate(common)}
    targets = np.zeros((len(keys), len(common)), dtype=np.float32)
    for row, (_, labels) in enumerate(keys):
        for label in labels:
            if label in column:
                targets[row, column[label]] = 1
    return _Units(common, targets, [grouped[key] for key in keys])


def _entropy(*shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return -sum(
        (np.where(p > 0, p * np.log2(np.maximum(p, 1e-300)), 0.0) for p in shares),
        start=np.zeros(()),
    )


def _information(
    both: npt.NDArray[np.float64], present: npt.NDArray[np.float64], label: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Mutual information in bits of presence (F, 1) and each label (K,), summed over labels."""
    joint = _entropy(both, present - both, label - both, 1 - present - label + both)
    apart = _entropy(present, 1 - present) + _entropy(label, 1 - label)
    return np.asarray((apart - joint).sum(axis=1))


def _presence(units: _Units, names: Sequence[str], rng: np.random.Generator) -> Iterator[Leak]:
    """Test whether the mere presence of a field predicts a label, against shuffled labels."""
    count = len(units.members)
    shares = np.array(
        [[np.mean([name in s.fields for s in unit]) for unit in units.members] for name in names],
        dtype=np.float32,
    )
    patterns, which = np.unique((shares > 0.5).astype(np.float32), axis=0, return_inverse=True)
    which = which.reshape(-1)
    varies = np.flatnonzero((patterns.sum(axis=1) > 0) & (patterns.sum(axis=1) < count))
    if not varies.size or not units.labels:
        return
    table = patterns[varies]  # (F, N)
    present = table.mean(axis=1, keepdims=True).astype(np.float64)
    label = units.targets.mean(axis=0).astype(np.float64)
    both = (table @ units.targets / count).astype(np.float64)
    found = _information(both, present, label)
    beaten = np.zeros(len(varies))
    for _ in range(_PERMUTATIONS):
        shuffled = (table @ units.targets[rng.permutation(count)] / count).astype(np.float64)
        beaten += _information(shuffled, present, label) >= found - 1e-12
    # Corrected for the number of distinct patterns that are tried.
    chance = np.minimum(1.0, (beaten + 1) / (_PERMUTATIONS + 1) * len(varies))
    accuracy = 0.5 + 0.5 * np.abs(both / label - (present - both) / (1 - label))
    for row, pattern in enumerate(varies):
        best = int(accuracy[row].argmax())
        if chance[row] < _ALPHA and accuracy[row, best] >= PRESENCE_LIMIT:
            for index in np.flatnonzero(which == pattern):
                yield Leak(
                    field=names[int(index)],
                    kind="presence",
                    strength=float(accuracy[row, best]),
                    label=units.labels[best],
                )


def _codes(values: Sequence[Any]) -> npt.NDArray[np.intp] | None:
    """Values as small integers: quantiles of numbers; None where nearly every value is its own."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) == len(values) and len(set(numbers)) > _BINS:
        array = np.asarray(numbers, dtype=np.float64)
        edges = np.unique(np.quantile(array, np.linspace(0, 1, _BINS + 1)[1:-1]))
        return np.unique(np.digitize(array, edges), return_inverse=True)[1].reshape(-1)
    texts = np.array([json.dumps(v, sort_keys=True, default=str) for v in values])
    distinct, codes = np.unique(texts, return_inverse=True)
    return None if len(distinct) > max(2, len(values) // 10) else codes.reshape(-1)


def _table(values: npt.NDArray[np.intp], answers: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Counts (V, K) of values and answers."""
    columns = int(answers.max()) + 1
    size = (int(values.max()) + 1) * columns
    counts = np.bincount(values * columns + answers, minlength=size)
    return counts.reshape(-1, columns).astype(np.float64)


def _bits(table: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mutual information of a table's rows and columns, and entropy of its columns."""
    p = table / table.sum()
    columns = float(_entropy(p.sum(axis=0)).sum())
    return float(_entropy(p.sum(axis=1)).sum()) + columns - float(_entropy(p).sum()), columns


def _values(units: _Units, names: Sequence[str], rng: np.random.Generator) -> Iterator[Leak]:
    """Test whether a field's values, where it is given, settle the answer or rule labels out."""
    single = units.targets.sum(axis=1) == 1
    answers_of = units.targets.argmax(axis=1)
    for name in names:
        rows = [
            (unit[0].fields[name], answers_of[i])
            for i, unit in enumerate(units.members)
            if single[i] and name in unit[0].fields
        ]
        if len(rows) < 4 * _MIN_UNITS:
            continue
        codes = _codes([value for value, _ in rows])
        answers = np.unique([answer for _, answer in rows], return_inverse=True)[1].reshape(-1)
        if codes is None or codes.max() == 0 or answers.max() == 0:
            continue
        table = _table(codes, answers)
        information, entropy = _bits(table)
        shuffled = [
            _bits(_table(codes, rng.permutation(answers)))[0] for _ in range(_VALUE_PERMUTATIONS)
        ]
        if information <= max(shuffled):
            continue
        chance = float(np.mean(shuffled))
        explained = (information - chance) / max(entropy - chance, 1e-9)
        expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
        never = (expected >= _EXPECTED) & (table <= 0.02 * expected)
        excluded = float(expected[never].sum() / table.sum())
        if explained >= DETERMINES_LIMIT:
            yield Leak(field=name, kind="determines", strength=min(explained, 1.0), label="")
        elif excluded >= EXCLUDES_LIMIT:
            kept = sorted({int(answer) for _, answer in rows})
            worst = int((expected * never).sum(axis=0).argmax())
            label = units.labels[kept[worst]]
            yield Leak(field=name, kind="excludes", strength=excluded, label=label)


_WORDS = re.compile(r"[a-z0-9]+")


def _words(text: str) -> str:
    return f" {' '.join(_WORDS.findall(text.lower()))} "


def _mentions(units: _Units, names: Sequence[str], rng: np.random.Generator) -> Iterator[Leak]:
    """Test whether a text names its own answer more often than another record's answer."""
    tails = [_words(label.rsplit("/", 1)[-1]) for label in units.labels]
    for name in names:
        texts, answers = [], []
        for row, unit in enumerate(units.members):
            value = unit[0].fields.get(name)
            if isinstance(value, str) and units.targets[row].any():
                texts.append(_words(value))
                answers.append(int(units.targets[row].argmax()))
        if len(texts) < 4 * _MIN_UNITS:
            continue
        own = [len(tails[k]) > 5 and tails[k] in t for t, k in zip(texts, answers, strict=True)]
        mixed = rng.permutation(answers)
        other = [tails[k] in t for t, k in zip(texts, mixed, strict=True)]
        share = float(np.mean(own))
        if share >= MENTION_LIMIT and sum(own) > len(texts) * 0.05 + 1.3 * sum(other):
            named = Counter(k for hit, k in zip(own, answers, strict=True) if hit)
            label = units.labels[named.most_common(1)[0][0]]
            yield Leak(field=name, kind="mentions", strength=share, label=label)


def find_leaks(
    samples: Sequence[Sample], targets: frozenset[str], *, seed: int = 0
) -> tuple[Leak, ...]:
    """Fields that give the answer away.

    Args:
        samples: Of one set, all splits.
        targets: Paths that are the answer itself and are not tested.
        seed: Of the permutations; the same seed gives the same report.

    Returns:
        Strongest first within each kind. Empty when there are too few patients to tell.
    """
    rng = np.random.default_rng(seed)
    units = _units(samples, rng)
    skipped = _UNTESTED | targets
    names = sorted({name for s in samples for name in s.fields if name not in skipped})
    if len(units.members) < 4 * _MIN_UNITS or not names or not units.labels:
        return ()
    leaks: list[Leak] = []
    for test in (_presence, _values, _mentions):
        leaks += sorted(test(units, names, rng), key=lambda leak: (-leak.strength, leak.field))
    return tuple(leaks)
