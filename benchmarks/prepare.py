"""What the contenders of the race share: float32 graphs of one checkpoint, inputs, settings."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from umd_edge._bundle import Bundle
from umd_edge._manifest import Manifest
from umd_edge._preprocess import preprocess
from umd_edge._task import compose_text, output_name
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import UsageError

__all__ = ["BATCHES", "make_inputs", "prepare_folder"]

BATCHES = (1, 8)
_CALIBRATION = 32
_QUESTIONS = (
    "which organ is shown in this image?",
    "in which plane is the image taken?",
    "is there an abnormality in the lung?",
    "what kind of image is this scan?",
)


def _picture(side: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Smooth shapes with a little noise, (side, side, 3) uint8."""
    y, x = np.mgrid[0:side, 0:side] / side
    waves = sum(
        rng.uniform(10, 40) * np.sin(rng.uniform(2, 14) * x + rng.uniform(2, 14) * y + phase)
        for phase in range(3)
    )
    grey = 128 + waves + rng.normal(0, 4, (side, side))
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def make_inputs(
    manifest: Manifest, tokenizer: TextTokenizer, count: int, seed: int
) -> dict[str, npt.NDArray[Any]]:
    """Generated pictures and questions as the graphs read them.

    Args:
        manifest: Of a bundle with a question-answering task.
        tokenizer: Of the same bundle.
        count: Number of samples.
        seed: Decides the pictures.

    Returns:
        `pixel_values` (B, C, H, W) float32, `input_ids` and `attention_mask` (B, L) int64,
        `structured_values` and `structured_mask` (B, F) float32, all of these zero.
    """
    rng = np.random.default_rng(seed)
    spec = manifest.preprocessing
    prompt = next(task.prompt for task in manifest.tasks if task.kind == "vqa")
    texts = [compose_text(prompt, [_QUESTIONS[row % len(_QUESTIONS)]]) for row in range(count)]
    ids, mask = tokenizer.encode(texts)
    missing = np.zeros((count, len(manifest.structured_fields)), np.float32)
    side = max(spec.height, spec.width)
    return {
        "pixel_values": np.stack([preprocess(_picture(side, rng), spec) for _ in range(count)]),
        "input_ids": ids,
        "attention_mask": mask,
        "structured_values": missing,
        "structured_mask": missing,
    }


def prepare_folder(checkpoint: Path, bundle: Path, folder: Path) -> None:
    """Write graphs, inputs and settings into `folder`, which appears when it is whole.

    Args:
        checkpoint: Directory of a checkpoint.
        bundle: Bundle made of that checkpoint.
        folder: Is replaced where it exists.

    Raises:
        UsageError: The bundle has no question-answering task.
    """
    manifest = Bundle.open(bundle).manifest
    tasks = [task for task in manifest.tasks if task.kind == "vqa"]
    if not tasks:
        raise UsageError(f"{str(bundle)!r} has no question-answering task, which the race runs")

    # Imported here: everything else that the race does needs neither torch nor onnx.
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from umd_edge_export.graphs import export_graphs
    from umd_edge_train.checkpoint import load_checkpoint

    given = load_checkpoint(checkpoint)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for kind in ("fp32", "dynamic", "nncf"):
            (temporary / kind).mkdir()
        for part, model in export_graphs(given).items():
            source = temporary / "fp32" / f"{part}.onnx"
            onnx.save(model, str(source))
            quantize_dynamic(
                str(source),
                str(temporary / "dynamic" / f"{part}.onnx"),
                per_channel=True,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm"],  # it makes convolutions slower
            )
        tokenizer = TextTokenizer.from_bytes(given.tokenizer_json, given.max_length)
        for name, count in [("calibration", _CALIBRATION), *((str(n), n) for n in BATCHES)]:
            inputs: dict[str, Any] = make_inputs(manifest, tokenizer, count, seed=count)
            np.savez(temporary / f"inputs-{name}.npz", **inputs)
        settings = {
            "checkpoint": str(checkpoint.resolve()),
            "bundle": str(bundle.resolve()),
            "logits": output_name(tasks[0].name),
        }
        (temporary / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
