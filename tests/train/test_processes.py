"""Micro-batches and processes change the speed of a run, not its gradients."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.training import write_recipe
from umd_edge_train.checkpoint import load_weights
from umd_edge_train.finetuning import finetune
from umd_edge_train.pretraining import pretrain
from umd_edge_train.recipe import load_recipe

# Batch normalisation sees its own part alone, so the stem is a plain one here; no random changes.
EXACT = (
    "model.vision.stem=patch",
    "optim.epochs=1",
    "run.evaluate_every_epochs=1000",
    "optim.structured_dropout=0.0",
    *(f"augment.{name}=0.0" for name in ("scale", "aspect", "brightness", "contrast", "colour")),
    "augment.rotate_degrees=0.0",
    "datasets=[{name='questions', path='questions'}]",
)
_RUN = """
import sys
from datetime import timedelta
from pathlib import Path
import torch
from umd_edge_train.finetuning import finetune
from umd_edge_train.pretraining import pretrain
from umd_edge_train.recipe import load_recipe

kind, recipe, data, out, *settings = sys.argv[1:]
run = {"finetune": finetune, "pretrain": pretrain}[kind]
run(load_recipe(recipe, tuple(settings)), Path(data), Path(out))
# process 0 validates alone, and the others wait for it in their next exchange
group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
assert group.options._timeout >= timedelta(hours=20), group.options._timeout
"""


def _losses(out: Path) -> list[float]:
    lines = (out / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [r["losses"]["loss"] for r in map(json.loads, lines) if r["kind"] == "train"]


def _run(folder: Path, synth: Path, *settings: str) -> Path:
    recipe = load_recipe(write_recipe(folder, "questions"), (*EXACT, *settings))
    finetune(recipe, synth, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def whole(synth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, one micro-batch."""
    return _run(tmp_path_factory.mktemp("whole"), synth)


def _assert_equal(one: Path, other: Path) -> None:
    assert _losses(one) == pytest.approx(_losses(other), rel=1e-4)
    a, b = load_weights(one / "final"), load_weights(other / "final")
    for name in a:
        # AdamW's first steps turn rounding of tiny gradients into steps of up to 1e-3
        assert torch.allclose(a[name], b[name], atol=2e-3), name


def test_micro_batches_give_the_gradient_of_the_whole(whole: Path, synth: Path, tmp_path: Path):
    _assert_equal(whole, _run(tmp_path, synth, "optim.accumulation=2"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradient_checkpointing_gives_the_same_run(synth: Path, tmp_path: Path, precision: str):
    runs = []
    for checkpointed in ("true", "false"):
        folder = tmp_path / checkpointed
        folder.mkdir()
        settings = (
            f"optim.gradient_checkpointing={checkpointed}",
            f"optim.precision={precision}",
            "optim.epochs=1",
        )
        runs.append(_run(folder, synth, *settings))
    _assert_equal(*runs)


def test_another_batch_size_does_not(whole: Path, synth: Path, tmp_path: Path):
    other = _run(tmp_path, synth, "optim.images_per_batch=4")
    assert len(_losses(other)) != len(_losses(whole))


def _run_as_two(
    kind: str, folder: Path, synth: Path, *settings: str, part: str = "questions"
) -> Path:
    """The same as `_run`, in two processes that talk over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    recipe, out = write_recipe(folder, part), folder / "run"
    command = [sys.executable, "-c", _RUN, kind, recipe, synth, out, *EXACT, *settings]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        processes.append(
            subprocess.Popen(
                list(map(str, command)),
                env=environment,
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
        )
    errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return out


def test_two_processes_equal_one(whole: Path, synth: Path, tmp_path: Path):
    out = _run_as_two("finetune", tmp_path, synth)
    assert len(_losses(out)) == len(_losses(whole))
    a, b = load_weights(out / "final"), load_weights(whole / "final")
    for name in a:
        assert torch.allclose(a[name], b[name], atol=2e-3), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part", "settings"),
    [
        ("pretrain", "questions", ("reconstruction.feature_mim=decoder",)),
        ("pretrain", "questions", ("reconstruction.teacher_update=micro_batch",)),
        ("finetune", "questions", ("coordination.application=released",)),
        ("finetune", "questions", ("coordination.application=post_update",)),
        (
            "finetune",
            "captions",
            (
                "datasets=[{name='captions', path='questions', prefix='images_'}]",
                "tasks.0.drawn_texts=3",
                "coordination.application=post_update",
            ),
        ),
    ],
)
def test_two_processes_draw_what_two_micro_batches_draw(
    synth: Path, tmp_path: Path, kind: str, part: str, settings: tuple[str, ...]
):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    recipe = load_recipe(write_recipe(one, part), (*EXACT, *settings, "optim.accumulation=2"))
    {"finetune": finetune, "pretrain": pretrain}[kind](recipe, synth, one / "run")
    _assert_equal(one / "run", _run_as_two(kind, two, synth, *settings, part=part))
