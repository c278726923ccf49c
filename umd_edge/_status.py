"""The status of a result: whether its values may be used as they are, and if not, why.

The first that applies, in this order: `outside_intended_use` (the header contradicts the task, and
nothing is inferred), `out_of_distribution` (values are given, but no validation record vouches for
them), `abstain` (too uncertain), `ok`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._ood import OodScore
from ._results import Status
from ._task import TaskSpec

if TYPE_CHECKING:
    from ._image import DicomFacts

__all__ = ["judge", "outside_intended_use"]

_TAGS = {
    "dicom_modality": "Modality (0008,0060)",
    "body_part": "BodyPartExamined (0018,0015)",
    "view": "ViewPosition (0018,5101)",
    "burned_in_annotation": "BurnedInAnnotation (0028,0301)",
}
# Text in the pixels can name the patient or the diagnosis, so a task has to ask for it.
_APPLIES_UNLESS_SAID = {"burned_in_annotation": ("NO",)}


def outside_intended_use(task: TaskSpec, dicom: DicomFacts | None) -> str:
    """Why the header contradicts the task, or nothing; an absent tag contradicts nothing."""
    if dicom is None:
        return ""
    given = {
        "dicom_modality": dicom.modality,
        "body_part": dicom.body_part_examined,
        "view": dicom.view_position,
        "burned_in_annotation": dicom.burned_in_annotation,
    }
    for key, allowed in {**_APPLIES_UNLESS_SAID, **task.applies_to}.items():
        value = given[key]
        if value is not None and value.casefold() not in {item.casefold() for item in allowed}:
            return (
                f"{_TAGS[key]} of the DICOM header is none of {list(allowed)}, for which task "
                f"{task.name!r} is meant"
            )
    return ""


def judge(task: TaskSpec, score: OodScore | None, certain: float) -> tuple[Status, str]:
    """Status and reason of values that were inferred.

    Args:
        task: Holds the threshold below which it abstains.
        score: How far the image is from what the task was fitted on; None where that is not known.
        certain: `confidence` of the probabilities.
    """
    if score is not None and score.is_out:
        return "out_of_distribution", score.reason
    limit = task.thresholds.get("abstain", 0.0)
    if certain < limit:
        what = "mean certainty of the labels" if task.multi_label else "highest probability"
        return "abstain", f"the {what} is below the task's threshold of {limit:g}"
    return "ok", ""
