"""VQA-Med 2019 (ImageCLEF): questions on the modality, plane, organ and abnormality of a picture.

Layout (github.com/abachaa/VQA-Med-2019, zenodo.org/records/10499039), each part in a folder of its
name or, unpacked twice, in one of the same name below it::

    ImageClef-2019-VQA-Med-Training/    All_QA_Pairs_train.txt, QAPairsByCategory/, Train_images/
    ImageClef-2019-VQA-Med-Validation/  All_QA_Pairs_val.txt, QAPairsByCategory/, Val_images/
    VQAMed2019Test/                     VQAMed2019_Test_Questions_w_Ref_Answers.txt,
                                        VQAMed2019_Test_Images/

Lines are `picture|question|answer`, in the test split `picture|category|question|answer`. There `#`
stands between answers that are all right, and what stands in parentheses may be left out. The
source has no answer types: yes and no are closed, all else is open.

Licence of the source: CC-BY-4.0. Source: Ben Abacha et al., CLEF 2019. The forms of the lines of
the test split are those of the published file; the real set has not been run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from umd_edge.errors import DataError, UsageError

from .sample import Converter, ConvertOptions, Reading, Sample, Split
from .source import Source
from .texts import collapse, question_fields

__all__ = ["CATEGORIES", "CONVERTER"]

CATEGORIES = ("modality", "plane", "organ", "abnormality")
_FOLDERS: dict[Split, str] = {
    "train": "ImageClef-2019-VQA-Med-Training",
    "val": "ImageClef-2019-VQA-Med-Validation",
    "test": "VQAMed2019Test",
}
_PER_CATEGORY: dict[Split, int] = {"train": 3200, "val": 500, "test": 125}
_IMAGES: dict[Split, tuple[str, ...]] = {
    "train": ("Train_images",),
    "val": ("Val_images",),
    "test": ("VQAMed2019_Test_Images", "Test_images"),
}
_REFERENCES = "VQAMed2019_Test_Questions_w_Ref_Answers.txt"
_OPTIONAL = re.compile(r"\([^()]*\)")

_Line = tuple[str, str | None, str, str, str]
"""Where it stands, category, picture, question, answer."""


def _folder(source: Source, split: Split) -> Path:
    name = _FOLDERS[split]
    inner = source.find(f"{name}/{name}")
    return inner or source.need(f"{split} split of VQA-Med 2019", name)


def _parts(where: str, line: str, count: int) -> list[str]:
    parts = [collapse(part) for part in line.split("|", count - 1)]
    if len(parts) != count or not all(parts):
        raise DataError(f"{where}: {count} fields with '|' between them are needed, none empty")
    return parts


def _training_lines(source: Source, folder: Path, split: Split) -> Iterator[_Line]:
    """Lines of the category files, or of the common file where there are none."""
    everything = folder / f"All_QA_Pairs_{split}.txt"
    lists = [
        (category, folder / "QAPairsByCategory" / f"C{n}_{category.title()}_{split}.txt")
        for n, category in enumerate(CATEGORIES, start=1)
    ]
    if not (folder / "QAPairsByCategory").is_dir():
        for where, line in source.lines(everything):
            picture, question, answer = _parts(where, line, 3)
            yield where, None, picture, question, answer
        return
    seen = 0
    for category, path in lists:
        for where, line in source.lines(path):
            picture, question, answer = _parts(where, line, 3)
            seen += 1
            yield where, category, picture, question, answer
    if everything.is_file() and (listed := len(source.lines(everything))) != seen:
        raise DataError(
            f"{everything.name}: {listed} lines where the category files have {seen}; unpack the "
            "archive anew"
        )


def _test_lines(source: Source, folder: Path) -> Iterator[_Line]:
    for where, line in source.lines(folder / _REFERENCES):
        picture, category, question, answer = _parts(where, line, 4)
        if category not in CATEGORIES:
            raise DataError(f"{where}: its category is none of {list(CATEGORIES)}")
        yield where, category, picture, question, answer


def _alternatives(answer: str) -> list[str]:
    """All forms of a reference answer that count as right, the first one whole."""
    forms: list[str] = []
    for form in answer.split("#"):
        forms += [form, _OPTIONAL.sub(" ", form)]
    return [form for form in map(collapse, forms) if form]


def _read(source: Source, options: ConvertOptions) -> Reading:
    wanted = options.categories or CATEGORIES
    if not set(wanted) <= set(CATEGORIES):
        raise UsageError(f"categories {list(wanted)} given; some of {list(CATEGORIES)} are allowed")
    samples: list[Sample] = []
    for split in _FOLDERS:
        folder = _folder(source, split)
        images = [folder / name for name in _IMAGES[split] if (folder / name).is_dir()]
        is_test = split == "test"
        lines = _test_lines(source, folder) if is_test else _training_lines(source, folder, split)
        for where, category, picture, question, answer in lines:
            if options.categories and category is None:
                raise DataError(f"{folder.name}: no 'QAPairsByCategory', so categories are unknown")
            if category is not None and category not in wanted:
                source.drop("other category")
                continue
            image = source.image(where, images, f"{picture}.jpg", picture)
            if image is None:
                continue
            answers = _alternatives(answer) if is_test else [answer]
            samples.append(
                Sample(
                    key=(split, picture, category or "", question, answer),
                    unit=image.stem,
                    image=image,
                    fields=question_fields(question, answers, None, category),
                    official_split=split,
                    license="CC-BY-4.0",
                    non_commercial=False,
                    source_url="https://zenodo.org/records/10499039",
                )
            )
    return Reading(samples, {s: n * len(set(wanted)) for s, n in _PER_CATEGORY.items()})


CONVERTER = Converter(
    name="vqa-med-2019",
    title="VQA-Med 2019",
    unit="MedPix picture",
    family="medpix",
    read=_read,
    takes=frozenset({"categories"}),
)
