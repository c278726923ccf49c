"""`Explanation`: where on an image a decision came from, and whether that is worth looking at."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ._record import dataclass
from ._results import Result
from .errors import UsageError

if TYPE_CHECKING:
    from ._image import ImageInput

__all__ = ["METHODS", "Explanation", "Method"]

Float32Array = npt.NDArray[np.float32]
Method = Literal["attention", "ablation"]

METHODS: tuple[Method, ...] = ("attention", "ablation")
_UNITS = {
    "attention": "share of the text's attention",
    "ablation": "fall of the log probability",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explanation(Result):
    """A map of one decision about one image. It says where, never why, and proves nothing."""

    task: str
    method: Method
    target: str = field(repr=False)
    """The label or answer whose probability is explained; empty where there is no map."""
    probability: float
    """Of the target."""
    question: str = field(repr=False, default="")
    map: Float32Array | None = field(repr=False)
    """(rows, columns) float32 on the grid of patches, read-only: each patch's share of the text's
    attention (`attention`), or by how much the target's log probability falls when windows with the
    patch are hidden (`ablation`, in nats; negative where the patch spoke against the target). None
    when the status is `outside_intended_use`."""
    image_size: tuple[int, int]
    """Height and width in pixels of the image that was encoded."""
    proven: bool
    """Whether the bundle records that this method beats a centre prior for this task."""

    @property
    def strength(self) -> Float32Array:
        """(rows, columns) float32, 0 to 1: what counts for the target, over its largest value.

        Raises:
            UsageError: There is no map.
        """
        positive: Float32Array = np.maximum(self._grid(), np.float32(0.0))
        highest = positive.max()
        scaled: Float32Array = positive / highest if highest > 0 else positive
        return scaled

    @property
    def peak(self) -> tuple[float, float]:
        """Middle of the strongest patch: x and y from the upper left, as fractions of the image.

        Raises:
            UsageError: There is no map.
        """
        grid = self._grid()
        row, column = np.unravel_index(int(grid.argmax()), grid.shape)
        return (float(column) + 0.5) / grid.shape[1], (float(row) + 0.5) / grid.shape[0]

    def at_image_resolution(self, rows: range | None = None) -> Float32Array:
        """(height, width) float32: `strength` over the pixels of the image as it was given.

        Preprocessing stretches the whole image onto the input, so a patch covers the same fraction
        of both; between the middles of patches values are interpolated linearly.

        Args:
            rows: Only these rows of pixels, to spare memory.

        Raises:
            UsageError: There is no map.
        """
        height, width = self.image_size
        wide: Float32Array = _stretch(self.strength.T, width, range(width)).T
        return _stretch(wide, height, range(height) if rows is None else rows)

    def to_png(self, image: ImageInput, *, frame: int | None = None) -> bytes:
        """The map drawn over its image at the image's own resolution, above a strip of words.

        Without a map the image stays as it is.

        Args:
            image: The image that was encoded, in any form that `Predictor.encode` takes.
            frame: As in `Predictor.encode`.

        Returns:
            The bytes of an RGB PNG: as wide as the image and at least 360 pixels, higher by the
            strip.

        Raises:
            ImageInputError: The image cannot be used, or has another size than the explained one.
        """
        from ._image import load_image
        from ._overlay import overlay_png

        return overlay_png(load_image(image, frame=frame).pixels, self)

    def _grid(self) -> Float32Array:
        if self.map is None:
            raise UsageError(
                f"an explanation with status {self.status!r} has no map; look at the status first"
            )
        return self.map

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of an `explain` line, without `image` and `index`."""
        height, width = self.image_size
        return {
            **self.common_dict(),
            "task": self.task,
            **({"question": self.question} if self.question else {}),
            "status": self.status,
            "reason": self.reason,
            **({} if self.ood_score is None else {"ood_score": self.ood_score}),
            "target": self.target,
            "probability": self.probability,
            "method": self.method,
            "proven": self.proven,
            "unit": _UNITS[self.method],
            "image_size": {"width": width, "height": height},
            "map": None if self.map is None else self.map.tolist(),
            "peak": None if self.map is None else dict(zip("xy", self.peak, strict=True)),
        }


def _stretch(values: Float32Array, length: int, rows: range) -> Float32Array:
    """Some rows of `values` stretched to `length` rows, with the middles of cells as knots."""
    count = len(values)
    place = np.clip((np.asarray(rows) + 0.5) * count / length - 0.5, 0, count - 1)
    low = np.minimum(place.astype(np.int64), max(0, count - 2))
    high = np.minimum(low + 1, count - 1)
    share = (place - low).astype(np.float32)[:, None]
    return np.asarray(values[low] * (1 - share) + values[high] * share, np.float32)
