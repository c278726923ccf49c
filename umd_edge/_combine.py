"""Several images, frames or views of one study, answered together.

The rule:

1. Every image is judged on its own. The best group that is not empty is used, the others are left
   out and counted: images within the task's use and distribution; those out of distribution; those
   outside its intended use, of which nothing is inferred.
2. The probability of each output is the mean of the calibrated probabilities of the images used.
   The order of the images does not change a bit of it.
3. Labels, operating points and abstention are decided on these means. A prediction set holds what
   is in the set of any image used: a single image's set already keeps the coverage.
4. Where no image is within, the status says so: `out_of_distribution` with the flagged values, or
   `outside_intended_use` without any.

One image gives what it gives alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ._postprocess import confidence, findings, prediction_set, probabilities
from ._results import (
    Alternative,
    Answer,
    Classification,
    Finding,
    LeftOut,
    Status,
    StudyImages,
    Timing,
)
from ._status import judge, outside_intended_use
from ._task import TaskSpec, compose_text
from ._trust_sets import STATES, PredictionSet
from .errors import ImageInputError, UmdEdgeError

if TYPE_CHECKING:
    from ._encoded import EncodedImage
    from ._engine import Engine, TextFeatures
    from ._ood import OodScore

__all__ = ["EncodedStudy", "combine_probabilities", "combine_sets"]

Float64Array = npt.NDArray[np.float64]
ResultT = TypeVar("ResultT", Answer, Classification)

_ALTERNATIVES = 5
_RANKS: dict[Status, int] = {
    "ok": 0,
    "abstain": 0,
    "out_of_distribution": 1,
    "outside_intended_use": 2,
}


def combine_probabilities(values: Sequence[Float64Array]) -> Float64Array:
    """Mean of the probabilities of several images, output by output.

    Args:
        values: At least one, each (K,) float64.

    Returns:
        (K,) float64, the same bits in whatever order the images are.
    """
    ordered = np.sort(np.stack(values), axis=0)
    mean: Float64Array = np.add.reduce(ordered, axis=0) / len(values)
    return mean


def combine_sets(
    sets: Sequence[PredictionSet], probability: Float64Array, outputs: Sequence[str]
) -> PredictionSet:
    """What is in the prediction set of any image; the most probable one first.

    Args:
        sets: One for each image, at one coverage.
        probability: (K,) combined.
        outputs: The task's K outputs.
    """
    first = sets[0]
    inside = {name for item in sets for name in item.outputs}
    states = None
    if first.states is None:
        order = np.argsort(-probability, kind="stable").tolist()
    else:
        order = list(range(len(outputs)))
        states = {
            name: tuple(
                state
                for state in STATES
                if any(item.states is not None and state in item.states[name] for item in sets)
            )
            for name in outputs
        }
    return replace(
        first,
        outputs=tuple(outputs[row] for row in order if outputs[row] in inside),
        states=states,
        other=None if first.other is None else any(item.other for item in sets),
        complete=any(item.complete for item in sets),
        reason=next((item.reason for item in sets if item.reason), ""),
    )


@dataclass(frozen=True, slots=True)
class _Judged:
    """One image of a study, judged on its own."""

    index: int
    status: Status
    reason: str
    probability: Float64Array | None = None
    logits: npt.NDArray[np.float32] | None = None
    score: OodScore | None = None


@dataclass(frozen=True, slots=True)
class _Combined:
    """What the images used say together."""

    status: Status
    reason: str
    images: StudyImages
    probability: Float64Array | None
    chosen: PredictionSet | None
    ood_score: float | None


class EncodedStudy:
    """Several encoded images that are answered together; made by `Predictor.encode_study`.

    Attributes:
        images: The encoded ones, in the order given.
        unusable: Those that could not be used at all, where the caller let them be left out, and
            copies of others.
    """

    def __init__(
        self,
        engine: Engine,
        images: Sequence[EncodedImage],
        *,
        positions: Sequence[int] | None = None,
        unusable: Sequence[LeftOut] = (),
    ) -> None:
        """Put images together.

        Args:
            engine: That encoded them.
            images: At least one.
            positions: Where each stood among what was given, from 0; in order where None.
            unusable: What is left out already.
        """
        if not images:
            raise ImageInputError("no image of the study can be used; give at least one that can")
        studies = {image.dicom.study_instance_uid for image in images if image.dicom} - {None}
        if len(studies) > 1:
            raise ImageInputError(
                f"the images are of {len(studies)} studies by their StudyInstanceUID (0020,000D); "
                "combine those of one study"
            )
        self.images = tuple(images)
        self.unusable = tuple(unusable)
        self._positions = tuple(range(len(images)) if positions is None else positions)
        self._engine = engine

    @property
    def timing(self) -> Timing:
        """Milliseconds spent so far on decoding and encoding, all images together."""
        return sum((image.timing for image in self.images), Timing())

    def classify(
        self,
        task: str,
        *,
        text: str | None = None,
        structured: Mapping[str, Any] | None = None,
        sensitivity: float | None = None,
        specificity: float | None = None,
        coverage: float | None = None,
    ) -> Classification:
        """Classify the study by one task; see `Predictor.classify` for arguments and errors."""
        call = partial(self._classify, task, text, structured, sensitivity, specificity, coverage)
        return self._recorded(call, task, text=text, structured=structured)

    def ask(
        self, question: str, *, task: str | None = None, coverage: float | None = None
    ) -> Answer:
        """Answer one question about the study; see `Predictor.ask` for arguments and errors."""
        call = partial(self._ask, question, task, coverage)
        return self._recorded(call, task, question=question)

    def _classify(
        self,
        task: str,
        text: str | None,
        structured: Mapping[str, Any] | None,
        sensitivity: float | None,
        specificity: float | None,
        coverage: float | None,
    ) -> Classification:
        engine = self._engine
        spec, full_text, values = engine.tasks.check_classify(
            task, text, structured, sensitivity, specificity, coverage
        )
        start = perf_counter()
        features = engine.prompt_features(full_text, keep=text is None)
        ready = perf_counter()
        combined = self._combine(spec, features, values, coverage)
        found: tuple[Finding, ...] = ()
        if combined.probability is not None:
            found = findings(combined.probability, spec, sensitivity, specificity)
        return Classification(
            task=spec.name, findings=found, **self._common(combined, start, ready)
        )

    def _ask(self, question: str, task: str | None, coverage: float | None) -> Answer:
        engine = self._engine
        spec = engine.tasks.check_ask(question, task, coverage)
        start = perf_counter()
        features = engine.question_features(compose_text(spec.prompt, [question]))
        ready = perf_counter()
        combined = self._combine(spec, features, None, coverage)
        ranked = [Alternative("", 0.0)]
        if combined.probability is not None:
            order = np.argsort(-combined.probability, kind="stable")[: _ALTERNATIVES + 1]
            ranked = [Alternative(spec.outputs[k], float(combined.probability[k])) for k in order]
        return Answer(
            question=question,
            answer=ranked[0].answer,
            probability=ranked[0].probability,
            alternatives=tuple(ranked[1:]),
            **self._common(combined, start, ready),
        )

    def _common(self, combined: _Combined, start: float, ready: float) -> dict[str, Any]:
        end = perf_counter()
        return {
            "status": combined.status,
            "reason": combined.reason,
            "images": combined.images,
            "prediction_set": combined.chosen,
            "ood_score": combined.ood_score,
            "dicom": self.images[0].dicom if len(self.images) == 1 else None,
            "timing": Timing(
                text_ms=(ready - start) * 1e3,
                fusion_ms=(end - ready) * 1e3,
                total_ms=(end - start) * 1e3,
            ),
            **self._engine.common,
        }

    def _combine(
        self,
        spec: TaskSpec,
        text: TextFeatures,
        values: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None,
        coverage: float | None,
    ) -> _Combined:
        judged = [
            self._judge(spec, position, image, text, values)
            for position, image in zip(self._positions, self.images, strict=True)
        ]
        best = min(_RANKS[item.status] for item in judged)
        used = [item for item in judged if _RANKS[item.status] == best]
        images = self._counted(judged, used if best < 2 else [])
        known = [item.probability for item in used if item.probability is not None]
        if not known:
            return _Combined(used[0].status, _why(used), images, None, None, None)
        probability = combine_probabilities(known)
        scores = [item.score for item in used if item.score is not None]
        farthest = max(scores, key=lambda score: score.value, default=None)
        status, reason = judge(spec, farthest, float(confidence(probability, spec)))
        chosen = None
        if coverage is not None:
            sets = [
                prediction_set(item.logits, spec, coverage)
                for item in used
                if item.logits is not None
            ]
            chosen = combine_sets(sets, probability, spec.outputs)
        score = None if farthest is None else farthest.value
        return _Combined(status, _why(used) if best else reason, images, probability, chosen, score)

    def _judge(
        self,
        spec: TaskSpec,
        position: int,
        image: EncodedImage,
        text: TextFeatures,
        values: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None,
    ) -> _Judged:
        outside = outside_intended_use(spec, image.dicom)
        if outside:
            return _Judged(position, "outside_intended_use", outside)
        logits, score = self._engine.infer(image, spec, text, values)
        probability = probabilities(logits, spec)
        status, reason = judge(spec, score, float(confidence(probability, spec)))
        return _Judged(position, status, reason, probability, logits, score)

    def _counted(self, judged: Sequence[_Judged], used: Sequence[_Judged]) -> StudyImages:
        inside = {item.index for item in used}
        left = [
            LeftOut(item.index, item.status, item.reason)
            for item in judged
            if item.index not in inside
        ]
        left_out = sorted([*self.unusable, *left], key=lambda item: item.index)
        return StudyImages(
            given=len(judged) + len(self.unusable), used=len(used), left_out=tuple(left_out)
        )

    def _recorded(self, call: Callable[[], ResultT], task: str | None, **given: Any) -> ResultT:
        """Run a call; with an audit log, its result is recorded under the hash of every image."""
        trails = [(image, image._trail) for image in self.images]
        try:
            result = call()
        except UmdEdgeError as error:
            for _, trail in trails:
                if trail is not None:
                    trail.record_error(error, task, **given)
            raise
        for image, trail in trails:
            if trail is not None:
                trail.record(lambda: result, partial(_spent, image), task, **given)
        return result


def _spent(image: EncodedImage) -> float:
    return image.timing.total_ms


def _why(used: Sequence[_Judged]) -> str:
    """Reason where no image is within: that of the first, and of how many."""
    first = used[0].reason
    return first if len(used) == 1 else f"none of {len(used)} images is within: {first}"
