"""VQA-RAD: questions on radiology pictures, by clinicians.

Layouts, told apart by the files that are there:

* as published (osf.io/89kps): `VQA_RAD Dataset Public.json` and `VQA_RAD Image Folder/`. The splits
  are in `phrase_type`: `test_freeform` and `test_para` are the test split.
* MEVF's and M3AE's: `trainset.json`, `testset.json` and `images/`. `valset.json` is not read: it is
  a copy of the test split, so `val` has to be carved from `train`.

Both published splits share pictures between train and test.

Licence of the source: CC0-1.0. Source: Lau et al., Scientific Data 2018. The real files have not
been run; the fields and their values are those of the set's readme and of published copies.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from umd_edge.errors import DataError

from .sample import Converter, ConvertOptions, Reading, Sample, Split
from .source import Row, Source
from .texts import question_fields

__all__ = ["CONVERTER"]

_PUBLIC = "VQA_RAD Dataset Public.json"
_PUBLIC_COUNTS = {"train": 1797, "test": 451, "pictures": 315}
_MEVF_COUNTS = {
    **{"train": 3064, "train open": 1241, "train closed": 1823},
    **{"test": 451, "test open": 179, "test closed": 272},
    "pictures": 315,
}


def _sample(source: Source, row: Row, folder: Path, split: Split) -> Sample | None:
    name = row.text("image_name")
    image = source.image(row.where, [folder], name)
    if image is None:
        return None
    answer_type = row.optional("answer_type")
    fields = question_fields(
        row.text("question"),
        [row.text("answer")],
        answer_type.upper() if answer_type else None,
        row.optional("question_type"),
    )
    case = row.optional("image_case_url")
    return Sample(
        key=(split, row.text("qid"), name, fields["question"]),
        unit=PurePosixPath(name).stem,
        image=image,
        fields={
            **fields,
            "organ": row.optional("image_organ"),
            "phrase_type": row.optional("phrase_type"),
        },
        links=(case,) if case else (),
        official_split=split,
        license="CC0-1.0",
        non_commercial=False,
        source_url=case or "https://osf.io/89kps/",
    )


def _rows(source: Source) -> tuple[list[tuple[Split, Row]], dict[str, int]]:
    public = source.find(_PUBLIC)
    if public is not None and source.find("trainset.json"):
        raise DataError(
            f"{source.folder.name}: both {_PUBLIC!r} and 'trainset.json' are here; their splits "
            "differ, so give a folder with one of them"
        )
    if public is not None:
        rows = source.json_list(public)
        is_test = [(row.optional("phrase_type") or "").startswith("test") for row in rows]
        splits: list[Split] = ["test" if test else "train" for test in is_test]
        return list(zip(splits, rows, strict=True)), _PUBLIC_COUNTS
    train = source.need("VQA-RAD", _PUBLIC, "trainset.json")
    test = source.need("test split of VQA-RAD", "testset.json")
    found: list[tuple[Split, Row]] = [("train", row) for row in source.json_list(train)]
    return found + [("test", row) for row in source.json_list(test)], _MEVF_COUNTS


def _read(source: Source, options: ConvertOptions) -> Reading:
    rows, expected = _rows(source)
    folder = source.need("folder of pictures", "VQA_RAD Image Folder", "images")
    samples = (_sample(source, row, folder, split) for split, row in rows)
    return Reading([sample for sample in samples if sample], expected)


CONVERTER = Converter(
    name="vqa-rad",
    title="VQA-RAD",
    unit="MedPix picture, joined by case where the source names it",
    family="medpix",
    read=_read,
)
