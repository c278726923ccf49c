"""Strict JSON: what a bundle's manifest and the golden texts are read with.

Python's reader accepts more than JSON and can be made to recurse or to build huge integers. Here
duplicate keys, NaN, infinities, long integers, lone surrogates and deep nesting are refused.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

__all__ = ["dump_canonical", "load_strict"]

MAX_DEPTH = 32
_MAX_NUMBER_CHARACTERS = 40
_MAX_INTEGER = 2**53

# Strings are taken out as a whole, so that brackets inside them do not count.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))


def _check_depth(data: bytes) -> None:
    depth = 0
    for first in _STRING.sub(b"", data).translate(None, _OTHERS):
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        else:
            depth -= 1


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the same key stands twice in one object")
    return result


def _integer(text: str) -> int:
    if len(text) > _MAX_NUMBER_CHARACTERS or abs(int(text)) > _MAX_INTEGER:
        raise ValueError("an integer outside -2**53..2**53")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if len(text) > _MAX_NUMBER_CHARACTERS or not math.isfinite(value):
        raise ValueError("a number that is too long or too large")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def load_strict(data: bytes) -> Any:
    """Parse UTF-8 JSON.

    Raises:
        ValueError: Not JSON, or one of the refused constructs; the message says which.
    """
    _check_depth(data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    value = json.loads(
        text,
        object_pairs_hook=_pairs,
        parse_int=_integer,
        parse_float=_real,
        parse_constant=_constant,
    )
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("a lone surrogate in a string") from error
    return value


def dump_canonical(value: Any, *, errors: str = "strict") -> bytes:
    """Serialise with sorted keys, indent 1, UTF-8 and a newline at the end.

    Args:
        value: A JSON value.
        errors: What to do with a lone surrogate, as in `str.encode`.

    Raises:
        ValueError: NaN or an infinity; a lone surrogate where `errors` is `strict`.
    """
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", errors)
