"""What can be compared: a variant of a bundle, or a checkpoint in torch.

Both give probabilities for the examples of a task, each sample alone and each picture encoded once,
so that nothing but the model differs between the two sides of a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from umd_edge._evaluate import predict_examples
from umd_edge._image import load_image
from umd_edge._postprocess import probabilities
from umd_edge._predictor import Predictor
from umd_edge._preprocess import preprocess
from umd_edge._records import Example
from umd_edge._structured import StructuredField
from umd_edge._task import TaskSpec, output_name
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import DataError, InputError, UsageError

if TYPE_CHECKING:
    from umd_edge_train.checkpoint import Checkpoint

__all__ = ["CheckpointSide", "PredictorSide", "Side", "open_side"]

Float64Array = npt.NDArray[np.float64]
OnProgress = Callable[[int, int], None]


class Side(Protocol):
    """One of the models that are compared."""

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """All of its tasks."""
        ...

    @property
    def structured_fields(self) -> tuple[StructuredField, ...]:
        """All of its structured fields, in order."""
        ...

    def predict(
        self, task: TaskSpec, examples: Sequence[Example], on_progress: OnProgress
    ) -> Float64Array:
        """Probabilities (N, K) of N examples."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """What it is, as JSON."""
        ...


class PredictorSide:
    """One variant of a bundle, as it runs on the device."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """See `Side`."""
        return self.predictor.tasks

    @property
    def structured_fields(self) -> tuple[StructuredField, ...]:
        """See `Side`."""
        return self.predictor.manifest.structured_fields

    def predict(
        self, task: TaskSpec, examples: Sequence[Example], on_progress: OnProgress
    ) -> Float64Array:
        """See `Side`."""
        return predict_examples(self.predictor, task, examples, on_progress)

    def to_dict(self) -> dict[str, Any]:
        """See `Side`."""
        return {"bundle": self.predictor.info.to_dict(), "variant": self.predictor.variant}


class CheckpointSide:
    """A checkpoint in torch, float32."""

    def __init__(self, checkpoint: Checkpoint, name: str = "") -> None:
        self.checkpoint = checkpoint
        self.name = name
        self._tokenizer = TextTokenizer.from_bytes(checkpoint.tokenizer_json, checkpoint.max_length)

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """See `Side`."""
        return self.checkpoint.tasks

    @property
    def structured_fields(self) -> tuple[StructuredField, ...]:
        """See `Side`."""
        return self.checkpoint.structured_fields

    def predict(
        self, task: TaskSpec, examples: Sequence[Example], on_progress: OnProgress
    ) -> Float64Array:
        """See `Side`.

        Raises:
            DataError: A picture cannot be used.
        """
        import torch

        by_picture: dict[Path, list[int]] = {}
        for row, example in enumerate(examples):
            by_picture.setdefault(example.image_path, []).append(row)
        result = np.empty((len(examples), len(task.outputs)))
        done = 0
        with torch.inference_mode():
            for path, rows in by_picture.items():
                image_tokens = self._image_tokens(path, examples[rows[0]].where)
                for row in rows:
                    result[row] = self._probabilities(task, image_tokens, examples[row])
                done += len(rows)
                on_progress(done, len(examples))
        return result

    def to_dict(self) -> dict[str, Any]:
        """See `Side`."""
        provenance = self.checkpoint.provenance
        known = {key: provenance[key] for key in ("commit", "created") if key in provenance}
        return {"checkpoint": {"name": self.name, **known}, "variant": "torch"}

    def _image_tokens(self, path: Path, where: str) -> Any:
        import torch

        try:
            pixels = preprocess(load_image(path).pixels, self.checkpoint.preprocess)
        except InputError as error:
            raise DataError(f"{where}: {error}") from error
        return self.checkpoint.model.encode_image(torch.from_numpy(pixels[None]))[0]

    def _probabilities(self, task: TaskSpec, image_tokens: Any, example: Example) -> Float64Array:
        import torch

        model = self.checkpoint.model
        ids, mask = (torch.from_numpy(item) for item in self._tokenizer.encode([example.text]))
        outputs = model.fuse(
            image_tokens,
            model.encode_text(ids, mask)[0],
            mask,
            torch.from_numpy(example.structured_values[None]),
            torch.from_numpy(example.structured_mask[None]),
        )
        logits: npt.NDArray[np.float32] = outputs[output_name(task.name)].numpy()
        result: Float64Array = probabilities(logits, task)[0]
        return result


def open_side(path: Path, variant: str | None = None, threads: int = 1) -> Side:
    """Open a bundle (a `.umd` file or a directory with `manifest.json`) or a checkpoint.

    Args:
        path: A directory with `config.json` and no `manifest.json` is a checkpoint.
        variant: Of the bundle; its default one where None.
        threads: Threads inside one operator of a bundle's graphs.

    Raises:
        UsageError: A variant was named for a checkpoint, or the bundle does not have it.
        BundleError: The bundle is missing or damaged.
        CheckpointError: The checkpoint is incomplete or damaged.
    """
    is_checkpoint = (path / "config.json").is_file() and not (path / "manifest.json").exists()
    if not is_checkpoint:
        return PredictorSide(Predictor.load(path, variant=variant, threads=threads))
    if variant is not None:
        raise UsageError(
            f"variant {variant!r} given for the checkpoint {path.name!r}; a checkpoint runs in "
            "torch and has none: leave --variants out, or build a bundle first"
        )
    from umd_edge_train.checkpoint import load_checkpoint

    return CheckpointSide(load_checkpoint(path), path.resolve().name)
