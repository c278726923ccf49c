"""Puts what a predictor does into its audit log."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ._image import LoadedImage, decode_image, load_image, read_image_file
from ._postprocess import positives
from .errors import UmdEdgeError, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._audit import AuditLog
    from ._engine import Engine
    from ._image import ImageInput
    from ._results import Answer, Classification
    from ._task import TaskSpec

__all__ = ["TOP", "AuditTrail", "check_audit", "load_recorded"]

TOP = 5
"""How many outputs, texts or images a record of an evaluation or a ranking names."""

ResultT = TypeVar("ResultT", "Answer", "Classification")


class AuditTrail:
    """The log, and the hash of the image that the calls of one `EncodedImage` are about."""

    def __init__(self, log: AuditLog, engine: Engine, image: Mapping[str, str]) -> None:
        self._log = log
        self._engine = engine
        self._image = image
        self._common = {
            "bundle": engine.info.to_dict(),
            "variant": engine.variant,
            "provider": engine.options.provider,
        }

    def record(
        self,
        call: Callable[[], ResultT],
        image_ms: Callable[[], float],
        task: str | None,
        **given: Any,
    ) -> ResultT:
        """Run a call and give its result back when its record is on the disk.

        Args:
            call: Makes the result.
            image_ms: Tells afterwards what decoding and encoding the image took.
            task: As the caller named it; None means the only one that answers questions.
            given: Texts and values of the call; their keyed hashes are recorded.

        Raises:
            AuditWriteError: It cannot be recorded.
        """
        try:
            result = call()
        except UmdEdgeError as error:
            self.record_error(error, task, **given)
            raise
        name = task or self._engine.tasks.vqa(None).name
        self._log.record_result(result, name, self._image, image_ms(), **given)
        return result

    def record_example(
        self,
        task: TaskSpec,
        probability: npt.NDArray[np.float64],
        status: str,
        call_ms: float,
        image_ms: float,
        **given: Any,
    ) -> None:
        """Record what an evaluation found for one record, with its most probable outputs.

        Args:
            task: What was evaluated.
            probability: (K,) float64.
            status: What a call would have said.
            call_ms: What it took, in milliseconds.
            image_ms: What decoding and encoding the image took.
            given: As in `record`.

        Raises:
            AuditWriteError: It cannot be recorded.
        """
        best = np.argsort(-probability, kind="stable")[:TOP].tolist()
        chosen = np.flatnonzero(positives(probability, task)).tolist()
        latency = {"image": round(image_ms, 3), "call": round(call_ms, 3)}
        fields = {
            **self._common,
            "int8_path": self._engine.graphs.int8_path,
            "purpose": "evaluation",
            "task": task.name,
            "status": status,
            "latency_ms": latency,
            "scores": {task.outputs[row]: float(probability[row]) for row in best},
            "decision": [task.outputs[row] for row in chosen],
        }
        self._log.record_found(fields, self._image, **given)

    def record_error(self, error: UmdEdgeError, task: str | None = None, **given: Any) -> None:
        """Record that a call failed."""
        self._log.record_error(error, {**self._common, "task": task}, self._image, **given)


def check_audit(audit: AuditLog | None) -> AuditLog | None:
    """Give a log back, and refuse everything that is none.

    Raises:
        UsageError: Neither an `AuditLog` nor None.
    """
    if audit is None:
        return None
    from ._audit import AuditLog

    if isinstance(audit, AuditLog):
        return audit
    raise UsageError(f"audit must be an AuditLog; {type(audit).__name__} given")


def load_recorded(
    log: AuditLog, engine: Engine, image: ImageInput, frame: int | None
) -> tuple[LoadedImage, AuditTrail]:
    """Decode an image and hash it: a file's very bytes, or else the pixels that were decoded.

    An image that cannot be used is recorded with its hash, or without one where it cannot be read.

    Raises:
        ImageInputError: As `load_image`.
        AuditWriteError: The failure cannot be recorded.
    """
    hashes: dict[str, str] = {}
    try:
        if isinstance(image, (str, os.PathLike)) and not Path(image).is_dir():
            data = read_image_file(Path(image))
            hashes["file_sha256"] = hashlib.sha256(data).hexdigest()
            loaded = decode_image(data, repr(str(image)), frame)
        elif isinstance(image, (bytes, bytearray, memoryview)):
            data = bytes(image)
            hashes["file_sha256"] = hashlib.sha256(data).hexdigest()
            loaded = load_image(data, frame=frame)
        else:
            loaded = load_image(image, frame=frame)
            hashes["pixels_sha256"] = _pixel_hash(loaded)
    except UmdEdgeError as error:
        AuditTrail(log, engine, hashes).record_error(error)
        raise
    return loaded, AuditTrail(log, engine, hashes)


def _pixel_hash(loaded: LoadedImage) -> str:
    """SHA-256 of `<height> <width> <channels>`, a line feed, and the 8-bit pixels row by row."""
    header = " ".join(str(side) for side in loaded.pixels.shape)
    digest = hashlib.sha256(header.encode("ascii") + b"\n")
    digest.update(loaded.pixels.data)
    return digest.hexdigest()
