"""An image that has been decoded, preprocessed and encoded once, and the calls that reuse it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ._appearance import appearance_statistics
from ._ood import ImageProfile, OodModel, OodScore
from ._preprocess import normalise, resize_for
from ._results import Answer, Classification, Timing

if TYPE_CHECKING:
    from ._ahead import Ahead
    from ._audit_trail import AuditTrail
    from ._engine import Engine
    from ._explanation import Explanation
    from ._image import DicomFacts, LoadedImage

__all__ = ["EncodedImage"]

Float32Array = npt.NDArray[np.float32]
Result = TypeVar("Result")


class EncodedImage:
    """What the vision encoder made of one image; made by `Predictor.encode`.

    It may be used from many threads at once, and keeps its predictor alive.
    """

    def __init__(
        self,
        engine: Engine,
        loaded: LoadedImage,
        decode_ms: float,
        trail: AuditTrail | None = None,
    ) -> None:
        self._engine = engine
        self._trail = trail
        self._loaded: LoadedImage | None = loaded
        self._size = loaded.pixels.shape[0], loaded.pixels.shape[1]
        self._dicom = loaded.dicom
        self._lock = threading.Lock()
        self._outputs: tuple[Float32Array, Float32Array] | None = None
        self._small: npt.NDArray[np.uint8] | None = None
        self._appearance: npt.NDArray[np.float64] | None = None
        self._profile: ImageProfile | None = None
        self._timing = Timing(decode_ms=decode_ms, total_ms=decode_ms)

    @property
    def dicom(self) -> DicomFacts | None:
        """Facts from the DICOM header; None for other images."""
        return self._dicom

    @property
    def timing(self) -> Timing:
        """Milliseconds spent so far on decoding, preprocessing and the vision graph."""
        return self._timing

    @property
    def embedding(self) -> Float32Array:
        """(D,) float32: the image in the space that images and texts share; read-only."""
        vector: Float32Array = self.features()[1][0]
        return vector

    def features(self) -> tuple[Float32Array, Float32Array]:
        """`image_tokens` (1, N, D) and `image_embedding` (1, D), float32, read-only.

        Computed at the first call; later calls and other threads get the same arrays.
        """
        outputs = self._outputs
        if outputs is not None:
            return outputs
        with self._lock:
            if self._outputs is None:
                self._outputs = self._encode(None)
            return self._outputs

    def encode_beside(self, work: Callable[[], Result]) -> Ahead[Result] | None:
        """Run the vision graph, and meanwhile other work on the second thread.

        Returns:
            The work; None where it was not begun, as the image is encoded already or there is no
            second thread.
        """
        if self._outputs is not None:
            return None
        ahead: list[Ahead[Result]] = []

        def begin() -> None:
            if begun := self._engine.begin(work):
                ahead.append(begun)

        with self._lock:
            if self._outputs is None:
                self._outputs = self._encode(begin)
        return ahead[0] if ahead else None

    def profile(self) -> ImageProfile:
        """What the out-of-distribution scores of all tasks need; computed at the first call."""
        profile = self._profile
        if profile is not None:
            return profile
        small, tokens = self._resized(), self.features()[0]
        with self._lock:
            if self._profile is None:
                appearance = self._appearance
                if appearance is None:
                    appearance = appearance_statistics(small)
                self._profile = ImageProfile(appearance, tokens[0])
            return self._profile

    def known_score(self, model: OodModel) -> OodScore | None:
        """What `ood_score` gave before for this model."""
        return None if self._profile is None else self._profile.known(model)

    def ood_score(self, model: OodModel) -> OodScore:
        """How far the image is from what the model's task was fitted on; computed once."""
        return self.profile().score(model)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the image as it was decoded."""
        return self._size

    def input_digest(self) -> bytes:
        """SHA-256 of the 8-bit pixels that the model reads: equal for copies of an image."""
        return hashlib.sha256(self._resized().tobytes()).digest()

    @property
    def size_bytes(self) -> int:
        """Bytes of the arrays that it keeps, once it is encoded."""
        return self._resized().nbytes + sum(output.nbytes for output in self.features())

    def pixel_values(self) -> Float32Array:
        """(1, C, H, W) float32: the image as the vision graph takes it."""
        return normalise(self._resized(), self._engine.manifest.preprocessing)[None]

    def _resized(self) -> npt.NDArray[np.uint8]:
        """(H, W, C) uint8: the image as large as the model reads it."""
        self.features()
        if self._small is None:
            raise RuntimeError("an encoded image keeps its small copy")
        return self._small

    def _encode(self, begin: Callable[[], None] | None) -> tuple[Float32Array, Float32Array]:
        loaded = self._loaded
        if loaded is None:
            raise RuntimeError("the pixels are gone although the image was never encoded")
        start = perf_counter()
        spec = self._engine.manifest.preprocessing
        small = resize_for(loaded.pixels, spec)
        pixel_values = normalise(small, spec)[None]
        looking = partial(appearance_statistics, small) if self._engine.has_ood else None
        # Right before the graph, which runs without Python's lock: earlier they would fight for it.
        ahead = looking and self._engine.begin(looking)
        if looking and not ahead:  # half as dear while the picture is in the processor's cache
            self._appearance = looking()
        if begin:
            begin()
        ready = perf_counter()
        tokens, embedding = self._engine.run_vision(pixel_values)
        if ahead:
            self._appearance = ahead.result()
        end = perf_counter()
        tokens.flags.writeable = False
        embedding.flags.writeable = False
        self._loaded = None  # the pixels are not needed again
        # Pixels of the right size were not copied: the caller may write to them later.
        self._small = small.copy() if small is loaded.pixels else small
        self._timing = Timing(
            decode_ms=self._timing.decode_ms,
            preprocess_ms=(ready - start) * 1e3,
            vision_ms=(end - ready) * 1e3,
            total_ms=self._timing.decode_ms + (end - start) * 1e3,
        )
        return tokens, embedding

    def ask(
        self, question: str, *, task: str | None = None, coverage: float | None = None
    ) -> Answer:
        """Answer one question about the image; see `Predictor.ask`."""
        call = partial(self._engine.answer, self, question, task, coverage)
        with self._engine.calls:
            if self._trail is None:
                return call()
            return self._trail.record(call, self._image_ms, task, question=question)

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
        """Classify the image by one task; see `Predictor.classify`."""
        call = partial(
            self._engine.classify,
            self,
            task,
            text,
            structured,
            sensitivity,
            specificity,
            coverage,
        )
        with self._engine.calls:
            if self._trail is None:
                return call()
            given = {"text": text, "structured": structured}
            return self._trail.record(call, self._image_ms, task, **given)

    def _image_ms(self) -> float:
        return self._timing.total_ms

    def explain(
        self,
        *,
        question: str | None = None,
        task: str | None = None,
        label: str | None = None,
        text: str | None = None,
        structured: Mapping[str, Any] | None = None,
        method: str | None = None,
        unproven: bool = False,
    ) -> Explanation:
        """Show where on the image an answer or a classification came from.

        Give either a question (with `task` where the bundle has several that answer questions), or
        the name of a classification task with the text and values that `classify` takes. The
        answer or classification is made, and recorded where there is an audit log, as by `ask` or
        `classify`.

        Args:
            question: As in `ask`.
            task: As in `classify`.
            label: The label or answer to explain; the most probable one where None.
            text: As in `classify`.
            structured: As in `classify`.
            method: `attention` or `ablation`; see `docs/explain.md`. Where None, the best one that
                the bundle records as proven for the task.
            unproven: Allow a map although none is proven for the task.

        Raises:
            UsageError: No question and no task, an unknown label or method, or no proven method.
            UnknownTaskError: As in `ask` and `classify`.
            TextInputError: As in `ask` and `classify`.
            StructuredInputError: As in `classify`.
            ProviderUnavailableError: The provider is `tensorrt`.
            InferenceError: A graph failed.
        """
        from ._explain import Request, explain

        request = Request(
            question=question,
            task=task,
            label=label,
            text=text,
            structured=structured,
            method=method,
            unproven=unproven,
        )
        return explain(self, self._engine, request)
