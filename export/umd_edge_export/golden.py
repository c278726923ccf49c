"""Golden vectors: generated inputs and each variant's outputs for the self-test on a device.

No picture and no text of a patient is in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from umd_edge._preprocess import preprocess
from umd_edge._task import TaskSpec
from umd_edge._tokenizer import TextTokenizer
from umd_edge_train.checkpoint import Checkpoint

from .graphs import PARTS
from .runner import GraphTrio, largest_difference

__all__ = ["golden_inputs", "golden_outputs", "golden_tolerance"]

Array = npt.NDArray[Any]

_QUESTIONS = ("Is this image normal?", "Which organ is shown, and in which plane was it taken?")
_MARGIN = 4.0
_FLOOR = {"fp32": 1e-3, "int8": 1e-2}


def _picture(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Gradients, rings and noise: smooth and sharp places in every channel."""
    rng = np.random.default_rng(20240)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    y, x = y / height, x / width
    rings = np.cos(40.0 * np.hypot(x - 0.45, y - 0.55))
    layers = [x * 150 + 60 * rings, y * 150 + 60 * rings, (1 - x) * y * 200 + 40 * rings]
    picture = np.stack(layers, axis=-1) + 60 + rng.normal(0, 8, (height, width, 3))
    picture[height // 4 : height // 3, width // 3 : width // 2] = (230, 20, 120)
    clipped: npt.NDArray[np.uint8] = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return clipped


def _texts(tasks: Sequence[TaskSpec]) -> list[str]:
    prompts = [task.prompt for task in tasks if task.prompt.strip()]
    return list(dict.fromkeys([*_QUESTIONS, *prompts]))


def golden_inputs(checkpoint: Checkpoint) -> dict[str, Array]:
    """Generated inputs, under the keys of `golden.npz`."""
    spec = checkpoint.preprocess
    # Not the model's own size, so that the resize is tested too.
    image = _picture(spec.height + spec.height // 3, spec.width * 2 + 1)
    texts = _texts(checkpoint.tasks)
    tokenizer = TextTokenizer.from_bytes(checkpoint.tokenizer_json, checkpoint.max_length)
    input_ids, attention_mask = tokenizer.encode(texts)
    rows, columns = np.mgrid[0 : len(texts), 0 : len(checkpoint.structured_fields)]
    present = (rows + columns) % 2 == 0
    values = np.where(present, ((rows * 3 + columns) % 5) / 4.0, 0.0)
    return {
        "image": image,
        "pixel_values": preprocess(image, spec)[None],
        "texts": np.frombuffer(json.dumps(texts).encode("utf-8"), dtype=np.uint8),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "structured_values": values.astype(np.float32),
        "structured_mask": present.astype(np.float32),
    }


def _run(run_part: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """As the runtime's self-test: one picture, repeated over the texts for the fusion."""
    words = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    outputs: dict[str, Array] = dict(run_part("vision", {"pixel_values": inputs["pixel_values"]}))
    outputs |= run_part("text", words)
    outputs |= run_part(
        "fusion",
        {
            "image_tokens": np.repeat(outputs["image_tokens"], len(inputs["input_ids"]), axis=0),
            "text_tokens": outputs["text_tokens"],
            "attention_mask": inputs["attention_mask"],
            "structured_values": inputs["structured_values"],
            "structured_mask": inputs["structured_mask"],
        },
    )
    return outputs


def golden_outputs(trio: GraphTrio, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Output name -> array of all three graphs for the golden inputs."""
    return _run(trio.run_part, inputs)


def golden_tolerance(
    variant: str,
    graphs: Mapping[str, bytes],
    inputs: Mapping[str, Array],
    stored: Mapping[str, Array],
) -> float:
    """How far a right machine may be from the stored outputs.

    Another processor rounds sums of floats differently, and a rounding may move a quantised value
    by one step. The size of such effects is measured: the same graphs run without any optimisation,
    where ONNX Runtime computes quantised operators in float. The tolerance is four times that.
    """
    sessions = {}
    for part in PARTS:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        sessions[part] = onnxruntime.InferenceSession(
            graphs[part], options, providers=["CPUExecutionProvider"]
        )

    def run_part(part: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = [item.name for item in sessions[part].get_outputs()]
        return dict(zip(names, sessions[part].run(names, dict(feeds)), strict=True))

    other = _run(run_part, inputs)
    measured = max(largest_difference(other[name], value) for name, value in stored.items())
    return max(_FLOOR.get(variant, 1e-2), float(f"{_MARGIN * measured:.2g}"))
