"""Our records behave as the standard library's frozen dataclasses do."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any

import pytest

from umd_edge._record import dataclass


def _declare(decorate: Any) -> tuple[Any, Any, Any]:
    @decorate(frozen=True, slots=True)
    class Plain:
        """A record."""

        name: str
        size: int = 3
        parts: list[int] = dataclasses.field(default_factory=list)

    @decorate(frozen=True, slots=True, kw_only=True)
    class Named:
        """Arguments by name; one that is computed, and one that counts in nothing."""

        width: float
        note: str = dataclasses.field(default="", compare=False, repr=False)
        kept: int | None = dataclasses.field(default=None, init=False)
        twice: float = dataclasses.field(init=False)

        def __post_init__(self) -> None:
            if self.width < 0:
                raise ValueError("negative")
            object.__setattr__(self, "twice", 2 * self.width)

    @decorate(frozen=True, slots=True)
    class Longer(Plain):
        """A record with what its parent has."""

        last: tuple[int, ...] = ()

    return Plain, Named, Longer


OURS, THEIRS = _declare(dataclass), _declare(dataclasses.dataclass)
Plain, Named, Longer = OURS
# Where pickle looks for them.
for _kind in OURS:
    _kind.__qualname__ = _kind.__name__


@pytest.mark.parametrize(
    ("index", "given", "named"),
    [
        (0, ("a",), {}),
        (0, ("a", 5, [1]), {}),
        (0, (), {"parts": [2], "name": "b"}),
        (1, (), {"width": 1.5}),
        (1, (), {"width": 1.5, "note": "n"}),
        (2, ("a", 1, [], (4,)), {}),
        (2, ("a",), {"last": (1,)}),
    ],
)
def test_same_values_text_and_comparison_as_the_library(index: int, given: Any, named: Any):
    ours, theirs = OURS[index](*given, **named), THEIRS[index](*given, **named)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert repr(ours).split("(", 1)[1] == repr(theirs).split("(", 1)[1]
    assert ours == OURS[index](*given, **named)
    assert ours != theirs and not hasattr(ours, "__dict__")


@pytest.mark.parametrize(
    ("index", "given", "named"),
    [
        (0, (), {}),
        (0, ("a", 1, [], 4), {}),
        (0, ("a",), {"other": 1}),
        (0, ("a",), {"name": "b"}),
        (1, (1.5,), {}),
        (1, (), {"width": 1.0, "twice": 2.0}),
        (1, (), {"width": 1.0, "kept": 2}),
    ],
)
def test_wrong_arguments_are_refused_as_by_the_library(index: int, given: Any, named: Any):
    messages = []
    for kinds in (OURS, THEIRS):
        with pytest.raises(TypeError) as caught:
            kinds[index](*given, **named)
        messages.append(str(caught.value).rpartition("__init__")[2])
    assert messages[0] == messages[1]


def test_nothing_can_be_changed_or_deleted():
    record = Plain("a")
    with pytest.raises(dataclasses.FrozenInstanceError, match="'name'"):
        record.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError, match="'size'"):
        del record.size
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.more = 1


def test_every_record_has_its_own_default_parts():
    first, second = Plain("a"), Plain("a")
    first.parts.append(1)
    assert second.parts == []


@pytest.mark.parametrize("record", [Plain("a", 1, [2]), Named(width=2.0), Longer("b", last=(3,))])
def test_copies_and_pickles_are_equal(record: Any):
    for made in (copy.copy(record), copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
        assert made == record and made is not record
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.name = 1


def test_replace_checks_and_computes_again():
    assert dataclasses.replace(Named(width=1.0), width=3.0).twice == 6.0
    with pytest.raises(ValueError, match="negative"):
        dataclasses.replace(Named(width=1.0), width=-1.0)


def test_hash_follows_what_is_compared():
    assert hash(Named(width=1.0, note="a")) == hash(Named(width=1.0, note="b"))
    assert Named(width=1.0, note="a") == Named(width=1.0, note="b")
    assert Named(width=1.0) != Named(width=2.0)


def test_signature_names_types_and_defaults():
    signature = str(inspect.signature(Plain))
    assert signature == "(name: 'str', size: 'int' = 3, parts: 'list[int]' = <factory>)"
    assert str(inspect.signature(Named)) == "(*, width: 'float', note: 'str' = '')"
