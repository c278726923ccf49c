"""Frozen dataclasses that are made in half the time.

`dataclasses.dataclass` writes and compiles six methods for each class, which is a large part of
what loading this package takes. Here three of them (`__repr__`, `__eq__`, `__hash__`) are the same
functions for all classes; type checkers see the decorator of the standard library.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls=None, /, *, frozen, slots, kw_only=False, eq=True):
        """`dataclasses.dataclass` with these arguments."""

        def make(cls):
            own = set(vars(cls))
            made = dataclasses.dataclass(
                cls, repr=False, eq=False, frozen=frozen, slots=slots, kw_only=kw_only
            )
            if "__repr__" not in own:
                made.__repr__ = _repr
            if eq and "__eq__" not in own:
                made.__eq__ = _equal
                made.__hash__ = _hash if frozen else None
            return made

        return make if cls is None else make(cls)


def _repr(self: Any) -> str:
    shown = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _values(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, f.name) for f in dataclasses.fields(self) if f.compare)


def _equal(self: Any, other: object) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return _values(self) == _values(other)


def _hash(self: Any) -> int:
    return hash(_values(self))
