"""What the out-of-distribution score tells apart, task by task.

`python -m benchmarks.ood DATA [--bundle BUNDLE] [--photo FILE]... [--out FOLDER]`

DATA holds the sets as folders with `train.jsonl` and `val.jsonl`. The score is fitted here, as the
export fits it: the train split says where a task's images lie, validation patients set the limits.
Every validation image is scored by limits that its patient had no part in (five folds), and so are
the strange images, once in each fold. AUROC: how often a strange image scores higher than one of
the task's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from umd_edge import Predictor
from umd_edge._encoded import EncodedImage
from umd_edge._image import load_image
from umd_edge._ood import OodModel, energy
from umd_edge._records import Example, Record, read_records
from umd_edge._task import TaskSpec
from umd_edge_export.ood import image_examples, measure_images
from umd_edge_export.ood_fit import ImageStatistics, build_model, fit_model

from .ood_kinds import OWN_KINDS, Pixels, blanks, found_photographs, noises, photographs
from .ood_report import Cell, Table, write_report

__all__ = ["main"]

Float64Array = npt.NDArray[np.float64]

SETS = ("vqamed19", "vqarad", "nihcxr", "busi", "padufes")
FURTHER = ("covidcxr", "pocus")
"""Not trained on; only shown."""
HOME = {
    "vqa": ("vqamed19", "vqarad"),
    "chest-xray": ("nihcxr",),
    "breast-ultrasound": ("busi",),
    "skin-lesion": ("padufes",),
}
"""Task -> the sets that it was trained on."""
EXTRA = ("quarter turn", "upside down", "middle ninth")
"""Shown, and not counted in the mean: what they should give is a matter of opinion."""
FOLDS, RESAMPLES, SHOWN = 5, 500, 120


@dataclass
class Bench:
    """The bundle, its records, and every strange image encoded once."""

    predictor: Predictor
    train: list[Record]
    validation: list[Record]
    images: dict[str, list[EncodedImage]] = field(default_factory=dict)
    """Kind -> encoded images."""

    def encode(self, kind: str, pictures: Sequence[Pixels | Path]) -> None:
        click.echo(f"encoding {kind}: {len(pictures)}", err=True)
        self.images[kind] = [self.predictor.encode(item) for item in pictures]


def _free(path: Path) -> list[Record]:
    return [item for item in read_records(path) if item.raw.get("non_commercial") is False]


def _pictures(records: Sequence[Record], most: int) -> list[Path]:
    paths = list(dict.fromkeys(record.image_path for record in records))
    rows = np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)
    return [paths[row] for row in rows]


def _strange(bench: Bench, task: TaskSpec, kind: str, own: Sequence[Example]) -> ImageStatistics:
    """Statistics of the images of a kind; each takes text and values of one of the task's own."""
    encoded = bench.images[kind]
    energies = []
    for index, image in enumerate(encoded):
        example = own[index % len(own)]
        structured = (example.structured_values, example.structured_mask)
        logits = bench.predictor._engine.example_logits(image, task, example.text, structured)
        energies.append(energy(logits, multi_label=task.multi_label))
    profiles = [image.profile() for image in encoded]
    return ImageStatistics(
        np.array([profile.tokens for profile in profiles]),
        np.array([profile.appearance for profile in profiles]),
        np.array(energies),
        tuple(str(index) for index in range(len(encoded))),
    )


def _parts(model: OodModel, statistics: ImageStatistics) -> Float64Array:
    """(3, n): features, appearance and energy, each divided by its limit."""
    spec = model.spec
    above = statistics.energies - spec.energy_centre
    return np.array(
        [
            [model.features_distance(row) / spec.limits["features"] for row in statistics.tokens],
            [
                model.appearance_distance(row) / spec.limits["appearance"]
                for row in statistics.appearance
            ],
            above / (spec.limits["energy"] - spec.energy_centre),
        ]
    )


def auroc(own: Float64Array, strange: Float64Array) -> float:
    """How often a strange score is above one of the task's own; ties count half."""
    below = np.searchsorted(np.sort(own), strange, side="left")
    ties = np.searchsorted(np.sort(own), strange, side="right") - below
    return float((below + ties / 2).sum() / (len(own) * len(strange)))


@dataclass
class Fold:
    """Held-out validation images of one fold, and every strange kind, under the same limits."""

    own: Float64Array
    """(3, n)."""
    groups: npt.NDArray[np.str_]
    strange: dict[str, Float64Array]


def _folds(
    reference: ImageStatistics, own: ImageStatistics, strange: dict[str, ImageStatistics]
) -> list[Fold]:
    names, index = np.unique(np.array(own.groups), return_inverse=True)
    part_of = (np.random.default_rng(0).permutation(len(names)) % FOLDS)[index]
    folds = []
    for part in range(FOLDS):
        inside, outside = np.flatnonzero(part_of == part), np.flatnonzero(part_of != part)
        model = build_model(*fit_model(own.take(outside), reference, file="ood.npz"))
        held = own.take(inside)
        folds.append(
            Fold(
                _parts(model, held),
                np.array(held.groups),
                {kind: _parts(model, item) for kind, item in strange.items()},
            )
        )
    return folds


def _pooled(folds: Sequence[Fold], kind: str, part: int | None) -> float:
    """AUROC over the folds, weighted by their images; of one part, or of the largest of them."""
    values, weights = [], []
    for fold in folds:
        own, strange = fold.own, fold.strange[kind]
        pair = (own[part], strange[part]) if part is not None else (own.max(0), strange.max(0))
        values.append(auroc(*pair))
        weights.append(own.shape[1])
    return float(np.average(values, weights=weights))


def _interval(folds: Sequence[Fold], kind: str) -> tuple[float, float]:
    """2.5 % and 97.5 % over resamples of patients and of strange images."""
    rng = np.random.default_rng(0)
    drawn = []
    count = folds[0].strange[kind].shape[1]
    for _ in range(RESAMPLES):
        columns = rng.integers(0, count, count)
        again = []
        for fold in folds:
            names = np.unique(fold.groups)
            chosen = rng.choice(names, len(names))
            rows = np.concatenate([np.flatnonzero(fold.groups == name) for name in chosen])
            again.append(
                Fold(fold.own[:, rows], fold.groups, {kind: fold.strange[kind][:, columns]})
            )
        drawn.append(_pooled(again, kind, None))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _measure(bench: Bench, task: TaskSpec, kinds: Sequence[str]) -> dict[str, Any]:
    click.echo(f"measuring {task.name}", err=True)
    predictor = bench.predictor
    examples = image_examples(task, predictor, bench.validation)
    own = measure_images(predictor, task, examples, predictor.encode)
    lying = measure_images(
        predictor,
        task,
        image_examples(task, predictor, bench.train),
        predictor.encode,
        with_energy=False,
    )
    for kind, change in OWN_KINDS.items():
        step = max(1, len(examples) // SHOWN)
        pictures = [change(load_image(item.image_path).pixels) for item in examples[::step]]
        bench.encode(kind, pictures)
    strange = {kind: _strange(bench, task, kind, examples) for kind in [*kinds, *OWN_KINDS]}
    folds = _folds(lying, own, strange)
    cells = {}
    for kind in strange:
        low, high = _interval(folds, kind)
        told = np.mean([(fold.strange[kind].max(0) > 1).mean() for fold in folds])
        cells[kind] = Cell(
            auroc=_pooled(folds, kind, None),
            low=low,
            high=high,
            told=float(told),
            n=folds[0].strange[kind].shape[1],
            parts=tuple(_pooled(folds, kind, part) for part in range(3)),
        )
    scored = np.concatenate([fold.own.max(0) for fold in folds])
    return {
        "cells": cells,
        "validation_images": len(own),
        "reference_images": len(lying),
        "false_alarms": int((scored > 1).sum()),
    }


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--bundle", type=click.Path(path_type=Path), help="[the one in the package]")
@click.option(
    "--photo", "photos", multiple=True, type=click.Path(path_type=Path), help="A photograph."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("build/ood"), show_default=True
)
def main(data: Path, bundle: Path | None, photos: tuple[Path, ...], out: Path) -> None:
    """Measure what the out-of-distribution score tells apart."""
    predictor = Predictor.load(bundle) if bundle else Predictor.default()
    splits = {
        split: [record for name in SETS for record in _free(data / name / f"{split}.jsonl")]
        for split in ("train", "val")
    }
    bench = Bench(predictor, splits["train"], splits["val"])
    for name in SETS:
        bench.encode(name, _pictures(_free(data / name / "val.jsonl"), SHOWN))
    for name in FURTHER:
        if (data / name / "train.jsonl").is_file():
            bench.encode(name, _pictures(_free(data / name / "train.jsonl"), SHOWN))
    chosen = list(photos) or found_photographs()
    if chosen:
        bench.encode("photograph", photographs(chosen, 30 * len(chosen)))
    bench.encode("noise", noises(96))
    bench.encode("blank", blanks(60))
    shared = list(bench.images)
    table = Table(folder=out, extra=EXTRA)
    for task in predictor.tasks:
        if task.name in HOME:
            kinds = [kind for kind in shared if kind not in HOME[task.name]]
            table.tasks[task.name] = _measure(bench, task, kinds)
    for line in write_report(table):
        click.echo(line)


if __name__ == "__main__":
    main()
