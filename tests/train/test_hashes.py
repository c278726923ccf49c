"""The list of hashes beside the weights: written with them, and compared wherever they are read."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from support import saving
from support.requirements import lacking
from support.training import TASKS, minute_checkpoint
from umd_edge_train import checkpoint as module
from umd_edge_train.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_weights,
    pack_checkpoint,
    save_checkpoint,
    write_directory_atomically,
)
from umd_edge_train.cli import main
from umd_edge_train.hashes import SUMS, check_hashes, write_hashes
from umd_edge_train.run_state import _resume, save_final, save_state

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def original() -> Checkpoint:
    return minute_checkpoint()


@pytest.fixture
def saved(original: Checkpoint, tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    _write(original, folder)
    return folder


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    tensors = checkpoint.model.state_dict()
    write_directory_atomically(folder, lambda path: save_checkpoint(path, checkpoint, tensors))


def _flip(path: Path, bit: int = 0) -> None:
    """Change one bit of the last byte, which is a weight's."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1 << bit
    path.write_bytes(bytes(data))


def _reference(folder: Path, *names: str) -> str:
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def test_a_checkpoint_lists_its_weights_and_its_tokenizer(saved: Path):
    assert (saved / SUMS).read_text() == _reference(saved, WEIGHTS, "tokenizer.json")
    assert check_hashes(saved)


def test_the_list_is_one_that_sha256sum_reads(saved: Path):
    if shutil.which("sha256sum") is None:
        lacking("sha256sum", "no `sha256sum` on the path")
    command = ["sha256sum", "--check", "--strict", SUMS]
    assert subprocess.run(command, cwd=saved, capture_output=True).returncode == 0
    _flip(saved / WEIGHTS)
    assert subprocess.run(command, cwd=saved, capture_output=True).returncode == 1


def test_a_packed_checkpoint_has_a_list_of_its_own(saved: Path, tmp_path: Path):
    packed = tmp_path / "packed"
    pack_checkpoint(load_checkpoint(saved), packed)
    assert (packed / SUMS).read_text() == _reference(packed, WEIGHTS, "tokenizer.json")
    assert (packed / SUMS).read_text() != (saved / SUMS).read_text()
    _flip(packed / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*SHA-256 differs"):
        load_checkpoint(packed)


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_is_refused(saved: Path, bit: int):
    _flip(saved / WEIGHTS, bit)
    for load in (load_checkpoint, load_weights):
        with pytest.raises(CheckpointError, match=r"model\.safetensors.*SHA-256 differs"):
            load(saved)
    (saved / SUMS).unlink()  # negative control: nothing else sees it
    load_checkpoint(saved)


def test_another_tokenizer_is_refused(saved: Path):
    _flip(saved / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*copy the checkpoint again"):
        load_checkpoint(saved)


def test_settings_may_be_edited_and_figures_added(saved: Path):
    tasks = json.loads((saved / "tasks.json").read_text(encoding="utf-8"))
    tasks[0]["prompt"] = "another prompt"
    (saved / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    (saved / "metrics.json").write_text("{}", encoding="utf-8")
    assert load_checkpoint(saved).tasks[0].prompt == "another prompt"


def test_weights_that_the_list_does_not_hold_are_refused(saved: Path):
    shutil.copy(saved / WEIGHTS, saved / "model-2.safetensors")
    with pytest.raises(CheckpointError, match=r"does not list 'model-2\.safetensors'"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "does not list"),
        (b"no sum\n", "line 1 of SHA256SUMS"),
        (b"\xff\n", "cannot be read"),
        (b"0" * 64 + b"  ../model.safetensors\n", "line 1 of SHA256SUMS"),
        (b"0" * 64 + b"  gone.json\n", "'gone.json' is missing"),
    ],
)
def test_a_list_that_is_none_is_refused(saved: Path, text: bytes, match: str):
    kept = b"" if match == "does not list" else (saved / SUMS).read_bytes()
    (saved / SUMS).write_bytes(text + kept)
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(saved)


def test_evaluation_of_a_changed_checkpoint_has_exit_code_3(saved: Path, tmp_path: Path):
    _flip(saved / WEIGHTS)
    data = tmp_path / "data.jsonl"
    data.write_text("", encoding="utf-8")
    arguments = ["evaluate", str(saved), "--task", TASKS[0].name, "--data", str(data)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 3
    assert "SHA-256 differs" in done.output


def test_a_list_that_cannot_be_written_leaves_the_checkpoint_before(
    original: Checkpoint, saved: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    monkeypatch.setattr(module, "write_hashes", full)
    with pytest.raises(CheckpointError, match="free some space"):
        _write(original, saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


# --- resuming ---------------------------------------


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run of three steps, and its newest checkpoint's state."""
    run = saving.minute_run(tmp_path)
    run.step = 3
    save_state(run)
    save_final(run, {})
    return tmp_path / "checkpoints" / "step-0000003" / "state"


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", f"../{WEIGHTS}"])
def test_a_run_does_not_go_on_from_a_changed_file(stopped: Path, tmp_path: Path, name: str):
    if not (stopped / name).exists():
        pytest.fail(f"no {name}")
    _flip(stopped / name)
    with pytest.raises(CheckpointError, match=r"SHA-256 differs"):
        _resume(saving.minute_run(tmp_path))


def test_a_state_lists_all_of_its_weights(stopped: Path, tmp_path: Path):
    names = sorted(file.name for file in stopped.glob("*.safetensors"))
    assert len(names) >= 2
    assert (stopped / SUMS).read_text() == _reference(stopped, *names)
    assert _resume(saving.minute_run(tmp_path))


def test_a_run_whose_state_has_no_list_goes_on(stopped: Path, tmp_path: Path):
    for folder in (stopped, stopped.parent):
        (folder / SUMS).unlink()
    assert _resume(saving.minute_run(tmp_path))


def test_a_folder_without_weights_has_an_empty_list(tmp_path: Path):
    write_hashes(tmp_path)
    assert (tmp_path / SUMS).read_bytes() == b""
    assert check_hashes(tmp_path)
