"""Where the splits of a data set are from, in words that every report repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from umd_edge.errors import DataError

__all__ = ["AS_GIVEN", "split_scheme"]

AS_GIVEN = "as the files stand"
_REPORT = "convert.json"


def _of_options(report: dict[str, Any]) -> str:
    options = report["options"]
    if options["splits"] == "patients":
        return (
            f"by a hash of the {report['split_unit']}, seed {options['seed']}, "
            f"{options['val_share']:g} val, {options['test_share']:g} test"
        )
    text = f"published with {report['title']}"
    if "carve_val" in options:
        text += f", {options['carve_val']:g} of train as val"
    if shared := int(report["shared_patients"]):
        text += f"; {shared} patients are in more than one"
    return text


def split_scheme(folder: Path) -> str:
    """How a data set was split: what `data convert` noted, else `AS_GIVEN`.

    Args:
        folder: Holds the set's manifests.

    Raises:
        DataError: `convert.json` is there and cannot be read.
    """
    path = folder / _REPORT
    if not path.exists():
        return AS_GIVEN
    try:
        return _of_options(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder.name}/{_REPORT} does not say how the set was split; convert it again"
        ) from error
