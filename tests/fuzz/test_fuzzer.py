"""The coverage-guided fuzzer, for a short time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.fuzz_targets import TARGETS
from support.requirements import lacking

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parent.parent
_SECONDS = 3

_PLANTED = """
import sys
from support import fuzz_targets, fuzzer

def crash(data):
    if data[:2] == b"ok":
        raise IndexError("planted")

def memory(data):
    if data[:2] == b"ok":
        bytearray(64 << 30)

fault = {"crash": crash, "memory": memory}[sys.argv.pop(1)]
fuzz_targets.TARGETS["planted"] = fuzz_targets.Target(fault, lambda: [b"no"], 0)
fuzzer.main()
"""


def _environment() -> dict[str, str]:
    if importlib.util.find_spec("atheris") is None:
        lacking("atheris", "atheris is not installed; script/fuzz installs it where it can be")
    path = os.pathsep.join([str(TESTS), *sys.path])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_nothing_is_found_in_a_short_time(name: str, tmp_path: Path):
    corpus, faults = tmp_path / "corpus", tmp_path / "faults"
    corpus.mkdir()
    faults.mkdir()
    command = [sys.executable, "-m", "support.fuzzer", name, str(_SECONDS), corpus, faults]
    done = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(faults.iterdir())
    assert "stat::number_of_executed_units" in done.stderr


@pytest.mark.parametrize(("fault", "word"), [("crash", "planted"), ("memory", "MemoryError")])
def test_a_planted_fault_is_found_and_kept(fault: str, word: str, tmp_path: Path):
    program = tmp_path / "planted.py"
    program.write_text(_PLANTED)
    (tmp_path / "corpus").mkdir()
    command = [sys.executable, program, fault, "planted", "30", tmp_path / "corpus", tmp_path]
    done = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode != 0
    assert word in done.stderr + done.stdout
    assert list(tmp_path.glob("planted-crash-*"))
