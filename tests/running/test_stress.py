from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="resident memory is read in /proc"
)
def test_10000_mixed_inferences_from_8_threads_give_the_serial_bits_and_leak_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "running.stress"],
        capture_output=True,
        text=True,
        cwd=TESTS,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert report["calls"] == 10_000
    assert report["different"] == 0
    assert report["kinds"] > 30  # the calls are not all the same one
    assert 0 < report["refused"] < 20
    tenths = report["resident_bytes_by_tenth"]
    assert tenths[9] <= 1.02 * tenths[1], tenths
    assert report["handles"][0] == report["handles"][1]
    assert report["threads_left"] == 0
