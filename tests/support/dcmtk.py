"""DCMTK's programs, which write DICOM files and render them without a line of this project."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from support.requirements import lacking

_JPEG_LS = (b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.81")


def program(name: str, item: str = "dcmtk") -> str:
    """Path of a program; the test is skipped, or fails where it is required, without it."""
    found = shutil.which(name)
    if found is None:
        lacking(item, f"{name} is not installed (Debian: apt-get install {item})")
    return found


def rewritten(data: bytes, folder: Path, tool: str, *options: str) -> Path:
    """A file that DCMTK wrote from `data`, for instance compressed."""
    source, target = folder / "source.dcm", folder / "written.dcm"
    source.write_bytes(data)
    _run([program(tool), *options, str(source), str(target)])
    return target


def wrapped(picture: Path, folder: Path) -> Path:
    """A DICOM file that DCMTK put around the bytes of a JPEG file."""
    target = folder / "wrapped.dcm"
    _run([program("img2dcm"), str(picture), str(target)])
    return target


def rendered(path: Path, *options: str, frame: int | None = None) -> np.ndarray:
    """(H, W, 1 or 3) uint8 as DCMTK shows it, without overlays."""
    head = path.read_bytes()[:2048]
    tool = "dcml2pnm" if any(uid in head for uid in _JPEG_LS) else "dcmj2pnm"
    target = path.with_suffix(".pnm")
    numbered = ["+F", str(frame)] if frame is not None else []
    _run([program(tool), "-O", "+op", *options, *numbered, str(path), str(target)])
    pixels = np.asarray(Image.open(target))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
