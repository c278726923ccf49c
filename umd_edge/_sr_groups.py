"""The measurement groups (TID 1501) of a DICOM Structured Report, through highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._coded import (
    ABSENT,
    ANSWER,
    PRESENCE,
    PRESENT,
    PROBABILITY,
    QUESTION,
    STATES,
    STATUS,
    Concept,
    answer_concept,
    finding_concept,
)
from ._evidence import Evidence
from ._reported import MANUFACTURER, NOT_A_DEVICE, Reported, decision_note, set_note
from ._results import Answer, Classification

__all__ = ["coded", "measurement_groups"]

_COMMENT = Concept("121106", "DCM", "Comment")
_NO_UNITS = Concept("1", "UCUM", "no units")


def measurement_groups(results: Sequence[Reported], evidence: Sequence[Evidence]) -> list[Any]:
    """One group for the status of each result, and one for each finding of those that are `ok`.

    Source: DICOM PS3.16 TID 1501.
    """
    groups: list[Any] = []
    for result in results:
        if isinstance(result, Classification):
            groups += _classification_groups(result, evidence)
        else:
            groups.append(_answer_group(result, evidence))
    return groups


def coded(concept: Concept) -> Any:
    """`highdicom.sr.CodedConcept` of a code."""
    from highdicom.sr import CodedConcept

    return CodedConcept(concept.value, concept.scheme, concept.meaning)


def _classification_groups(result: Classification, evidence: Sequence[Evidence]) -> list[Any]:
    groups = [
        _group(
            result,
            evidence,
            result.task,
            f"{result.task}: status",
            evaluations=[(STATUS, STATES[result.status])],
            comments=_remarks(result, evidence),
        )
    ]
    if result.status != "ok":
        return groups
    return groups + [
        _group(
            result,
            evidence,
            result.task,
            f"{result.task}: {finding.label}",
            finding=finding_concept(result.task, finding.label),
            probability=finding.probability,
            evaluations=[(PRESENCE, PRESENT if finding.positive else ABSENT)],
            comments=[(_COMMENT, text) for text in [decision_note(finding)] if text],
        )
        for finding in result.findings
    ]


def _answer_group(result: Answer, evidence: Sequence[Evidence]) -> Any:
    comments = [(QUESTION, result.question)]
    evaluations = [(STATUS, STATES[result.status])]
    is_ok = result.status == "ok"
    if is_ok:
        comments.append((ANSWER, result.answer))
        evaluations.append((ANSWER, answer_concept(result.answer)))
    comments += _remarks(result, evidence)
    return _group(
        result,
        evidence,
        "question",
        "question",
        probability=result.probability if is_ok else None,
        evaluations=evaluations,
        comments=comments,
    )


def _remarks(result: Reported, evidence: Sequence[Evidence]) -> list[tuple[Concept, str]]:
    frames = (item.frame_note for item in evidence)
    chosen = set_note(result) if result.status == "ok" else ""
    texts = (result.reason, chosen, *frames, NOT_A_DEVICE)
    return [(_COMMENT, text) for text in texts if text]


def _group(
    result: Reported,
    evidence: Sequence[Evidence],
    task: str,
    tracking: str,
    *,
    finding: Concept | None = None,
    probability: float | None = None,
    evaluations: Sequence[tuple[Concept, Concept]] = (),
    comments: Sequence[tuple[Concept, str]] = (),
) -> Any:
    """One measurement group of TID 1501."""
    from highdicom import UID, sr

    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=UID(), identifier=tracking),
        finding_type=None if finding is None else coded(finding),
        algorithm_id=_algorithm(result, task),
        measurements=None if probability is None else [_measurement(probability)],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(name=coded(name), value=coded(value))
            for name, value in evaluations
        ],
        source_images=[
            sr.SourceImageForMeasurementGroup(
                item.sop_class_uid,
                item.sop_uid,
                item.frame_references,
            )
            for item in evidence
        ],
    )
    for name, text in comments:
        group[0].ContentSequence.append(
            sr.TextContentItem(
                name=coded(name),
                value=text,
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            )
        )
    return group


def _algorithm(result: Reported, task: str) -> Any:
    from highdicom import sr

    from . import __version__

    info = result.bundle
    return sr.AlgorithmIdentification(
        name=info.name,
        version=info.version,
        manufacturer=MANUFACTURER,
        parameters=[
            f"bundle sha256={info.sha256}",
            f"task={task}",
            f"variant={result.variant}",
            f"provider={result.provider}",
            f"umd-edge={__version__}",
        ],
    )


def _measurement(probability: float) -> Any:
    from highdicom import sr

    # 10 digits at most: a decimal string has 16 characters.
    value = round(float(probability), 10)
    return sr.Measurement(name=coded(PROBABILITY), value=value, unit=coded(_NO_UNITS))
