"""The script for somebody with a board, run on the fakes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.requirements import lacking

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
FAKES = REPOSITORY / "tests" / "support" / "fake_tensorrt"


def check(folder, bundle, driver, **variables):
    if shutil.which("bash") is None:
        lacking("bash", "there is no bash")
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(FAKES)]),
        "LD_LIBRARY_PATH": str(driver.parent),
        "FAKE_TENSORRT": "10.3.0",
        **variables,
    }
    return subprocess.run(
        ["bash", REPOSITORY / "script" / "jetson-check", bundle, "fp32"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_script_builds_verifies_and_measures(tmp_path, bundle_path, fake_driver_file):
    done = check(tmp_path, bundle_path, fake_driver_file)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "jetson-check"
    found = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert all(item["built"] for item in found["build-fp32"]["engines"])
    assert not any(item["built"] for item in found["again-fp32"]["engines"])
    assert found["verify-fp32"]["provider"] == found["bench-fp32"]["provider"] == "tensorrt"
    assert found["bench-cpu"]["provider"] == "cpu"
    assert "tensorrt 10.3.0" in (out / "log.txt").read_text()


def test_script_tells_what_failed_and_goes_on(tmp_path, bundle_path, fake_driver_file):
    done = check(tmp_path, bundle_path, fake_driver_file, FAKE_TENSORRT_TROUBLE="refusal")
    assert done.returncode == 1
    log = (tmp_path / "jetson-check" / "log.txt").read_text()
    assert "Could not find any implementation" in log
    assert (
        json.loads((tmp_path / "jetson-check" / "bench-cpu.json").read_text())["provider"] == "cpu"
    )
