"""Splits of a converted set: which records belong together, and where they go.

A group is everything that must not be split: records of one unit, of one picture file, of pictures
that are identical byte for byte, and of units that the source links. A group's name is the first of
its units in the alphabet, so neither it nor its split depends on the order of anything.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from umd_edge.errors import DataError

from .sample import Sample, Split

__all__ = ["group_names", "hashed_split"]


class _Groups:
    """Union-find over hashable keys."""

    def __init__(self) -> None:
        self.parent: dict[Hashable, Hashable] = {}

    def find(self, key: Hashable) -> Hashable:
        self.parent.setdefault(key, key)
        while self.parent[key] != key:
            self.parent[key] = self.parent[self.parent[key]]
            key = self.parent[key]
        return key

    def join(self, left: Hashable, right: Hashable) -> None:
        self.parent[self.find(left)] = self.find(right)


def _digests(
    images: Iterable[Path], on_progress: Callable[[int, int], None] | None = None
) -> dict[Path, str]:
    """SHA-256 of the files that may be identical to another: those of a size that occurs twice."""
    sizes = {image: image.stat().st_size for image in set(images)}
    shared = {size for size, count in Counter(sizes.values()).items() if count > 1}
    chosen = [image for image, size in sizes.items() if size in shared]
    digests: dict[Path, str] = {}
    for image in chosen:
        digests[image] = hashlib.sha256(image.read_bytes()).hexdigest()
        if on_progress is not None:
            on_progress(len(digests), len(chosen))
    return digests


def group_names(
    samples: Sequence[Sample], on_progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """The name of each sample's group.

    Args:
        samples: All of a set.
        on_progress: Called with the number of pictures hashed and of all that are to be.

    Raises:
        DataError: A picture cannot be read.
    """
    try:
        digests = _digests((sample.image for sample in samples), on_progress)
    except OSError as error:
        raise DataError(f"a picture cannot be read ({error.strerror}); check the disk") from error
    groups = _Groups()
    for sample in samples:
        own = ("unit", sample.unit)
        groups.join(own, ("image", sample.image))
        for link in sample.links:
            groups.join(own, ("link", link))
        if sample.image in digests:
            groups.join(own, ("digest", digests[sample.image]))
    roots = [groups.find(("unit", sample.unit)) for sample in samples]
    units: dict[Hashable, set[str]] = defaultdict(set)
    for root, sample in zip(roots, samples, strict=True):
        units[root].add(sample.unit)
    names = {root: min(members) for root, members in units.items()}
    return [names[root] for root in roots]


def hashed_split(name: str, seed: int, val_share: float, test_share: float) -> Split:
    """The split of a group, by a hash of its name and the seed; groups do not affect each other."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    if fraction < test_share:
        return "test"
    return "val" if fraction < test_share + val_share else "train"
