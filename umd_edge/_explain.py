"""The work behind `EncodedImage.explain`.

A map is shown without being asked for by its method only where the bundle says that the method was
measured for the task and beat a centre prior; see `docs/explain.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._explain_maps import TokenGrid, ablate, attention_map, spread, windows
from ._explanation import METHODS, Explanation, Method
from ._insides import CELLS
from ._postprocess import probabilities
from ._results import Answer, Classification, Result
from ._task import TaskSpec, compose_text, output_name
from .errors import UsageError

if TYPE_CHECKING:
    from ._encoded import EncodedImage
    from ._engine import Engine

__all__ = [
    "EXTENSION",
    "Request",
    "ablated_logits",
    "ablation",
    "attention",
    "explain",
    "proven_methods",
]

Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Feeds = dict[str, npt.NDArray[Any]]

EXTENSION = "explanations"
"""Key under the manifest's `extensions`: task -> method -> {proven, gain, low, high, measure}."""
_SMALLEST = 1e-12
# What a batch holds fits the cache of a small processor; a larger one is slower a row.
_CHUNK = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller wants explained; see `EncodedImage.explain`."""

    question: str | None
    task: str | None
    label: str | None
    text: str | None
    structured: Mapping[str, Any] | None
    method: str | None
    unproven: bool


def proven_methods(extensions: Mapping[str, Any], task: str) -> list[Method]:
    """Methods that a bundle records as proven for a task, the better one first.

    Args:
        extensions: Of the manifest: `{"explanations": {task: {method: {"proven": bool, ...}}}}`.
        task: Name of the task.
    """
    recorded = extensions.get("explanations")
    methods = recorded.get(task) if isinstance(recorded, Mapping) else None
    if not isinstance(methods, Mapping):
        return []
    found = [
        name
        for name in METHODS
        if isinstance(methods.get(name), Mapping) and methods[name].get("proven") is True
    ]
    return sorted(found, key=lambda name: _rank(methods[name]))


def _rank(entry: Mapping[str, Any]) -> float:
    value = entry.get("gain")
    return -float(value) if isinstance(value, (int, float)) else 0.0


def explain(encoded: EncodedImage, engine: Engine, request: Request) -> Explanation:
    """See `EncodedImage.explain`."""
    spec = _task(engine, request)
    method, proven = _method(engine, spec, request)
    if request.label is not None and request.label not in spec.outputs:
        raise UsageError(
            f"label {request.label!r} given, which is no output of task {spec.name!r}; it has "
            f"{len(spec.outputs)}, among them {list(spec.outputs[:8])}"
        )
    prediction: Answer | Classification
    if request.question is not None:
        prediction = encoded.ask(request.question, task=spec.name)
    else:
        prediction = encoded.classify(spec.name, text=request.text, structured=request.structured)
    common: dict[str, Any] = {
        **{item.name: getattr(prediction, item.name) for item in fields(Result)},
        "task": spec.name,
        "method": method,
        "proven": proven,
        "question": request.question or "",
        "image_size": encoded.image_size,
    }
    before = common.pop("timing")
    if prediction.status == "outside_intended_use":
        return Explanation(**common, target="", probability=0.0, map=None, timing=before)
    start = perf_counter()
    feeds = _feeds(encoded, engine, spec, request)
    target, probability = _target(engine, spec, prediction, request.label, feeds)
    if method == "attention":
        values = attention(engine, feeds)
    else:
        row = spec.outputs.index(target)
        values = ablation(encoded, engine, spec, feeds, row, probability)
    values.flags.writeable = False
    spent = (perf_counter() - start) * 1e3
    timing = replace(before, fusion_ms=before.fusion_ms + spent, total_ms=before.total_ms + spent)
    return Explanation(**common, target=target, probability=probability, map=values, timing=timing)


def _task(engine: Engine, request: Request) -> TaskSpec:
    if request.question is not None:
        if request.text is not None or request.structured is not None:
            raise UsageError("text and values belong to a classification; a question takes neither")
        return engine.tasks.vqa(request.task)
    if request.task is None:
        raise UsageError("say what to explain: a question, or the name of a classification task")
    return engine.tasks.classification(request.task)


def _method(engine: Engine, spec: TaskSpec, request: Request) -> tuple[Method, bool]:
    """The method to use and whether it is proven."""
    proven = proven_methods(engine.manifest.extensions, spec.name)
    if request.method is None:
        if not proven and not request.unproven:
            raise UsageError(
                f"no map is shown for task {spec.name!r}: none was measured to beat a centre prior "
                "with this bundle. To see one all the same, name a method "
                f"({' or '.join(METHODS)}; --method) or allow unproven maps (--unproven)"
            )
        return (proven or METHODS)[0], bool(proven)
    for method in METHODS:
        if method == request.method:
            return method, method in proven
    raise UsageError(f"method {request.method!r} given; one of {list(METHODS)} is allowed")


def _target(
    engine: Engine,
    spec: TaskSpec,
    prediction: Answer | Classification,
    label: str | None,
    feeds: Feeds,
) -> tuple[str, float]:
    """What is explained, and its probability."""
    if isinstance(prediction, Classification):
        found = {item.label: item.probability for item in prediction.findings}
        target = label or max(found, key=lambda name: found[name])
        return target, found[target]
    if label is None or label == prediction.answer:
        return prediction.answer, prediction.probability
    # Another answer than the one given, perhaps none of the alternatives.
    logits = engine.graphs.fusion.run(feeds, [output_name(spec.name)])[0]
    return label, float(probabilities(logits[0], spec)[spec.outputs.index(label)])


def _feeds(encoded: EncodedImage, engine: Engine, spec: TaskSpec, request: Request) -> Feeds:
    """Inputs of the fusion, batch 1."""
    words = compose_text(spec.prompt, [request.question or request.text or ""])
    text_tokens, _ = engine.text_features(words)
    absent = np.zeros((1, len(engine.manifest.structured_fields)), np.float32)
    values, mask = engine.tasks.structured(spec, request.structured) or (absent, absent)
    return {
        "image_tokens": encoded.features()[0],
        "text_tokens": text_tokens,
        "attention_mask": np.ones(text_tokens.shape[:2], np.int64),
        "structured_values": values,
        "structured_mask": mask,
    }


def attention(engine: Engine, feeds: Feeds) -> Float32Array:
    """The map by attention (rows, columns) for inputs of the fusion, batch 1."""
    grid = TokenGrid.of(feeds["image_tokens"].shape[1], engine.manifest.preprocessing)
    return attention_map(engine.graphs.insides.attention(), feeds, grid)


def ablation(
    encoded: EncodedImage,
    engine: Engine,
    spec: TaskSpec,
    feeds: Feeds,
    row: int,
    probability: float,
) -> Float32Array:
    """The map by ablation (rows, columns) of the output `row` with this probability.

    `feeds` as for `attention`.
    """
    cells = engine.graphs.insides.cells().run({"pixel_values": encoded.pixel_values()})[0]
    chosen = windows(*cells.shape[2:])
    logits = ablated_logits(engine, spec, feeds, cells, chosen)
    left = np.log(np.maximum(probabilities(logits, spec)[:, row], _SMALLEST))
    return spread(math.log(max(probability, _SMALLEST)) - left, chosen)


def ablated_logits(
    engine: Engine, spec: TaskSpec, feeds: Feeds, cells: Float32Array, chosen: BoolArray
) -> Float32Array:
    """Logits (W, K) of an image whose patches `chosen` (W, rows, columns) are hidden.

    Args:
        engine: Holds the graphs.
        spec: The task.
        feeds: Inputs of the fusion, batch 1; its image tokens are not looked at.
        cells: `patch_cells` of the image, (1, C, rows, columns).
        chosen: What is replaced by the mean over all patches, in each of W copies.
    """
    encoder, names = engine.graphs.insides.encoder(), [output_name(spec.name)]
    size = engine.manifest.preprocessing
    parts = []
    for start in range(0, len(chosen), _CHUNK):
        ablated = ablate(cells, chosen[start : start + _CHUNK])
        count = len(ablated)
        # Some graphs take their batch size from the pixels, and nothing else behind the cells.
        blank = np.zeros((count, size.channels, size.height, size.width), np.float32)
        given = {CELLS: ablated, "pixel_values": blank}
        tokens = encoder.run({name: given[name] for name in encoder.input_names})[0]
        batch = {name: np.repeat(value, count, axis=0) for name, value in feeds.items()}
        batch["image_tokens"] = tokens
        parts.append(engine.graphs.fusion.run(batch, names)[0])
    return np.concatenate(parts)
