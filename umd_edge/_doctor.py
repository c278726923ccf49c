"""What this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import __version__
from ._onnxruntime import load_onnxruntime
from ._predictor import Predictor
from ._session import available_providers, needs_u8u8
from ._tensorrt_probe import is_installed, probe
from .errors import MissingDependencyError, UmdEdgeError

__all__ = ["Check", "describe", "examine"]

_RUNTIME = ("numpy", "onnxruntime", "tokenizers", "pillow", "click")
_EXTRAS = {
    "dicom": ("pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "pyjpegls", "python-gdcm"),
    "video": ("av",),
    "serve": ("starlette", "uvicorn", "prometheus-client", "python-multipart"),
    "sr": ("highdicom",),
    "sign": ("cryptography",),
    "parquet": ("pyarrow",),
    "sbom": ("cyclonedx-python-lib",),
    "train": ("torch", "transformers", "accelerate", "safetensors"),
    "export": ("torch", "onnx", "onnxscript", "optimum"),
}
_L4T = Path("/etc/nv_tegra_release")
_MODEL = Path("/proc/device-tree/model")
# L4T's major release says which JetPack it is of.
_JETPACKS = {35: "JetPack 5: too old", 36: "JetPack 6", 38: "JetPack 7.0 or 7.1", 39: "JetPack 7.2"}
_PURPOSE = {
    "dicom": "to read DICOM files",
    "video": "to read clips (MP4, AVI, MPEG)",
    "serve": "to answer over HTTP",
    "sr": "to write DICOM Structured Reports",
    "sign": "to check signatures of bundles",
    "parquet": "to write results as Parquet",
    "sbom": "to list what is installed as CycloneDX",
    "train": "to train models",
    "export": "to make bundles",
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
    with contextlib.suppress(MissingDependencyError):  # onnxruntime, which is told above
        yield Check("providers", "ok", ", ".join(available_providers()))
        yield _processor()
    for extra, packages in _EXTRAS.items():
        yield _extra(extra, packages)
    yield from _tensorrt()
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
        try:
            version = load_onnxruntime().__version__
        except MissingDependencyError as error:
            return Check(package, "problem", "not installed", str(error), error.exit_code)
        return Check(package, "ok", f"{version} (another distribution of it)")
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


def _tensorrt() -> Iterator[Check]:
    """The board where it is a Jetson, TensorRT, and the GPU that it would use."""
    board = jetson_release()
    if board is not None:
        yield Check("Jetson", "ok", board)
    if not is_installed():
        advice = (
            "sudo apt install nvidia-jetpack, then python3 -m venv --system-site-packages"
            if board is not None
            else 'pip install "umd-edge[tensorrt]" to run on an NVIDIA GPU'
        )
        yield Check("TensorRT", "absent", "no tensorrt and no tensorrt_rtx", advice)
        return
    facts = probe()
    if facts.library_problem:
        yield Check("TensorRT", "absent", facts.library_problem)
    else:
        yield Check("TensorRT", "ok", f"{facts.library} {facts.version} (experimental)")
    if facts.device is not None:
        device = facts.device
        yield Check("NVIDIA GPU", "ok", f"{device.name}, {device.sm}, driver {device.driver}")
    if facts.device_problem:
        yield Check("TensorRT on this GPU", "absent", facts.device_problem)
    elif facts.usable:
        yield Check(
            "TensorRT on this GPU",
            "ok",
            "starts",
            "umd-edge build-engine, then run with --provider tensorrt",
        )


def jetson_release() -> str | None:
    """Model, L4T release and JetPack of a Jetson; None on other machines."""
    try:
        first = _L4T.read_text(encoding="ascii", errors="replace").splitlines()[0]
    except (OSError, IndexError):
        return None
    found = re.search(r"R(\d+).*?REVISION: ([\d.]+)", first)
    if found is None:
        return "L4T of an unknown release"
    pack = _JETPACKS.get(int(found[1]), "an unknown JetPack")
    try:
        model = _MODEL.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        model = "Jetson"
    return f"{model}, L4T {found[1]}.{found[2]} ({pack})"


def _bundle(load: Callable[[], Predictor]) -> Check:
    try:
        predictor = load()
        report = predictor.verify()
    except UmdEdgeError as error:
        return Check("bundle", "problem", " ".join(str(error).split()), "", error.exit_code)
    detail = describe(predictor)
    bundle = predictor.bundle
    if bundle.is_signed and bundle.signed_by is None:
        detail += "; signed, and the signature is not checked (give --key)"
    return Check("bundle", "ok", f"{detail}; {len(report.checks)} self-tests passed")


def describe(predictor: Predictor) -> str:
    """Name, version, variant and hash of a bundle in a few words."""
    info: Any = predictor.info
    return f"{info.name} {info.version} {predictor.variant} (sha256 {info.sha256[:12]})"
