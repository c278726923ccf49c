"""Frozen dataclasses that are made in a third of the time.

`dataclasses.dataclass` writes and compiles six methods for each class, which is a large part of
what loading this package takes. Here one is compiled, `__init__`; the others are the same functions
for all classes. Type checkers see the decorator of the standard library.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls=None, /, *, frozen, slots, kw_only=False, eq=True):
        """`dataclasses.dataclass` with these arguments; `frozen` must be true to be fast."""

        def make(cls):
            own = set(vars(cls))
            # Unfrozen for the library, as freezing is what makes it compile two methods more.
            made = dataclasses.dataclass(
                cls, init=False, repr=False, eq=False, slots=slots, kw_only=kw_only
            )
            made.__init__ = _init(made)
            if frozen:
                made.__setattr__, made.__delattr__ = _refuse, _refuse
                made.__getstate__, made.__setstate__ = _get_state, _set_state
            if "__repr__" not in own:
                made.__repr__ = _repr
            if eq and "__eq__" not in own:
                made.__eq__ = _equal
                made.__hash__ = _hash if frozen else None
            return made

        return make if cls is None else make(cls)


class _Missing:
    """Stands for an argument that was not given, in signatures too."""

    def __repr__(self) -> str:
        return "<factory>"


_MISSING = _Missing()


def _init(cls: Any) -> Any:
    """The `__init__` of a class: arguments, defaults and `__post_init__` as in the library."""
    fields = dataclasses.fields(cls)
    known: dict[str, Any] = {"_set": object.__setattr__, "_missing": _MISSING}
    plain: list[str] = ["self"]
    named: list[str] = []
    body: list[str] = []
    for index, field in enumerate(fields):
        value = field.name
        if field.default_factory is not dataclasses.MISSING:
            known[f"_factory{index}"] = field.default_factory
            default = "=_missing"
            value = f"_factory{index}() if {field.name} is _missing else {field.name}"
        elif field.default is not dataclasses.MISSING:
            known[f"_default{index}"] = field.default
            default = f"=_default{index}"
        else:
            default = ""
        if field.init:
            (named if field.kw_only else plain).append(field.name + default)
        elif default == "":
            continue  # `__post_init__` sets it
        else:
            value = default[1:]
        body.append(f" _set(self, {field.name!r}, {value})")
    if hasattr(cls, "__post_init__"):
        body.append(" self.__post_init__()")
    arguments = ", ".join([*plain, "*", *named] if named else plain)
    exec(f"def __init__({arguments}):\n" + "\n".join(body or [" pass"]), known)
    made = known["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__module__ = cls.__module__
    made.__annotations__ = {field.name: field.type for field in fields if field.init}
    return made


def _refuse(self: Any, name: str, *_: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot change field {name!r}")


def _get_state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)


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
