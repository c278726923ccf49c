"""A software bill of materials (CycloneDX 1.6, JSON) of the runtime as it is installed.

It names umd-edge, every distribution that it needs here, Python, the operating system and a
bundle, each with version, supplier, licence, hashes and what it depends on: the minimum elements of
the NTIA (2021). It is read from the installed files, not from what somebody once wrote down.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import __version__
from ._bundle import Bundle
from ._distributions import Distribution, InstalledFile, closure, installed_extras
from .errors import MissingDependencyError

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

__all__ = ["make_sbom"]

_NATIVE = (".so", ".pyd", ".dll", ".dylib")
_UNKNOWN = "not stated"


def make_sbom(
    bundle: Bundle | None = None, *, extras: Sequence[str] | None = None
) -> tuple[bytes, tuple[str, ...]]:
    """Describe what is installed.

    Args:
        bundle: The model that runs here; it becomes a component of its own.
        extras: Extras of umd-edge that belong to the product; those that are installed where None.

    Returns:
        The JSON document, and the installed files that differ from what their distribution
        recorded, which the document marks too.

    Raises:
        MissingDependencyError: cyclonedx-python-lib or a needed distribution is not installed.
        BundleIntegrityError: A file of the bundle was altered.
    """
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.output import make_outputter
        from cyclonedx.schema import OutputFormat, SchemaVersion
    except ImportError as error:
        raise MissingDependencyError(
            "a bill of materials needs the package cyclonedx-python-lib: "
            'pip install "umd-edge[sbom]"'
        ) from error
    chosen = installed_extras() if extras is None else tuple(extras)
    found = closure(chosen)
    changed: list[str] = []
    components = {name: _component(item, changed) for name, item in found.items()}
    root = components.pop("umd-edge")
    document = Bom(components=components.values())
    document.metadata.component = root
    document.metadata.tools.components.add(_plain("umd-edge", __version__))
    document.properties.add(_property("extras", ", ".join(chosen) or "none"))
    everything = {"umd-edge": root, **components}
    for name, item in found.items():
        document.register_dependency(
            everything[name], [everything[need] for need in item.needs if need in everything]
        )
    beside = [_python(), _system()]
    if bundle is not None:
        beside.append(_bundle(bundle))
    for component in beside:
        document.components.add(component)
    document.register_dependency(root, beside)
    outputter = make_outputter(document, OutputFormat.JSON, SchemaVersion.V1_6)
    return outputter.output_as_string(indent=1).encode("utf-8") + b"\n", tuple(changed)


def _component(item: Distribution, changed: list[str]) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.contact import OrganizationalEntity
    from packageurl import PackageURL

    metadata: Any = item.metadata.metadata
    files = list(item.files())
    altered = [file.name for file in files if not file.is_unchanged()]
    changed.extend(f"{item.name}: {name}" for name in altered)
    state = f"{len(files) - len(altered)} of {len(files)} as recorded"
    return Component(
        name=metadata["Name"],
        version=metadata["Version"],
        type=ComponentType.APPLICATION if item.name == "umd-edge" else ComponentType.LIBRARY,
        bom_ref=f"pkg:pypi/{item.name}@{metadata['Version']}",
        purl=PackageURL("pypi", None, item.name, metadata["Version"]),
        description=metadata["Summary"],
        supplier=OrganizationalEntity(name=_supplier(metadata)),
        licenses=[_licence(text) for text in _licences(metadata)],
        components=[_file(file) for file in files if _is_native(file.name)],
        properties=[_property("files", state)],
    )


def _licences(metadata: Any) -> list[str]:
    """What a distribution says of its licence, in the most exact of the three ways."""
    expression = metadata.get("License-Expression")
    if expression:
        return [expression]
    named = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier") or ()
        if line.startswith("License :: ") and line != "License :: OSI Approved"
    ]
    if named:
        return sorted(set(named))
    text = (metadata.get("License") or "").strip().splitlines()
    return [text[0][:200]] if text else []


def _licence(text: str) -> Any:
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
    from cyclonedx.spdx import fixup_id, is_expression

    known = fixup_id(text)
    if known is not None:
        return DisjunctiveLicense(id=known)
    return LicenseExpression(text) if is_expression(text) else DisjunctiveLicense(name=text)


def _supplier(metadata: Any) -> str:
    for key in ("Author", "Maintainer"):
        if metadata.get(key):
            return " ".join(str(metadata[key]).split())[:200]
    for key in ("Author-email", "Maintainer-email"):
        given = str(metadata.get(key) or "").split(",")[0]
        name = given.partition("<")[0].strip().strip('"')
        if name:
            return name[:200]
    return _UNKNOWN


def _is_native(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.endswith(_NATIVE) or ".so." in base


def _file(file: InstalledFile) -> Component:
    return _hashed("FILE", file.name, file.sha256)


def _hashed(kind: str, name: str, sha256: str, **more: Any) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=name,
        type=ComponentType[kind],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        **more,
    )


def _bundle(bundle: Bundle) -> Component:
    """The model: its hash is that of its manifest, which holds the hash of every other file."""
    bundle.check_files()
    manifest = bundle.manifest
    key = bundle.signed_by
    facts: Iterable[tuple[str, str]] = [
        ("default_variant", manifest.default_variant),
        ("created", manifest.created),
        ("signed_by", key.fingerprint if key else "not checked" if bundle.is_signed else "nobody"),
        ("hash_is_of", "manifest.json"),
    ]
    return _hashed(
        "MACHINE_LEARNING_MODEL",
        manifest.name,
        bundle.sha256,
        version=manifest.version,
        bom_ref=f"bundle:{bundle.sha256}",
        description=manifest.intended_use.statement,
        properties=[_property(name, value) for name, value in facts],
        components=[
            _hashed("DATA", name, entry.sha256) for name, entry in sorted(manifest.files.items())
        ],
    )


def _plain(name: str, version: str, kind: str = "APPLICATION", supplier: str = "") -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.contact import OrganizationalEntity

    return Component(
        name=name,
        version=version,
        type=ComponentType[kind],
        bom_ref=f"{name}@{version}",
        supplier=OrganizationalEntity(name=supplier) if supplier else None,
    )


def _python() -> Component:
    name = platform.python_implementation()
    return _plain(name, platform.python_version(), "PLATFORM", "Python Software Foundation")


def _system() -> Component:
    try:
        facts = platform.freedesktop_os_release()
    except OSError:
        return _plain(platform.system(), platform.release(), "OPERATING_SYSTEM", _UNKNOWN)
    version = facts.get("VERSION_ID") or platform.release()
    return _plain(facts["NAME"], version, "OPERATING_SYSTEM", facts.get("ID", _UNKNOWN))


def _property(name: str, value: str) -> Any:
    from cyclonedx.model import Property

    return Property(name=f"umd-edge:{name}", value=value)
