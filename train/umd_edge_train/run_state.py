"""The folder of a run: resumable checkpoints, the final one, and a careful start.

Whatever is written is whole or not there: a run that is killed at any moment goes on from its
newest checkpoint with the losses of a run that was never stopped.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from umd_edge.errors import UsageError

from .checkpoint import (
    load_weights,
    read_settings,
    save_checkpoint,
    save_weights,
    settings_of,
    write_directory_atomically,
    write_json,
)
from .recipe import recipe_from_dict

if TYPE_CHECKING:
    from .run import Run

__all__ = ["save_final", "save_state", "start_run"]

_KEPT_CHECKPOINTS = 2


def save_state(run: Run) -> None:
    """Write a resumable checkpoint and drop all but the newest two."""
    folder = run.out / "checkpoints" / f"step-{run.step:07d}"

    def write(path: Path) -> None:
        save_checkpoint(path, run.checkpoint, run.average.tensors)
        state = path / "state"
        state.mkdir()
        save_weights(state, run.model.state_dict(), "weights")
        moments: dict[str, Tensor] = {}
        for index, entry in run.optimizer.state_dict()["state"].items():
            moments.update({f"{index}.{key}": value for key, value in entry.items()})
        save_weights(state, moments, "optimizer")
        if extra := run.extra_tensors():
            save_weights(state, extra, "extra")
        (state / "run.json").write_text(json.dumps({"step": run.step}), encoding="utf-8")

    write_directory_atomically(folder, write)
    kept = sorted((run.out / "checkpoints").glob("step-*"))
    for old in kept[:-_KEPT_CHECKPOINTS]:
        shutil.rmtree(old, ignore_errors=True)


def _resume(run: Run) -> bool:
    """Continue from the newest checkpoint; False where there is none."""
    folders = sorted((run.out / "checkpoints").glob("step-*"))
    if not folders:
        return False
    provenance = json.loads((folders[-1] / "provenance.json").read_text(encoding="utf-8"))
    if (
        read_settings(folders[-1]) != settings_of(run.checkpoint)
        or provenance["data"] != run.corpus.sources
    ):
        raise UsageError(
            f"{str(folders[-1])!r} has other data, another model or another vocabulary than "
            "this run; resume with the same data and the same --init, or start in another "
            "folder"
        )
    state = folders[-1] / "state"
    run.model.load_state_dict(load_weights(state, "weights"), strict=True)
    run.average.load(load_weights(folders[-1]))
    run.average.to(run.accelerator.device)
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in load_weights(state, "optimizer").items():
        index, name = key.split(".", 1)
        entries.setdefault(int(index), {})[name] = value
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": entries, "param_groups": groups})
    if run.extra_tensors():
        run.load_extra(load_weights(state, "extra"))
    run.step = int(json.loads((state / "run.json").read_text(encoding="utf-8"))["step"])
    return True


def save_final(run: Run, metrics: dict[str, Any]) -> None:
    """Write the averaged weights as the run's result, with its metrics."""
    provenance = {**run.checkpoint.provenance, "step": run.step, "validation": metrics}
    final = replace(run.checkpoint, provenance=provenance)
    tensors = run.averaged_model().state_dict()

    def write(path: Path) -> None:
        save_checkpoint(path, final, tensors)
        if kept := run.kept_tensors():
            (path / "state").mkdir()
            save_weights(path / "state", kept, "kept")

    write_directory_atomically(run.out / "final", write)


def _settings_in(saved: Path) -> Any:
    """The recipe of a run folder; a setting that did not exist when it was written is a default."""
    recipe = recipe_from_dict(json.loads(saved.read_text(encoding="utf-8")))
    return json.loads(json.dumps(recipe.to_dict()))


def start_run(run: Run, *, resume: bool) -> None:
    """Check the run folder against what was asked, and load a checkpoint to resume from."""
    saved = run.out / "recipe.json"
    recipe = json.loads(json.dumps(run.recipe.to_dict()))
    if resume:
        if saved.exists() and _settings_in(saved) != recipe:
            raise UsageError(
                f"{saved} differs from the recipe given; resume with the same settings, or "
                "start in another folder"
            )
        if not _resume(run) and run.accelerator.is_main_process:
            tqdm.write("no checkpoint to resume from; starting afresh", file=sys.stderr)
    elif (run.out / "checkpoints").exists():
        raise UsageError(
            f"{run.out} already holds a run; continue it with --resume or give another folder"
        )
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        run.out.mkdir(parents=True, exist_ok=True)
        write_json(saved, recipe)
