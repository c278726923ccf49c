"""Options that write results for other systems: `--out-sr` and `--out-fhir`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ._places import check_place

if TYPE_CHECKING:
    from .._reported import Reported

__all__ = ["ReportFiles", "show_reports", "with_reports"]


@dataclass(slots=True)
class ReportFiles:
    """Where the reports of a command go; writes one of each kind for an image."""

    sr: str | None
    fhir: str | None
    subject: str | None
    _names: dict[str, str] = field(default_factory=dict)
    """Image -> name of its files without the suffix; the same in every run over the same images."""

    def prepare(self, images: Sequence[str]) -> None:
        """Refuse before any work what cannot be written; make the folders.

        Raises:
            UsageError: One file for several images or kinds, a folder that is missing, or a subject
                without `--out-fhir`.
            MissingDependencyError: The extra `sr` is not installed.
        """
        if self.sr is not None:
            from .._sr import require_highdicom

            require_highdicom()
        if self.subject is not None and self.fhir is None:
            raise UsageError("--fhir-subject is for FHIR; give --out-fhir FILE|DIR as well")
        for option, given in (("--out-sr", self.sr), ("--out-fhir", self.fhir)):
            if given is not None:
                _prepare_place(option, given, len(images))
        if self.sr is not None and self.sr == self.fhir and not _is_folder(self.sr):
            raise UsageError(f"--out-sr and --out-fhir both name {self.sr!r}; give each its own")
        taken: set[str] = set()
        for image in images:
            stem = name = Path(image).stem or "image"
            number = 2
            while name in taken:  # images of the same name in different folders
                name, number = f"{stem}-{number}", number + 1
            taken.add(name)
            self._names[image] = name

    def write(
        self,
        image: str,
        results: Reported | Sequence[Reported],
        *,
        sources: Sequence[str] | None = None,
        frame: int | None = None,
    ) -> dict[str, Any]:
        """Write the reports of one image.

        Args:
            image: As the user named it; gives the files in a folder their names.
            results: What came out.
            sources: The image files behind it, where they are not `image` itself.
            frame: The frame that was looked at; None means what the results say.

        Returns:
            The JSON key `reports` with the paths, or nothing where none was asked for.
        """
        files = list(sources or [image])
        written: dict[str, str] = {}
        if self.sr is not None:
            from .._sr import write_sr

            path = self._path(self.sr, image, ".sr.dcm")
            written["sr"] = str(write_sr(results, files, path, frame=frame))
        if self.fhir is not None:
            from .._fhir import write_fhir

            path = self._path(self.fhir, image, ".fhir.json")
            written["fhir"] = str(
                write_fhir(results, files, path, frame=frame, subject=self.subject)
            )
        return {"reports": written} if written else {}

    def _path(self, given: str, image: str, suffix: str) -> Path:
        if not _is_folder(given):
            return Path(given)
        name = self._names.get(image) or Path(image).stem or "image"
        return Path(given) / f"{name}{suffix}"


def show_reports(result: Mapping[str, Any]) -> None:
    """Say where the reports of a result lie."""
    for path in result.get("reports", {}).values():
        click.echo(f"  report in {path}")


def _is_folder(given: str) -> bool:
    return given.endswith(("/", os.sep)) or Path(given).is_dir()


def _prepare_place(option: str, given: str, images: int) -> None:
    if not given:
        raise UsageError(f"{option} '' names no file; give a file, or a folder with / at the end")
    if _is_folder(given):
        folder = Path(given)
    elif images > 1:
        raise UsageError(
            f"{option} {given!r} is one file and {images} images were given; name a folder, with / "
            "at the end where it is to be made"
        )
    else:
        folder = Path(given).parent
    try:
        if _is_folder(given):
            folder.mkdir(parents=True, exist_ok=True)
        writable = folder.is_dir() and os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UsageError(f"{option}: the folder {str(folder)!r} is missing or cannot be written")
    if not _is_folder(given):
        check_place(option, given)


def with_reports(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the reports, and hand the command `reports`."""

    @click.option(
        "--out-sr",
        metavar="FILE|DIR",
        help="Also write a DICOM Structured Report of each DICOM image.",
    )
    @click.option(
        "--out-fhir", metavar="FILE|DIR", help="Also write FHIR R4 resources of each image."
    )
    @click.option(
        "--fhir-subject", metavar="REFERENCE", help="The patient in FHIR, such as Patient/123."
    )
    @functools.wraps(command)
    def wrapped(
        out_sr: str | None, out_fhir: str | None, fhir_subject: str | None, **rest: Any
    ) -> Any:
        return command(reports=ReportFiles(out_sr, out_fhir, fhir_subject), **rest)

    return wrapped
