"""The folder of a run: resumable checkpoints, the final one, and a careful start.

Whatever is written is whole or not there: a run that is killed at any moment goes on from its
newest checkpoint with the losses of a run that was never stopped.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from umd_edge._task import output_name
from umd_edge.errors import UsageError

from .checkpoint import (
    Checkpoint,
    CheckpointError,
    load_weights,
    read_settings,
    save_checkpoint,
    save_weights,
    settings_of,
    write_directory_atomically,
    write_json,
)
from .folder import remove_folder, remove_left_behind
from .hashes import write_hashes
from .models.vision_encoder import resize_positions
from .recipe import recipe_from_dict
from .sharding import gathered, scattered

if TYPE_CHECKING:
    from .run import Run

__all__ = ["initialise", "save_final", "save_state", "start_run"]

_KEPT_CHECKPOINTS = 2


def initialise(run: Run, parent: Checkpoint) -> None:
    """Take over the parent's weights; heads of tasks with other outputs start anew.

    Positions are fitted to another picture size.

    Raises:
        CheckpointError: The parent normalises otherwise or is of other sizes.
    """
    given_spec = parent.preprocess
    if (given_spec.mean, given_spec.std) != (run.spec.mean, run.spec.std):
        raise CheckpointError(
            f"the initial checkpoint normalises with {given_spec.mean} and {given_spec.std}, "
            f"the recipe with {run.spec.mean} and {run.spec.std}; make [normalise] the same"
        )
    own = run.model.state_dict()
    outputs = {output_name(task.name): task.outputs for task in parent.tasks}
    anew = tuple(
        f"task_heads.{output_name(task.name)}."
        for task in run.corpus.tasks
        if outputs.get(output_name(task.name)) != task.outputs
    )
    if run.corpus.fields != parent.structured_fields:
        anew += ("fusion.structured.",)
    given = {
        key: resize_positions(key, value, own[key])
        if key in own and key.startswith("vision_encoder.")
        else value
        for key, value in parent.model.state_dict().items()
    }
    fitting = {
        key: value
        for key, value in given.items()
        if key in own and own[key].shape == value.shape and not key.startswith(anew)
    }
    bad = [key for key in own if key not in fitting and not key.startswith(anew)]
    if bad:
        raise CheckpointError(
            f"the initial checkpoint does not fit this model: {len(bad)} tensors differ, such "
            f"as {bad[0]!r}; use the same [model] settings"
        )
    run.model.load_state_dict({**own, **fitting}, strict=True)


def save_state(run: Run) -> None:
    """Write a resumable checkpoint and drop all but the newest two; all processes call this."""
    folder = run.out / "checkpoints" / f"step-{run.step:07d}"
    moments: dict[str, Tensor] = {}
    for index, entry in run.optimizer.state_dict()["state"].items():
        moments.update({f"{index}.{key}": value for key, value in entry.items()})
    average, weights = gathered(run.average.tensors), gathered(run.model.state_dict())
    moments, extra = gathered(moments), gathered(run.extra_tensors())
    if not run.accelerator.is_main_process:
        return

    def write(path: Path) -> None:
        save_checkpoint(path, run.checkpoint, average)
        state = path / "state"
        state.mkdir()
        save_weights(state, weights, "weights")
        save_weights(state, moments, "optimizer")
        if extra:
            save_weights(state, extra, "extra")
        write_hashes(state)
        progress = {"step": run.step, **run.watch.state()}
        (state / "run.json").write_text(json.dumps(progress), encoding="utf-8")

    remove_left_behind(folder.parent, "step-*")
    write_directory_atomically(folder, write)
    kept = sorted(folder.parent.glob("step-*"))
    for old in kept[:-_KEPT_CHECKPOINTS]:
        remove_folder(old)


def _resume(run: Run) -> bool:
    """Continue from the newest checkpoint; False where there is none."""
    folders = sorted((run.out / "checkpoints").glob("step-*"))
    if not folders:
        return False
    provenance = json.loads((folders[-1] / "provenance.json").read_text(encoding="utf-8"))
    if (
        read_settings(folders[-1]) != settings_of(run.checkpoint)
        or provenance["data"] != run.checkpoint.provenance["data"]
    ):
        raise UsageError(
            f"{str(folders[-1])!r} has other data, another model or another vocabulary than "
            "this run; resume with the same data and the same --init, or start in another "
            "folder"
        )
    state = folders[-1] / "state"
    own = run.model.state_dict()
    run.model.load_state_dict(scattered(load_weights(state, "weights"), own), strict=True)
    run.average.load(scattered(load_weights(folders[-1]), own))
    run.average.to(run.accelerator.device)
    entries: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    for key, value in load_weights(state, "optimizer").items():
        index, name = key.split(".", 1)
        moment = scattered({name: value}, {name: parameters[int(index)]})
        entries.setdefault(int(index), {}).update(moment)
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": entries, "param_groups": groups})
    if extra := run.extra_tensors():
        run.load_extra(scattered(load_weights(state, "extra"), extra))
    progress = json.loads((state / "run.json").read_text(encoding="utf-8"))
    run.step = int(progress["step"])
    run.watch.load(progress)
    return True


def save_final(run: Run, metrics: dict[str, Any]) -> None:
    """Write the averaged weights as the run's result, with its metrics; all processes call this."""
    provenance = {**run.checkpoint.provenance, "step": run.step, "validation": metrics}
    final = replace(run.checkpoint, provenance=provenance)
    tensors, kept = gathered(run.average.tensors), gathered(run.kept_tensors())
    if not run.accelerator.is_main_process:
        return

    def write(path: Path) -> None:
        save_checkpoint(path, final, tensors)
        if kept:
            (path / "state").mkdir()
            save_weights(path / "state", kept, "kept")
            write_hashes(path / "state")

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
