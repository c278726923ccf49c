"""Checkpoints being saved: kill -9 at 50 random moments, a full disk, a folder closed to us."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support import saving
from support.killing import kill_again_and_again
from umd_edge_train.checkpoint import CheckpointError, load_checkpoint, write_json
from umd_edge_train.folder import remove_folder
from umd_edge_train.run_state import _resume, save_final, save_state

KILLS = 50
NOBODY = 65534
TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_checkpoints_that_are_saved_while_killed_50_times_lose_nothing(tmp_path: Path):
    out, said = tmp_path / "run", tmp_path / "said"
    counts = kill_again_and_again(
        *("support.saving", "save", "whole"),
        [str(out), str(said)],
        kills=KILLS,
        steps=2,
        span_s=0.06,
    )
    assert counts == {"killed": KILLS, "ended": 0}
    steps = [int(line) for line in said.read_text().split()]
    assert len(steps) > KILLS // 5, "the kills did not fall into the work"
    assert steps == sorted(set(steps))
    assert len(list((out / "checkpoints").glob("step-*"))) <= 3


def saved_run(out: Path, step: int):
    run = saving.minute_run(out)
    run.step = step
    saving.mark(run)
    save_state(run)
    save_final(run, {"step": step})
    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("limit", [100, 20_000, 100_000])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, limit: int):
    resource = pytest.importorskip("resource")
    run = saved_run(tmp_path, 3)
    run.step = 6
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        for save in (save_state, lambda run: save_final(run, {"step": 6})):
            with pytest.raises(CheckpointError, match=r"free some space.*saved before is kept"):
                save(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["checkpoints", "final"]
    assert names(tmp_path / "checkpoints") == ["step-0000003"]
    assert load_checkpoint(tmp_path / "final").provenance["step"] == 3
    again = saving.minute_run(tmp_path)
    assert _resume(again) and again.step == 3


_CLOSED = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[3].split(os.pathsep)
from support import saving
from umd_edge_train.checkpoint import CheckpointError
from umd_edge_train.run_state import save_final, save_state
run = saving.minute_run(Path(sys.argv[1]))
run.step = 6
if os.getuid() == 0:
    os.setuid(int(sys.argv[2]))
for save in (save_state, lambda run: save_final(run, {"step": 6})):
    try:
        save(run)
    except CheckpointError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="permissions of another kind")
def test_a_folder_that_may_no_longer_be_written_keeps_its_checkpoint():
    place = Path(tempfile.mkdtemp(prefix="umd-edge-"))
    try:
        out = place / "run"
        saved_run(out, 3)
        for folder in (place, out, out / "checkpoints"):
            folder.chmod(0o555)
        paths = os.pathsep.join(path for path in sys.path if path)
        done = subprocess.run(
            [sys.executable, "-c", _CLOSED, str(out), str(NOBODY), paths],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("Permission denied") == 2
        assert names(out / "checkpoints") == ["step-0000003"]
        assert load_checkpoint(out / "final").provenance["step"] == 3
    finally:
        for folder in (place, out, out / "checkpoints"):
            folder.chmod(0o755)
        shutil.rmtree(place)


def test_what_killed_savers_left_goes_with_the_next_checkpoint(tmp_path: Path):
    run = saved_run(tmp_path, 3)
    checkpoints = tmp_path / "checkpoints"
    for name in (".step-0000002.0.tmp", ".step-0000001.gone", ".step-0000002.4711.tmp"):
        shutil.copytree(checkpoints / "step-0000003", checkpoints / name)
    retired = checkpoints / ".step-0000003.old"
    (checkpoints / "step-0000003").rename(retired)
    run.step = 6
    save_state(run)
    assert names(checkpoints) == ["step-0000003", "step-0000006"]


def test_only_two_checkpoints_are_kept_and_a_removed_one_is_never_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for step in (3, 6, 9):
        saved_run(tmp_path, step)
    checkpoints = tmp_path / "checkpoints"
    assert names(checkpoints) == ["step-0000006", "step-0000009"]
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before it
    remove_folder(checkpoints / "step-0000006")
    assert names(checkpoints) == [".step-0000006.gone", "step-0000009"]


def test_settings_that_cannot_be_written_keep_the_old_ones(tmp_path: Path):
    resource = pytest.importorskip("resource")
    write_json(tmp_path / "recipe.json", {"seed": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_json(tmp_path / "recipe.json", {"seed": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["recipe.json"]
    assert "1" in (tmp_path / "recipe.json").read_text()
