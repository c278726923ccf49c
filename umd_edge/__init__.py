"""Classify medical images and answer questions about them on edge devices.

A `Predictor` opens a bundle and answers::

    import umd_edge

    predictor = umd_edge.Predictor.load("model.umd")
    encoded = predictor.encode("chest.dcm")
    print(encoded.ask("Which organ is shown?").text)

Importing the package loads next to nothing: numpy, onnxruntime, tokenizers, Pillow and pydicom come
with their first use. It is not a medical device.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from .errors import (
    AuditError,
    AuditWriteError,
    BundleError,
    BundleIntegrityError,
    BundleNotFoundError,
    BundleSignatureError,
    BundleVersionError,
    CancelledError,
    DataError,
    DeadlineExceededError,
    DicomInputError,
    GalleryError,
    ImageInputError,
    InferenceError,
    InputError,
    ManifestError,
    MissingDependencyError,
    ProviderError,
    ProviderUnavailableError,
    SelfTestError,
    StoppedError,
    StructuredInputError,
    TextInputError,
    UmdEdgeError,
    UnknownTaskError,
    UsageError,
)

if TYPE_CHECKING:
    from ._audit import AuditLog
    from ._bundle import Bundle
    from ._clip import EncodedClip
    from ._combine import EncodedStudy
    from ._deadline import CancelToken, limited
    from ._encoded import EncodedImage
    from ._explanation import Explanation
    from ._fhir import fhir_report, write_fhir
    from ._gallery import Gallery
    from ._image import DicomFacts
    from ._manifest import Manifest
    from ._map import Outcome
    from ._options import SessionOptions
    from ._predictor import Predictor
    from ._rank import Match, Ranking
    from ._results import (
        Alternative,
        Answer,
        BundleInfo,
        Classification,
        ClipFrames,
        Embeddings,
        Finding,
        LeftOut,
        StudyImages,
        Timing,
    )
    from ._sr import sr_report, write_sr
    from ._study import Instance, Series, Study, list_images, list_studies
    from ._swap import PredictorSlot
    from ._trust_curves import OperatingPoint
    from ._trust_sets import PredictionSet

__version__ = "0.1.0"

__all__ = [
    "Alternative",
    "Answer",
    "AuditError",
    "AuditLog",
    "AuditWriteError",
    "Bundle",
    "BundleError",
    "BundleInfo",
    "BundleIntegrityError",
    "BundleNotFoundError",
    "BundleSignatureError",
    "BundleVersionError",
    "CancelToken",
    "CancelledError",
    "Classification",
    "ClipFrames",
    "DataError",
    "DeadlineExceededError",
    "DicomFacts",
    "DicomInputError",
    "Embeddings",
    "EncodedClip",
    "EncodedImage",
    "EncodedStudy",
    "Explanation",
    "Finding",
    "Gallery",
    "GalleryError",
    "ImageInputError",
    "InferenceError",
    "InputError",
    "Instance",
    "LeftOut",
    "Manifest",
    "ManifestError",
    "Match",
    "MissingDependencyError",
    "OperatingPoint",
    "Outcome",
    "PredictionSet",
    "Predictor",
    "PredictorSlot",
    "ProviderError",
    "ProviderUnavailableError",
    "Ranking",
    "SelfTestError",
    "Series",
    "SessionOptions",
    "StoppedError",
    "StructuredInputError",
    "Study",
    "StudyImages",
    "TextInputError",
    "Timing",
    "UmdEdgeError",
    "UnknownTaskError",
    "UsageError",
    "__version__",
    "fhir_report",
    "limited",
    "list_images",
    "list_studies",
    "sr_report",
    "write_fhir",
    "write_sr",
]

# Each name comes with the module that defines it, when it is first used.
_HOMES = {
    "Alternative": "_results",
    "Answer": "_results",
    "AuditLog": "_audit",
    "Bundle": "_bundle",
    "BundleInfo": "_results",
    "CancelToken": "_deadline",
    "Classification": "_results",
    "ClipFrames": "_results",
    "DicomFacts": "_image",
    "Embeddings": "_results",
    "EncodedClip": "_clip",
    "EncodedImage": "_encoded",
    "EncodedStudy": "_combine",
    "Explanation": "_explanation",
    "Finding": "_results",
    "Gallery": "_gallery",
    "Instance": "_study",
    "LeftOut": "_results",
    "Manifest": "_manifest",
    "Match": "_rank",
    "OperatingPoint": "_trust_curves",
    "Outcome": "_map",
    "PredictionSet": "_trust_sets",
    "Predictor": "_predictor",
    "PredictorSlot": "_swap",
    "Ranking": "_rank",
    "Series": "_study",
    "SessionOptions": "_options",
    "Study": "_study",
    "StudyImages": "_results",
    "Timing": "_results",
    "fhir_report": "_fhir",
    "limited": "_deadline",
    "list_images": "_study",
    "list_studies": "_study",
    "sr_report": "_sr",
    "write_fhir": "_fhir",
    "write_sr": "_sr",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


logging.getLogger("umd_edge").addHandler(logging.NullHandler())
