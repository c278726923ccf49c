"""How fast, how large, and what the SDK costs on top of the graphs themselves.

The overhead is measured, not derived: each round times a call of the SDK and the bare `session.run`
calls of the same sessions on the same arrays, one right after the other in alternating order, so
that both see the same machine. The SDK's side starts from pixels of the model's own size and from
the question as text, and ends with the answer: its preprocessing, tokenising and records are in it,
decoding a file and shrinking a large picture are not (they are stages of their own). New questions
are made of common words in orders that have not come before, so that none is answered from the
predictor's cache of encoded questions; what that cache gives is measured apart, as the repeated
question.
"""

from __future__ import annotations

import io
import itertools
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ._onnxruntime import load_onnxruntime
from ._predictor import Predictor
from ._preprocess import preprocess
from ._results import Answer
from ._session import GraphSession
from ._task import compose_text, output_name
from .errors import UsageError

__all__ = [
    "BenchReport",
    "Overhead",
    "Quantiles",
    "SdkAndBare",
    "generated_png",
    "peak_memory",
    "run_bench",
]

QUESTION = "which organ is shown in this image?"
_NEW_QUESTION = "which {} or {} is shown near the {} {}?"
_WORDS = ("organ", "lung", "liver", "heart", "kidney", "brain", "bone", "mass")
_WARM_UP = 5
_SIDE = 1024


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Milliseconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Quantiles:
        """Quantiles of measured times in seconds."""
        return cls(*(float(q) for q in np.quantile(np.asarray(seconds) * 1e3, [0.5, 0.95, 0.99])))

    def to_dict(self) -> dict[str, float]:
        """The JSON object, rounded to microseconds."""
        return {"p50": round(self.p50, 3), "p95": round(self.p95, 3), "p99": round(self.p99, 3)}


@dataclass(frozen=True, slots=True)
class Overhead:
    """Median time of the SDK over the median of the bare calls, with a 95 % interval."""

    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, sdk: npt.ArrayLike, bare: npt.ArrayLike) -> Overhead:
        """Ratio of medians; the interval resamples the rounds (1,000 times, seed 0)."""
        pairs = np.stack([np.asarray(sdk, float), np.asarray(bare, float)], axis=1)
        draws = np.random.default_rng(0).integers(0, len(pairs), size=(1000, len(pairs)))
        medians = np.median(pairs[draws], axis=1)
        low, high = np.quantile(medians[:, 0] / medians[:, 1], [0.025, 0.975])
        centre = np.median(pairs, axis=0)
        return cls(float(centre[0] / centre[1]), float(low), float(high))

    def to_dict(self) -> dict[str, float]:
        """The JSON object."""
        return {
            "ratio": round(self.ratio, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """What was measured, on what."""

    stages: dict[str, Quantiles]
    """decode, preprocess, vision, text, fusion."""
    first_answer: Quantiles
    """From the bytes of the image file to the first answer."""
    further_answer: Quantiles
    """Another, new question about the image that is encoded already."""
    repeated_question: Quantiles
    """A question asked before, about the image that is encoded already."""
    overhead_first: Overhead
    overhead_further: Overhead
    overhead_repeated: Overhead
    """Over text and fusion graph; the SDK runs the fusion graph alone."""
    size_bytes: int
    """Of the bundle on disk, all variants."""
    peak_memory_bytes: int | None
    """Of this process, Python and its libraries included; None where the system does not say."""
    runs: int
    image: str
    setting: dict[str, Any]
    """Bundle, variant, provider, threads and machine."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            **self.setting,
            "runs": self.runs,
            "image": self.image,
            "stages_ms": {name: value.to_dict() for name, value in self.stages.items()},
            "first_answer_ms": self.first_answer.to_dict(),
            "further_answer_ms": self.further_answer.to_dict(),
            "repeated_question_ms": self.repeated_question.to_dict(),
            "overhead": {
                "first_answer": self.overhead_first.to_dict(),
                "further_answer": self.overhead_further.to_dict(),
                "repeated_question": self.overhead_repeated.to_dict(),
            },
            "size_bytes": self.size_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def run_bench(
    predictor: Predictor,
    *,
    image: str | Path | None = None,
    runs: int = 100,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> BenchReport:
    """Measure a loaded predictor.

    Args:
        predictor: What to measure.
        image: A file to use in place of a generated 1024 x 1024 PNG.
        runs: Rounds that count; a few more warm up.
        on_progress: Called with the rounds done and all rounds.

    Raises:
        UsageError: The bundle has no question-answering task.
        ImageInputError: The image cannot be used.
    """
    if not any(task.kind == "vqa" for task in predictor.tasks):
        raise UsageError("the bundle has no question-answering task, which bench measures")
    source = generated_png() if image is None else image
    pair = SdkAndBare(predictor)
    stages: dict[str, list[float]] = {}
    first: list[float] = []
    further: list[float] = []
    repeated: list[float] = []
    times = np.empty((runs, 6))
    for round_index in range(-_WARM_UP, runs):
        start = perf_counter()
        encoded = predictor.encode(source)
        answer = encoded.ask(_new_question())
        middle = perf_counter()
        question = _new_question()
        encoded.ask(question)
        end = perf_counter()
        encoded.ask(question)
        last = perf_counter()
        measured = pair.round(sdk_first=round_index % 2 == 0)
        if round_index >= 0:
            first.append(middle - start)
            further.append(end - middle)
            repeated.append(last - end)
            times[round_index] = measured
            _add_stages(stages, encoded.timing.to_dict(), answer)
        on_progress(round_index + _WARM_UP + 1, runs + _WARM_UP)
    return BenchReport(
        stages={name: Quantiles.of(values) for name, values in stages.items()},
        first_answer=Quantiles.of(first),
        further_answer=Quantiles.of(further),
        repeated_question=Quantiles.of(repeated),
        overhead_first=Overhead.of(times[:, 0], times[:, 1]),
        overhead_further=Overhead.of(times[:, 2], times[:, 3]),
        overhead_repeated=Overhead.of(times[:, 4], times[:, 5]),
        size_bytes=_size(predictor.bundle.path),
        peak_memory_bytes=peak_memory(),
        runs=runs,
        image="generated 1024 x 1024 PNG" if image is None else str(image),
        setting=_setting(predictor),
    )


def _add_stages(stages: dict[str, list[float]], image: dict[str, float], answer: Answer) -> None:
    text = answer.timing.to_dict()
    for name in ("decode", "preprocess", "vision", "text", "fusion"):
        stages.setdefault(name, []).append((image[name] + text[name]) / 1e3)


_asked = itertools.count()


def _new_question() -> str:
    number = next(_asked)
    places = (number // len(_WORDS) ** place for place in range(4))
    return _NEW_QUESTION.format(*(_WORDS[place % len(_WORDS)] for place in places))


class SdkAndBare:
    """The SDK's calls, and the same `session.run` calls on the same arrays without it."""

    def __init__(self, predictor: Predictor) -> None:
        spec = predictor.manifest.preprocessing
        shape = (spec.height, spec.width, spec.channels)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self._pixels = pixels[..., 0] if spec.channels == 1 else pixels
        self._predictor = predictor
        self._encoded = predictor.encode(self._pixels)
        task = next(task for task in predictor.tasks if task.kind == "vqa")
        self._prompt, self._logits = task.prompt, output_name(task.name)
        self._engine = predictor._engine
        self._vision = _bare(
            self._engine.graphs.vision, {"pixel_values": preprocess(pixels, spec)[None]}
        )

    def round(self, *, sdk_first: bool) -> npt.NDArray[np.float64]:
        """Seconds: SDK first answer, bare; SDK further answer, bare; SDK repeated one, bare."""
        first, further = _new_question(), _new_question()
        calls: tuple[tuple[Callable[[], object], Sequence[Callable[[], object]]], ...] = (
            (
                lambda: self._predictor.ask(self._pixels, first),
                (self._vision, *self._bare_answer(first)),
            ),
            (lambda: self._encoded.ask(further), self._bare_answer(further)),
            (lambda: self._encoded.ask(QUESTION), self._bare_answer(QUESTION)),
        )
        seconds: list[float] = []
        for sdk, bare in calls:
            if sdk_first:
                seconds += [_time(sdk), _time(*bare)]
            else:
                late = _time(*bare)
                seconds += [_time(sdk), late]
        return np.asarray(seconds)

    def _bare_answer(self, question: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """The text and the fusion graph on this question's arrays, made beforehand."""
        engine = self._engine
        ids, mask = engine.tokenizer.encode([compose_text(self._prompt, [question])])
        words = {"input_ids": ids, "attention_mask": mask}
        text = _bare(engine.graphs.text, words, ["text_tokens"])
        empty = np.zeros((1, len(engine.manifest.structured_fields)), np.float32)
        feeds: dict[str, npt.NDArray[Any]] = {
            "image_tokens": self._encoded.features()[0],
            "text_tokens": text()[0],
            "attention_mask": mask,
            "structured_values": empty,
            "structured_mask": empty,
        }
        return text, _bare(engine.graphs.fusion, feeds, [self._logits])


def _bare(
    graph: GraphSession, feeds: dict[str, npt.NDArray[Any]], names: list[str] | None = None
) -> Callable[[], Any]:
    return partial(graph._session.run, names or list(graph.output_names), feeds)


def _time(*calls: Callable[[], object]) -> float:
    start = perf_counter()
    for call in calls:
        call()
    return perf_counter() - start


def generated_png() -> bytes:
    """A grey 1024 x 1024 PNG that compresses about as well as a radiograph."""
    from PIL import Image

    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
    smooth = 128 + 80 * np.sin(7 * x) * np.cos(5 * y)
    noise = np.random.default_rng(0).normal(0, 4, (_SIDE, _SIDE))
    pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if platform.system() == "Darwin" else size * 1024


def _setting(predictor: Predictor) -> dict[str, Any]:
    onnxruntime = load_onnxruntime()
    return {
        "bundle": predictor.info.to_dict(),
        "variant": predictor.variant,
        "provider": predictor.provider,
        "int8_path": predictor._engine.graphs.int8_path,
        "threads": predictor._engine.options.threads,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
        },
    }
