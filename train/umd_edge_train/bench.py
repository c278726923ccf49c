"""What a training step costs: pictures per second and peak memory of each preset.

Each preset runs in a process of its own, so that its peak memory is its own. Figures of one machine
and one moment: compare presets of one report, not reports.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from umd_edge._bench import peak_memory
from umd_edge._structured import StructuredField
from umd_edge._task import TaskSpec
from umd_edge.errors import UmdEdgeError, UsageError

from .config import PRESETS, model_config
from .losses import Precision, autocast
from .masking import Vocabulary
from .models import UMDModel
from .objectives import MultiLevelReconstruction, PairBatch
from .reconstruction_config import ReconstructionConfig

__all__ = ["bench_presets"]

_ANSWERS = 500
_WORDS = 10


def bench_presets(
    presets: Sequence[str],
    *,
    steps: int,
    images: int,
    texts: int,
    precision: str,
    on_preset: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Measure presets one after the other.

    Args:
        presets: Names; all presets where empty.
        steps: Steps that count; one more warms up.
        images: Pictures of a step.
        texts: Questions for each picture of a fine-tuning step.
        precision: `float32` or `bfloat16`.
        on_preset: Called with each preset's name before it is measured.

    Returns:
        `{"setting", "presets": {name: {"parameters", "finetune", "pretrain",
        "peak_memory_bytes"}}}`, times as `images_per_second` with `low` and `high`.

    Raises:
        UsageError: There is no such preset.
        UmdEdgeError: A preset's process failed, such as for lack of memory.
    """
    unknown = sorted(set(presets) - set(PRESETS))
    if unknown:
        raise UsageError(f"--preset: {unknown} given; one of {sorted(PRESETS)} is allowed")
    setting = {"steps": steps, "images": images, "texts": texts, "precision": precision}
    found: dict[str, Any] = {}
    for name in presets or PRESETS:
        on_preset(name)
        arguments = [name, str(steps), str(images), str(texts), precision]
        done = subprocess.run(
            [sys.executable, "-m", __name__, *arguments], capture_output=True, text=True
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UmdEdgeError(
                f"preset {name!r} could not be measured ({last}); lower --images, or leave the "
                "preset out"
            )
        found[name] = json.loads(done.stdout)
    return {"setting": {**setting, "threads": torch.get_num_threads()}, "presets": found}


def _model(preset: str) -> UMDModel:
    torch.manual_seed(0)
    task = TaskSpec(
        name="vqa", kind="vqa", outputs=tuple(map(str, range(_ANSWERS))), reads=("question",)
    )
    field = StructuredField(name="unused", kind="numeric")
    return UMDModel(model_config({"preset": preset}), (task,), (field,)).train()


def _pairs(model: UMDModel, images: int) -> PairBatch:
    sizes = model.config
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(5, sizes.vocabulary_size, (images, _WORDS), generator=rng)
    side = sizes.image_size
    return PairBatch(
        pixel_values=torch.randn(images, 3, side, side, generator=rng),
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        word_ids=torch.arange(_WORDS).expand(images, -1).clone(),
    )


def _finetune_loss(model: UMDModel, pairs: PairBatch, texts: int, precision: Precision) -> Tensor:
    owner = torch.arange(len(pairs.pixel_values)).repeat_interleave(texts)
    mask = pairs.attention_mask[owner]
    absent = torch.zeros(len(owner), 1)
    with autocast(pairs.pixel_values.device, precision):
        image_tokens, _ = model.encode_image(pairs.pixel_values)
        text_tokens, _ = model.encode_text(pairs.input_ids[owner], mask)
        joint = model.fuse_tokens(image_tokens[owner], text_tokens, mask, absent, absent)
    logits = model.task_heads["logits_vqa"](joint.float())
    return torch.nn.functional.cross_entropy(logits, owner % _ANSWERS)


def _rate(step: Any, steps: int, images: int) -> dict[str, float]:
    rates = []
    for index in range(steps + 1):
        start = perf_counter()
        step().backward()
        if index:
            rates.append(images / (perf_counter() - start))
    return {
        "images_per_second": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
    }


def _measure(preset: str, steps: int, images: int, texts: int, precision: Precision) -> Any:
    model = _model(preset)
    pairs = _pairs(model, images)
    vocabulary = Vocabulary(model.config.vocabulary_size, 4, tuple(range(5, 200)))
    objective = MultiLevelReconstruction(model, ReconstructionConfig(), vocabulary, itm=True)
    rng = torch.Generator().manual_seed(0)

    def pretrain() -> Tensor:
        with autocast(pairs.pixel_values.device, precision):
            loss: Tensor = objective(pairs, rng).loss
        return loss

    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "finetune": _rate(lambda: _finetune_loss(model, pairs, texts, precision), steps, images),
        "pretrain": _rate(pretrain, steps, images),
        "peak_memory_bytes": peak_memory(),
    }


if __name__ == "__main__":
    _preset, _steps, _images, _texts, _precision = sys.argv[1:]
    _found = _measure(_preset, int(_steps), int(_images), int(_texts), _precision)  # type: ignore[arg-type]
    sys.stdout.write(json.dumps(_found) + "\n")
