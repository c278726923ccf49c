"""What this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from . import __version__
from ._predictor import Predictor
from ._session import available_providers, needs_u8u8
from .errors import UmdEdgeError

__all__ = ["Check", "examine"]

_RUNTIME = ("numpy", "onnxruntime", "tokenizers", "pillow", "click")
_EXTRAS = {
    "dicom": ("pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "python-gdcm"),
    "train": ("torch", "transformers", "accelerate", "safetensors"),
    "export": ("torch", "onnx", "onnxscript", "optimum"),
    "tensorrt": ("tensorrt-rtx",),
}
_PURPOSE = {
    "dicom": "to read DICOM files",
    "train": "to train models",
    "export": "to make bundles",
    "tensorrt": "to run on NVIDIA GPUs through TensorRT",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "absent", "problem"]
    """`absent` is optional and no fault; a `problem` keeps the runtime from working."""
    detail: str
    advice: str = ""
    """What to do; empty where nothing is."""
    exit_code: int = 0
    """Of the error behind a problem."""

    def to_dict(self) -> dict[str, str]:
        """The JSON object."""
        return {
            "name": self.name,
            "state": self.state,
            "detail": self.detail,
            "advice": self.advice,
        }


def examine(load: Callable[[], Predictor] = Predictor.default) -> Iterator[Check]:
    """Look at the installation, the processor and a bundle, one after the other.

    Args:
        load: Opens the bundle to try; the default one unless told otherwise.
    """
    yield Check("umd-edge", "ok", __version__)
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield Check("python", "ok", f"{platform.python_version()} on {system}")
    for package in _RUNTIME:
        yield _package(package)
    yield Check("providers", "ok", ", ".join(available_providers()))
    yield _processor()
    for extra, packages in _EXTRAS.items():
        yield _extra(extra, packages)
    yield _bundle(load)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(package: str) -> Check:
    version = _version(package)
    if version is None and package == "onnxruntime":
        # The GPU and OpenVINO builds bring the same module under other names.
        import onnxruntime

        return Check(package, "ok", f"{onnxruntime.__version__} (another distribution of it)")
    if version is None:
        advice = "pip install --force-reinstall umd-edge"
        return Check(package, "problem", "not installed", advice, exit_code=5)
    return Check(package, "ok", version)


def _processor() -> Check:
    if needs_u8u8():
        return Check(
            "8-bit arithmetic",
            "ok",
            "no VNNI instructions found: variants with 8-bit weights take a slower way that "
            "cannot saturate",
            "measure with `umd-edge bench`, also with --variant fp32",
        )
    return Check("8-bit arithmetic", "ok", "native 8-bit dot products")


def _extra(extra: str, packages: tuple[str, ...]) -> Check:
    versions = {package: _version(package) for package in packages}
    missing = [package for package, version in versions.items() if version is None]
    if missing:
        return Check(
            f"extra {extra}",
            "absent",
            f"without {', '.join(missing)}",
            f'pip install "umd-edge[{extra}]" {_PURPOSE[extra]}',
        )
    return Check(f"extra {extra}", "ok", ", ".join(f"{k} {v}" for k, v in versions.items()))


def _bundle(load: Callable[[], Predictor]) -> Check:
    try:
        predictor = load()
        report = predictor.verify()
    except UmdEdgeError as error:
        return Check("bundle", "problem", " ".join(str(error).split()), "", error.exit_code)
    detail = describe(predictor)
    return Check("bundle", "ok", f"{detail}; {len(report.checks)} self-tests passed")


def describe(predictor: Predictor) -> str:
    """Name, version, variant and hash of a bundle in a few words."""
    info: Any = predictor.info
    return f"{info.name} {info.version} {predictor.variant} (sha256 {info.sha256[:12]})"
