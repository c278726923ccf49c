"""ROCO: radiology pictures of PubMed Central articles with their captions.

Layout (github.com/razorx89/roco-dataset, after its `scripts/fetch.py`), below the folder given,
`data/` or `all_data/`: `train/radiology/`, `validation/radiology/` (or `val/`), `test/radiology/`,
each with `captions.txt` (`ROCO_ID<tab>caption`), `licences.txt` (`ROCO_ID,PMC_ID_file,licence`) and
`images/` with files named after the article (`PMC..._name.jpg`) or the record (`ROCO_00001.jpg`). A
caption's further lines begin without a ROCO id. Some articles can no longer be fetched: have their
records left out with `--missing drop`.

In-line references come with MedICaT (`roco_<split>_references.jsonl`); their folder is an option.
Every text is a record of its own. `--subset retrieval` is the published retrieval set: captions
alone, and of `val` and `test` the first 2,000 after a shuffle with seed 42.

Licence of the source: that of each article, in `licences.txt`. Source: Pelka et al., LABELS 2018;
the retrieval subset: M3AE's preparation. The forms of the text files are those of the published
ones; the real set has not been run.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from umd_edge.errors import DataError, UsageError

from .sample import SPLITS, Converter, ConvertOptions, Reading, Sample, Split
from .source import Source
from .texts import collapse, is_pair, license_name

__all__ = ["CONVERTER"]

_ID = re.compile(r"ROCO_\d+")
_ARTICLE = re.compile(r"PMC\d+")
_RETRIEVAL = 2000
_SHUFFLE_SEED = 42
_ROOTS = ("", "data/", "all_data/")


@dataclass(frozen=True, slots=True)
class _Article:
    file: str
    """`PMC..._name.jpg`."""
    license: str | None
    non_commercial: bool | None

    @property
    def number(self) -> str | None:
        found = _ARTICLE.match(self.file)
        return found[0] if found else None


@dataclass(slots=True)
class _Caption:
    where: str
    roco_id: str
    text: str
    is_first_line_pair: bool
    """Long enough by its first line alone, which is all that the retrieval set looks at."""


def _folder(source: Source, split: Split) -> Path:
    names = ("validation", "val") if split == "val" else (split,)
    paths = [f"{root}{name}/radiology" for root in _ROOTS for name in names]
    return source.need(f"{split} split of ROCO", *paths)


def _captions(source: Source, folder: Path) -> list[_Caption | None]:
    """One entry a line; None is a line that continues the caption before it."""
    captions: list[_Caption | None] = []
    last: _Caption | None = None
    for where, line in source.lines(folder / "captions.txt"):
        roco_id, tab, text = line.partition("\t")
        if _ID.fullmatch(roco_id.strip()):
            if not tab:
                raise DataError(f"{where}: a tab between ROCO id and caption is needed")
            last = _Caption(where, roco_id.strip(), collapse(text), is_pair(text))
            captions.append(last)
        elif last is None:
            raise DataError(f"{where}: a line such as 'ROCO_00001<tab>caption' is needed")
        else:
            last.text = collapse(f"{last.text} {line}")
            captions.append(None)
    return captions


def _articles(source: Source, folder: Path) -> dict[str, _Article]:
    path = folder / "licences.txt"
    if not path.is_file():
        return {}
    articles = {}
    for where, line in source.lines(path)[1:]:
        first, _, rest = line.partition(",")
        file, comma, code = rest.rpartition(",")
        if not comma:
            raise DataError(f"{where}: three fields with ',' between them are needed")
        articles[first.strip()] = _Article(file.strip(), *license_name(code))
    return articles


def _references(folder: Path | None, split: Split, source: Source) -> Mapping[str, list[str]]:
    """Article's picture file -> sentences that mention it."""
    if folder is None:
        return {}
    path = folder / f"roco_{split}_references.jsonl"
    if not path.is_file():
        raise DataError(
            f"{folder.name}: no {path.name!r}; give MedICaT's folder of ROCO references"
        )
    found: dict[str, list[str]] = {}
    for row in source.json_lines(path):
        sentences = row.values.get("gorc_references") or []
        if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
            raise DataError(f"{row.where}: `gorc_references` must be a list of texts")
        found.setdefault(row.text("roco_image_id"), []).extend(map(collapse, sentences))
    return found


def _retrieval(
    captions: list[_Caption | None], split: Split, shuffle: random.Random
) -> list[_Caption]:
    """The captions of the published retrieval set: the first ones after a shuffle of the lines."""
    order = list(captions)
    shuffle.shuffle(order)
    kept = [caption for caption in order if caption is not None and caption.is_first_line_pair]
    return kept if split == "train" else kept[:_RETRIEVAL]


def _samples(
    source: Source,
    folder: Path,
    split: Split,
    captions: list[_Caption],
    references: Mapping[str, list[str]],
) -> Iterator[Sample]:
    articles = _articles(source, folder)
    for caption in captions:
        article = articles.get(caption.roco_id)
        names = [f"{caption.roco_id}.jpg", *([article.file] if article else [])]
        image = source.image(caption.where, [folder / "images"], *names)
        if image is None:
            continue
        number = article.number if article else None
        texts = [("caption", caption.text)]
        texts += [
            ("reference", text) for text in references.get(article.file if article else "", [])
        ]
        for kind, text in texts:
            if not is_pair(text):
                source.drop("text under three words")
                continue
            yield Sample(
                key=(caption.roco_id, kind, text),
                unit=number or caption.roco_id,
                image=image,
                fields={"text": text, "text_kind": kind, "roco_id": caption.roco_id},
                official_split=split,
                license=article.license if article else None,
                non_commercial=article.non_commercial if article else None,
                source_url=f"https://www.ncbi.nlm.nih.gov/pmc/articles/{number}/"
                if number
                else None,
            )


def _read(source: Source, options: ConvertOptions) -> Reading:
    is_retrieval = options.subset == "retrieval"
    if options.subset not in (None, "retrieval"):
        raise UsageError(f"subset {options.subset!r} given; 'retrieval' is allowed")
    if is_retrieval and (options.splits != "published" or options.references):
        raise UsageError("the retrieval subset has published splits and captions alone")
    shuffle = random.Random(_SHUFFLE_SEED)
    samples: list[Sample] = []
    for split in SPLITS:
        folder = _folder(source, split)
        lines = _captions(source, folder)
        whole = [caption for caption in lines if caption is not None]
        captions = _retrieval(lines, split, shuffle) if is_retrieval else whole
        if is_retrieval:
            source.drop("not in the retrieval subset", len(whole) - len(captions))
        references = _references(options.references, split, source)
        samples += _samples(source, folder, split, captions, references)
    return Reading(samples, {"val": _RETRIEVAL, "test": _RETRIEVAL} if is_retrieval else {})


CONVERTER = Converter(
    name="roco",
    title="ROCO (radiology)",
    unit="article where licences.txt names it, else the picture",
    read=_read,
    takes=frozenset({"subset", "references"}),
)
