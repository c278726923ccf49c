"""MedICaT: figures of open-access articles with captions and the sentences that mention them.

Layout, in the folder given or in `release/` below it: `s2_full_figures_oa_nonroco_*.jsonl`, one
figure a line, and `figures/<pdf_hash>_<fig_uri>`. Figures flagged `radiology` are kept; the file
holds none that is in ROCO. Caption (`s2_caption`) and in-line references (`s2orc_references`) are
records of their own.

`--splits published` is M3AE's: the radiology figures shuffled with seed 42, the last 2,000 being
1,000 of `val` and 1,000 of `test`. It splits by figure, so an article may be in two splits.

Licence of the source: each article's own, and the set is for non-commercial use only, so all
records are marked so. Source: Subramanian et al., Findings of EMNLP 2020. The real files, given on
request, have not been run; fields are those of the set's readme.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from umd_edge.errors import DataError

from .sample import Converter, ConvertOptions, Reading, Sample, Split
from .source import Row, Source
from .texts import collapse, is_pair, license_name

__all__ = ["CONVERTER"]

_HELD_OUT = 1000
_SHUFFLE_SEED = 42


def _file(source: Source) -> Path:
    pattern = "s2_full_figures_oa_nonroco_*.jsonl"
    found = [p for root in (".", "release") for p in sorted((source.folder / root).glob(pattern))]
    if len(found) != 1:
        raise DataError(
            f"{source.folder.name}: {len(found)} files {pattern!r} here or in 'release'; one is "
            "needed"
        )
    return found[0]


def _published(count: int) -> list[Split]:
    """M3AE's split of each radiology figure, in the order of the file."""
    if count <= 2 * _HELD_OUT:
        raise DataError(
            f"{count} radiology figures; the published splits need more than {2 * _HELD_OUT}"
        )
    order = list(range(count))
    random.Random(_SHUFFLE_SEED).shuffle(order)
    splits: list[Split] = ["train"] * count
    for place in order[-2 * _HELD_OUT : -_HELD_OUT]:
        splits[place] = "val"
    for place in order[-_HELD_OUT:]:
        splits[place] = "test"
    return splits


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(row: Row) -> list[tuple[str, str]]:
    references = row.values.get("s2orc_references") or []
    if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
        raise DataError(f"{row.where}: `s2orc_references` must be a list of texts or null")
    caption = row.optional("s2_caption")
    texts = [("caption", caption)] if caption else []
    return texts + [("reference", collapse(text)) for text in references]


def _samples(source: Source, row: Row, figures: Path, split: Split | None) -> Iterator[Sample]:
    article, figure = row.text("pdf_hash"), row.text("fig_uri")
    image = source.image(row.where, [figures], f"{article}_{figure}")
    if image is None:
        return
    about = _object(row.values.get("oa_info"))
    code = _object(about.get("oa")).get("license")
    name, _ = license_name(code) if isinstance(code, str) else (None, None)
    url = about.get("doi_url")
    for kind, text in _texts(row):
        if not is_pair(text):
            source.drop("text under three words")
            continue
        yield Sample(
            key=(article, figure, kind, text),
            unit=article,
            image=image,
            fields={"text": text, "text_kind": kind, "figure": row.optional("fig_key")},
            official_split=split,
            license=name,
            non_commercial=True,
            source_url=url if isinstance(url, str) else "https://github.com/allenai/medicat",
        )


def _read(source: Source, options: ConvertOptions) -> Reading:
    path = _file(source)
    figures = path.parent / "figures"
    if not figures.is_dir():
        raise DataError(f"{source.folder.name}: no folder 'figures' beside {path.name!r}")
    rows: list[Row] = []
    for row in source.json_lines(path):
        if row.values.get("radiology") is True:
            rows.append(row)
        else:
            source.drop("not radiology")
    is_published = options.splits == "published"
    splits = _published(len(rows)) if is_published else [None] * len(rows)
    samples: list[Sample] = []
    for row, split in zip(rows, splits, strict=True):
        samples += _samples(source, row, figures, split)
    return Reading(samples)


CONVERTER = Converter(
    name="medicat",
    title="MedICaT (radiology)",
    unit="article",
    read=_read,
)
