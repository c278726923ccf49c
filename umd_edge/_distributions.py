"""Which distributions are installed for a purpose, read from their own metadata."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import MissingDependencyError

__all__ = ["RUNTIME_EXTRAS", "Distribution", "InstalledFile", "closure", "installed_extras"]

RUNTIME_EXTRAS = ("dicom", "video", "sr", "sign", "parquet", "sbom", "serve", "tensorrt")
"""Extras that the runtime loads; those for training and export are no part of it."""
_ROOT = "umd-edge"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """A file that a distribution's RECORD lists with its SHA-256."""

    name: str
    """As in RECORD: relative to the folder that holds the distribution."""
    path: Path
    sha256: str
    """Lower-case hexadecimal."""

    def is_unchanged(self) -> bool:
        """Whether the file is there with that hash."""
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError:
            return False
        return digest.hexdigest() == self.sha256


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed distribution and what it needs."""

    metadata: importlib.metadata.Distribution
    needs: list[str] = field(default_factory=list)
    """Normalised names of the distributions that it depends on here."""

    @property
    def name(self) -> str:
        """Normalised: lower case, `-` between words."""
        return _normalised(self.metadata.metadata["Name"])

    def files(self) -> Iterator[InstalledFile]:
        """The files of RECORD that have a SHA-256; bytecode and scripts made later have none."""
        for item in self.metadata.files or ():
            if item.hash is not None and item.hash.mode == "sha256":
                value = item.hash.value
                raw = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
                yield InstalledFile(str(item), Path(str(item.locate())), raw.hex())


def closure(extras: Sequence[str] = ()) -> dict[str, Distribution]:
    """umd-edge and everything that it needs here, by name; umd-edge first.

    Args:
        extras: Names of extras of umd-edge.

    Raises:
        MissingDependencyError: One that is needed is not installed; or `packaging` is not.
    """
    found: dict[str, Distribution] = {}
    done: set[tuple[str, str]] = set()
    waiting = [(_ROOT, "", "umd-edge itself")]
    waiting += [(_ROOT, extra, f"umd-edge[{extra}]") for extra in extras]
    while waiting:
        name, extra, wanted_by = waiting.pop(0)
        if (name, extra) in done:
            continue
        done.add((name, extra))
        item = found.get(name) or _find(name, wanted_by)
        found.setdefault(name, item)
        for needed, its_extras in _requirements(item.metadata, extra):
            if needed not in item.needs and needed != name:
                item.needs.append(needed)
            waiting += [(needed, wanted, name) for wanted in ("", *sorted(its_extras))]
    return found


def installed_extras() -> tuple[str, ...]:
    """The extras of the runtime whose every need is installed."""
    found = []
    for extra in RUNTIME_EXTRAS:
        try:
            closure([extra])
        except MissingDependencyError:
            continue
        found.append(extra)
    return tuple(found)


def _requirements(
    metadata: importlib.metadata.Distribution, extra: str
) -> Iterator[tuple[str, set[str]]]:
    try:
        from packaging.requirements import Requirement
    except ImportError as error:
        raise MissingDependencyError(
            'a bill of materials needs the package packaging: pip install "umd-edge[sbom]"'
        ) from error
    for text in metadata.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None:
            wanted = not extra
        elif extra:
            # Those of the extra alone: without it they would not be there.
            wanted = marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
        else:
            wanted = marker.evaluate({"extra": ""})
        if wanted:
            yield _normalised(requirement.name), set(requirement.extras)


def _find(name: str, wanted_by: str) -> Distribution:
    try:
        return Distribution(importlib.metadata.distribution(name))
    except importlib.metadata.PackageNotFoundError as error:
        # The GPU and OpenVINO builds of onnxruntime bring the same module under other names.
        module = name.replace("-", "_")
        for other in importlib.metadata.packages_distributions().get(module, ()):
            return Distribution(importlib.metadata.distribution(other))
        raise MissingDependencyError(
            f"{name}, which {wanted_by} needs, is not installed; a bill of materials is only made "
            "of a whole installation: pip install --force-reinstall umd-edge"
        ) from error


def _normalised(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
