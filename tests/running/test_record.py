from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umd_edge._record import dataclass

OPTIONS: dict[str, Any] = {"frozen": True, "slots": True, "kw_only": True}


@dataclass(**OPTIONS)
class Ours:
    """The same as `Standard`."""

    name: str
    secret: str = field(repr=False)
    note: str = field(default="", compare=False)
    items: tuple[int, ...] = ()
    made: list[int] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("no name")


@dataclasses.dataclass(**OPTIONS)
class Standard:
    """The reference."""

    name: str
    secret: str = field(repr=False)
    note: str = field(default="", compare=False)
    items: tuple[int, ...] = ()
    made: list[int] = field(default_factory=list, compare=False)


@dataclass(**OPTIONS)
class Child(Ours):
    more: int = 0


VALUES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["a", "b"]),
        "secret": st.sampled_from(["x", "y"]),
        "note": st.sampled_from(["", "n"]),
        "items": st.sampled_from([(), (1, 2)]),
    }
)


@given(one=VALUES, other=VALUES)
def test_records_behave_as_those_of_the_standard_library(one, other):
    assert (Ours(**one) == Ours(**other)) is (Standard(**one) == Standard(**other))
    assert (hash(Ours(**one)) == hash(Ours(**other))) is (
        hash(Standard(**one)) == hash(Standard(**other))
    )
    assert repr(Ours(**one)) == repr(Standard(**one)).replace("Standard", "Ours")
    changed = dataclasses.replace(Ours(**one), name="c")
    assert changed == Ours(**{**one, "name": "c"})


def test_a_record_is_frozen_and_has_slots():
    record = Ours(name="a", secret="x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        del record.name
    assert not hasattr(record, "__dict__")
    with pytest.raises(TypeError):
        Ours("a", "x")  # keywords alone
    with pytest.raises(ValueError, match="no name"):
        Ours(name="", secret="x")


def test_records_can_be_copied_and_pickled():
    record = Ours(name="a", secret="x", items=(1,))
    assert copy.copy(record) == copy.deepcopy(record) == record
    assert pickle.loads(pickle.dumps(record)) == record


def test_a_child_is_another_class():
    parent, child = Ours(name="a", secret="x"), Child(name="a", secret="x", more=1)
    assert parent != child
    assert child != Child(name="a", secret="x", more=2)
    assert repr(child) == "Child(name='a', note='', items=(), made=[], more=1)"
    assert parent != "a"


def test_methods_of_the_class_and_identity_are_kept():
    @dataclass(frozen=True, slots=True, eq=False)
    class Identity:
        value: int

        def __repr__(self) -> str:
            return "own"

    assert Identity(1) != Identity(1)
    assert repr(Identity(1)) == "own"
    assert len({Identity(1), Identity(1)}) == 2
