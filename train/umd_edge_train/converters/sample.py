"""What a converter takes and what it hands over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from umd_edge.errors import UsageError

from .source import Missing, Source

__all__ = [
    "SPLITS",
    "ConvertOptions",
    "Converter",
    "Images",
    "Reading",
    "Sample",
    "Split",
    "Splits",
]

Split = Literal["train", "val", "test"]
Splits = Literal["patients", "published"]
Images = Literal["reference", "link", "copy"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """How to convert. Those that only some sets have are None where not given."""

    splits: Splits = "patients"
    """`patients`: by a hash of the split unit; `published`: as the source has them."""
    seed: int = 0
    """Of the hash."""
    val_share: float = 0.1
    """Share of the split units in `val` (`patients`)."""
    test_share: float = 0.2
    """Share of the split units in `test` (`patients`)."""
    carve_val: float | None = None
    """`published`, where the source has no `val`: share of the units of `train` moved there."""
    images: Images = "reference"
    """`reference`: one link to the source's folder; `link`: hard links; `copy`: copies."""
    missing: Missing = "error"
    """What a record without its picture is: an error, or left out and counted."""
    strict_counts: bool = False
    """Counts that differ from the published ones are an error instead of a warning."""
    language: str | None = None
    """SLAKE: `en` (default), `zh` or `all`."""
    categories: tuple[str, ...] | None = None
    """VQA-Med: question categories to keep; all by default."""
    label: str | None = None
    """MELINDA: the column that becomes `labels`; `p_meth_label` by default."""
    subset: str | None = None
    """ROCO: `retrieval` keeps captions alone, and 2,000 each of `val` and `test`."""
    references: Path | None = None
    """ROCO: folder of the in-line references that come with MedICaT."""

    def __post_init__(self) -> None:
        shares = (self.val_share, self.test_share, self.carve_val or 0.0)
        if min(shares) < 0 or self.val_share + self.test_share >= 1 or shares[2] >= 1:
            raise UsageError(
                f"shares of val {self.val_share} and test {self.test_share}, carved val "
                f"{self.carve_val} given; numbers from 0 on that leave something to train on are "
                "allowed"
            )
        if self.carve_val is not None and self.splits != "published":
            raise UsageError("a val split is carved from published splits only; patients has one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One record, before it has a split and a place."""

    key: tuple[str, ...] = field(repr=False)
    """What names the record in its source; the record's id is made from it."""
    unit: str = field(repr=False)
    """The split unit: patient, case, article or picture."""
    image: Path = field(repr=False)
    """The picture, below the source's folder."""
    fields: Mapping[str, Any] = field(repr=False)
    """Fields of the manifest; None means not known."""
    links: tuple[str, ...] = field(repr=False, default=())
    """Further names of what must not be split, such as the case that pictures belong to."""
    official_split: Split | None = None
    license: str | None = None
    non_commercial: bool | None = None
    source_url: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """All that was read from a source."""

    samples: Sequence[Sample] = field(repr=False)
    expected: Mapping[str, int | range] = field(default_factory=dict)
    """Published counts: of an official split's records (`train`), its `train pictures`, its `train
    open` and `train closed` questions, or of all `records`, `patients` or `pictures`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """One public set."""

    name: str
    title: str
    unit: str
    """What the split unit is, in words."""
    read: Callable[[Source, ConvertOptions], Reading]
    family: str | None = None
    """Begins the patients' names. Sets of one family share pictures, so a unit of both has one name
    and, unless one set joins it with another unit, one split."""
    published: bool = True
    """The source has splits of its own."""
    takes: frozenset[str] = frozenset()
    """The set's own options."""
