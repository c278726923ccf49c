"""Convert one public set: read it, split it, check the published counts, write the folder whole."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umd_edge import __version__
from umd_edge.errors import DataError, UsageError

from .records import build_records, count_records, image_name, sort_key
from .registry import CONVERTERS
from .sample import SPLITS, Converter, ConvertOptions, Reading, Sample, Split
from .source import Source
from .splits import group_names, hashed_split
from .writing import write_folder

__all__ = ["ConvertReport", "convert"]

_OWN_OPTIONS = ("language", "categories", "label", "subset", "references")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertReport:
    """What was converted and how: the content of `convert.json`."""

    format: str
    title: str
    source: str
    """Name of the source's folder."""
    options: Mapping[str, Any]
    split_unit: str
    counts: Mapping[str, Mapping[str, int]]
    """Split -> records, pictures, patients."""
    official_counts: Mapping[str, int]
    """The source's own split -> records; empty where it has none."""
    expected_counts: Mapping[str, Sequence[int]]
    """Published counts, as (lowest, highest); empty where none are known."""
    shared_patients: int
    """Patients in more than one split, which published splits may have."""
    dropped: Mapping[str, int]
    """Reason -> records left out."""
    warnings: tuple[str, ...]
    sources: Mapping[str, str]
    """File that was read -> SHA-256."""
    umd_edge_version: str
    format_version: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return dataclasses.asdict(self)


def _converter(name: str, options: ConvertOptions) -> Converter:
    if name not in CONVERTERS:
        raise UsageError(f"format {name!r} given; one of {list(CONVERTERS)} is allowed")
    converter = CONVERTERS[name]
    given = [option for option in _OWN_OPTIONS if getattr(options, option) is not None]
    foreign = [option for option in given if option not in converter.takes]
    if foreign:
        takes = ", ".join(sorted(converter.takes)) or "none of them"
        raise UsageError(f"{name} has no option {', '.join(foreign)}; it takes {takes}")
    if options.splits == "published" and not converter.published:
        raise UsageError(f"{name} has no published splits; split it by patients")
    return converter


def _splits(
    samples: Sequence[Sample], groups: Sequence[str], options: ConvertOptions
) -> list[Split]:
    if options.splits == "patients":
        shares = options.seed, options.val_share, options.test_share
        return [hashed_split(group, *shares) for group in groups]
    splits: list[Split] = []
    carved = options.carve_val
    if carved is not None and any(sample.official_split == "val" for sample in samples):
        raise UsageError("the source has a val split of its own; leave out the carving of one")
    for sample, group in zip(samples, groups, strict=True):
        split = sample.official_split
        if split is None:
            raise DataError("a record has no published split; split the set by patients")
        if carved is not None and split == "train":
            split = hashed_split(group, options.seed, carved, 0.0)
        splits.append(split)
    return splits


def _counted(reading: Reading) -> dict[str, int]:
    """What published counts are compared with."""
    official = Counter[str | None](sample.official_split for sample in reading.samples)
    pictures = {(sample.official_split, sample.image) for sample in reading.samples}
    official.update(f"{split} pictures" for split, _ in pictures)
    for sample in reading.samples:
        official[f"{sample.official_split} {str(sample.fields.get('answer_type')).lower()}"] += 1
    names = ("", " pictures", " open", " closed")
    return {
        **{split + name: official[split + name] for split in SPLITS for name in names},
        "records": len(reading.samples),
        "patients": len({sample.unit for sample in reading.samples}),
        "pictures": len({image for _, image in pictures}),
    }


def _bounds(expected: int | range) -> tuple[int, int]:
    return (expected, expected) if isinstance(expected, int) else (expected[0], expected[-1])


def _differences(reading: Reading, counted: Mapping[str, int]) -> Iterator[str]:
    """Differences from the published counts."""
    for key, expected in reading.expected.items():
        low, high = _bounds(expected)
        if not low <= counted[key] <= high:
            published = f"{low}" if low == high else f"{low} to {high}"
            yield f"{key}: {counted[key]} where {published} were published"


def _warnings(
    reading: Reading,
    counted: Mapping[str, int],
    counts: Mapping[str, object],
    shared: int,
    options: ConvertOptions,
) -> tuple[str, ...]:
    warnings = list(_differences(reading, counted))
    if options.strict_counts and warnings:
        raise DataError(
            f"counts differ from the published ones: {'; '.join(warnings)}; take the files from "
            "their source, or let this be a warning"
        )
    if options.strict_counts and not reading.expected:
        raise UsageError("no published counts are known with these options; none can be strict")
    warnings += [f"{split}: no records, so no file" for split in SPLITS if split not in counts]
    if shared:
        warnings.append(f"{shared} patients are in more than one of the published splits")
    return tuple(warnings)


def _options(options: ConvertOptions) -> dict[str, Any]:
    """The options that had a part in the result; of a folder its name alone."""
    values = dataclasses.asdict(options)
    values["references"] = options.references.name if options.references else None
    unused = {"patients": ("carve_val",), "published": ("val_share", "test_share")}
    return {
        key: value
        for key, value in values.items()
        if value is not None and key not in unused[options.splits]
    }


def convert(
    name: str,
    source: str | Path,
    out: str | Path,
    options: ConvertOptions | None = None,
    *,
    on_hash: Callable[[int, int], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ConvertReport:
    """Convert a public set into `out/{train,val,test}.jsonl` and `out/convert.json`.

    The same source and options give the same files, in whatever order the source has its records.
    Splits by patients share no unit, no picture and no two pictures that are identical byte for
    byte; published splits are kept as they are, and what they share is counted.

    Args:
        name: One of `CONVERTERS`.
        source: Folder that the set was unpacked to. Nothing in it is changed.
        out: Folder that does not exist yet.
        options: How to convert; None means the defaults.
        on_hash: Called with the number of pictures hashed and of all that are to be, those that are
            as large as another one.
        on_progress: Called with the number of pictures placed and of all, when they are placed one
            by one.

    Raises:
        UsageError: The format or an option is unknown, or `out` exists or cannot be written.
        DataError: The source is of another layout, a file is broken, a picture is missing, nothing
            is left, or counts that must be the published ones differ.
    """
    options = options or ConvertOptions()
    converter = _converter(name, options)
    target = Path(out)
    if target.exists() or target.is_symlink():
        raise UsageError(f"{out} exists already; name a new folder, or remove this one")
    folder = Source(Path(source), options.missing)
    reading = converter.read(folder, options)
    if not reading.samples:
        raise DataError(f"{folder.folder.name}: no record is left to convert; see the options used")
    samples = sorted(reading.samples, key=sort_key)
    groups = group_names(samples, on_hash)
    splits = _splits(samples, groups, options)
    pictures = sorted({sample.image for sample in samples})
    names = {path: image_name(path, folder.folder, options.images) for path in pictures}
    records = build_records(converter, samples, groups, splits, names)
    counts, shared = count_records(records)
    counted = _counted(reading)
    report = ConvertReport(
        format=converter.name,
        title=converter.title,
        source=folder.folder.name,
        options=_options(options),
        split_unit=converter.unit,
        counts=counts,
        official_counts={split: counted[split] for split in SPLITS if counted[split]},
        expected_counts={key: _bounds(count) for key, count in reading.expected.items()},
        shared_patients=shared,
        dropped=dict(sorted(folder.dropped.items())),
        warnings=_warnings(reading, counted, counts, shared, options),
        sources=dict(sorted(folder.hashes.items())),
        umd_edge_version=__version__,
    )
    write_folder(
        target, records, report.to_dict(), options.images, names, folder.folder, on_progress
    )
    return report
