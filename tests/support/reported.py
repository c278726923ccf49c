"""Results and DICOM images for the reports that other systems read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from support.pictures import gradient, make_dicom
from support.requirements import lacking
from umd_edge import Answer, BundleInfo, Classification, Finding
from umd_edge._results import Timing

BUNDLE = BundleInfo("umd-edge-default", "0.1.0", "86" * 32)
STUDY, SERIES, OBJECT = "1.2.840.99.1", "1.2.840.99.1.1", "1.2.840.99.1.1.1"
CR, US_CLIP, SECONDARY = (
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.3.1",
    "1.2.840.10008.5.1.4.1.1.7",
)
COMMON: dict[str, Any] = {
    "bundle": BUNDLE,
    "variant": "int8",
    "provider": "cpu",
    "timing": Timing(),
}


def film(path: Path | None = None, frames: int = 1, **tags: Any) -> bytes:
    """A chest film with everything that a hospital writes into the header."""
    grey = gradient()[..., 2]
    pixels = grey if frames == 1 else np.stack([grey] * frames)
    given: dict[str, Any] = {
        "SOPClassUID": CR,
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "SOPInstanceUID": OBJECT,
        "PatientName": "Secret^Name",
        "PatientID": "PID-7",
        "IssuerOfPatientID": "CLINIC",
        "PatientBirthDate": "19610203",
        "PatientSex": "F",
        "PatientAddress": "Secret Street 1",
        "ReferringPhysicianName": "Secret^Doctor",
        "StudyDescription": "Secret study",
        "AccessionNumber": "ACC-1",
        "StudyID": "S1",
        "StudyDate": "20260131",
        "StudyTime": "101112",
    }
    return make_dicom(pixels, path, **{**given, **tags})


def classification(status: Any = "ok", **changes: Any) -> Classification:
    findings = (
        Finding("Pneumonia", 0.8125, True),
        Finding("Pleural Thickening", 0.25, False),
    )
    given: dict[str, Any] = {"status": status, "task": "chest-xray", "findings": findings}
    return Classification(**{**COMMON, **given, **changes})


def answer(status: Any = "ok", **changes: Any) -> Answer:
    given: dict[str, Any] = {
        "status": status,
        "question": "Is there an effusion?",
        "answer": "yes",
        "probability": 0.75,
        "alternatives": (),
    }
    return Answer(**{**COMMON, **given, **changes})


def tool(name: str, package: str) -> str:
    """Path of a program that checks DICOM files; skips where it is not installed."""
    found = shutil.which(name)
    if found is None:
        lacking(package, f"{name} is not installed (Debian package {package})")
    return found


def dciodvfy_errors(path: Path) -> list[str]:
    """What David Clunie's validator calls an error."""
    command = [tool("dciodvfy", "dicom3tools"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    assert any("ComprehensiveSR" in line for line in said), said
    return [line for line in said if line.startswith("Error") or "Bad" in line]
