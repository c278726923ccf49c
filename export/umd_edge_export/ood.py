"""The out-of-distribution score of every task of a bundle, fitted on records.

Measured through the bundle's own default variant, as a device would run it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from umd_edge import Predictor
from umd_edge._arrays import read_arrays, write_arrays
from umd_edge._encoded import EncodedImage
from umd_edge._ood import energy
from umd_edge._ood_spec import MIN_SIDE, OodSpec
from umd_edge._records import Example, Record, build_examples
from umd_edge._task import TaskSpec
from umd_edge.errors import DataError, InputError

from .ood_fit import QUANTILE, Float32Array, ImageStatistics, fit_model
from .samples import read_free_records

__all__ = ["OOD_FILE", "OodFit", "fit_ood", "fit_ood_of", "image_examples", "measure_images"]

OOD_FILE = "ood.npz"
MIN_IMAGES = 40
"""Below this many validation images no limit means anything."""
MAX_REFERENCE = 2000
"""More images than this move nothing; they are taken evenly from all."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class OodFit:
    """What was fitted: nothing for a task with too few images."""

    specs: Mapping[str, OodSpec]
    """Task -> what the manifest says under `out_of_distribution`."""
    arrays: Mapping[str, Float32Array] = field(repr=False)
    """`<task>/<name>` -> array of `ood.npz`."""
    report: Mapping[str, Any]
    """Task -> numbers of images, and why it was left out."""

    @property
    def files(self) -> dict[str, bytes]:
        """Path -> bytes of the bundle's files; none where no task was fitted."""
        return {OOD_FILE: write_arrays(self.arrays)} if self.arrays else {}

    def apply(
        self, tasks: Sequence[TaskSpec], files: Mapping[str, bytes]
    ) -> tuple[tuple[TaskSpec, ...], dict[str, bytes]]:
        """Tasks and files of a bundle with this fit; what it left out stays as it was.

        Args:
            tasks: Of the bundle.
            files: Path -> bytes of all its files.
        """
        if not self.arrays:
            return tuple(tasks), dict(files)
        kept: dict[str, Float32Array] = {}
        if OOD_FILE in files:
            before = read_arrays(files[OOD_FILE], f"file {OOD_FILE!r}")
            kept = {
                key: array
                for key, array in before.items()
                if key.split("/", 1)[0] not in self.specs
            }
        changed = tuple(
            replace(task, out_of_distribution=self.specs.get(task.name, task.out_of_distribution))
            for task in tasks
        )
        return changed, {**files, OOD_FILE: write_arrays({**kept, **self.arrays})}


def fit_ood_of(
    path: Path,
    data: Sequence[Path],
    reference_data: Sequence[Path] = (),
    *,
    allow_non_commercial: bool = False,
    progress: Progress = lambda message: None,
) -> OodFit:
    """`fit_ood` of a bundle's file on JSONL manifests.

    Args:
        path: The bundle.
        data: Records that the model was not trained on.
        reference_data: Records that it was trained on.
        allow_non_commercial: Also take records that are not marked `non_commercial: false`.
        progress: Called with a line for each task.

    Raises:
        BundleError: The bundle is missing or damaged.
        DataError: A file or an image is unreadable, or a record is restricted.
    """
    validation, reference = (
        [
            record
            for file in read_free_records(paths, allow_non_commercial=allow_non_commercial)
            for record in file
        ]
        for paths in (data, reference_data)
    )
    return fit_ood(Predictor.load(path), validation, reference, progress=progress)


def image_examples(
    task: TaskSpec, predictor: Predictor, records: Sequence[Record]
) -> list[Example]:
    """One example of the task for each picture, the first of its records."""
    fields = predictor.manifest.structured_fields
    examples = build_examples(records, task, fields, on_unmapped="drop").examples
    first: dict[Path, Example] = {}
    for example in examples:
        first.setdefault(example.image_path, example)
    return list(first.values())


def measure_images(
    predictor: Predictor,
    task: TaskSpec,
    examples: Sequence[Example],
    encode: Callable[[Path], EncodedImage],
    *,
    with_energy: bool = True,
) -> ImageStatistics:
    """Statistics of the images of examples, as the runtime computes them.

    Args:
        predictor: Runs the graphs.
        task: Whose logits give the energy.
        examples: One for each image.
        encode: Path -> encoded image; lets the caller keep what several tasks share.
        with_energy: Also run the fusion; NaN otherwise.

    Raises:
        DataError: An image cannot be read.
    """
    tokens, appearance, energies = [], [], []
    for example in examples:
        try:
            encoded = encode(example.image_path)
        except InputError as error:
            raise DataError(f"{example.where}: {error}") from error
        profile = encoded.profile()
        tokens.append(profile.tokens)
        appearance.append(profile.appearance)
        energies.append(_energy(predictor, task, example, encoded) if with_energy else np.nan)
    return ImageStatistics(
        np.array(tokens),
        np.array(appearance),
        np.array(energies),
        tuple(example.group for example in examples),
    )


def _energy(predictor: Predictor, task: TaskSpec, example: Example, encoded: EncodedImage) -> float:
    structured = (example.structured_values, example.structured_mask)
    logits = predictor._engine.example_logits(encoded, task, example.text, structured)
    return energy(logits, multi_label=task.multi_label)


def fit_ood(
    predictor: Predictor,
    validation: Sequence[Record],
    reference: Sequence[Record] = (),
    *,
    quantile: float = QUANTILE,
    progress: Progress = lambda message: None,
) -> OodFit:
    """Fit the score of every task that gives logits.

    Args:
        predictor: The finished bundle; its default variant is what a device runs.
        validation: Records that the model was not trained on. They set the limits.
        reference: Records that it was trained on. They say where its images lie; where a task has
            none of them, the validation records do so, held out by patient.
        quantile: Share of the validation images that are to be within.
        progress: Called with a line for each task.

    Raises:
        DataError: A record does not fit its task, or its image cannot be read.
    """
    specs: dict[str, OodSpec] = {}
    arrays: dict[str, Float32Array] = {}
    report: dict[str, Any] = {}
    for task in predictor.tasks:
        if task.kind == "retrieval":
            continue
        held = image_examples(task, predictor, validation)
        known = _evenly(image_examples(task, predictor, reference), MAX_REFERENCE)
        side = min(predictor.manifest.preprocessing.height, predictor.manifest.preprocessing.width)
        if len(held) < MIN_IMAGES or side < MIN_SIDE:
            why = (
                f"{len(held)} validation images of {side} pixels a side; at least {MIN_IMAGES} of "
                f"{MIN_SIDE} are needed"
            )
            report[task.name] = {"left_out": why}
            continue
        use_reference = len(known) >= MIN_IMAGES
        progress(
            f"out-of-distribution score of {task.name}: {len(held)} validation images, "
            f"{len(known) if use_reference else 'no'} reference images"
        )
        checked = measure_images(predictor, task, held, predictor.encode)
        lying = (
            measure_images(predictor, task, known, predictor.encode, with_energy=False)
            if use_reference
            else None
        )
        fitted, spec = fit_model(checked, lying, file=OOD_FILE, quantile=quantile)
        specs[task.name] = spec
        arrays |= {f"{task.name}/{name}": array for name, array in fitted.items()}
        report[task.name] = {
            "validation_images": len(checked),
            "reference_images": 0 if lying is None else len(lying),
            "quantile": quantile,
            "limits": dict(spec.limits),
        }
    return OodFit(specs, arrays, report)


def _evenly(examples: list[Example], most: int) -> list[Example]:
    if len(examples) <= most:
        return examples
    rows = np.linspace(0, len(examples) - 1, most).round().astype(int)
    return [examples[row] for row in rows]
