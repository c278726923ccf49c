"""Folders and DICOMDIRs of images, sorted into studies, series and instances.

Files are told apart by content, never by name. What is no image (a report, a presentation state, a
text file) is left out and told to the caller; an image that turns out to be damaged stays in the
list, so that whoever decodes it reports it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ._dicom_facts import identity, no_image
from ._dicom_file import guarded, read_directory, read_header
from ._image import file_kind
from .errors import DicomInputError, ImageInputError, MissingDependencyError, UmdEdgeError

__all__ = ["Instance", "Series", "Study", "list_images", "list_studies"]

Kind = Literal["image", "dicom", "clip"]
OnLeftOut = Callable[[str, str], None]
OnProgress = Callable[[int, int], None]

MAX_FILES = 1_000_000
_HEAD_BYTES = 4096
_DIRECTORY_NAME = "DICOMDIR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One image file."""

    path: str
    """As `Predictor.encode` takes it."""
    kind: Kind
    """`image` for PNG and JPEG, `clip` for MP4, AVI and MPEG."""
    frames: int = 1
    """Of a DICOM object; 1 for others, whose frames are not counted here."""
    number: int | None = None
    """InstanceNumber (0020,0013)."""
    series_number: int | None = None
    """SeriesNumber (0020,0011)."""
    study_instance_uid: str | None = field(default=None, repr=False)
    """None for what is not DICOM, or has none."""
    series_instance_uid: str | None = field(default=None, repr=False)
    sop_instance_uid: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Instances of one series, by instance number and path."""

    series_instance_uid: str | None = field(repr=False)
    number: int | None
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Series of one study, by series number; the one without a UID holds what is not DICOM."""

    study_instance_uid: str | None = field(repr=False)
    series: tuple[Series, ...]


def list_images(
    path: str | os.PathLike[str],
    *,
    on_left_out: OnLeftOut = lambda path, reason: None,
    on_progress: OnProgress = lambda done, total: None,
) -> Iterator[Instance]:
    """Every image of a file, a folder (with all folders in it) or a DICOMDIR; see `list_studies`.

    Yields:
        Instances in the order of their studies and series.
    """
    for study in list_studies(path, on_left_out=on_left_out, on_progress=on_progress):
        for series in study.series:
            yield from series.instances


def list_studies(
    path: str | os.PathLike[str],
    *,
    on_left_out: OnLeftOut = lambda path, reason: None,
    on_progress: OnProgress = lambda done, total: None,
) -> tuple[Study, ...]:
    """Sort the images of a file, a folder (with all folders in it) or a DICOMDIR.

    Args:
        path: A folder, in which links to folders are not followed and hidden files are left out; a
            DICOMDIR, whose image records are followed inside its own folder; or one image.
        on_left_out: Called with the path and the reason for each file that is no image.
        on_progress: Called with the files looked at and all files.

    Returns:
        Studies in the order in which their files are met.

    Raises:
        ImageInputError: Nothing there, no permission, or no image in it; a damaged DICOMDIR.
        MissingDependencyError: A DICOMDIR was given, and pydicom is not installed.

    Source: PS3.3 A.1.2 (study, series, instance) and PS3.3 F.3 (DICOMDIR).
    """
    found = []
    files = _files(Path(path))
    for done, file in enumerate(files, start=1):
        instance = _instance(file, on_left_out)
        if instance is not None:
            found.append(instance)
        on_progress(done, len(files))
    if not found:
        raise ImageInputError(
            f"no image in {str(path)!r}; PNG, JPEG, DICOM, MP4, AVI and MPEG files are looked for "
            "by their content"
        )
    return _sorted(found)


def _files(path: Path) -> list[Path]:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return list(_walk(path))
        if stat.S_ISREG(mode) and _is_directory_file(path):
            return _referenced_files(path)
    except UmdEdgeError:
        raise
    except FileNotFoundError as error:
        raise ImageInputError(f"no file or folder at {str(path)!r}; give a path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the path is not valid"
        raise ImageInputError(f"{str(path)!r} cannot be read: {reason}") from error
    return [path]


def _walk(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise error

    count = 0
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or name == _DIRECTORY_NAME:
                continue
            count += 1
            if count > MAX_FILES:
                raise ImageInputError(
                    f"{str(folder)!r} holds more than {MAX_FILES} files; give its folders one by "
                    "one"
                )
            yield Path(parent) / name


def _is_directory_file(path: Path) -> bool:
    return path.name.upper().startswith(_DIRECTORY_NAME) and file_kind(_head(path)) == "dicom"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _referenced_files(path: Path) -> list[Path]:
    """Files of the image records of a DICOMDIR, all of them inside its folder."""
    name = repr(str(path))
    identifiers = guarded(name, lambda pydicom: read_directory(pydicom, path, name))
    root = path.parent
    files = []
    for parts in identifiers:
        if any(part in ("", ".", "..") or "/" in part or "\\" in part for part in parts):
            raise DicomInputError(
                f"{name}: a ReferencedFileID (0004,1500) leads out of the folder; write the "
                "DICOMDIR again"
            )
        file = _on_disk(root, parts)
        if not os.path.realpath(file).startswith(os.path.realpath(root) + os.sep):
            raise DicomInputError(
                f"{name}: a ReferencedFileID (0004,1500) leads through a link out of the folder; "
                "replace the link by the file"
            )
        files.append(file)
    return files


def _on_disk(root: Path, parts: Iterable[str]) -> Path:
    """The file; media are often mounted or copied with names in lower case."""
    place = root
    for part in parts:
        exact = place / part
        place = (
            exact if exact.exists() or not (place / part.lower()).exists() else place / part.lower()
        )
    return place


def _instance(path: Path, on_left_out: OnLeftOut) -> Instance | None:
    """What a file is; None where it is no image, which is told."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            on_left_out(str(path), "no plain file")
            return None
        kind = file_kind(_head(path))
    except OSError:
        return Instance(path=str(path), kind="image")  # whoever decodes it says what is wrong
    if kind is None:
        on_left_out(str(path), "no image by its content")
        return None
    if kind != "dicom":
        return Instance(path=str(path), kind=kind)
    name = repr(str(path))
    try:
        facts = guarded(name, lambda pydicom: _header(pydicom, path, name))
    except (ImageInputError, MissingDependencyError):
        return Instance(path=str(path), kind="dicom")
    if isinstance(facts, str):
        on_left_out(str(path), facts)
        return None
    return Instance(path=str(path), kind="dicom", **facts)


def _header(pydicom: Any, path: Path, name: str) -> dict[str, Any] | str:
    """Fields of `Instance`, or why the object is no image."""
    dataset = read_header(pydicom, path, name)
    other = no_image(dataset)
    if other:
        return f"DICOM, but {other}"
    uids = identity(dataset)
    del uids["sop_class_uid"]
    return {
        "frames": int(dataset.get("NumberOfFrames") or 1),
        "number": _whole(dataset.get("InstanceNumber")),
        "series_number": _whole(dataset.get("SeriesNumber")),
        **uids,
    }


def _whole(value: object) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None


def _sorted(instances: Iterable[Instance]) -> tuple[Study, ...]:
    studies: dict[str | None, dict[str | None, list[Instance]]] = {}
    for instance in instances:
        series = studies.setdefault(instance.study_instance_uid, {})
        series.setdefault(instance.series_instance_uid, []).append(instance)
    return tuple(
        Study(study_instance_uid=uid, series=_sorted_series(series))
        for uid, series in studies.items()
    )


def _sorted_series(groups: dict[str | None, list[Instance]]) -> tuple[Series, ...]:
    series = [
        Series(
            series_instance_uid=uid,
            number=group[0].series_number,
            instances=tuple(sorted(group, key=lambda item: _last_if_none(item.number))),
        )
        for uid, group in groups.items()
    ]
    # Sorting keeps the order of equal ones, which is that of the paths.
    return tuple(sorted(series, key=lambda item: _last_if_none(item.number)))


def _last_if_none(number: int | None) -> tuple[bool, int]:
    return number is None, number or 0
