"""Bundles with everything that export fits on validation records, made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from umd_edge._appearance import APPEARANCE
from umd_edge._arrays import write_arrays

from .bundles import repack, tiny_files

TASKS = ("vqa", "chest-xray", "breast-ultrasound", "skin-lesion")
RANK = 5
COVERAGES = [0.5, 0.8, 0.9, 0.95]
CURVE = {
    "thresholds": [0.05, 0.3, 0.45, 0.6],
    "sensitivities": [0.95, 0.8, 0.5, 0.1],
    "specificities": [0.2, 0.4, 0.7, 0.9],
    "n_positive": 19,
    "n_negative": 40,
}


def task_of(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    task: dict[str, Any] = next(task for task in manifest["tasks"] if task["name"] == name)
    return task


def fit_everything(manifest: dict[str, Any]) -> None:
    """Everything that can be fitted, on all tasks of the tiny bundle."""
    rng = np.random.default_rng(8)
    for task in manifest["tasks"]:
        outputs = task.get("labels", task.get("answers", []))
        task["probability"]["temperature"] = 1.7
        task["probability"]["scale"] = rng.uniform(0.2, 3, len(outputs)).tolist()
        task["probability"]["bias"] = rng.normal(0, 0.5, len(outputs)).tolist()
        task["operating_curves"] = {name: CURVE for name in outputs[::2]}
        if task["multi_label"]:
            entry = {"n": 12, "thresholds": [0.6, 0.5, 0.3, None]}
            states = {"present": entry, "absent": {"n": 9, "thresholds": [0.7, 0.52, 0.2, 0.1]}}
            labels = {name: states for name in outputs}
            conformal = {"method": "lac_by_class", "coverages": COVERAGES, "labels": labels}
        else:
            even = 1 / len(outputs)
            thresholds = [1.2 * even, even, 0.6 * even, None]
            conformal = {
                "method": "lac",
                "coverages": COVERAGES,
                "n": 17,
                "thresholds": thresholds,
            }
        task["conformal"] = conformal
        task["probability"]["platt"] = {"a": 0.8, "b": -0.3}
        if task["kind"] == "vqa":
            task["probability"]["other"] = 0.4
            conformal["other"] = {"n": 9, "thresholds": [0.4, 0.1, 0.05, None]}
    task_of(manifest, "chest-xray")["thresholds"] = {"abstain": 0.99}


def ood_arrays(width: int) -> dict[str, np.ndarray[Any, Any]]:
    """Float32 arrays of every task, for token statistics of that width."""
    rng = np.random.default_rng(0)
    count = len(APPEARANCE)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for task in TASKS:
        basis = np.linalg.qr(rng.normal(size=(width, RANK)))[0].T
        arrays |= {
            f"{task}/centre": rng.normal(size=width),
            f"{task}/scale": rng.uniform(0.5, 2, width),
            f"{task}/basis": basis,
            f"{task}/weights": rng.uniform(0.1, 1, RANK),
            f"{task}/rest": np.array([0.02]),
            f"{task}/appearance_centre": rng.normal(size=count),
            f"{task}/whitening": np.tril(rng.normal(size=(count, count))),
        }
    return {name: values.astype(np.float32) for name, values in arrays.items()}


OOD = {
    "method": "mahalanobis",
    "file": "ood.npz",
    "limits": {"features": 9.0, "appearance": 20.0, "energy": -0.5},
    "energy_centre": -3.0,
    "quantile": 0.99,
    "n": 50,
}


def scored_bundle(
    path: Path, arrays: dict[str, np.ndarray[Any, Any]], spec: object = OOD, *, fitted: bool = False
) -> Path:
    """The tiny bundle with out-of-distribution scores, and with everything else where `fitted`."""

    def edit(manifest: dict[str, Any]) -> None:
        if fitted:
            fit_everything(manifest)
        for task in manifest["tasks"]:
            task["out_of_distribution"] = spec

    return repack(path, {**tiny_files(), "ood.npz": write_arrays(arrays)}, edit)
