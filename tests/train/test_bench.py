"""What is measured are whole steps of real runs, and the report says where and of what."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from click.testing import CliRunner
from torch import Tensor, nn

from umd_edge.errors import UmdEdgeError, UsageError
from umd_edge_train import bench
from umd_edge_train.bench import Kind, bench_presets, generated_run, step_rates
from umd_edge_train.cli import main
from umd_edge_train.config import model_config
from umd_edge_train.run import Run

GIVEN: dict[str, Any] = {"steps": 1, "images": 2, "texts": 1, "precision": "float32"}
GIVEN |= {"algorithm": "adamw"}
KINDS: tuple[Kind, ...] = ("finetune", "pretrain")
STEP = {"images_per_second": 2.0, "low": 1.5, "high": 2.5, "peak_memory_bytes": 700_000_000}
MEASURED = {
    "setting": {"device": "cuda", "device_name": "GPU X", "threads": 4, "memory": "on the GPU"},
    "parameters": 2_300_000,
    "step": STEP,
}


def _run(folder: Path, kind: Kind, **settings: Any) -> Run:
    return generated_run(kind, folder, preset="nano", **{**GIVEN, **settings})


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in after.items() if not torch.equal(before[name], tensor)}


# --- what a step does ---------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_measured_step_moves_weights_moments_average_and_teacher(kind: Kind, tmp_path: Path):
    run = _run(tmp_path, kind, steps=2)
    weights, average = _copied(run.model.state_dict()), _copied(run.average.tensors)
    teacher = getattr(getattr(run, "objective", None), "teacher", None)
    followed = _copied(teacher.state_dict()) if teacher is not None else {}
    rates = step_rates(run, 2)
    assert len(rates) == 2
    assert min(rates) > 0.0
    assert run.step == 4  # two warm up

    moved = _moved(weights, run.model.state_dict())
    for part in ("vision_encoder.", "text_encoder.", "fusion."):
        assert any(name.startswith(part) for name in moved), part
    learnt = [p for p in run.module.parameters() if p.grad is not None]
    for parameter in learnt:
        state = run.optimizer.state[parameter]
        assert state["step"] == 4
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
    # all but heads that take no part: 8 bytes a parameter of moments are in the memory
    own = {id(p) for p in run.model.parameters()}
    counted = sum(p.numel() for p in learnt if id(p) in own)
    assert counted > 0.8 * sum(p.numel() for p in run.model.parameters())
    assert _moved(average, run.average.tensors) >= moved
    assert _moved(run.model.state_dict(), run.average.tensors)  # no alias of the weights
    assert (kind == "pretrain") == (teacher is not None)
    if teacher is not None:
        assert _moved(followed, teacher.state_dict())
        assert {p.data_ptr() for p in teacher.parameters()}.isdisjoint(
            p.data_ptr() for p in run.model.parameters()
        )


def test_a_preset_is_measured_at_its_own_size_on_the_device_of_a_run(tmp_path: Path):
    run = _run(tmp_path, "finetune", images=3, texts=2)
    assert run.model.config == model_config({"preset": "nano"})  # the whole vocabulary too
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert {p.device.type for p in run.module.parameters()} == {expected}
    assert [len(picture.examples) for picture in run.pictures] == [2, 2, 2]


def test_the_algorithm_decides_what_the_optimiser_holds(tmp_path: Path):
    held: dict[str, int] = {}
    for algorithm in ("adamw", "muon"):
        folder = tmp_path / algorithm
        folder.mkdir()
        run = _run(folder, "finetune", algorithm=algorithm)
        step_rates(run, 1)
        state = run.optimizer.state.values()
        held[algorithm] = sum(t.numel() for s in state for t in s.values() if t.ndim)
    assert 0.5 * held["adamw"] < held["muon"] < 0.9 * held["adamw"]  # one moment of a matrix


def test_steps_that_float16_leaves_out_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = _run(tmp_path, "finetune")
    skipped = property(lambda self: run.step < 5)
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", skipped)
    assert len(step_rates(run, 1)) == 1
    assert run.step == 5


# --- the report ---------------------------------------


def test_each_measurement_has_a_process_of_its_own():
    seen: list[str] = []
    report = bench_presets(["nano"], **GIVEN, on_preset=seen.append)
    found, setting = report["presets"]["nano"], report["setting"]
    assert seen == ["nano"]
    assert found["parameters"] > 1_000_000
    assert GIVEN.items() <= setting.items()
    assert setting["threads"] >= 1
    assert setting["device_name"]
    on_gpu = torch.cuda.is_available()
    assert setting["device"] == ("cuda" if on_gpu else "cpu")
    assert setting["memory"].startswith("allocated on the GPU" if on_gpu else "resident size")
    for kind in KINDS:
        rates = found[kind]
        assert 0.0 < rates["low"] <= rates["images_per_second"] <= rates["high"]
        # weights, gradients, moments and average in float32; on a processor Python on top
        assert rates["peak_memory_bytes"] > 20 * found["parameters"]
    assert found["pretrain"]["peak_memory_bytes"] != found["finetune"]["peak_memory_bytes"]


def test_on_a_gpu_memory_is_what_torch_allocated_there(monkeypatch: pytest.MonkeyPatch):
    device = torch.device("cuda", 0)
    run = SimpleNamespace(accelerator=SimpleNamespace(device=device), model=nn.Linear(3, 2))
    monkeypatch.setattr(bench, "generated_run", lambda *args, **given: run)
    monkeypatch.setattr(bench, "step_rates", lambda run, steps: [4.0, 1.0, 3.0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU X")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    found = bench._measure(kind="finetune", preset="nano", **{**GIVEN, "steps": 3})
    assert found["setting"]["device_name"] == "GPU X"
    assert found["setting"]["memory"] == "allocated on the GPU"
    assert found["parameters"] == 8
    expected = {"images_per_second": 3.0, "low": 1.0, "high": 4.0, "peak_memory_bytes": 123}
    assert found["step"] == expected


def _bench(monkeypatch: pytest.MonkeyPatch, measured: dict[str, Any], *arguments: str) -> str:
    monkeypatch.setattr(bench, "_measured_apart", lambda kind, preset, given: measured)
    done = CliRunner().invoke(main, ["bench", *arguments])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_the_table_says_where_it_was_measured(monkeypatch: pytest.MonkeyPatch):
    first, *lines = _bench(monkeypatch, MEASURED, "--preset", "nano").splitlines()
    assert first == (
        "on cuda (GPU X), threads: 4, float32, adamw, 16 pictures a step; memory: on the GPU"
    )
    assert lines == [
        "nano  2.3 M parameters",
        "  finetune      2.00 pictures/s [1.50, 2.50]  peak 0.70 GB",
        "  pretrain      2.00 pictures/s [1.50, 2.50]  peak 0.70 GB",
    ]


def test_memory_that_the_system_does_not_say_is_unknown(monkeypatch: pytest.MonkeyPatch):
    unknown = {**MEASURED, "step": {**STEP, "peak_memory_bytes": None}}
    assert _bench(monkeypatch, unknown, "--preset", "nano").count("peak memory unknown") == 2


def test_json_holds_all_presets_and_settings(monkeypatch: pytest.MonkeyPatch):
    report = json.loads(_bench(monkeypatch, MEASURED, "--algorithm", "muon", "--json"))
    assert list(report["presets"]) == ["nano", "tiny", "small", "base"]
    given = {"steps": 5, "images": 16, "texts": 3, "precision": "float32", "algorithm": "muon"}
    assert report["setting"] == {**given, **MEASURED["setting"]}
    step = {"parameters": 2_300_000, "finetune": STEP, "pretrain": STEP}
    assert report["presets"]["base"] == step


# --- what is refused ---------------------------------------


@pytest.mark.parametrize(
    ("presets", "setting", "said"),
    [
        (["tiny", "huge"], {}, r"huge.*base"),
        (["tiny"], {"algorithm": "sgd"}, r"sgd.*muon"),
        (["tiny"], {"images": 1}, r"images_per_batch: 1 given; 2 or more"),
        (["tiny"], {"precision": "float16"}, r"float16.*needs a GPU.*bfloat16"),
    ],
)
def test_what_is_not_allowed_is_refused_before_anything_is_measured(
    presets: list[str], setting: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=said):
        bench_presets(presets, **{**GIVEN, **setting}, on_preset=pytest.fail)


def test_a_measurement_that_fails_names_preset_and_reason(monkeypatch: pytest.MonkeyPatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="a\nOutOfMemoryError: no room\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **given: failed)
    with pytest.raises(UmdEdgeError, match=r"'nano' could not be .*no room.*lower --images"):
        bench_presets(["nano"], **GIVEN)
