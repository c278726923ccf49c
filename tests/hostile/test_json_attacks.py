from __future__ import annotations

import json
import time

import pytest

from umd_edge import Manifest, ManifestError
from umd_edge._json import dump_canonical, load_strict

REFUSED = {
    "deep list": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "33 levels": b"[" * 33 + b"]" * 33,
    "open brackets": b"[" * 1_000_000,
    "huge integer": b"9" * 1_000_000,
    "integer beyond 2**53": b"9007199254740993",
    "huge exponent": b"1e999",
    "long fraction": b"0." + b"1" * 1000,
    "nan": b'{"a": NaN}',
    "infinity": b"[Infinity, -Infinity]",
    "duplicate key": b'{"a": 1, "a": 2}',
    "deep duplicate key": b'[{"b": {"a": 1, "a": 1}}]',
    "lone surrogate": b'"\\ud800"',
    "byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "not utf-8": b'"\xff"',
    "comment": b"{} // x",
    "two documents": b"{} {}",
    "trailing comma": b"[1,]",
    "control character": b'"\x01"',
    "nothing": b"",
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_construct_is_refused_quickly(name: str):
    start = time.perf_counter()
    with pytest.raises(ValueError):
        load_strict(REFUSED[name])
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_construct_as_manifest_is_a_manifest_error(name: str):
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        Manifest.from_bytes(REFUSED[name])


def test_brackets_in_strings_do_not_count():
    text = "[{" * 100 + '"\\'
    assert load_strict(json.dumps({"a": text}).encode()) == {"a": text}


def test_32_levels_are_read():
    assert load_strict(b"[" * 32 + b"]" * 32) is not None


def test_escaped_pair_of_surrogates_is_one_character():
    assert load_strict(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_canonical_bytes_come_back():
    value = {"b": [1, 2.5, "ä"], "a": {"c": None, "d": True}}
    data = dump_canonical(value)
    assert load_strict(data) == value
    assert data.startswith(b'{\n "a"')
    assert data.endswith(b"\n")
