"""What a training step costs: pictures per second and peak memory of each preset.

What is timed is `Run.train_step` of a fine-tuning and of a pre-training on generated data, so that
device, optimiser, weight average and teacher are those of a run. Each measurement has a process of
its own, so that its peak memory is its own. Figures of one machine and one moment: compare presets
of one report, not reports.
"""

from __future__ import annotations

import itertools
import json
import platform
import random
import statistics
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from umd_edge._bench import peak_memory
from umd_edge.errors import UmdEdgeError

from .batches import epoch_batches
from .config import PRESETS, model_config
from .devices import check_precision
from .finetuning import FineTuning
from .pretraining import PreTraining
from .recipe import Recipe, recipe_from_dict
from .run import Run

__all__ = ["Kind", "bench_presets", "generated_run", "step_rates"]

Kind = Literal["finetune", "pretrain"]
_KINDS: tuple[Kind, ...] = ("finetune", "pretrain")
_WARM_UP = 2  # the first step makes the optimiser's state
_ANSWERS = 500
_WORDS = 10


def bench_presets(
    presets: Sequence[str],
    *,
    steps: int,
    images: int,
    texts: int,
    precision: str,
    algorithm: str,
    on_preset: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Measure presets one after the other, on the device that a run would use.

    Args:
        presets: Names; all presets where empty.
        steps: Steps that count; two more warm up.
        images: Pictures of a step.
        texts: Questions for each picture of a fine-tuning step.
        precision: `float32`, `bfloat16`, or on a GPU `float16`.
        algorithm: `adamw` or `muon`.
        on_preset: Called with each preset's name before it is measured.

    Returns:
        `{"setting", "presets": {name: {"parameters", "finetune", "pretrain"}}}`. The last two hold
        `images_per_second` (median) with `low` and `high`, and `peak_memory_bytes`: on a GPU what
        torch allocated there, else the resident size of the whole process; None where the system
        does not say. `setting` has the arguments, `device`, `device_name`, `threads` and, in words,
        what `memory` is.

    Raises:
        UsageError: There is no such preset or setting, or `float16` without a GPU.
        UmdEdgeError: A measurement's process failed, such as for lack of memory.
    """
    check_precision("--precision", precision)
    given: dict[str, Any] = {
        "steps": steps,
        "images": images,
        "texts": texts,
        "precision": precision,
        "algorithm": algorithm,
    }
    names = list(presets or PRESETS)
    for name in names:
        _recipe(name, **given)  # reports what is not allowed before anything is measured
    setting: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for name in names:
        on_preset(name)
        found[name] = {}
        for kind in _KINDS:
            measured = _measured_apart(kind, name, given)
            setting = measured["setting"]
            found[name] |= {"parameters": measured["parameters"], kind: measured["step"]}
    return {"setting": {**given, **setting}, "presets": found}


def _measured_apart(kind: Kind, preset: str, given: dict[str, Any]) -> dict[str, Any]:
    """`_measure` in a process of its own."""
    arguments = json.dumps({"kind": kind, "preset": preset, **given})
    done = subprocess.run(
        [sys.executable, "-m", "umd_edge_train.bench", arguments], capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UmdEdgeError(
            f"preset {preset!r} could not be measured ({last}); lower --images, or leave the "
            "preset out"
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _recipe(
    preset: str, *, steps: int, images: int, texts: int, precision: str, algorithm: str
) -> Recipe:
    optim: dict[str, Any] = {
        "epochs": _WARM_UP + steps,  # of one batch each
        "images_per_batch": images,
        "texts_per_image": texts,
        "precision": precision,
        "algorithm": algorithm,
        "learning_rate": 1e-5,  # stays finite at every size
    }
    task: dict[str, Any] = {
        "name": "vqa",
        "kind": "vqa",
        "datasets": ["generated"],
        "reads": ["question"],
        "answers": [str(number) for number in range(_ANSWERS)],
        "target": {"field": "answer"},
    }
    return recipe_from_dict(
        {
            "name": "bench",
            "validation_splits": [],
            "model": {"preset": preset},
            "optim": optim,
            "datasets": [{"name": "generated", "path": "."}],
            "vocabulary": [{"path": "words.jsonl", "fields": ["word"]}],
            "tasks": [task],
        }
    )


def _write_data(folder: Path, recipe: Recipe) -> None:
    """Noise with questions of single letters, and words enough to fill the preset's vocabulary."""
    sizes, optim = model_config(recipe.model), recipe.optim
    draw, noise = random.Random(0), np.random.default_rng(0)
    shape = (sizes.image_size, sizes.image_size, 3)
    records: list[dict[str, Any]] = []
    for number in range(optim.images_per_batch):
        image = f"{number}.png"
        Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8)).save(folder / image)
        records += [
            {
                "id": f"{number}-{text}",
                "patient_id": str(number),
                "image": image,
                "question": " ".join(draw.choices(string.ascii_lowercase, k=_WORDS)),
                "answer": str(draw.randrange(_ANSWERS)),
                "non_commercial": False,
            }
            for text in range(optim.texts_per_image)
        ]
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    words: list[dict[str, Any]] = [
        {"word": "".join(word), "non_commercial": False}
        for word in itertools.islice(letters, sizes.vocabulary_size)
    ]
    for name, lines in (("train", records), ("words", words)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")


def generated_run(
    kind: Kind,
    folder: Path,
    *,
    preset: str,
    steps: int,
    images: int,
    texts: int,
    precision: str,
    algorithm: str,
) -> Run:
    """A run of a preset that is ready for its first step, on data generated into `folder`.

    Args as `bench_presets`.
    """
    recipe = _recipe(
        preset, steps=steps, images=images, texts=texts, precision=precision, algorithm=algorithm
    )
    _write_data(folder, recipe)
    out = folder / "run"
    run: Run = (
        FineTuning(recipe, folder, out, None)
        if kind == "finetune"
        else PreTraining(recipe, folder, out, None, itm=True)
    )
    run.load_pictures()
    return run


def step_rates(run: Run, steps: int) -> list[float]:
    """Pictures per second of `steps` whole optimiser steps, behind those that warm up.

    Steps that float16 leaves out, as it does until it has found its scale, do not count.
    """
    rates: list[float] = []
    device = run.accelerator.device
    for epoch in itertools.count():
        (batch,) = epoch_batches(
            run.pictures,
            run.store.index,
            run.tokenizer,
            run.optim,
            run.recipe.seed,
            epoch,
            run.parts,
        )
        start = perf_counter()
        run.train_step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = perf_counter() - start
        if epoch >= _WARM_UP and not run.accelerator.optimizer_step_was_skipped:
            rates.append(len(batch.rows) / seconds)
        if len(rates) == steps:
            break
    return rates


def _measure(*, kind: Kind, steps: int, **given: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="umd-edge-bench-") as folder:
        run = generated_run(kind, Path(folder), steps=steps, **given)
        rates = step_rates(run, steps)
    device = run.accelerator.device
    cuda = device.type == "cuda"
    return {
        "setting": {
            "device": device.type,
            "device_name": torch.cuda.get_device_name(device) if cuda else platform.machine(),
            "threads": torch.get_num_threads(),
            "memory": "allocated on the GPU" if cuda else "resident size of the whole process",
        },
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "step": {
            "images_per_second": statistics.median(rates),
            "low": min(rates),
            "high": max(rates),
            "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if cuda else peak_memory(),
        },
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(**json.loads(sys.argv[1]))) + "\n")
