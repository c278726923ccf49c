"""Every exception that umd-edge raises on purpose, with its exit code.

The tree (exit code in brackets)::

    UmdEdgeError [1]
    |- UsageError [2]
    |  `- UnknownTaskError
    |- BundleError [3]
    |  |- BundleNotFoundError   (also FileNotFoundError)
    |  |- ManifestError         (also ValueError)
    |  |- BundleIntegrityError
    |  |- BundleSignatureError
    |  |- BundleVersionError
    |  `- SelfTestError
    |- InputError [4]           (also ValueError)
    |  |- ImageInputError
    |  |  `- DicomInputError
    |  |- TextInputError
    |  |- StructuredInputError
    |  |- DataError
    |  `- GalleryError
    |- AuditError [3]
    |  `- AuditWriteError [1]
    |- ProviderError [5]
    |  |- ProviderUnavailableError
    |  `- InferenceError
    |- StoppedError [5]
    |  |- CancelledError
    |  `- DeadlineExceededError (also TimeoutError)
    `- MissingDependencyError [5] (also ImportError)

A message says what was given, what is allowed and what to do. It never holds patient data: a DICOM
tag is named, its value is not shown.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AuditError",
    "AuditWriteError",
    "BundleError",
    "BundleIntegrityError",
    "BundleNotFoundError",
    "BundleSignatureError",
    "BundleVersionError",
    "CancelledError",
    "DataError",
    "DeadlineExceededError",
    "DicomInputError",
    "GalleryError",
    "ImageInputError",
    "InferenceError",
    "InputError",
    "ManifestError",
    "MissingDependencyError",
    "ProviderError",
    "ProviderUnavailableError",
    "SelfTestError",
    "StoppedError",
    "StructuredInputError",
    "TextInputError",
    "UmdEdgeError",
    "UnknownTaskError",
    "UsageError",
]


class UmdEdgeError(Exception):
    """Root of the tree: catch this to catch everything that umd-edge raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(UmdEdgeError):
    """A call or a command line asks for something that does not exist."""

    exit_code = 2


class UnknownTaskError(UsageError):
    """The bundle has no task of that name, or the task is of another kind."""


class BundleError(UmdEdgeError):
    """The bundle cannot be used."""

    exit_code = 3


class BundleNotFoundError(BundleError, FileNotFoundError):
    """There is no bundle at the path given."""


class ManifestError(BundleError, ValueError):
    """A manifest or task description has a missing, unknown or ill-typed field."""


class BundleIntegrityError(BundleError):
    """A file's size or SHA-256 differs, a path leaves the bundle, or a limit is exceeded."""


class BundleSignatureError(BundleError):
    """The bundle is not signed, or by none of the keys given."""


class BundleVersionError(BundleError):
    """The bundle needs a newer runtime than this one."""


class SelfTestError(BundleError):
    """The golden vectors do not come out as stored."""


class InputError(UmdEdgeError, ValueError):
    """What the caller handed over cannot be used."""

    exit_code = 4


class ImageInputError(InputError):
    """The image is missing, undecodable, too large, or of a wrong rank or dtype."""


class DicomInputError(ImageInputError):
    """The DICOM file holds no usable image; the message names tags, never their values."""


class TextInputError(InputError):
    """The text is empty, too long for its field, or not wanted by the task."""


class StructuredInputError(InputError):
    """A structured value is unknown, of a wrong type, or not finite."""


class DataError(InputError):
    """A JSONL record cannot be read or does not fit its task."""


class GalleryError(InputError):
    """A saved gallery is missing, damaged, or was made by another bundle, variant or provider."""


class AuditError(UmdEdgeError):
    """An audit log is damaged, was altered, or does not hold what it should."""

    exit_code = 3


class AuditWriteError(AuditError):
    """A record could not be made durable, or another process writes the same audit log."""

    exit_code = 1


class ProviderError(UmdEdgeError):
    """The execution provider failed."""

    exit_code = 5


class ProviderUnavailableError(ProviderError):
    """The provider asked for is not installed or not usable on this machine."""


class InferenceError(ProviderError):
    """A run failed inside the provider; the original error is chained."""


class StoppedError(UmdEdgeError):
    """A call ended before it was done because its caller wanted that; nothing is wrong."""

    exit_code = 5


class CancelledError(StoppedError):
    """The call's `CancelToken` was cancelled."""


class DeadlineExceededError(StoppedError, TimeoutError):
    """The call took longer than its caller allowed."""


class MissingDependencyError(UmdEdgeError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""

    exit_code = 5
