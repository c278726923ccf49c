"""Images that are kept in memory for a short while, so that one is encoded once and asked often."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._encoded import EncodedImage
from ._errors import NotFoundError

if TYPE_CHECKING:
    from .._clip import EncodedClip

__all__ = ["ImageStore", "StoredImage"]


@dataclass(frozen=True, slots=True, eq=False)
class StoredImage:
    """An encoded image or clip, with the file that it came from for pictures of it."""

    encoded: EncodedImage | EncodedClip
    data: bytes
    frame: int | None

    @property
    def size(self) -> int:
        """Bytes of the file, and of what a clip holds beside it."""
        frames: Sequence[EncodedImage] = getattr(self.encoded, "images", ())
        return len(self.data) + sum(frame.size_bytes for frame in frames)


class ImageStore:
    """At most so many images of at most so many bytes, each for so long after its last use.

    The least recently used ones make room. Identifiers are random, so that knowing one is knowing
    the image. To be used from one thread; nothing is ever written to a disk.
    """

    def __init__(
        self,
        *,
        most: int,
        most_bytes: int,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._most_bytes, self._ttl_s = most, most_bytes, ttl_s
        self._clock = clock
        self._images: OrderedDict[str, tuple[float, StoredImage]] = OrderedDict()
        self.stored_bytes = 0

    def __len__(self) -> int:
        return len(self._images)

    def add(self, image: StoredImage) -> str:
        """Keep an image; its new identifier."""
        self.sweep()
        identifier = secrets.token_urlsafe(18)
        self._images[identifier] = (self._clock(), image)
        self.stored_bytes += image.size
        while len(self._images) > self._most or (
            self.stored_bytes > self._most_bytes and len(self._images) > 1
        ):
            self._drop(next(iter(self._images)))
        return identifier

    def get(self, identifier: str) -> StoredImage:
        """The image, whose time starts anew.

        Raises:
            NotFoundError: There is none of that name, or not any more.
        """
        self.sweep()
        found = self._images.get(identifier)
        if found is None:
            raise NotFoundError(
                f"no image of that id: it was never there, was deleted, made room for others, or "
                f"was not used for {self._ttl_s:g} s; send the image again to /v1/images"
            )
        self._images[identifier] = (self._clock(), found[1])
        self._images.move_to_end(identifier)
        return found[1]

    def remove(self, identifier: str) -> None:
        """Forget an image.

        Raises:
            NotFoundError: As in `get`.
        """
        self.get(identifier)
        self._drop(identifier)

    def sweep(self) -> None:
        """Forget what has not been used for too long."""
        limit = self._clock() - self._ttl_s
        while self._images:
            oldest = next(iter(self._images))
            if self._images[oldest][0] > limit:
                return
            self._drop(oldest)

    def _drop(self, identifier: str) -> None:
        _, image = self._images.pop(identifier)
        self.stored_bytes -= image.size
