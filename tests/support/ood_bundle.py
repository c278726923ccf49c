"""The tiny bundle with an out-of-distribution score: smooth pictures are within, others are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from support.bundles import TINY, repack, tiny_files
from umd_edge._arrays import write_arrays
from umd_edge._predictor import Predictor

SIDE: int = json.loads(tiny_files()["manifest.json"])["preprocessing"]["height"]
TASKS = ("vqa", "chest-xray", "breast-ultrasound", "skin-lesion")
SPEC: dict[str, Any] = {
    "method": "mahalanobis",
    "file": "ood.npz",
    "limits": {"features": 4.0, "appearance": 8.0, "energy": 50.0},
    "energy_centre": 0.0,
    "quantile": 0.99,
    "n": 60,
}


def smooth(seed: int) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: a soft slope with a little grain."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    slope = 90 + 60 * rng.random() * rows + 60 * rng.random() * columns
    grain = rng.normal(0, 2, (SIDE, SIDE, 1))
    return np.clip(slope[..., None] + grain + [12, 0, -8], 0, 255).astype(np.uint8)


def noise(seed: int) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8 of any level."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@lru_cache(maxsize=1)
def _fitted() -> dict[str, np.ndarray]:
    predictor = Predictor.load(TINY)
    profiles = [predictor.encode(smooth(seed)).profile() for seed in range(60)]
    tokens = np.stack([profile.tokens for profile in profiles])
    appearance = np.stack([profile.appearance for profile in profiles])
    scale = 1 / (tokens.std(0) + 0.01)
    _, values, rows = np.linalg.svd((tokens - tokens.mean(0)) * scale, full_matrices=False)
    fitted = {
        "centre": tokens.mean(0),
        "scale": scale,
        "basis": rows[:3],
        "weights": len(tokens) / (values[:3] ** 2 + 1.0),
        "rest": np.array([0.05]),
        "appearance_centre": appearance.mean(0),
        "whitening": np.diag(1 / (appearance.std(0) + 0.1)),
    }
    return {name: value.astype(np.float32) for name, value in fitted.items()}


def arrays() -> dict[str, np.ndarray]:
    """`<task>/<name>` -> array; simpler than what the export fits."""
    return {f"{task}/{name}": value for task in TASKS for name, value in _fitted().items()}


def with_ood(
    out: Path,
    changed: dict[str, np.ndarray] | None = None,
    edit: Callable[[dict[str, Any]], object] = lambda manifest: None,
    **spec: Any,
) -> Path:
    """Write the tiny bundle with `ood.npz`; `changed` replaces its arrays, `spec` its keys."""
    files = {**tiny_files(), "ood.npz": write_arrays(arrays() if changed is None else changed)}

    def add(manifest: dict[str, Any]) -> None:
        for task in manifest["tasks"]:
            task["out_of_distribution"] = {**SPEC, **spec}
        edit(manifest)

    return repack(out, files, add)
