"""SLAKE 1.0: questions on radiology pictures in English and Chinese.

Layout: `train.json`, `validate.json` (`validation.json` on Hugging Face), `test.json` and
`imgs/xmlab<n>/source.jpg`, in the folder given or in `Slake1.0` below it. The language of a
question is in `q_lang`; English alone is the default. The split unit is the picture, as the source
names no patients.

Licence of the source: CC-BY-4.0, as the authors' Hugging Face page says. Source: Liu et al., ISBI
2021. The real files have not been run; fields and values are those of published copies.
"""

from __future__ import annotations

from umd_edge.errors import UsageError

from .sample import Converter, ConvertOptions, Reading, Sample, Split
from .source import Row, Source
from .texts import question_fields

__all__ = ["CONVERTER"]

_FILES: dict[Split, tuple[str, ...]] = {
    "train": ("train.json",),
    "val": ("validate.json", "validation.json"),
    "test": ("test.json",),
}
_ENGLISH_COUNTS = {
    **{"train": 4919, "train open": 2976, "train closed": 1943, "train pictures": 450},
    **{"val": 1053, "val open": 631, "val closed": 422, "val pictures": 96},
    **{"test": 1061, "test open": 645, "test closed": 416, "test pictures": 96},
}
_LANGUAGES = ("en", "zh", "all")


def _below(*names: str) -> tuple[str, ...]:
    return (*names, *(f"Slake1.0/{name}" for name in names))


def _sample(source: Source, row: Row, split: Split) -> Sample | None:
    name = row.text("img_name")
    image = source.image(row.where, [source.need("folder of pictures", *_below("imgs"))], name)
    if image is None:
        return None
    answer_type = row.optional("answer_type")
    fields = question_fields(
        row.text("question"),
        [row.text("answer")],
        answer_type.upper() if answer_type else None,
        row.optional("content_type"),
    )
    return Sample(
        key=(row.text("qid"), name, fields["question"]),
        unit=name.split("/")[0],
        image=image,
        fields={
            **fields,
            "language": row.text("q_lang"),
            "organ": row.optional("location"),
            "modality": row.optional("modality"),
            "base_type": row.optional("base_type"),
        },
        official_split=split,
        license="CC-BY-4.0",
        non_commercial=False,
        source_url="https://www.med-vqa.com/slake/",
    )


def _read(source: Source, options: ConvertOptions) -> Reading:
    language = options.language or "en"
    if language not in _LANGUAGES:
        raise UsageError(f"language {language!r} given; one of {list(_LANGUAGES)} is allowed")
    samples: list[Sample] = []
    for split, names in _FILES.items():
        rows = source.json_list(source.need(f"{split} split of SLAKE", *_below(*names)))
        kept = [row for row in rows if language in ("all", row.text("q_lang"))]
        source.drop("other language", len(rows) - len(kept))
        samples += filter(None, (_sample(source, row, split) for row in kept))
    return Reading(samples, _ENGLISH_COUNTS if language == "en" else {})


CONVERTER = Converter(
    name="slake",
    title="SLAKE",
    unit="picture",
    read=_read,
    takes=frozenset({"language"}),
)
