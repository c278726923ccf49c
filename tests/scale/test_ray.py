"""The example of docs/scale-out.md on a local Ray cluster, with a worker killed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.requirements import lacking
from umd_edge import Predictor

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/cmdline").exists(), reason="workers are found in /proc"
    ),
]

_PICTURES, _COPIES, _SIDE = 5, 16, 1200


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """80 names of five pictures that take a moment to decode, and one that is none."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for index in range(_PICTURES):
        pixels = np.random.default_rng(index).integers(0, 256, (_SIDE, _SIDE), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}-000.png")
        for copy in range(1, _COPIES):
            os.link(folder / f"{index}-000.png", folder / f"{index}-{copy:03d}.png")
    (folder / "broken.png").write_text("no picture")
    return folder


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Ray's sockets need a short path."""
    if importlib.util.find_spec("ray") is None:
        lacking("ray", "ray is not installed; script/test --slow installs it where it can be")
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _workers(ancestor: int) -> dict[int, str]:
    """Classifiers among the processes below one of ours: number and name."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            names[int(entry.name)] = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
            stat = (entry / "stat").read_text()
        except OSError:
            continue
        parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])

    def below(pid: int) -> bool:
        while pid > 1 and pid != ancestor:
            pid = parents.get(pid, 0)
        return pid == ancestor

    return {pid: name for pid, name in names.items() if "Classifier" in name and below(pid)}


def _lines(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(out.glob("part-*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def test_killed_worker_loses_and_doubles_nothing(
    archive: Path, ray_folder: Path, tiny_bundle: Path, tmp_path: Path
):
    out = tmp_path / "results"
    command = [sys.executable, ROOT / "examples" / "ray_classify.py", archive, "--out", out]
    command += ["--task", "breast-ultrasound", "--bundle", tiny_bundle, "--batch", "5"]
    environment = {**os.environ, "RAY_TMPDIR": str(ray_folder), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            killed = _kill_a_worker_at_work(process)
            others: set[int] = set()
            while process.poll() is None:
                others |= set(_workers(process.pid)) - {killed}
                time.sleep(0.05)
        finally:
            process.terminate()
            process.wait(30)
    text = (tmp_path / "log").read_text()
    assert process.returncode == 4, text  # one image is none
    assert others, "nobody took the killed worker's place: it was killed too late"
    lines = _lines(out)
    paths = sorted(str(path) for path in archive.iterdir())
    assert sorted(line["image"] for line in lines) == paths
    _assert_equal_to_one_process(lines, tiny_bundle)


def _kill_a_worker_at_work(process: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        for pid, name in _workers(process.pid).items():
            if "submit" in name:  # Ray's name for an actor that has work in hand
                time.sleep(0.3)
                os.kill(pid, signal.SIGKILL)
                return pid
        time.sleep(0.02)
    raise AssertionError("no worker was seen at work")


def _assert_equal_to_one_process(lines: list[dict[str, Any]], bundle: Path) -> None:
    predictor = Predictor.load(bundle)
    for line in lines:
        name = Path(line["image"]).name
        if name == "broken.png":
            assert line["error"]["type"] == "ImageInputError"
        elif name.endswith("-000.png"):
            alone = predictor.classify(line["image"], "breast-ultrasound").to_dict()
            same = [other for other in lines if Path(other["image"]).name[:2] == name[:2]]
            assert len(same) == _COPIES
            assert all(other["findings"] == alone["findings"] for other in same)
