"""MELINDA: experiment methods of figures in biomedical articles.

Layout: `train.csv`, `dev.csv`, `test.csv` with the columns `figure_file`, `caption`, `i_meth`,
`p_meth`, `i_meth_label`, `p_meth_label`, and a folder of figures: `melinda_images` or `figures`.
The label is the coarse participant method (`p_meth_label`, 7 classes) unless another column is
asked for (`i_meth` 85, `p_meth` 45, `i_meth_label` 15 classes).

The split unit is the article where a column `pmid` or `pmcid` or the beginning of the figure's name
tells it, else the figure.

Licence of the source: not known, so records carry none and `non_commercial` is absent. Source: Wu
et al., AAAI 2021; columns and classes as in M3AE's preparation. The real files, given by the
authors on request, have not been run.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from umd_edge.errors import UsageError

from .sample import Converter, ConvertOptions, Reading, Sample, Split
from .source import Row, Source

__all__ = ["CONVERTER", "LABELS"]

LABELS = ("p_meth_label", "i_meth_label", "p_meth", "i_meth")
_FILES: dict[Split, str] = {"train": "train.csv", "val": "dev.csv", "test": "test.csv"}
_COUNTS = {"train": range(4337, 4353)}
"""272 steps of 16 are all that is known of the training split's size."""
_ARTICLE = re.compile(r"(?:PMC)?\d{5,}")


def _unit(row: Row, figure: str) -> str:
    for column in ("pmcid", "pmid"):
        if article := row.optional(column):
            return article
    found = _ARTICLE.match(PurePosixPath(figure).name)
    return found[0] if found else figure


def _read(source: Source, options: ConvertOptions) -> Reading:
    label = options.label or LABELS[0]
    if label not in LABELS:
        raise UsageError(f"label {label!r} given; one of {list(LABELS)} is allowed")
    samples: list[Sample] = []
    for split, name in _FILES.items():
        path = source.need(f"{split} split of MELINDA", name)
        for row in source.csv(path, ("figure_file", "caption", label)):
            figure = row.text("figure_file")
            folder = source.need("folder of figures", "melinda_images", "figures", "images")
            image = source.image(row.where, [folder], figure)
            if image is None:
                continue
            caption, value = row.optional("caption"), row.text(label)
            samples.append(
                Sample(
                    key=(split, figure, caption or "", value),
                    unit=_unit(row, figure),
                    image=image,
                    fields={"caption": caption, "labels": [value]},
                    official_split=split,
                    source_url="https://doi.org/10.1609/aaai.v35i16.17657",
                )
            )
    return Reading(samples, _COUNTS)


CONVERTER = Converter(
    name="melinda",
    title="MELINDA",
    unit="article where a column or the figure's name tells it, else the figure",
    read=_read,
    takes=frozenset({"label"}),
)
