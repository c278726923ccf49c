"""PAD-UFES-20: smartphone pictures of skin lesions with the patient's history.

Layout (Mendeley Data, doi:10.17632/zr7vgbcyr2.1): `metadata.csv` and the pictures of `imgs_part_1`
to `imgs_part_3`, in the folder given or in `images/` below it, unpacked once or twice
(`imgs_part_1/imgs_part_1`), or all in `images/`. The source has no splits of its own.

Most of `structured` was asked of biopsied lesions only, so that a value's presence gives the
diagnosis away; `biopsied` and `code` give it away themselves. `docs/data.md` says more. The origin
of the parents is left out.

Licence of the source: CC-BY-4.0. Source: Pacheco et al., Data in Brief 2020. The real files have
not been run; columns and values are those of the paper and of published copies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from umd_edge.errors import DataError

from .sample import Converter, ConvertOptions, Reading, Sample
from .source import Row, Source

__all__ = ["CONVERTER"]

_LABELS = {
    "ACK": "actinic keratosis",
    "BCC": "basal cell carcinoma",
    "MEL": "melanoma",
    "NEV": "nevus",
    "SCC": "squamous cell carcinoma",
    "SEK": "seborrheic keratosis",
}
_FLAGS = (
    *("smoke", "drink", "pesticide", "skin_cancer_history", "cancer_history"),
    *("has_piped_water", "has_sewage_system"),
    *("itch", "grew", "hurt", "changed", "bleed", "elevation"),
)
_NUMBERS = {
    "fitzpatrick": "fitspatrick",
    "diameter_1_mm": "diameter_1",
    "diameter_2_mm": "diameter_2",
}
"""Our name -> the source's column, with its spelling."""
_COLUMNS = (
    *("patient_id", "lesion_id", "img_id", "diagnostic", "biopsed", "age", "gender", "region"),
    *_FLAGS,
    *_NUMBERS.values(),
)
_COUNTS = {"records": 2298, "patients": 1373}


def _flag(row: Row, column: str) -> bool | None:
    value = row.optional(column)
    known = {None: None, "UNK": None, "TRUE": True, "FALSE": False}
    if (upper := value.upper() if value else None) not in known:
        raise DataError(f"{row.where}: `{column}` must be True, False, UNK or empty")
    return known[upper]


def _number(row: Row, column: str) -> float | None:
    value = row.optional(column)
    try:
        number = float(value) if value else None
    except ValueError as error:
        raise DataError(f"{row.where}: `{column}` must be a number or empty") from error
    if number is not None and not math.isfinite(number):
        return None  # pandas writes missing numbers so
    return number


def _sex(row: Row) -> str | None:
    value = row.optional("gender")
    known = {None: None, "FEMALE": "F", "MALE": "M"}
    if (upper := value.upper() if value else None) not in known:
        raise DataError(f"{row.where}: `gender` must be FEMALE, MALE or empty")
    return known[upper]


def _fields(row: Row) -> Mapping[str, Any]:
    code = row.text("diagnostic").upper()
    if code not in _LABELS:
        raise DataError(f"{row.where}: `diagnostic` must be one of {sorted(_LABELS)}")
    values: dict[str, Any] = {name: _flag(row, name) for name in _FLAGS}
    values |= {name: _number(row, column) for name, column in _NUMBERS.items()}
    region = row.optional("region")
    return {
        "modality": "Clinical photograph",
        "region": region.lower() if region else None,
        "age": _number(row, "age"),
        "sex": _sex(row),
        "structured": {name: value for name, value in values.items() if value is not None},
        "labels": [_LABELS[code]],
        "code": code,
        "biopsied": _flag(row, "biopsed"),
        "lesion_id": row.text("lesion_id"),
    }


def _folders(source: Source) -> list[Path]:
    parts = [f"imgs_part_{number}" for number in (1, 2, 3)]
    names = [f"{root}{part}" for root in ("", "images/") for part in parts]
    paths = [source.folder / n for name in names for n in (f"{name}/{name.split('/')[-1]}", name)]
    found = [path for path in (*paths, source.folder / "images") if path.is_dir()]
    if not found:
        source.need("folder of pictures", *parts, "images")
    return found


def _read(source: Source, options: ConvertOptions) -> Reading:
    path = source.need("PAD-UFES-20", "metadata.csv")
    folders = _folders(source)
    samples: list[Sample] = []
    for row in source.csv(path, _COLUMNS):
        name = row.text("img_id")
        image = source.image(row.where, folders, name)
        if image is None:
            continue
        samples.append(
            Sample(
                key=(name,),
                unit=row.text("patient_id"),
                image=image,
                fields=_fields(row),
                license="CC-BY-4.0",
                non_commercial=False,
                source_url="https://data.mendeley.com/datasets/zr7vgbcyr2/1",
            )
        )
    return Reading(samples, _COUNTS)


CONVERTER = Converter(
    name="pad-ufes-20",
    title="PAD-UFES-20",
    unit="patient",
    read=_read,
    published=False,
)
