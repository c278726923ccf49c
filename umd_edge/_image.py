"""From whatever the user has to 8-bit pixels: paths, bytes, PIL images, arrays; PNG, JPEG, DICOM.

Nothing is guessed: an image whose meaning is open (partly transparent, CMYK, animated, 16-bit
colour) is refused with what to do. Sizes are read from the header before anything is decoded.
Pillow and pydicom are imported when they are first needed.
"""

from __future__ import annotations

import os
import stat
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
import numpy.typing as npt

from ._headers import check_size, jpeg_facts, png_facts
from ._preprocess import window_to_uint8
from ._record import dataclass
from .errors import ImageInputError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "DicomFacts",
    "ImageInput",
    "LoadedImage",
    "decode_image",
    "file_kind",
    "kind_of",
    "load_image",
    "looks_like_clip",
    "looks_like_dicom",
    "read_image_file",
]

ImageInput = Union[str, "os.PathLike[str]", bytes, "Image.Image", npt.NDArray[Any]]
UInt8Array = npt.NDArray[np.uint8]

MAX_FILE_BYTES = 512 << 20
_HEAD_BYTES = 512
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_ALLOWED = "PNG, JPEG and DICOM files are allowed"
_ORIENTATION = 0x0112
# EXIF orientation -> (swap axes, flip rows, flip columns), applied in this order.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def _pair(spacing: tuple[float, float] | None) -> list[float] | None:
    return None if spacing is None else list(spacing)


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomFacts:
    """What a DICOM header says about the image. No name, date or number of a patient is read."""

    modality: str | None
    """(0008,0060), or None where absent or empty."""
    body_part_examined: str | None
    """(0018,0015), or None where absent or empty."""
    view_position: str | None = None
    """(0018,5101), or None where absent or empty."""
    burned_in_annotation: str | None = None
    """(0028,0301): YES or NO, or None where absent or empty."""
    photometric: str
    """(0028,0004)."""
    rows: int
    columns: int
    frames: int
    """Number of frames in the object."""
    frame: int | None = 1
    """The frame that was decoded, counted from 1; None in the result of a clip, for several."""
    pixel_spacing_mm: tuple[float, float] | None = None
    """(0028,0030): distance of rows and of columns in the patient; None where absent or broken."""
    imager_pixel_spacing_mm: tuple[float, float] | None = None
    """(0018,1164): the same at the detector, where things look larger than they are."""
    study_instance_uid: str | None = field(default=None, repr=False)
    """(0020,000D), or None where absent or no UID."""
    series_instance_uid: str | None = field(default=None, repr=False)
    """(0020,000E)."""
    sop_instance_uid: str | None = field(default=None, repr=False)
    """(0008,0018)."""
    sop_class_uid: str | None = None
    """(0008,0016)."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object `dicom` of a result."""
        return {
            "study_instance_uid": self.study_instance_uid,
            "series_instance_uid": self.series_instance_uid,
            "sop_instance_uid": self.sop_instance_uid,
            "frame": self.frame,
            "pixel_spacing_mm": _pair(self.pixel_spacing_mm),
            "imager_pixel_spacing_mm": _pair(self.imager_pixel_spacing_mm),
        }


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """Decoded pixels."""

    pixels: UInt8Array
    """(H, W, 1 or 3) uint8, C-contiguous."""
    dicom: DicomFacts | None = None


def load_image(source: ImageInput, *, frame: int | None = None) -> LoadedImage:
    """Decode an image to 8 bits.

    Args:
        source: Path or bytes of a PNG, JPEG or DICOM file (told apart by content, not by name); a
            PIL image; or an array (H, W), (H, W, 1) or (H, W, 3) of uint8, or of uint16, which is
            windowed from its smallest to its largest value.
        frame: Frame of a DICOM object with several, counted from 1.

    Returns:
        Pixels, and the facts of the header for DICOM.

    Raises:
        ImageInputError: Missing, empty, undecodable, ambiguous or too large; above 64 megapixels
            or 512 MiB. `DicomInputError` for DICOM.
        MissingDependencyError: DICOM, and pydicom or a decoder is not installed.
    """
    if isinstance(source, np.ndarray):
        _no_frame(frame)
        return LoadedImage(_from_array(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode_image(bytes(source), "the image", frame)
    if isinstance(source, (str, os.PathLike)):
        if not os.fspath(source):
            raise ImageInputError("the path of the image is empty; give that of a file")
        return decode_image(read_image_file(Path(source)), repr(str(source)), frame)
    # Only a caller that has Pillow can hand over one of its images.
    from PIL import Image

    if isinstance(source, Image.Image):
        _no_frame(frame)
        check_size(source.width, source.height, "the image")
        return LoadedImage(_from_pil(source, "the image"))
    raise ImageInputError(
        f"{type(source).__name__} given; a path, bytes, PIL image or numpy array is needed"
    )


def _no_frame(frame: int | None) -> None:
    if frame is not None:
        raise ImageInputError(
            "a frame was named, but only DICOM objects and clips have frames; leave it out"
        )


def kind_of(source: ImageInput) -> str | None:
    """What a path or bytes are, as `file_kind` says it; None where that cannot be read."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return file_kind(bytes(source[:_HEAD_BYTES]))
    if not isinstance(source, (str, os.PathLike)):
        return None
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):
            return None  # opening a pipe would wait for its other end
        with Path(source).open("rb") as file:
            return file_kind(file.read(_HEAD_BYTES))
    except (OSError, ValueError):
        return None


def read_image_file(path: Path) -> bytes:
    """Bytes of a plain file of at most 512 MiB.

    Raises:
        ImageInputError: Missing, unreadable, no plain file, or too large.
    """
    try:
        # Looked at before it is opened: opening a pipe would wait for its other end.
        facts = path.stat()
        problem = _file_problem(facts)
        data = b"" if problem else path.read_bytes()
    except FileNotFoundError as error:
        raise ImageInputError(f"no file at {str(path)!r}; give the path of an image") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the path is not valid"
        raise ImageInputError(f"{str(path)!r} cannot be read: {reason}") from error
    if problem:
        raise ImageInputError(f"{str(path)!r} {problem}")
    return data


def _file_problem(facts: os.stat_result) -> str:
    if stat.S_ISDIR(facts.st_mode):
        return "is a directory; give one image file"
    if not stat.S_ISREG(facts.st_mode):
        return f"is no plain file; {_ALLOWED}"
    if facts.st_size > MAX_FILE_BYTES:
        return f"has {facts.st_size} bytes; at most {MAX_FILE_BYTES} are allowed"
    return ""


def decode_image(data: bytes, name: str, frame: int | None = None) -> LoadedImage:
    """Decode the bytes of a PNG, JPEG or DICOM file; `name` is for messages. See `load_image`."""
    if not data:
        raise ImageInputError(f"{name} is empty (0 bytes); copy or export it again")
    if len(data) > MAX_FILE_BYTES:
        raise ImageInputError(f"{name} has more than {MAX_FILE_BYTES} bytes")
    if data.startswith((_PNG, _JPEG)):
        _no_frame(frame)
        return LoadedImage(_decode_raster(data, name))
    if looks_like_dicom(data):
        from ._dicom import load_dicom

        return load_dicom(data, name, frame)
    if looks_like_clip(data):
        from ._video import load_clip_frames

        return load_clip_frames(data, name, [frame])[0]
    raise ImageInputError(f"{name} is no image by its content, whatever its name; {_ALLOWED}")


def file_kind(head: bytes) -> Literal["image", "dicom", "clip"] | None:
    """What a file is by its first bytes (of at least 512); None for what is no image at all."""
    if head.startswith((_PNG, _JPEG)):
        return "image"
    if looks_like_dicom(head):
        return "dicom"
    return "clip" if looks_like_clip(head) else None


def looks_like_clip(data: bytes) -> bool:
    """Whether the bytes start like MP4, AVI, or MPEG of any packing."""
    return (
        data[4:8] == b"ftyp"
        or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")
        or data[:4] in (b"\0\0\1\xba", b"\0\0\1\xb3")
        or (data[:1] == data[188:189] == data[376:377] == b"\x47")
    )


def looks_like_dicom(data: bytes) -> bool:
    """Whether the bytes start like a DICOM file, with or without the 128-byte preamble."""
    if b"DICM" in (data[128:132], data[:4]):
        return True
    # Without a preamble the first element is a low one of group 0002 or 0008, little endian, with
    # an explicit VR or a short implicit length.
    if len(data) < 16 or data[:2] not in (b"\x02\x00", b"\x08\x00") or data[3] != 0:
        return False
    length = int.from_bytes(data[4:8], "little")
    return data[4:6] in (b"UL", b"OB", b"UI", b"CS", b"LO", b"SH", b"DA", b"TM") or length <= 128


def _decode_raster(data: bytes, name: str) -> UInt8Array:
    """Decode PNG or JPEG after its header has been looked at."""
    if data.startswith(_PNG):
        png_facts(data, name)
        formats = ("PNG",)
    else:
        jpeg_facts(data, name)
        formats = ("JPEG",)
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            return _from_pil(image, name)
    except ImageInputError:
        raise
    # Pillow and its plug-ins raise OSError, SyntaxError, ValueError, struct.error, zlib.error ...
    except Exception as error:
        raise ImageInputError(
            f"{name} cannot be decoded: the {formats[0]} data is truncated or damaged; "
            "copy or export it again"
        ) from error


def _from_pil(image: Image.Image, name: str) -> UInt8Array:
    try:
        image.load()
        orientation = image.getexif().get(_ORIENTATION, 1)
    except ImageInputError:
        raise
    except Exception as error:
        raise ImageInputError(
            f"{name} cannot be decoded: its data or EXIF block is truncated or damaged; "
            "copy or export it again"
        ) from error
    turns = _TURNS.get(orientation) if isinstance(orientation, int) else None
    if turns is None:
        raise ImageInputError(
            f"{name} has an EXIF orientation outside 1..8; remove the tag or save the image again"
        )
    pixels = _pil_pixels(image, name)
    swap, rows, columns = turns
    if swap:
        pixels = pixels.transpose(1, 0, 2)
    if rows:
        pixels = pixels[::-1]
    if columns:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _pil_pixels(image: Image.Image, name: str) -> UInt8Array:
    """(H, W, 1 or 3) uint8 of any mode that has one meaning."""
    mode = image.mode
    transparency = "transparency" in image.info
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or (transparency and mode in ("P", "L", "RGB")):
        rgba = np.asarray(image.convert("RGBA"))
        if not (rgba[..., 3] == 255).all():
            raise ImageInputError(
                f"{name} is partly transparent, and what lies behind is not known; flatten it onto "
                "the background that you want and save it again"
            )
        return rgba[..., :3]
    if mode in ("L", "1"):
        return np.asarray(image if mode == "L" else image.convert("L"))[..., None]
    if mode in ("RGB", "P"):
        # `convert` copies even where there is nothing to convert.
        return np.asarray(image if mode == "RGB" else image.convert("RGB"))
    if mode in ("I", "I;16", "I;16L", "I;16B", "I;16N") and not transparency:
        return _window_grey(np.asarray(image).astype(np.int64))
    raise ImageInputError(
        f"{name} has the pixel mode {mode!r}; 8-bit grey or RGB, palette and 16-bit grey are "
        "allowed. Convert it to RGB and save it again"
    )


def _window_grey(values: npt.NDArray[Any]) -> UInt8Array:
    """(H, W, 1) uint8 of whole numbers in 0..65535, windowed from the smallest to the largest."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise ImageInputError(f"grey values {low}..{high} given; 0..65535 are allowed")
    if low == high:
        raise ImageInputError("all pixels of the 16-bit image are equal; there is nothing to see")
    return window_to_uint8(values, low, high)[..., None]


def _from_array(array: npt.NDArray[Any]) -> UInt8Array:
    allowed = "(H, W), (H, W, 1) or (H, W, 3) of uint8 or uint16"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise ImageInputError(f"array of shape {array.shape} given; {allowed} is allowed")
    if array.size == 0:
        raise ImageInputError(f"array of shape {array.shape} given, which holds no pixels")
    check_size(array.shape[1], array.shape[0], "the array")
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        low, high = int(array.min()), int(array.max())
        if low == high:
            raise ImageInputError("all pixels of the array are equal; there is nothing to see")
        return np.ascontiguousarray(window_to_uint8(array, low, high))
    raise ImageInputError(
        f"array of dtype {array.dtype} given; {allowed} is allowed. Window it to 8 bits first"
    )
