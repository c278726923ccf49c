"""The bundle's `manifest.json`: what each key means, and nothing else is accepted.

`docs/bundle-format.md` describes the format, `manifest.schema.json` states it for other tools. The
one rule to remember: an unknown key is an error unless it stands under `extensions`, and a name in
`requires` that this runtime does not know means that it must not be used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from ._fields import (
    fail,
    file_,
    free_object,
    integer,
    is_safe_path,
    list_,
    object_,
    strings,
    text,
)
from ._json import dump_canonical, load_strict
from ._ood_spec import MIN_SIDE
from ._preprocess import PreprocessSpec
from ._record import dataclass
from ._structured import StructuredField
from ._task import TaskSpec, output_name
from .errors import BundleVersionError, ManifestError

__all__ = [
    "FORMAT_VERSION",
    "MAX_FILES",
    "MAX_FILE_BYTES",
    "MAX_MANIFEST_BYTES",
    "PARTS",
    "FileEntry",
    "IntendedUse",
    "Manifest",
    "TokenizerSpec",
    "VariantSpec",
    "is_safe_path",
]

FORMAT_VERSION = 1
KNOWN_FEATURES: frozenset[str] = frozenset()
"""Names that may stand in `requires`; format version 1 defines none."""
KNOWN_THRESHOLDS = frozenset({"abstain"})
"""`abstain`: below this confidence (see `_postprocess.confidence`) the status is `abstain`."""
PARTS = ("vision", "text", "fusion")
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILE_BYTES = 2 << 30
MAX_FILES = 256
_UNLISTED = frozenset({"manifest.json", "manifest.sig"})

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}(?:[-+.]?[A-Za-z0-9.+-]{1,40})?")
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Size and hash of one file of a bundle."""

    size: int
    """Bytes."""
    sha256: str
    """Lower-case hexadecimal."""

    @classmethod
    def from_dict(cls, data: object, path: str) -> FileEntry:
        """Read the JSON object."""
        given = object_(data, path, {"size", "sha256"}, set())
        return cls(
            size=integer(given["size"], f"{path}.size", 0, MAX_FILE_BYTES),
            sha256=text(given["sha256"], f"{path}.sha256", _SHA256, "64 hexadecimal digits"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class IntendedUse:
    """What the bundle is for. Every bundle says that it is not a medical device."""

    statement: str
    users: tuple[str, ...] = ()
    """Who may use it."""
    population: str = ""
    """On which patients and images."""
    limits: tuple[str, ...] = ()
    """What it must not be used for, and where it is known to fail."""

    @classmethod
    def from_dict(cls, data: object) -> IntendedUse:
        """Read the JSON object."""
        path = "intended_use"
        needed = {"statement", "not_a_medical_device"}
        given = object_(data, path, needed, {"users", "population", "limits"})
        if given["not_a_medical_device"] is not True:
            raise fail(f"{path}.not_a_medical_device", "true is the only value allowed")
        population = given.get("population", "")
        if not isinstance(population, str):
            raise fail(f"{path}.population", "a string is needed")
        return cls(
            statement=text(given["statement"], f"{path}.statement"),
            users=strings(given.get("users", []), f"{path}.users"),
            population=population,
            limits=strings(given.get("limits", []), f"{path}.limits"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "statement": self.statement,
            "not_a_medical_device": True,
            "users": list(self.users),
            "population": self.population,
            "limits": list(self.limits),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec:
    """The tokenizer file and the longest text in tokens."""

    file: str
    max_length: int

    @classmethod
    def from_dict(cls, data: object) -> TokenizerSpec:
        """Read the JSON object."""
        given = object_(data, "tokenizer", {"file", "max_length"}, set())
        return cls(
            file=file_(given["file"], "tokenizer.file"),
            max_length=integer(given["max_length"], "tokenizer.max_length", 4, 4096),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"file": self.file, "max_length": self.max_length}


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantSpec:
    """One numeric form of the three graphs."""

    graphs: Mapping[str, str]
    """`vision`, `text` and `fusion` -> path of the ONNX file."""
    golden_tolerance: float
    """Largest absolute difference that the self-test allows for any golden output."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, for people. `weight_bits` is read by the runtime: integer weights of fewer
    than 8 bits never saturate, so processors without VNNI need no slower path."""

    @classmethod
    def from_dict(cls, data: object, path: str) -> VariantSpec:
        """Read the JSON object."""
        given = object_(data, path, {"graphs", "golden_tolerance"}, {"notes"})
        graphs = object_(given["graphs"], f"{path}.graphs", set(PARTS), set())
        tolerance = given["golden_tolerance"]
        if type(tolerance) not in (int, float) or not 0 <= tolerance < math.inf:
            raise fail(f"{path}.golden_tolerance", "a number of at least 0 is needed")
        return cls(
            graphs={part: file_(graphs[part], f"{path}.graphs.{part}") for part in PARTS},
            golden_tolerance=float(tolerance),
            notes=free_object(given.get("notes", {}), f"{path}.notes"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "graphs": dict(self.graphs),
            "golden_tolerance": self.golden_tolerance,
            "notes": dict(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that `manifest.json` says."""

    name: str
    version: str
    """Of the model, `major.minor.patch`."""
    created: str
    """ISO 8601 in UTC to the second, such as `2026-01-31T12:00:00Z`."""
    intended_use: IntendedUse
    preprocessing: PreprocessSpec
    tokenizer: TokenizerSpec
    structured_fields: tuple[StructuredField, ...]
    """In the order of the fusion graph's `structured_values`; at least one."""
    tasks: tuple[TaskSpec, ...]
    variants: Mapping[str, VariantSpec]
    default_variant: str
    opset: int
    golden: str
    """Path of the self-test's inputs and outputs."""
    files: Mapping[str, FileEntry]
    """Every file of the bundle but `manifest.json` and `manifest.sig`."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    extensions: Mapping[str, Any] = field(default_factory=dict)
    requires: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        outputs = {output_name(name) for name in names}
        if not names or len(outputs) != len(names):
            raise fail("tasks", "at least one task is needed, and names must differ")
        fields = [item.name for item in self.structured_fields]
        if not fields or len(set(fields)) != len(fields):
            raise fail("structured_fields", "at least one field is needed, and names must differ")
        for task in self.tasks:
            _check_task(task, set(fields))
        if self.default_variant not in self.variants:
            raise fail("default_variant", f"must be one of {sorted(self.variants)}")
        self._check_files()

    def _check_files(self) -> None:
        used = {self.tokenizer.file, self.golden}
        for variant in self.variants.values():
            used.update(variant.graphs.values())
        scores = [task.out_of_distribution for task in self.tasks if task.out_of_distribution]
        used.update(score.file for score in scores)
        if scores and min(self.preprocessing.height, self.preprocessing.width) < MIN_SIDE:
            raise fail("preprocessing", f"out_of_distribution needs sides of at least {MIN_SIDE}")
        if not used <= set(self.files):
            raise fail("files", f"not listed but used: {sorted(used - set(self.files))}")
        if len(self.files) > MAX_FILES:
            raise fail("files", f"{len(self.files)} files listed; at most {MAX_FILES} are allowed")
        folded = {name.casefold() for name in self.files}
        if len(folded) != len(self.files):
            raise fail("files", "two paths differ in upper and lower case only")
        if folded & _UNLISTED:
            raise fail("files", "manifest.json and manifest.sig are not listed")

    def task(self, name: str) -> TaskSpec | None:
        """The task of that name, or None."""
        return next((task for task in self.tasks if task.name == name), None)

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse the bytes of `manifest.json`.

        Raises:
            ManifestError: Not strict JSON, or a key is missing, unknown or ill-typed.
            BundleVersionError: Another format version, or an unknown name in `requires`.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise ManifestError(
                f"manifest.json: {len(data)} bytes given; at most {MAX_MANIFEST_BYTES} are allowed"
            )
        try:
            parsed = load_strict(data)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"manifest.json: not readable as strict JSON: {error}") from error
        return cls.from_dict(parsed)

    def to_bytes(self) -> bytes:
        """The canonical bytes of `manifest.json`."""
        return dump_canonical(self.to_dict())

    @classmethod
    def from_dict(cls, data: object) -> Manifest:
        """Read the JSON object; see `from_bytes` for what is raised."""
        _check_version(data)
        needed = {"format_version", "requires", "name", "version", "created", "intended_use"}
        needed |= {"preprocessing", "tokenizer", "structured_fields", "tasks", "variants"}
        needed |= {"default_variant", "opset", "golden", "files", "provenance", "extensions"}
        given = object_(data, "top level", needed, set())
        golden = object_(given["golden"], "golden", {"file"}, set())
        variants = free_object(given["variants"], "variants")
        files = free_object(given["files"], "files")
        return cls(
            name=text(given["name"], "name", _NAME, "umd-edge-default"),
            version=text(given["version"], "version", _VERSION, "1.0.0"),
            created=text(given["created"], "created", _CREATED, "2026-01-31T12:00:00Z"),
            intended_use=IntendedUse.from_dict(given["intended_use"]),
            preprocessing=PreprocessSpec.from_dict(given["preprocessing"]),
            tokenizer=TokenizerSpec.from_dict(given["tokenizer"]),
            structured_fields=tuple(
                StructuredField.from_dict(item, f"structured_fields[{index}]")
                for index, item in enumerate(list_(given["structured_fields"], "structured_fields"))
            ),
            tasks=tuple(
                TaskSpec.from_dict(item, f"tasks[{index}]")
                for index, item in enumerate(list_(given["tasks"], "tasks"))
            ),
            variants={
                text(name, "variants", _NAME, "int8"): VariantSpec.from_dict(
                    item, f"variants.{name}"
                )
                for name, item in variants.items()
            },
            default_variant=text(given["default_variant"], "default_variant"),
            opset=integer(given["opset"], "opset", 17, 20),
            golden=file_(golden["file"], "golden.file"),
            files={
                file_(name, f"files[{name[:60]!r}]"): FileEntry.from_dict(item, f"files.{name}")
                for name, item in files.items()
            },
            provenance=free_object(given["provenance"], "provenance"),
            extensions=free_object(given["extensions"], "extensions"),
            requires=strings(given["requires"], "requires"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `from_dict` gives an equal manifest back."""
        return {
            "format_version": FORMAT_VERSION,
            "requires": list(self.requires),
            "name": self.name,
            "version": self.version,
            "created": self.created,
            "intended_use": self.intended_use.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "tokenizer": self.tokenizer.to_dict(),
            "structured_fields": [item.to_dict() for item in self.structured_fields],
            "tasks": [task.to_dict() for task in self.tasks],
            "variants": {name: item.to_dict() for name, item in self.variants.items()},
            "default_variant": self.default_variant,
            "opset": self.opset,
            "golden": {"file": self.golden},
            "files": {name: item.to_dict() for name, item in self.files.items()},
            "provenance": dict(self.provenance),
            "extensions": dict(self.extensions),
        }


def _check_task(task: TaskSpec, fields: set[str]) -> None:
    path = f"task {task.name!r}"
    strangers = sorted(set(task.structured_paths) - fields)
    if strangers:
        raise fail(path, f"reads {strangers}, not in structured_fields")
    unknown = sorted(set(task.thresholds) - KNOWN_THRESHOLDS)
    if unknown:
        raise fail(path, f"unknown thresholds {unknown}; {sorted(KNOWN_THRESHOLDS)} are allowed")


def _check_version(data: object) -> None:
    """Look at the version before anything else: a newer format may have any other keys."""
    if not isinstance(data, dict) or "format_version" not in data:
        raise fail("format_version", "missing; this is not a umd-edge manifest")
    version = data["format_version"]
    if type(version) is not int or version < 1:
        raise fail("format_version", "a positive integer is needed")
    if version != FORMAT_VERSION:
        raise BundleVersionError(
            f"the bundle has format_version {version}; this umd-edge reads {FORMAT_VERSION} only. "
            f"Install an umd-edge that reads format version {version}"
        )
    requires = data.get("requires", [])
    if isinstance(requires, list):
        names = {name for name in requires if isinstance(name, str)}
        unknown = sorted(name[:60] for name in names - KNOWN_FEATURES)
        if unknown:
            raise BundleVersionError(
                f"the bundle requires {unknown}, which this umd-edge does not know; "
                "install a newer umd-edge"
            )
