"""Images or texts encoded once for many rankings, in memory and as a file.

The file is an `.npz` of plain arrays (nothing pickled, nothing compressed): what the graphs gave,
the SHA-256 of each image's bytes or each text, and which bundle, variant, task and provider made
it. It holds no pixels and no texts, but the images' paths as given; what is in it comes from the
images, so it deserves the same care. A file that another bundle made, or a damaged one, is never
used: it is refused, or made again where the caller says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ._files import whole_file
from ._json import load_strict
from ._results import Timing
from .errors import GalleryError, UsageError

__all__ = ["MAX_GALLERY_BYTES", "Gallery", "GalleryMaker", "Kind"]

Kind = Literal["image", "text"]
Float32Array: TypeAlias = npt.NDArray[np.float32]

MAX_GALLERY_BYTES = 2 << 30
_FORMAT = 1
_ARRAYS: dict[str, tuple[str, int]] = {
    "about": ("|u1", 1),
    "digests": ("|u1", 2),
    "embeddings": ("<f4", 2),
    "lengths": ("<i8", 1),
    "outside": ("|b1", 1),
    "tokens": ("<f4", 2),
}


@dataclass(frozen=True, slots=True)
class GalleryMaker:
    """What computed a gallery; another one may compute something else."""

    bundle_sha256: str
    variant: str
    task: str
    provider: str
    int8_path: str

    def differences(self, other: GalleryMaker) -> list[str]:
        """`variant 'fp32' instead of 'int8'`, for each field that differs from `other`."""
        mine, wanted = asdict(self), asdict(other)
        return [
            f"{name} {mine[name]!r} instead of {wanted[name]!r}"
            for name in mine
            if mine[name] != wanted[name]
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gallery:
    """N images or N texts, encoded; made by `Predictor.gallery`. Arrays are not to be written to.

    Example:
        >>> gallery = predictor.gallery(images=paths)  # doctest: +SKIP
        >>> gallery.save("films.npz")  # doctest: +SKIP
        >>> films = umd_edge.Gallery.load("films.npz")  # doctest: +SKIP
        >>> predictor.rank(films, ["pleural effusion"]).images_for(0, 5)  # doctest: +SKIP
    """

    kind: Kind
    maker: GalleryMaker
    digests: npt.NDArray[np.uint8] = field(repr=False)
    """(N, 32) uint8: SHA-256 of the bytes of an image file, or of a text as the model reads it."""
    embeddings: Float32Array = field(repr=False)
    """(N, E) float32, unit vectors."""
    lengths: npt.NDArray[np.int64] = field(repr=False)
    """(N,) int64: how many rows of `tokens` each item has."""
    tokens: Float32Array | None = field(repr=False)
    """(sum of lengths, D) float32: all items' tokens, one after the other; None where they were
    not read or not wanted, and then only the method `embedding` can rank."""
    outside: npt.NDArray[np.bool_] = field(repr=False)
    """(N,) bool: whether an image's DICOM header contradicts the task."""
    names: tuple[str, ...] = field(repr=False)
    """Paths of images as given, empty for other images; empty for texts."""
    texts: tuple[str, ...] = field(default=(), repr=False)
    """Texts as given in this process; none for images, or where read from a file."""
    timing: Timing = field(default_factory=Timing)
    """What making it took; nothing where it was read from a file."""

    def __len__(self) -> int:
        return len(self.digests)

    def rows(self) -> dict[bytes, int]:
        """Digest -> the first row that has it."""
        found: dict[bytes, int] = {}
        for row, digest in enumerate(self.digests):
            found.setdefault(digest.tobytes(), row)
        return found

    def tokens_of(self, row: int) -> Float32Array:
        """(L, D) float32: one item's tokens; none where the gallery has none."""
        if self.tokens is None:
            return self.embeddings[:0]
        start = int(self.lengths[:row].sum())
        return self.tokens[start : start + int(self.lengths[row])]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; it appears whole or not at all.

        Raises:
            UsageError: The gallery has no tokens, or the file cannot be written.
        """
        if self.tokens is None:
            raise UsageError("this gallery was read without its tokens; save the whole one")
        about = {"format": _FORMAT, "kind": self.kind, **asdict(self.maker), "names": self.names}
        arrays: dict[str, npt.NDArray[Any]] = {
            "about": np.frombuffer(json.dumps(about).encode("ascii"), np.uint8),
            "digests": self.digests,
            "embeddings": self.embeddings,
            "lengths": self.lengths,
            "outside": self.outside,
            "tokens": self.tokens,
        }
        try:
            with whole_file(path) as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise UsageError(
                f"the gallery {os.fspath(path)!r} cannot be written: {error.strerror}; name a file "
                "in a folder that exists and may be written to"
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, tokens: bool = True) -> Gallery:
        """Read a saved gallery, without trusting it.

        Args:
            path: What `save` wrote.
            tokens: False leaves them unread: faster, and enough for the method `embedding`.

        Raises:
            GalleryError: Missing, damaged, above 2 GiB, or not a gallery.
        """
        place = Path(path)
        try:
            arrays = _read_arrays(place, [n for n in _ARRAYS if tokens or n != "tokens"])
            return _from_arrays(arrays)
        except GalleryError:
            raise
        except FileNotFoundError as error:
            raise GalleryError(
                f"no gallery at {str(place)!r}; make one with Predictor.gallery or umd-edge rank"
            ) from error
        except PermissionError as error:
            raise GalleryError(
                f"the gallery {str(place)!r} cannot be read: {error.strerror}"
            ) from error
        # zipfile, numpy's header reader and struct raise a dozen classes.
        except Exception as error:
            raise _bad(place, "it is damaged") from error

    def check(self, kind: Kind, maker: GalleryMaker) -> None:
        """Refuse a gallery of the other kind, or one that something else computed.

        Raises:
            GalleryError: With what differs.
        """
        if self.kind != kind:
            raise GalleryError(f"a gallery of {self.kind}s given where one of {kind}s is needed")
        differences = self.maker.differences(maker)
        if differences:
            raise GalleryError(
                f"this gallery of {kind}s was made with {', '.join(differences)}; make it again, "
                "or use what made it"
            )


def _bad(path: Path, problem: str) -> GalleryError:
    return GalleryError(f"{str(path)!r} is no usable gallery: {problem}; make it again")


def _read_arrays(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    import zipfile  # only galleries and golden files need it

    if path.exists() and not path.is_file():
        raise _bad(path, "it is no plain file")
    size = path.stat().st_size
    if size > MAX_GALLERY_BYTES:
        raise _bad(path, f"it has {size} bytes; at most {MAX_GALLERY_BYTES} are allowed")
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if sorted(member.filename for member in members) != [f"{name}.npy" for name in _ARRAYS]:
            raise _bad(path, f"it holds other arrays than {list(_ARRAYS)}")
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > size:
            raise _bad(path, "it is compressed or ends early")
        result = {}
        for name in names:
            with archive.open(f"{name}.npy") as member:
                result[name] = _read_array(
                    member, archive.getinfo(f"{name}.npy").file_size, *_ARRAYS[name]
                )
    return result


def _read_array(file: IO[bytes], size: int, dtype: str, rank: int) -> npt.NDArray[Any]:
    """Read one `.npy`; its size is compared with its header before anything is allocated."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("npy version")
    shape, fortran, given = np.lib.format.read_array_header_1_0(file)
    if given != np.dtype(dtype) or len(shape) != rank or (fortran and rank > 1):
        raise ValueError("another dtype, rank or order")
    count = given.itemsize
    for length in shape:
        count *= length
    if min(shape) < 0 or count != size - file.tell():
        raise ValueError("size and header differ")
    array: npt.NDArray[Any] = np.empty(shape, given)
    rest = array.data.cast("B") if array.size else memoryview(b"")
    while len(rest):
        done = file.readinto(rest[: 1 << 24])  # type: ignore[attr-defined]
        if not done:
            raise ValueError("ends early")
        rest = rest[done:]
    if file.read(1):  # reading to the end makes zipfile compare the CRC-32
        raise ValueError("longer than its header says")
    array.flags.writeable = False
    return array


def _from_arrays(arrays: dict[str, npt.NDArray[Any]]) -> Gallery:
    about = load_strict(arrays["about"].tobytes())
    if about["format"] != _FORMAT:
        raise GalleryError(
            f"the gallery has format {about['format']!r}, this version of umd-edge reads {_FORMAT};"
            " make it again"
        )
    maker = {name: about[name] for name in GalleryMaker.__dataclass_fields__}
    names = about["names"]
    texts_only = [about["kind"], *maker.values(), *names]
    digests, embeddings, lengths = arrays["digests"], arrays["embeddings"], arrays["lengths"]
    tokens = arrays.get("tokens")
    count = len(digests)
    sizes = {len(embeddings), len(lengths), len(arrays["outside"]), len(names)}
    sound = (
        all(isinstance(item, str) for item in texts_only)
        and about["kind"] in ("image", "text")
        and sizes == {count}
        and digests.shape[1] == 32
        and bool((lengths >= 1).all())
        and bool((lengths <= MAX_GALLERY_BYTES).all())
        and (tokens is None or int(lengths.sum()) == len(tokens))
        and (about["kind"] == "text" or len(set(lengths.tolist())) <= 1)
        and bool(np.isfinite(embeddings).all())
    )
    if not sound:
        raise ValueError("parts that do not fit each other")
    return Gallery(
        kind=about["kind"],
        maker=GalleryMaker(**maker),
        digests=digests,
        embeddings=embeddings,
        lengths=lengths,
        tokens=tokens,
        outside=arrays["outside"],
        names=tuple(names),
    )
