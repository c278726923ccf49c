"""A run that only saves checkpoints, to be killed meanwhile, and what must then be true."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from support.training import FIELDS, TASKS, minute_config, minute_model
from umd_edge._preprocess import PreprocessSpec
from umd_edge_train.checkpoint import Checkpoint, load_checkpoint, load_weights
from umd_edge_train.divergence import DivergenceWatch
from umd_edge_train.optim import WeightAverage
from umd_edge_train.run_state import _resume, save_final, save_state

torch.set_num_threads(1)


# Of a few hundred kilobytes, so that the kills fall into the writing; made before the forks.
_MODEL = minute_model(minute_config(vocabulary_size=3000))


def minute_run(out: Path) -> Any:
    """All of a run that saving and resuming look at; its weights tell its step."""
    model = _MODEL
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        zeros = torch.zeros_like(parameter)
        moments = {"step": torch.tensor(0.0), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        optimizer.state[parameter].update(moments)
    checkpoint = Checkpoint(
        model=model,
        tokenizer_json=b'{"any": "bytes"}',
        tasks=TASKS,
        structured_fields=FIELDS,
        preprocess=PreprocessSpec(height=32, width=32),
        max_length=16,
        provenance={"data": {}},
    )
    return SimpleNamespace(
        out=out,
        step=0,
        model=model,
        optimizer=optimizer,
        average=WeightAverage(model, 0.5),
        checkpoint=checkpoint,
        corpus=SimpleNamespace(sources={}),
        accelerator=SimpleNamespace(is_main_process=True, device=torch.device("cpu")),
        extra_tensors=dict,
        kept_tensors=dict,
        watch=DivergenceWatch(0.0, out / "checkpoints"),
    )


def mark(run: Any) -> None:
    """Let every kind of tensor that is saved tell the step."""
    with torch.no_grad():
        run.model.match_head.bias.fill_(run.step)
        for moments in run.optimizer.state.values():
            moments["step"].fill_(run.step)
        for tensor in run.average.tensors.values():
            if tensor.is_floating_point():
                tensor.fill_(run.step)


def save(out: str, said: str, step: Callable[[], object] = lambda: None) -> int:
    """Save every step for ever, from the newest checkpoint on; tell each one that is saved."""
    run = minute_run(Path(out))
    _resume(run)
    for number in itertools.count(run.step + 1):
        run.step = number
        step()
        mark(run)
        save_state(run)
        with open(said, "a", encoding="ascii") as file:
            file.write(f"{run.step}\n")
        save_final(run, {"step": run.step})
    return 1


def whole(out: str, said: str) -> None:
    """The run goes on from the last step that was told, or the one behind it."""
    told = [int(line) for line in Path(said).read_text().split()] if Path(said).exists() else []
    last = told[-1] if told else 0
    run = minute_run(Path(out))
    assert _resume(run) or not told
    assert run.step in (last, last + 1), "the newest checkpoint was lost"
    if run.step > last:  # saved, and killed before it could be told
        with open(said, "a", encoding="ascii") as file:
            file.write(f"{run.step}\n")
    kept = sorted((Path(out) / "checkpoints").glob("step-*"))
    if kept:
        _holds(kept[-1], int(kept[-1].name[5:]))
    _final(Path(out) / "final", Path(said).with_suffix(".final"), run.step)
    left = [path for path in Path(out).rglob(".*") if path.parent.name != "state"]
    assert len(left) <= 3, left


def _final(folder: Path, seen: Path, last: int) -> None:
    """Once the final checkpoint is there, it or a newer one always is."""
    before = int(seen.read_text()) if seen.exists() else 0
    if not before and not folder.exists():
        return
    written = load_checkpoint(folder).provenance["step"]
    assert before <= written <= last
    _bears(load_weights(folder), written)
    seen.write_text(str(written), encoding="ascii")


def _holds(folder: Path, step: int) -> None:
    load_checkpoint(folder)
    _bears(load_weights(folder), step)
    assert load_weights(folder / "state", "weights")["match_head.bias"].item() == step
    moments = load_weights(folder / "state", "optimizer")
    assert {moments[name].item() for name in moments if name.endswith(".step")} == {step}


def _bears(tensors: dict[str, torch.Tensor], step: int) -> None:
    assert all((t == step).all() for t in tensors.values() if t.is_floating_point())
