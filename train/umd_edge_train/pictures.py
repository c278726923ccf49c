"""Training pictures, in memory or decoded as they are needed, and their random changes.

Pictures are read by the runtime's own loader and reduced by its own resize, so a model sees in
training what it sees on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from umd_edge._image import load_image
from umd_edge._preprocess import PreprocessSpec, normalise, resize

from .recipe import AugmentConfig

__all__ = ["PictureSource", "PictureStore", "StreamedPictures", "augment"]


class PictureSource(Protocol):
    """Where a run gets its pictures from."""

    index: dict[Path, int]

    def fetch(self, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
        """(B, height, width, 3) uint8."""
        ...

    def ahead(self, rows: Sequence[int]) -> None:
        """Told which rows are asked for next."""
        ...

    def pixel_values(self, rows: Sequence[int], spec: PreprocessSpec) -> Tensor:
        """Unchanged pictures as the device would see them: (B, 3, H, W) float32."""
        ...


def _pixel_values(pixels: Iterable[npt.NDArray[np.uint8]], spec: PreprocessSpec) -> Tensor:
    return torch.from_numpy(np.stack([normalise(picture, spec) for picture in pixels]))


class PictureStore:
    """Pictures as (N, height, width, 3) uint8, each read once and kept in memory.

    Args:
        paths: Pictures, without repeats.
        height: Rows kept.
        width: Columns kept.
        bits: Fixed-point bits of the resize.
    """

    def __init__(self, paths: Sequence[Path], height: int, width: int, bits: int) -> None:
        self.index = {path: i for i, path in enumerate(paths)}
        self.pixels: npt.NDArray[np.uint8] = np.empty((len(paths), height, width, 3), np.uint8)
        for i, path in enumerate(tqdm(paths, desc="reading pictures", unit="picture")):
            self.pixels[i] = resize(load_image(path).pixels, height, width, bits)

    def fetch(self, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
        """(B, height, width, 3) uint8."""
        chosen: npt.NDArray[np.uint8] = self.pixels[list(rows)]
        return chosen

    def ahead(self, rows: Sequence[int]) -> None:
        """Nothing to do: they are here."""

    def pixel_values(self, rows: Sequence[int], spec: PreprocessSpec) -> Tensor:
        """Unchanged pictures as the device would see them: (B, 3, H, W) float32."""
        return _pixel_values((self.pixels[row] for row in rows), spec)


class StreamedPictures:
    """The same pictures, each decoded anew when its turn comes: memory for two batches is enough.

    Args:
        paths: Pictures, without repeats.
        height: Rows kept.
        width: Columns kept.
        bits: Fixed-point bits of the resize.
        workers: Threads that decode (decoding releases the interpreter's lock).
    """

    def __init__(
        self, paths: Sequence[Path], height: int, width: int, bits: int, workers: int = 4
    ) -> None:
        self.index = {path: i for i, path in enumerate(paths)}
        self._paths = list(paths)
        self._size = height, width, bits
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
        self._coming: dict[int, Future[npt.NDArray[np.uint8]]] = {}

    def _read(self, row: int) -> npt.NDArray[np.uint8]:
        pixels = resize(load_image(self._paths[row]).pixels, *self._size)
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))  # greys have one channel

    def fetch(self, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
        """(B, height, width, 3) uint8."""
        self.ahead(rows)
        read = np.stack([self._coming[row].result() for row in rows])
        for row in rows:
            self._coming.pop(row, None)
        return read

    def ahead(self, rows: Sequence[int]) -> None:
        """Start to decode these rows."""
        for row in rows:
            if row not in self._coming:
                self._coming[row] = self._pool.submit(self._read, row)

    def pixel_values(self, rows: Sequence[int], spec: PreprocessSpec) -> Tensor:
        """Unchanged pictures as the device would see them: (B, 3, H, W) float32."""
        return _pixel_values(self.fetch(rows), spec)


def _sampling_grid(
    size: int, height: int, width: int, flips: Tensor, config: AugmentConfig, rng: torch.Generator
) -> Tensor:
    """Affine grid (B, height, width, 2): crop, aspect, rotation, mirror."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(size).uniform_(low, high, generator=rng)

    keep = 1.0 - uniform(0.0, config.scale)
    stretch = torch.exp(uniform(-config.aspect, config.aspect))
    across, down = keep * stretch.sqrt(), keep / stretch.sqrt()
    angle = uniform(-1.0, 1.0) * math.radians(config.rotate_degrees)
    shift_x = uniform(-1.0, 1.0) * (1.0 - across).clamp(min=0.0)
    shift_y = uniform(-1.0, 1.0) * (1.0 - down).clamp(min=0.0)
    mirror = torch.where(flips & (torch.rand(size, generator=rng) < 0.5), -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack(
        [
            torch.stack([mirror * across * cos, -down * sin, shift_x], dim=1),
            torch.stack([mirror * across * sin, down * cos, shift_y], dim=1),
        ],
        dim=1,
    )
    return functional.affine_grid(theta, [size, 3, height, width], align_corners=False)


def augment(
    pixels: npt.NDArray[np.uint8],
    flips: Tensor,
    spec: PreprocessSpec,
    config: AugmentConfig,
    rng: torch.Generator,
) -> Tensor:
    """Randomly changed pictures.

    Args:
        pixels: (B, H', W', 3) uint8.
        flips: (B,) bool, whether a picture may be mirrored.
        spec: Gives output size, mean and standard deviation.
        config: How strong the changes are.
        rng: Source of all randomness.

    Returns:
        (B, 3, height, width) float32, normalised.
    """
    size = len(pixels)
    levels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0
    grid = _sampling_grid(size, spec.height, spec.width, flips, config, rng)
    changed = functional.grid_sample(levels, grid, padding_mode="zeros", align_corners=False)

    def factor(strength: float, channels: int = 1) -> Tensor:
        return 1.0 + strength * (2.0 * torch.rand(size, channels, 1, 1, generator=rng) - 1.0)

    middle = changed.mean(dim=(1, 2, 3), keepdim=True)
    changed = (changed - middle) * factor(config.contrast) + middle * factor(config.brightness)
    changed = (changed * factor(config.colour, 3)).clamp(0.0, 1.0)
    if config.erase > 0.0:
        changed = _erase(changed, config.erase, rng)
    mean = torch.tensor(spec.mean).view(1, 3, 1, 1)
    std = torch.tensor(spec.std).view(1, 3, 1, 1)
    return (changed - mean) / std


def _erase(pictures: Tensor, chance: float, rng: torch.Generator) -> Tensor:
    """Blank a rectangle of 10 to 35 % of each side in some pictures."""
    size, _, height, width = pictures.shape
    draw = torch.rand(5, size, generator=rng)
    top, left = draw[0] * 0.8, draw[1] * 0.8
    tall, wide = 0.1 + 0.25 * draw[2], 0.1 + 0.25 * draw[3]
    y = torch.arange(height)[None, :] / height
    x = torch.arange(width)[None, :] / width
    rows = (y >= top[:, None]) & (y < (top + tall)[:, None])
    columns = (x >= left[:, None]) & (x < (left + wide)[:, None])
    hole = rows[:, :, None] & columns[:, None, :] & (draw[4] < chance)[:, None, None]
    return pictures.masked_fill(hole[:, None], 0.0)
