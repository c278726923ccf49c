"""Many images in order, with bounded memory: the work behind `Predictor.map`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import field
from operator import length_hint
from typing import TYPE_CHECKING, Any

from ._deadline import CancelToken, active_limits, check_timeout, limited
from ._record import dataclass
from ._results import Answer, Classification, Timing, answers_to_dict
from .errors import CancelledError, UmdEdgeError, UsageError

if TYPE_CHECKING:
    from ._image import ImageInput
    from ._predictor import Predictor

__all__ = ["Job", "Outcome", "make_job", "map_images"]

_AHEAD = 2
_MOST_WORKERS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What `Predictor.map` made of one image: a classification, answers, or an error."""

    index: int
    """Place of the image among those given, from 0."""
    image: str = field(repr=False)
    """Its path as given; empty for other kinds of input."""
    classification: Classification | None = None
    answers: tuple[Answer, ...] = field(default=(), repr=False)
    """In the order of the questions."""
    encoding: Timing | None = field(default=None, repr=False)
    """Time spent on the image itself, where there are answers."""
    error: UmdEdgeError | None = None

    @property
    def result(self) -> Classification | tuple[Answer, ...]:
        """The classification, or the answers.

        Raises:
            UmdEdgeError: The image's error, where it has one.
        """
        if self.error is not None:
            raise self.error
        return self.answers if self.classification is None else self.classification

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of a line of `classify` or `ask`."""
        line: dict[str, Any] = {"image": self.image, "index": self.index}
        if self.error is not None:
            message = " ".join(str(self.error).split())
            return {**line, "error": {"type": type(self.error).__name__, "message": message}}
        if self.classification is not None:
            return {**line, **self.classification.to_dict()}
        return {**line, **answers_to_dict(self.answers, self.encoding)}


Job = Callable[["ImageInput"], dict[str, Any]]
"""Image -> the fields of its `Outcome`."""


def make_job(
    predictor: Predictor,
    task: str | None,
    questions: Sequence[str] | None,
    options: Mapping[str, Any],
) -> Job:
    """What `Predictor.map` does with each image, after everything but the images was checked.

    Args:
        predictor: Does it.
        task: As in `Predictor.map`.
        questions: As in `Predictor.map`.
        options: Further keywords of `Predictor.classify` or `ask`.

    Raises:
        UsageError: Neither task nor questions.
        InputError: As for the single call.
    """
    frame = {key: value for key, value in options.items() if key == "frame"}
    rest = {key: value for key, value in options.items() if key != "frame"}
    if questions is None:
        if task is None:
            raise UsageError("neither task nor questions given; name one task, or give questions")
        predictor._check_classify(task, **rest)
        return lambda image: {"classification": predictor.classify(image, task, **options)}
    if isinstance(questions, str) or not questions:
        raise UsageError("questions must be a list of at least one question")
    wanted = tuple(questions)
    for question in wanted:
        predictor._check_ask(question, task, **rest)

    def ask(image: ImageInput) -> dict[str, Any]:
        encoded = predictor.encode(image, **frame)
        answers = tuple(encoded.ask(question, task=task, **rest) for question in wanted)
        return {"answers": answers, "encoding": encoded.timing}

    return ask


def map_images(
    job: Job,
    images: Iterable[ImageInput],
    *,
    workers: int,
    timeout_s: float | None,
    cancel: CancelToken | None,
    on_progress: Callable[[int, int | None], None],
) -> Generator[Outcome, None, None]:
    """Outcomes in the order of the images.

    Each worker takes one image from the file to its result, so that one image is decoded while the
    graphs run for another. At most `2 * workers` images are between input and output.

    Args:
        job: What is done with an image; called from several threads at once.
        images: Read no further ahead than stated.
        workers: Images at the same time, 1..256.
        timeout_s: Limit for one image; one that takes longer has an error.
        cancel: Ends the whole run.
        on_progress: Called with the images done and all images; None where that is not known.

    Raises:
        UsageError: `workers` or `timeout_s` is out of range.
        CancelledError: From the generator, when the token is cancelled.
    """
    if type(workers) is not int or not 1 <= workers <= _MOST_WORKERS:
        raise UsageError(
            f"workers {workers!r} given; a whole number in 1..{_MOST_WORKERS} is allowed"
        )
    check_timeout(timeout_s)
    if isinstance(images, (str, bytes, os.PathLike)) or not isinstance(images, Iterable):
        raise UsageError(
            f"{type(images).__name__} given as images; a list or another iterable of images is "
            "needed: put a single one into a list"
        )
    return _run(job, images, workers, timeout_s, cancel, on_progress)


def _run(
    job: Job,
    images: Iterable[ImageInput],
    workers: int,
    timeout_s: float | None,
    cancel: CancelToken | None,
    on_progress: Callable[[int, int | None], None],
) -> Generator[Outcome, None, None]:
    total = length_hint(images, 0) or None
    stop = CancelToken()
    outer = active_limits.get()

    def work(index: int, image: ImageInput) -> Outcome:
        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
        try:
            with limited(timeout_s=timeout_s, cancel=cancel, outer=outer), limited(cancel=stop):
                return Outcome(index=index, image=str(name), **job(image))
        except CancelledError:
            raise
        except UmdEdgeError as error:
            return Outcome(index=index, image=str(name), error=error)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="umd-edge-map")
    pending: deque[Future[Outcome]] = deque()
    done = 0

    def first() -> Outcome:
        nonlocal done
        outcome = pending.popleft().result()
        done += 1
        on_progress(done, total)
        return outcome

    try:
        for index, image in enumerate(images):
            pending.append(pool.submit(work, index, image))
            del image  # not kept while the caller works
            while pending and (len(pending) >= _AHEAD * workers or pending[0].done()):
                yield first()
        while pending:
            yield first()
    finally:
        stop.cancel()
        pool.shutdown(wait=True, cancel_futures=True)
