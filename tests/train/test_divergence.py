from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from support.training import write_recipe
from umd_edge.errors import UsageError
from umd_edge_train.divergence import DivergenceWatch, TrainingDivergedError
from umd_edge_train.finetuning import finetune
from umd_edge_train.recipe import Recipe, load_recipe

FOLDER = Path("run") / "checkpoints"


def _recipe(folder: Path, *settings: str) -> Recipe:
    return load_recipe(write_recipe(folder, "shapes"), ("run.checkpoint_every_steps=1", *settings))


@given(
    losses=st.lists(st.floats(0.0, 1e4), min_size=1, max_size=30),
    factor=st.floats(1.5, 50.0),
    cut=st.integers(0, 29),
)
@settings(max_examples=200, deadline=None)
def test_a_run_stops_where_the_smoothed_loss_is_too_high_resumed_or_not(
    losses: list[float], factor: float, cut: int
):
    start = max(losses[0], 1.0)
    smoothed, expected = losses[0], 0
    for step, loss in enumerate(losses, start=1):
        smoothed = 0.9 * smoothed + (1.0 - 0.9) * loss
        if smoothed > factor * start:
            expected = step
            break
    watch, stopped = DivergenceWatch(factor, FOLDER), 0
    for step, loss in enumerate(losses, start=1):
        if step == cut:
            resumed = DivergenceWatch(factor, FOLDER)
            resumed.load(json.loads(json.dumps({"step": step, **watch.state()})))
            watch = resumed
        try:
            watch.add(loss, step)
        except TrainingDivergedError as error:
            stopped = step
            assert f"at step {step}, more than optim.divergence_factor" in str(error)
            break
    assert stopped == expected


def test_a_factor_of_zero_lets_everything_pass():
    watch = DivergenceWatch(0.0, FOLDER)
    for step, loss in enumerate((1.0, 1e30, 1e300)):
        watch.add(loss, step)


def test_a_checkpoint_of_before_the_watch_begins_anew():
    watch = DivergenceWatch(2.0, FOLDER)
    watch.load({"step": 400.0})
    watch.add(50.0, 401)
    assert watch.state() == {"start_loss": 50.0, "recent_loss": pytest.approx(50.0)}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_with_its_place(value: float):
    with pytest.raises(TrainingDivergedError, match=r"the loss is .* at step 9; .*--init"):
        DivergenceWatch(20.0, FOLDER).require_finite("loss", value, 9)


EXPLODES = ("optim.learning_rate=100.0", "optim.warmup_fraction=0.0", "optim.gradient_clip=1e9")


def test_a_run_that_explodes_stops_before_it_is_saved(synth: Path, tmp_path: Path):
    recipe = _recipe(tmp_path, *EXPLODES)
    with pytest.raises(TrainingDivergedError, match="times that of the start") as caught:
        finetune(recipe, synth, tmp_path / "run")
    assert caught.value.exit_code == 1
    lines = (tmp_path / "run" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])["step"]  # the curve shows what happened
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [folder.name for folder in kept][-1:] == [f"step-{last - 1:07d}"]
    assert not (tmp_path / "run" / "final").exists()


def test_the_same_run_is_let_through_where_asked(synth: Path, tmp_path: Path):
    recipe = _recipe(tmp_path, *EXPLODES, "optim.divergence_factor=0.0")
    finetune(recipe, synth, tmp_path / "run")
    assert (tmp_path / "run" / "final").exists()


def test_float16_that_leaves_out_every_step_stops(
    synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    skipped = property(lambda self: True)
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", skipped)
    recipe = _recipe(tmp_path, "optim.epochs=40", "run.evaluate_every_epochs=1000")
    with pytest.raises(TrainingDivergedError, match="not finite in float16 in 30 steps"):
        finetune(recipe, synth, tmp_path / "run")


def test_a_single_step_that_float16_leaves_out_is_no_harm():
    watch = DivergenceWatch(20.0, FOLDER)
    for step in range(200):
        watch.add_skipped(step % 10 != 0, step)


@pytest.mark.parametrize("value", ["-1", "inf", "nan"])
def test_a_factor_that_makes_no_sense_is_refused(tmp_path: Path, value: str):
    with pytest.raises(UsageError, match=r"optim\.divergence_factor: .* given; a finite number"):
        _recipe(tmp_path, f"optim.divergence_factor={value}")
