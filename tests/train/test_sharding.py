"""Two processes that share weights, gradients and moments train what one process trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from support.processes import job, run_jobs
from support.training import minute_model, write_recipe
from umd_edge.errors import UsageError
from umd_edge_train.checkpoint import load_weights
from umd_edge_train.finetuning import finetune
from umd_edge_train.losses import SupervisedStep
from umd_edge_train.momentum_teacher import MomentumTeacher
from umd_edge_train.pretraining import pretrain
from umd_edge_train.recipe import OptimConfig, load_recipe
from umd_edge_train.sharding import Sharding, gathered, scattered

# Batch normalisation sees its own part alone, so the stem is a plain one here. Gradients are
# clipped hard, and some parts have no example of some task.
_EXACT = (
    "model.vision.stem=patch",
    "optim.epochs=1",
    "optim.images_per_batch=16",
    "optim.gradient_clip=0.1",
    "optim.learning_rate=1e-4",
    "run.checkpoint_every_steps=2",
    "coordination.application=post_update",
)
_SHARDED = (*_EXACT, "optim.sharded=true")
_KILLED_AT = 3


def _settings(settings: tuple[str, ...], parts: int) -> tuple[str, ...]:
    # as many parts in all, and so the same masks and wrong pairs, whatever the processes
    return (*settings, f"optim.accumulation={parts}")


@pytest.fixture(scope="module")
def runs(synth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both kinds of run in one process, sharded over two, and there killed and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(folder, "questions", "values", "captions")
    finetune(load_recipe(recipe, _settings(_EXACT, 4)), synth, folder / "finetune")
    pretrain(load_recipe(recipe, _settings(_EXACT, 2)), synth, folder / "pretrain")
    names = {"finetune": 2, "pretrain": 1}
    jobs = [
        job(kind, recipe, synth, folder / f"{kind}-sharded", *_settings(_SHARDED, parts))
        for kind, parts in names.items()
    ]
    killed = job("pretrain", recipe, synth, folder / "pretrain-killed", *_settings(_SHARDED, 1))
    codes, errors = run_jobs([*jobs, {**killed, "stop": _KILLED_AT}])
    assert codes == [9, 9], errors
    codes, errors = run_jobs([{**killed, "resume": True}])
    assert codes == [0, 0], errors
    return folder


def _losses(out: Path) -> list[float]:
    lines = (out / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [r["losses"]["loss"] for r in map(json.loads, lines) if r["kind"] == "train"]


def _validation(out: Path) -> dict[str, float]:
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["validation"]
    return {f"{t}/{n}": metric["value"] for t, all_ in found.items() for n, metric in all_.items()}


def _newest(out: Path) -> Path:
    return max((out / "checkpoints").iterdir())


def _assert_close(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float
) -> None:
    assert {name: (t.shape, t.dtype) for name, t in one.items()} == {
        name: (t.shape, t.dtype) for name, t in other.items()
    }
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], atol=atol, rtol=1e-3), name


@pytest.mark.parametrize("kind", ["finetune", "pretrain"])
def test_two_sharded_processes_have_the_losses_of_one(runs: Path, kind: str):
    one, other = runs / kind, runs / f"{kind}-sharded"
    assert len(_losses(one)) > _KILLED_AT
    assert _losses(one) == pytest.approx(_losses(other), rel=1e-4)


@pytest.mark.parametrize("kind", ["finetune", "pretrain"])
def test_two_sharded_processes_end_with_the_weights_of_one(runs: Path, kind: str):
    one, other = runs / kind, runs / f"{kind}-sharded"
    # AdamW's first steps turn rounding of tiny gradients into steps of the learning rate
    _assert_close(load_weights(one / "final"), load_weights(other / "final"), atol=2e-4)
    assert _validation(one) == pytest.approx(_validation(other), abs=1e-3)


@pytest.mark.parametrize("kind", ["finetune", "pretrain"])
def test_a_sharded_run_writes_the_checkpoint_of_one_process(runs: Path, kind: str):
    one, other = _newest(runs / kind), _newest(runs / f"{kind}-sharded")
    files = [sorted(str(p.relative_to(at)) for p in at.rglob("*")) for at in (one, other)]
    assert files[0] == files[1]
    for name in ("weights", "optimizer"):
        a, b = load_weights(one / "state", name), load_weights(other / "state", name)
        _assert_close(a, b, atol=2e-4)
    if kind == "pretrain":  # heads and teacher
        _assert_close(
            load_weights(one / "state", "extra"), load_weights(other / "state", "extra"), atol=2e-4
        )


def test_a_killed_sharded_run_goes_on_as_if_it_had_not_been(runs: Path):
    whole, killed = runs / "pretrain-sharded", runs / "pretrain-killed"
    assert _losses(killed)[-1] == _losses(whole)[-1]
    a, b = load_weights(whole / "final"), load_weights(killed / "final")
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_one_process_has_nothing_to_share(runs: Path, synth: Path, tmp_path: Path):
    recipe = load_recipe(runs / "recipe.toml", _settings(_SHARDED, 2))
    pretrain(recipe, synth, tmp_path / "run")
    assert _losses(tmp_path / "run") == _losses(runs / "pretrain")


def test_whole_tensors_stay_as_they_are():
    tensors = {"a": torch.ones(3), "b": torch.zeros(())}
    assert gathered(tensors) == tensors
    parts = scattered(tensors, {"a": torch.zeros(3)})
    assert parts["a"] is tensors["a"]
    assert parts["b"] is tensors["b"]


@pytest.mark.parametrize(
    ("setting", "value"), [("algorithm", "muon"), ("precision", "float16"), ("compile", True)]
)
def test_a_setting_that_needs_whole_tensors_is_refused(setting: str, value: object):
    with pytest.raises(UsageError, match=rf"^optim.{setting}: {value!r} given.*sharded = false"):
        OptimConfig(sharded=True, **{setting: value})
    OptimConfig(sharded=False, **{setting: value})


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("coordination.application=released", "'none', 'measure' or 'post_update' is allowed"),
        ("coordination.application=scale_only", "'none', 'measure' or 'post_update' is allowed"),
        ("reconstruction.teacher_update=micro_batch", "'step' is allowed"),
    ],
)
def test_a_run_that_needs_whole_tensors_is_refused(tmp_path: Path, setting: str, expected: str):
    recipe = load_recipe(write_recipe(tmp_path, "questions"), (*_SHARDED, setting))
    model = minute_model()
    step = SupervisedStep(model, nn.Identity(), "float32")  # type: ignore[arg-type]
    module = step if "coordination" in setting else MomentumTeacher(model, 0.9, "student")
    path, given = setting.split("=")
    with pytest.raises(UsageError, match=rf"^{path}: '{given}' given.*{expected}$"):
        Sharding(recipe, module, model, torch.device("cpu"))


def test_sharding_by_the_launcher_is_refused(
    runs: Path, synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match=r"--use_fsdp.*optim.sharded = true"):
        finetune(load_recipe(runs / "recipe.toml", _EXACT), synth, tmp_path / "run")
    assert not (tmp_path / "run").exists()
