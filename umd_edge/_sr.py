"""Results as a DICOM Structured Report: TID 1500 in a Comprehensive SR, through highdicom.

Each result gives a measurement group (TID 1501) that says its status, and, where the status is
`ok`, one for each finding: its code, present or absent, and the probability as NUM. A result with
any other status gives no finding. The report is unverified and preliminary, stands in a series of
its own in the image's study, and names no patient: see `docs/reports.md`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._coded import PRIVATE_SCHEME, Concept
from ._evidence import Evidence, ImageFile
from ._files import write_whole
from ._reported import (
    MANUFACTURER,
    NOT_A_DEVICE,
    Reported,
    as_sources,
    checked_results,
    device_uid,
    read_sources,
    refuse_source,
)
from ._results import BundleInfo
from ._sr_groups import coded, measurement_groups
from .errors import DicomInputError, MissingDependencyError

__all__ = ["require_highdicom", "sr_report", "write_sr"]

_SERIES_NUMBER = 9900
_PROCEDURES = {  # CID 100, by Modality (0008,0060)
    "CT": Concept("25045-6", "LN", "CT unspecified body region"),
    "MR": Concept("25056-3", "LN", "MRI unspecified body region"),
    "NM": Concept("49118-3", "LN", "NM unspecified body region"),
    "PT": Concept("44136-0", "LN", "PET unspecified body region"),
    **dict.fromkeys(("CR", "DX", "RG"), Concept("43468-8", "LN", "XR unspecified body region")),
}
_ANY_PROCEDURE = Concept("363679005", "SCT", "Imaging procedure")  # CID 100


def require_highdicom() -> None:
    """Import highdicom, or say what to install.

    Raises:
        MissingDependencyError: It, or pydicom, is not installed.
    """
    try:
        import highdicom.sr  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "a DICOM Structured Report was asked for, and highdicom is not installed: "
            'pip install "umd-edge[sr]"'
        ) from error


def sr_report(
    results: Reported | Sequence[Reported],
    source: ImageFile | Sequence[ImageFile],
    *,
    frame: int | None = None,
) -> Any:
    """A DICOM Structured Report of what came out for an image.

    Args:
        results: Classifications, answers, or both, all of one bundle and about the same image.
        source: The DICOM image, as a path or bytes; several where the results are about several
            images of one study together.
        frame: The frame that was looked at, from 1; None means what the results say.

    Returns:
        `highdicom.sr.ComprehensiveSR`, a pydicom dataset; its `save_as` writes a file.

    Raises:
        UsageError: No result, or results of different bundles.
        DicomInputError: The source is no DICOM image, is not the one that the results are about,
            or lacks the identifiers of its study; or several sources are of different studies.
        MissingDependencyError: The extra `sr` is not installed.

    Source: DICOM PS3.3 A.35.3, PS3.16 TID 1500 and TID 1501; IHE RAD AI Results for the model as a
        contributing device whose UID changes with every build.
    """
    require_highdicom()
    listed = checked_results(results)
    sources = as_sources(source)
    if not sources:
        raise DicomInputError("a Structured Report needs the DICOM image that it is about")
    evidence = read_sources(listed, sources, frame)
    if len({item.study_uid for item in evidence}) != 1:
        raise DicomInputError(
            f"{len(evidence)} source images are of different studies (StudyInstanceUID "
            "(0020,000D)); a report belongs to one study: write one for each"
        )
    return _document(listed, evidence)


def write_sr(
    results: Reported | Sequence[Reported],
    source: ImageFile | Sequence[ImageFile],
    path: str | os.PathLike[str],
    *,
    frame: int | None = None,
) -> Path:
    """Write `sr_report` to a file, whole or not at all.

    Args:
        results: As in `sr_report`.
        source: As in `sr_report`.
        path: The file to write; an older one is replaced, a source never.
        frame: As in `sr_report`.

    Returns:
        The path.

    Raises:
        UsageError: The path is that of a source, or as in `sr_report`.
        OSError: The file cannot be written.
    """
    sources = as_sources(source)
    refuse_source(path, sources)
    document = sr_report(results, sources, frame=frame)
    out = io.BytesIO()
    document.save_as(out, enforce_file_format=True)
    write_whole(path, out.getvalue())
    return Path(path)


def _document(results: Sequence[Reported], evidence: Sequence[Evidence]) -> Any:
    """The report as a dataset; what highdicom refuses is told without the values it was given."""
    import highdicom as hd
    from highdicom.sr import ComprehensiveSR
    from pydicom.dataset import Dataset

    class Report(ComprehensiveSR):
        def copy_patient_and_study_information(self, dataset: Dataset) -> None:
            """Copy nothing: what may be known stands in the constructor's arguments."""

    device = _device(results[0].bundle)
    try:
        document = Report(
            evidence=[_dataset(item) for item in evidence],
            content=_content(results, evidence)[0],
            series_instance_uid=hd.UID(),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            **device,
            series_description="umd-edge results, not for diagnosis",
            specific_character_set="ISO_IR 192",
            is_complete=all(item.status == "ok" for item in results),
            is_final=False,
            is_verified=False,
            contributing_equipment=[_equipment(results[0].bundle, device)],
            coding_schemes=[_coding_scheme()],
        )
    except Exception as error:
        problem = type(error).__name__
    else:
        if evidence[0].issuer_of_patient_id:
            document.IssuerOfPatientID = evidence[0].issuer_of_patient_id
        _describe_completion(document, results)
        if _is_ascii(document):  # the default repertoire, which every reader knows
            del document.SpecificCharacterSet
        return document
    # Outside the handler: highdicom's messages quote the values that it was given.
    raise DicomInputError(
        f"the image's identifiers do not fit into a Structured Report ({problem} in highdicom); "
        "check PatientID (0010,0020), AccessionNumber (0008,0050) and StudyID (0020,0010)"
    )


def _device(info: BundleInfo) -> dict[str, Any]:
    """The model as the standard's device, by highdicom's names; an LO holds 64 characters."""
    from . import __version__

    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": info.name[:64],
        "software_versions": [info.version[:64], f"umd-edge {__version__}"],
        "device_serial_number": info.sha256,
    }


def _equipment(info: BundleInfo, device: Mapping[str, Any]) -> Any:
    import highdicom as hd

    equipment = hd.ContributingEquipment(
        **device,
        purpose_of_reference=coded(Concept("109102", "DCM", "Processing Equipment")),
        contribution_description=f"Algorithm that made the report. {NOT_A_DEVICE}",
    )
    equipment.DeviceUID = device_uid(info)
    return equipment


def _coding_scheme() -> Any:
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return CodingSchemeIdentificationItem(
        PRIVATE_SCHEME,
        name="Labels and answers of umd-edge bundles",
        responsible_organization=MANUFACTURER,
    )


def _describe_completion(document: Any, results: Sequence[Reported]) -> None:
    states = list(dict.fromkeys(item.status for item in results if item.status != "ok"))
    if states:
        document.CompletionFlagDescription = f"No finding: {', '.join(states)}"[:64]


def _is_ascii(document: Any) -> bool:
    texts = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")
    return all(str(item.value).isascii() for item in document.iterall() if item.VR in texts)


def _dataset(evidence: Evidence) -> Any:
    """What highdicom takes over from the image, and nothing else of it."""
    from pydicom.dataset import Dataset

    dataset = Dataset()
    dataset.SOPClassUID = evidence.sop_class_uid
    dataset.SOPInstanceUID = evidence.sop_uid
    dataset.SeriesInstanceUID = evidence.series_uid
    dataset.StudyInstanceUID = evidence.study_uid
    dataset.PatientID = evidence.patient_id
    dataset.AccessionNumber = evidence.accession_number
    dataset.StudyID = evidence.study_id
    dataset.StudyDate = evidence.study_date
    dataset.StudyTime = evidence.study_time
    # Type 2 of the standard: must be there, may be empty.
    dataset.PatientName = ""
    dataset.PatientBirthDate = ""
    dataset.PatientSex = ""
    dataset.ReferringPhysicianName = ""
    return dataset


def _content(results: Sequence[Reported], evidence: Sequence[Evidence]) -> Any:
    """The content tree of TID 1500."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    info = results[0].bundle
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=device_uid(info),
            name=MANUFACTURER,
            manufacturer_name=MANUFACTURER,
            model_name=f"{info.name} {info.version}",
            serial_number=info.sha256,
        ),
    )
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=coded(_PROCEDURES.get(evidence[0].modality, _ANY_PROCEDURE)),
        imaging_measurements=measurement_groups(results, evidence),
    )
