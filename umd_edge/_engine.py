"""The work behind `Predictor` and `EncodedImage`: checks, graphs, decisions.

Every sample runs alone, with its own text length: what else is asked at the same time, and how long
the other questions are, cannot change an answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ._ahead import Ahead, Calls, begin, has_second_core
from ._bundle import Bundle
from ._graphs import Graphs, default_variant
from ._ood import OodScore, load_models
from ._options import SessionOptions
from ._postprocess import best_outputs, confidence, findings, prediction_set, probabilities
from ._results import Alternative, Answer, BundleInfo, Classification, Finding, Status, Timing
from ._status import judge, outside_intended_use
from ._task import TaskSpec, compose_text, output_name
from ._task_table import TaskTable
from ._tokenizer import TextTokenizer
from ._trust_sets import PredictionSet
from .errors import InferenceError, UsageError

if TYPE_CHECKING:
    from ._encoded import EncodedImage
    from ._image import DicomFacts

__all__ = ["Engine", "TextFeatures"]

Float32Array = npt.NDArray[np.float32]
TextFeatures = tuple[Float32Array, npt.NDArray[np.int64]]
"""`text_tokens` (1, L, D) float32 and `attention_mask` (1, L) int64."""
Result = TypeVar("Result")

_ALTERNATIVES = 5
_QUESTIONS_KEPT = 64
_TEXT_OUTPUTS = ["text_tokens"]


class Engine:
    """Everything that is loaded. Thread-safe: only the caches of encoded texts change."""

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        manifest = bundle.manifest
        variant = options.variant or default_variant(manifest, options.provider)
        if variant not in manifest.variants:
            raise UsageError(
                f"the bundle has no variant {variant!r}; it has {sorted(manifest.variants)}"
            )
        self.bundle = bundle
        self.manifest = manifest
        self.options = options
        self.variant = variant
        self.info = BundleInfo(manifest.name, manifest.version, bundle.sha256)
        self.tokenizer = TextTokenizer.from_bytes(
            bundle.read(manifest.tokenizer.file), manifest.tokenizer.max_length
        )
        self.graphs = Graphs(bundle, variant, options)
        self.tasks = TaskTable(manifest)
        self._logits_names = {task.name: [output_name(task.name)] for task in manifest.tasks}
        self._prompts: dict[str, TextFeatures] = {}
        self._questions: dict[str, TextFeatures] = {}
        self._lock = threading.Lock()
        self._ood = load_models(manifest.tasks, bundle.read)
        self._real_tokens = np.ones((1, manifest.tokenizer.max_length), np.int64)
        self._overlaps = options.overlap and has_second_core()
        self._images = 0  # two threads may lose a count; it is no matter
        self.calls = Calls()
        width = len(manifest.structured_fields)
        self._no_structured = np.zeros((1, width), np.float32), np.zeros((1, width), np.float32)
        self._common: dict[str, Any] = {
            "bundle": self.info,
            "variant": variant,
            "provider": options.provider,
            "int8_path": self.graphs.int8_path,
        }

    def begin(self, work: Callable[[], Result]) -> Ahead[Result] | None:
        """Begin work on the second thread; None where it must be done on this one.

        So it is where the options or the machine have no second thread; where several calls are
        under way, as they fill the cores themselves; and for the first image, as a program that
        looks at one alone would begin a thread for nothing.
        """
        wanted = self._overlaps and self._images and self.calls.running <= 1
        return begin(work) if wanted else None

    def run_vision(self, pixel_values: Float32Array) -> tuple[Float32Array, Float32Array]:
        """`image_tokens` and `image_embedding` of (1, C, H, W) float32."""
        tokens, embedding = self.graphs.vision.run({"pixel_values": pixel_values})
        self._images += 1
        return tokens, embedding

    def answer(
        self,
        encoded: EncodedImage,
        question: str,
        task: str | None,
        coverage: float | None = None,
    ) -> Answer:
        """See `Predictor.ask`."""
        spec = self.tasks.check_ask(question, task, coverage)
        outside = outside_intended_use(spec, encoded.dicom)
        if outside:
            return self._answer(
                "outside_intended_use", outside, question, Timing(), [], dicom=encoded.dicom
            )
        words = partial(self.question_features, compose_text(spec.prompt, [question]))
        ahead = encoded.encode_beside(words)
        start = perf_counter()
        features = words() if ahead is None else ahead.result()
        ready = perf_counter()
        logits, score = self.infer(encoded, spec, features, None)
        best = best_outputs(logits, spec, _ALTERNATIVES + 1)
        chosen = None if coverage is None else prediction_set(logits, spec, coverage)
        ranked = [Alternative(spec.outputs[row], value) for row, value in best]
        status, reason = judge(spec, score, ranked[0].probability)
        timing = _timing(start, ready, perf_counter(), ahead)
        return self._answer(
            status,
            reason,
            question,
            timing,
            ranked,
            chosen=chosen,
            dicom=encoded.dicom,
            score=score,
        )

    def classify(
        self,
        encoded: EncodedImage,
        task: str,
        text: str | None,
        structured: Mapping[str, Any] | None,
        sensitivity: float | None = None,
        specificity: float | None = None,
        coverage: float | None = None,
    ) -> Classification:
        """See `Predictor.classify`."""
        spec, full_text, values = self.tasks.check_classify(
            task, text, structured, sensitivity, specificity, coverage
        )
        outside = outside_intended_use(spec, encoded.dicom)
        if outside:
            return self._classification(
                "outside_intended_use", outside, spec, Timing(), (), dicom=encoded.dicom
            )
        encoded.features()
        start = perf_counter()
        features = self.prompt_features(full_text, keep=text is None)
        ready = perf_counter()
        logits, score = self.infer(encoded, spec, features, values)
        probability = probabilities(logits, spec)
        found = findings(probability, spec, sensitivity, specificity)
        chosen = None if coverage is None else prediction_set(logits, spec, coverage)
        status, reason = judge(spec, score, float(confidence(probability, spec)))
        timing = _timing(start, ready, perf_counter())
        return self._classification(
            status,
            reason,
            spec,
            timing,
            found,
            chosen=chosen,
            dicom=encoded.dicom,
            score=score,
        )

    def example_probabilities(
        self,
        encoded: EncodedImage,
        task: TaskSpec,
        text: str,
        structured: tuple[Float32Array, Float32Array] | None,
    ) -> npt.NDArray[np.float64]:
        """See `Predictor.probabilities`."""
        return probabilities(self.example_logits(encoded, task, text, structured), task)

    def example_logits(
        self,
        encoded: EncodedImage,
        task: TaskSpec,
        text: str,
        structured: tuple[Float32Array, Float32Array] | None,
    ) -> Float32Array:
        """Logits (K,) float32 of one prepared example; see `Predictor.probabilities`."""
        features = self._prompt(text) if text == task.prompt else self._encode_text(text)
        pair = None if structured is None else (structured[0][None], structured[1][None])
        return self._logits(encoded, task, features, pair)

    def question_features(self, text: str) -> TextFeatures:
        """Features of a question; those of the last ones are kept, as devices ask the same few."""
        with self._lock:
            features = self._questions.pop(text, None)
        # Outside the lock: two threads may both come here, and both compute the same bits.
        features = features or self._encode_text(text)
        with self._lock:
            self._questions[text] = features  # the newest stands last
            while len(self._questions) > _QUESTIONS_KEPT:
                del self._questions[next(iter(self._questions))]
        return features

    def prompt_features(self, text: str, *, keep: bool) -> TextFeatures:
        """Features of what a classification reads; kept where it is the task's own prompt."""
        return self._prompt(text) if keep else self._encode_text(text)

    def _encode_text(self, text: str) -> TextFeatures:
        input_ids = self.tokenizer.encode_one(text)
        attention_mask = self._real_tokens[:, : input_ids.shape[1]]
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.graphs.text.run(feeds, _TEXT_OUTPUTS)[0], attention_mask

    def _prompt(self, prompt: str) -> TextFeatures:
        features = self._prompts.get(prompt)
        if features is None:
            features = self._encode_text(prompt)
            # Two threads may both come here; both have computed the same bits.
            self._prompts[prompt] = features
        return features

    def _logits(
        self,
        encoded: EncodedImage,
        task: TaskSpec,
        text: TextFeatures,
        structured: tuple[Float32Array, Float32Array] | None,
    ) -> Float32Array:
        values, mask = structured or self._no_structured
        outputs = self.graphs.fusion.run(
            {
                "image_tokens": encoded.features()[0],
                "text_tokens": text[0],
                "attention_mask": text[1],
                "structured_values": values,
                "structured_mask": mask,
            },
            self._logits_names[task.name],
        )
        logits: Float32Array = outputs[0][0]
        if logits.shape != (len(task.outputs),) or not _all_finite(logits):
            raise InferenceError(
                f"{output_name(task.name)!r} is not {len(task.outputs)} finite numbers; run "
                "`umd-edge verify` on this machine"
            )
        return logits

    def infer(
        self,
        encoded: EncodedImage,
        task: TaskSpec,
        text: TextFeatures,
        structured: tuple[Float32Array, Float32Array] | None,
    ) -> tuple[Float32Array, OodScore | None]:
        """Logits (K,) float32 of a task for one image, and how far the image is from it."""
        model = self._ood.get(task.name)
        if model is None:
            return self._logits(encoded, task, text, structured), None
        known = encoded.known_score(model)
        here = known or self._images < 2
        ahead = None if here else self.begin(partial(encoded.ood_score, model))
        logits = self._logits(encoded, task, text, structured)
        image = known or (encoded.ood_score(model) if ahead is None else ahead.result())
        return logits, model.score(image, logits, multi_label=task.multi_label)

    @property
    def has_ood(self) -> bool:
        """Whether any task has an out-of-distribution score."""
        return bool(self._ood)

    def text_features(self, text: str) -> tuple[Float32Array, Float32Array]:
        """`text_tokens` (1, L, D) and `text_embedding` (1, E) of a text, prompt included."""
        input_ids, attention_mask = self.tokenizer.encode([text])
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        tokens, embedding = self.graphs.text.run(feeds)
        return tokens, embedding

    def match_logits(self, image_tokens: Float32Array, text_tokens: Float32Array) -> Float32Array:
        """`match_logit` (B,) of image tokens (B, N, D) and text tokens (B, L, D), none padded."""
        batch, length = text_tokens.shape[:2]
        missing = np.repeat(self._no_structured[0], batch, axis=0)
        outputs = self.graphs.fusion.run(
            {
                "image_tokens": image_tokens,
                "text_tokens": text_tokens,
                "attention_mask": np.ones((batch, length), np.int64),
                "structured_values": missing,
                "structured_mask": missing,
            },
            ["match_logit"],
        )
        return outputs[0]

    @property
    def common(self) -> dict[str, Any]:
        """The fields that every result shares."""
        return dict(self._common)

    def _answer(
        self,
        status: Status,
        reason: str,
        question: str,
        timing: Timing,
        ranked: list[Alternative],
        *,
        dicom: DicomFacts | None,
        chosen: PredictionSet | None = None,
        score: OodScore | None = None,
    ) -> Answer:
        best = ranked[0] if ranked else Alternative("", 0.0)
        return Answer(
            status=status,
            reason=reason,
            timing=timing,
            dicom=dicom,
            question=question,
            answer=best.answer,
            probability=best.probability,
            alternatives=tuple(ranked[1:]) if ranked else (),
            prediction_set=chosen,
            ood_score=None if score is None else score.value,
            **self._common,
        )

    def _classification(
        self,
        status: Status,
        reason: str,
        task: TaskSpec,
        timing: Timing,
        found: tuple[Finding, ...],
        *,
        dicom: DicomFacts | None,
        chosen: PredictionSet | None = None,
        score: OodScore | None = None,
    ) -> Classification:
        return Classification(
            status=status,
            reason=reason,
            timing=timing,
            dicom=dicom,
            task=task.name,
            findings=found,
            prediction_set=chosen,
            ood_score=None if score is None else score.value,
            **self._common,
        )


def _all_finite(values: Float32Array) -> bool:
    # One that is no number counts as the highest. Faster than a look at each.
    return isfinite(values[values.argmax()]) and isfinite(values[values.argmin()])


def _timing(
    start: float, ready: float, end: float, ahead: Ahead[TextFeatures] | None = None
) -> Timing:
    """Times of a call; text that was read beside the vision graph took no time of the call."""
    text = ready - start if ahead is None else ahead.seconds
    return Timing(text_ms=text * 1e3, fusion_ms=(end - ready) * 1e3, total_ms=(end - start) * 1e3)
