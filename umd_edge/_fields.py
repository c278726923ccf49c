"""Readers of single values of `manifest.json`; each error says where and what is needed."""

from __future__ import annotations

import re
from typing import Any

from .errors import ManifestError

__all__ = [
    "fail",
    "file_",
    "free_object",
    "integer",
    "is_safe_path",
    "list_",
    "object_",
    "strings",
    "text",
]

_COMPONENT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,98}[A-Za-z0-9_-])?")
_DEVICE_NAMES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)


def is_safe_path(name: str) -> bool:
    """Whether `name` is a relative path that every file system reads alike and that stays inside.

    Components of ASCII letters, digits, `_`, `-` and `.` (not first or last) joined by `/`; at
    most 8 of them and 200 characters; no device names of Windows.
    """
    components = name.split("/")
    return (
        len(name) <= 200
        and len(components) <= 8
        and all(
            _COMPONENT.fullmatch(part) is not None and _DEVICE_NAMES.fullmatch(part) is None
            for part in components
        )
    )


def fail(path: str, problem: str) -> ManifestError:
    """Make the error for a JSON path."""
    return ManifestError(f"manifest.json: {path}: {problem}")


def object_(data: object, path: str, needed: set[str], optional: set[str]) -> dict[str, Any]:
    """An object with exactly the needed keys and any of the optional ones."""
    if not isinstance(data, dict):
        raise fail(path, f"an object is needed, {type(data).__name__} given")
    unknown, missing = sorted(set(data) - needed - optional), sorted(needed - set(data))
    if unknown:
        raise fail(path, f"unknown keys {unknown}; allowed are {sorted(needed | optional)}")
    if missing:
        raise fail(path, f"missing keys {missing}")
    return data


def free_object(data: object, path: str) -> dict[str, Any]:
    """An object with any keys."""
    if not isinstance(data, dict):
        raise fail(path, "an object is needed")
    return data


def list_(data: object, path: str) -> list[Any]:
    """A list."""
    if not isinstance(data, list):
        raise fail(path, "a list is needed")
    return data


def strings(data: object, path: str) -> tuple[str, ...]:
    """A list of strings."""
    if not isinstance(data, list) or not all(isinstance(item, str) for item in data):
        raise fail(path, "a list of strings is needed")
    return tuple(data)


def text(data: object, path: str, pattern: re.Pattern[str] | None = None, like: str = "") -> str:
    """A string that is not blank and fits a pattern."""
    if not isinstance(data, str) or not data.strip():
        raise fail(path, "a string that is not empty is needed")
    if pattern is not None and pattern.fullmatch(data) is None:
        raise fail(path, f"{data[:60]!r} given; a value such as {like!r} is needed")
    return data


def integer(data: object, path: str, low: int, high: int) -> int:
    """A whole number within limits."""
    if type(data) is not int or not low <= data <= high:
        raise fail(path, f"an integer in {low}..{high} is needed")
    return data


def file_(data: object, path: str) -> str:
    """A safe path inside the bundle."""
    if not isinstance(data, str) or not is_safe_path(data):
        raise fail(path, "a path inside the bundle is needed (letters, digits, '_', '-', '.', '/')")
    return data
