"""`Predictor`: a bundle, ready to answer.

Every sample runs alone, with its own text length: what else is asked at the same time, and how long
the other questions are, cannot change an answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._audit_trail import check_audit
from ._bundle import Bundle
from ._deadline import CancelToken
from ._defaults import WORKERS
from ._encoded import EncodedImage
from ._encoding_calls import EncodingCalls
from ._engine import Engine
from ._manifest import Manifest
from ._options import SessionOptions
from ._ranking_calls import RankingCalls
from ._results import Answer, BundleInfo, Classification, Timing
from ._task import TaskSpec
from .errors import BundleNotFoundError, UsageError

if TYPE_CHECKING:
    from ._audit import AuditLog
    from ._image import ImageInput
    from ._map import Outcome
    from ._selftest import VerificationReport
    from ._signature import KeyInput

__all__ = ["Predictor"]

Float32Array = npt.NDArray[np.float32]


class Predictor(EncodingCalls, RankingCalls):
    """Classifies images and answers questions about them with one bundle.

    It holds no state that a call changes except caches of the tasks' prompts and of the last 64
    questions, both in memory alone, so one predictor may be used from many threads at once.

    Example:
        >>> predictor = umd_edge.Predictor.load("model.umd")  # doctest: +SKIP
        >>> encoded = predictor.encode("chest.dcm")  # doctest: +SKIP
        >>> encoded.ask("Is there a pleural effusion?").text  # doctest: +SKIP
    """

    def __init__(
        self, bundle: Bundle, options: SessionOptions, audit: AuditLog | None = None
    ) -> None:
        self._engine = Engine(bundle, options)
        self._audit = check_audit(audit)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        options: SessionOptions | None = None,
        *,
        provider: str | None = None,
        variant: str | None = None,
        threads: int | None = None,
        public_key: KeyInput | Sequence[KeyInput] | None = None,
        require_signature: bool = False,
        self_test: bool = False,
        audit: AuditLog | None = None,
    ) -> Predictor:
        """Open a bundle and its three graphs.

        Args:
            path: A `.umd` file or a bundle's directory.
            options: How to run it; the keywords that follow say the same one by one.
            provider: `cpu`, `cuda`, `tensorrt` or `openvino`.
            variant: A variant of the bundle; its default one where None.
            threads: Threads inside one operator.
            public_key: One or several Ed25519 public keys (path of a PEM file, or bytes), with one
                of which the bundle must be signed; None leaves a signature unchecked.
            require_signature: Refuse a bundle whose signature nobody checks.
            self_test: Run the golden vectors at once, as `verify` does.
            audit: Where every result of `classify` and `ask` is recorded before it is returned.

        Raises:
            BundleError: The bundle is missing, damaged, not signed as asked for, fails the
                self-test, or needs a newer runtime.
            ProviderUnavailableError: The provider is not there; no other one is taken instead.
            UsageError: Both `options` and a keyword, an unknown variant, or a key that is none.
        """
        given = {"provider": provider, "variant": variant, "threads": threads}
        chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if options is not None and chosen:
            raise UsageError(f"give either options or {sorted(chosen)}, not both")
        bundle = Bundle.open(path, public_key=public_key, require_signature=require_signature)
        predictor = cls(bundle, options or SessionOptions(**chosen), audit)
        if self_test:
            predictor.run_self_test()
        return predictor

    @classmethod
    def default(cls, options: SessionOptions | None = None, **checks: Any) -> Predictor:
        """Open the bundle that comes with the package.

        Args:
            options: How to run it.
            checks: `public_key`, `require_signature`, `self_test` and `audit`, as in `load`.

        Raises:
            BundleNotFoundError: This installation has none.
        """
        import importlib.resources

        resource = importlib.resources.files("umd_edge") / "bundles" / "default.umd"
        if not resource.is_file():
            raise BundleNotFoundError(
                "this installation of umd-edge has no default bundle; give the path of one "
                "(Predictor.load, --bundle), or install umd-edge from its wheel"
            )
        with importlib.resources.as_file(resource) as path:
            return cls.load(path, options or SessionOptions(), **checks)

    @property
    def bundle(self) -> Bundle:
        """The opened bundle."""
        return self._engine.bundle

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._engine.manifest

    @property
    def info(self) -> BundleInfo:
        """Name, version and hash of the bundle, as in every result."""
        return self._engine.info

    @property
    def variant(self) -> str:
        """Name of the variant in use."""
        return self._engine.variant

    @property
    def provider(self) -> str:
        """Name of the provider in use."""
        return self._engine.options.provider

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """The bundle's tasks."""
        return self._engine.manifest.tasks

    def ask(
        self,
        image: ImageInput,
        question: str,
        *,
        task: str | None = None,
        frame: int | None = None,
        coverage: float | None = None,
    ) -> Answer:
        """Answer one question about an image.

        For several questions, `encode` the image and ask the result.

        Args:
            image: As in `encode`.
            question: Free text; longer ones than the bundle's `max_length` tokens are cut.
            task: Name of the question-answering task, where the bundle has several.
            frame: As in `encode`.
            coverage: Also give the answers that cannot be excluded at it, such as 0.9: the right
                one is among them for that share of patients.

        Raises:
            UnknownTaskError: The bundle has no such task.
            UsageError: A coverage that is not between 0 and 1, or the bundle has none fitted.
            TextInputError: The question is empty or too long.
            ImageInputError: As in `encode`.
        """
        self._check_ask(question, task, coverage)
        encoded = self._image_or_clip(image, frame)
        answer = encoded.ask(question, task=task, coverage=coverage)
        return replace(answer, timing=encoded.timing + answer.timing)

    def classify(
        self,
        image: ImageInput,
        task: str,
        *,
        text: str | None = None,
        structured: Mapping[str, Any] | None = None,
        frame: int | None = None,
        sensitivity: float | None = None,
        specificity: float | None = None,
        coverage: float | None = None,
    ) -> Classification:
        """Classify an image by one task.

        Args:
            image: As in `encode`.
            task: Name of a classification task of the bundle.
            text: Free text about the patient, for a task that reads text.
            structured: Field name -> value, for a task that reads such values; those left out or
                None are missing to the model.
            frame: As in `encode`.
            sensitivity: Decide each label at the operating point that reaches it, such as 0.95.
            specificity: The same for a specificity; not both.
            coverage: Also give the labels that cannot be excluded at it, such as 0.9.

        Raises:
            UnknownTaskError: The bundle has no such task, or it is of another kind.
            UsageError: The bundle has no operating point or prediction set as asked for.
            TextInputError: The text is empty, too long, or not read by the task.
            StructuredInputError: A value is not read by the task or of a wrong type.
            ImageInputError: As in `encode`.
        """
        # A wrong task, text or value is told before the image is decoded.
        self._check_classify(task, text, structured, sensitivity, specificity, coverage)
        encoded = self._image_or_clip(image, frame)
        result = encoded.classify(
            task,
            text=text,
            structured=structured,
            sensitivity=sensitivity,
            specificity=specificity,
            coverage=coverage,
        )
        return replace(result, timing=encoded.timing + result.timing)

    def map(
        self,
        images: Iterable[ImageInput],
        *,
        task: str | None = None,
        questions: Sequence[str] | None = None,
        workers: int = WORKERS,
        timeout_s: float | None = None,
        cancel: CancelToken | None = None,
        on_progress: Callable[[int, int | None], None] = lambda done, total: None,
        **options: Any,
    ) -> Generator[Outcome, None, None]:
        """Classify many images, or ask each of them the same questions, with bounded memory.

        Outcomes come in the order of the images, each with the bits that a single call gives. An
        image that cannot be used, or takes too long, has an error in its place and the others go
        on. At most `2 * workers` images are between input and output, so `images` may be endless.

        Args:
            images: Each as in `encode`.
            task: Name of a classification task; of the question-answering one with `questions`.
            questions: What each image is asked; None classifies.
            workers: Images at the same time, 1..256: one is decoded while the graphs run for
                another.
            timeout_s: Limit for one image, in seconds.
            cancel: Ends the whole run.
            on_progress: Called with the images done and all images; None where the number is not
                known.
            **options: Further keywords of `classify`, or of `ask` with `questions`, for all images.

        Raises:
            UsageError: Neither task nor questions, or an option out of range.
            InputError: What `classify` or `ask` raises for a wrong text, value or question.
            CancelledError: From the generator, when the token is cancelled.
        """
        from ._map import make_job, map_images

        job = make_job(self, task, questions, options)
        return map_images(
            job,
            images,
            workers=workers,
            timeout_s=timeout_s,
            cancel=cancel,
            on_progress=on_progress,
        )

    def warm_up(self) -> Timing:
        """Run everything once on made-up input, so that the first real call is as fast as others.

        onnxruntime allocates and packs at the first run of a graph; Pillow and the tokenizer are
        loaded, and the prompts of all tasks are encoded.

        Returns:
            What it took.

        Raises:
            InferenceError: A graph failed.
        """
        from ._warm_up import warm_up

        return warm_up(self)

    def verify(self) -> VerificationReport:
        """Hash every file and run the golden vectors on this machine.

        Raises:
            BundleIntegrityError: A file differs from the manifest.
            SelfTestError: A golden output does not come out as stored.
        """
        self._engine.bundle.check_files()
        return self.run_self_test()

    def run_self_test(self) -> VerificationReport:
        """Run the golden vectors on this machine, without hashing the files that nothing reads.

        Raises:
            SelfTestError: A golden output does not come out as stored, or the processor's 8-bit
                sums saturate.
        """
        from ._selftest import run_self_test

        return run_self_test(self._engine)

    def probabilities(
        self,
        encoded: EncodedImage,
        task: TaskSpec,
        text: str,
        structured: tuple[Float32Array, Float32Array] | None = None,
    ) -> npt.NDArray[np.float64]:
        """Probabilities of one prepared example, for evaluation on many records.

        Args:
            encoded: The image.
            task: One of `tasks`.
            text: The whole text, prompt included, as `build_examples` gives it.
            structured: Values (F,) and mask (F,), float32.

        Returns:
            (K,) float64 in the order of `task.outputs`.
        """
        return self._engine.example_probabilities(encoded, task, text, structured)

    def _check_ask(
        self, question: str, task: str | None = None, coverage: float | None = None
    ) -> None:
        self._engine.tasks.check_ask(question, task, coverage)

    def _check_classify(
        self,
        task: str,
        text: str | None = None,
        structured: Mapping[str, Any] | None = None,
        sensitivity: float | None = None,
        specificity: float | None = None,
        coverage: float | None = None,
    ) -> None:
        self._engine.tasks.check_classify(
            task, text, structured, sensitivity, specificity, coverage
        )
