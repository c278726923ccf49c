"""Plain arrays in an `.npz`: nothing pickled, sizes compared before anything is allocated."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ._container import write_zip
from .errors import BundleIntegrityError

__all__ = ["read_arrays", "write_arrays"]

_MAX_BYTES = 256 << 20

Array = npt.NDArray[Any]


def read_arrays(data: bytes, what: str) -> dict[str, Array]:
    """Read a `.npz` of a bundle without pickle and without trusting its sizes.

    Args:
        data: The file.
        what: What the file is, for errors, such as `golden file`.

    Returns:
        Key -> array, read-only.

    Raises:
        BundleIntegrityError: No npz, larger than 256 MiB, or an array that is not plain numbers.
    """

    def bad(problem: str) -> BundleIntegrityError:
        return BundleIntegrityError(f"the bundle's {what} {problem}; fetch the bundle again")

    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > _MAX_BYTES:
                raise bad("unpacks to more than 256 MiB")
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays:
                    raise bad("holds an array twice")
                with archive.open(member) as file:
                    arrays[name] = _read_array(file.read(member.file_size))
    except BundleIntegrityError:
        raise
    # zipfile and numpy's header reader raise a dozen classes, tokenize.TokenError among them.
    except Exception as error:
        raise bad("is no readable npz file") from error
    return arrays


def write_arrays(arrays: Mapping[str, Array]) -> bytes:
    """Bytes of a `.npz`: the same arrays give the same bytes; nothing is compressed."""
    files = {}
    for name, array in arrays.items():
        file = io.BytesIO()
        np.lib.format.write_array(file, np.ascontiguousarray(array), (1, 0), allow_pickle=False)
        files[name + ".npy"] = file.getvalue()
    out = io.BytesIO()
    write_zip(files, out)
    return out.getvalue()


def _read_array(data: bytes) -> Array:
    """Read one `.npy`; the size is compared with the header before anything is allocated."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError("npy version")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError("only plain numbers are allowed")
    body = data[file.tell() :]
    count = 1
    for length in shape:
        count *= length
    if count * dtype.itemsize != len(body):
        raise ValueError("size and header differ")
    array: Array = np.frombuffer(body, dtype=dtype)
    return array.reshape(shape, order="F" if fortran else "C")
