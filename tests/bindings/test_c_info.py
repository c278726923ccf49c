"""`umd-edge c-info` names what is there and says what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.c_library import INCLUDE, onnxruntime_library
from support.command import run, run_json
from umd_edge import _c_info


def test_c_info_names_header_and_onnxruntime() -> None:
    (facts,) = run_json("c-info")
    assert Path(facts["include"]) == INCLUDE
    assert Path(facts["onnxruntime"]) == onnxruntime_library()
    assert facts["onnxruntime_version"] in facts["onnxruntime"]


def test_c_info_prints_a_table_for_people() -> None:
    done = run("c-info")
    assert done.code == 0
    assert str(INCLUDE) in done.out
    assert "onnxruntime version" in done.out


def test_c_info_says_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_c_info, "_runtime_folder", lambda: None)
    monkeypatch.setattr(_c_info, "_HEADER", "none.h")
    (facts,) = run_json("c-info")
    assert (facts["include"], facts["onnxruntime"]) == (None, None)
    assert "not found" in run("c-info").out
