"""Coded concepts of what comes out: what other systems read instead of our labels.

A label of the default bundle has a code of a public terminology where one says the same; every
other label or answer has one of the private scheme `99UMDEDGE`, whose value follows from the label
alone. No code is guessed from a label's wording: the table below is all there is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

__all__ = [
    "ABSENT",
    "ANSWER",
    "PRESENCE",
    "PRESENT",
    "PRIVATE_SCHEME",
    "PROBABILITY",
    "QUESTION",
    "STATES",
    "STATUS",
    "Concept",
    "answer_concept",
    "finding_concept",
]

PRIVATE_SCHEME = "99UMDEDGE"
_MAX_MEANING = 64
_SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "LN": "http://loinc.org",
    "UCUM": "http://unitsofmeasure.org",
    PRIVATE_SCHEME: "urn:oid:2.25.289490105142308666991091594377156334582",
}


@dataclass(frozen=True, slots=True)
class Concept:
    """One coded concept."""

    value: str
    """At most 16 characters, DICOM's `SH`."""
    scheme: str
    """Coding scheme designator of DICOM PS3.16 section 8."""
    meaning: str
    """At most 64 characters, DICOM's `LO`."""

    @property
    def system(self) -> str:
        """The scheme's URI in FHIR."""
        return _SYSTEMS[self.scheme]


PRESENCE = Concept("121052", "DCM", "Presence of property")
PRESENT = Concept("52101004", "SCT", "Present")  # CID 240
ABSENT = Concept("272519000", "SCT", "Absent")  # CID 240
PROBABILITY = Concept("122157", "DCM", "Probability")
STATUS = Concept("STATUS", PRIVATE_SCHEME, "Status of the result")
QUESTION = Concept("QUESTION", PRIVATE_SCHEME, "Question")
ANSWER = Concept("ANSWER", PRIVATE_SCHEME, "Answer")
STATES = {
    "ok": Concept("OK", PRIVATE_SCHEME, "ok"),
    "abstain": Concept("ABSTAIN", PRIVATE_SCHEME, "abstain"),
    "out_of_distribution": Concept("OUT_OF_DISTRIB", PRIVATE_SCHEME, "out_of_distribution"),
    "outside_intended_use": Concept("OUTSIDE_USE", PRIVATE_SCHEME, "outside_intended_use"),
}
# Source: DICOM PS3.16, the context group in brackets, or SNOMED CT, International Edition (the
# concept's number is cited; its descriptions are not copied beyond the name of the concept).
_FINDINGS = {
    ("chest-xray", "No Finding"): Concept("111286", "DCM", "No abnormality"),  # CID 6030
    ("chest-xray", "Pneumonia"): Concept("233604007", "SCT", "Pneumonia"),  # SNOMED CT
    ("chest-xray", "Infiltration"): Concept("112121", "DCM", "Infiltrate"),  # CID 6102
    ("chest-xray", "Atelectasis"): Concept("46621007", "SCT", "Atelectasis"),  # SNOMED CT
    ("chest-xray", "Effusion"): Concept("60046008", "SCT", "Pleural effusion"),  # CID 645
    ("chest-xray", "Edema"): Concept("19242006", "SCT", "Pulmonary edema"),  # CID 3700
    ("chest-xray", "Consolidation"): Concept("95436008", "SCT", "Lung consolidation"),  # SNOMED CT
    ("breast-ultrasound", "normal"): Concept("17621005", "SCT", "Normal"),  # CID 222
    ("breast-ultrasound", "benign"): Concept("30807003", "SCT", "Benign"),  # CID 6063
    ("breast-ultrasound", "malignant"): Concept("21594007", "SCT", "Malignant"),  # CID 6063
    ("skin-lesion", "actinic keratosis"): Concept(  # CID 4405
        "201101007", "SCT", "Actinic keratosis"
    ),
    ("skin-lesion", "basal cell carcinoma"): Concept(  # SNOMED CT
        "254701007", "SCT", "Basal cell carcinoma of skin"
    ),
    ("skin-lesion", "melanoma"): Concept(  # SNOMED CT
        "93655004", "SCT", "Malignant melanoma of skin"
    ),
    ("skin-lesion", "nevus"): Concept("400096001", "SCT", "Melanocytic nevus"),  # SNOMED CT
    ("skin-lesion", "seborrheic keratosis"): Concept(  # SNOMED CT
        "25499005", "SCT", "Seborrheic keratosis"
    ),
    ("skin-lesion", "squamous cell carcinoma"): Concept(  # CID 638
        "254651007", "SCT", "Squamous cell carcinoma of skin"
    ),
}
_ANSWERS = {
    "yes": Concept("373066001", "SCT", "Yes"),  # CID 230
    "no": Concept("373067005", "SCT", "No"),  # CID 230
}


def finding_concept(task: str, label: str) -> Concept:
    """The concept of a label, which the same label of another task need not share."""
    return _FINDINGS.get((task, label)) or _private(label)


def answer_concept(answer: str) -> Concept:
    """The concept of an answer to a question."""
    return _ANSWERS.get(answer) or _private(answer)


def _private(text: str) -> Concept:
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    meaning = " ".join(text.split()) or "(empty)"
    if len(meaning) > _MAX_MEANING:
        meaning = meaning[: _MAX_MEANING - 3].rstrip() + "..."
    # A backslash separates values in DICOM, so it cannot stand in one.
    return Concept(f"L{digest[:15].upper()}", PRIVATE_SCHEME, meaning.replace("\\", "/"))
