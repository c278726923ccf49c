"""`libumd_edge` through ctypes: built once a session, called like the Python runtime."""

from __future__ import annotations

import atexit
import ctypes as c
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .requirements import lacking

ROOT = Path(__file__).resolve().parent.parent.parent
BINDINGS = ROOT / "bindings"
INCLUDE = BINDINGS / "c" / "include"
SOURCES = sorted((BINDINGS / "c" / "src").glob("*.c"))
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
LIBRARIES = ["-lm", "-ldl", "-lpthread"]
OK, TWO_STAGE, EMBEDDING, FUSION = 0, 0, 1, 2
UINT8, UINT16, INT16 = 0, 1, 2
MONOCHROME2, MONOCHROME1, RGB = 0, 1, 2


def compiler() -> str:
    """A C compiler, or the test is skipped."""
    found = shutil.which("cc")
    if found is None:
        lacking("cc", "no C compiler `cc` on the path")
    return found


def onnxruntime_library() -> Path:
    """The shared library in the wheel of onnxruntime, or what `UMD_ONNXRUNTIME` names."""
    given = os.environ.get("UMD_ONNXRUNTIME")
    if given:
        return Path(given)
    import onnxruntime

    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not found:
        lacking("cc", "the installed onnxruntime has no shared library for C")
    return found[0]


def build(
    target: Path,
    arguments: Iterable[str],
    sources: Sequence[Path] = SOURCES,
    libraries: Iterable[str] = (),
) -> Path:
    """Compile `sources` into `target`; warnings are errors."""
    flags = ["-std=c11", "-O2", "-ffp-contract=off", "-fvisibility=hidden", *WARNINGS]
    command = [compiler(), *flags, f"-I{INCLUDE}", *arguments, *map(str, sources)]
    done = subprocess.run(
        [*command, "-o", str(target), *libraries, *LIBRARIES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


@functools.cache
def library_path() -> Path:
    """The shared library, built once; `UMD_EDGE_LIBRARY` names another one to be tested."""
    given = os.environ.get("UMD_EDGE_LIBRARY")
    if given:
        return Path(given)
    folder = Path(tempfile.mkdtemp(prefix="libumd_edge-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return build(folder / "libumd_edge.so", ["-shared", "-fPIC"])


class _Struct(c.Structure):
    def __init__(self, **values: Any) -> None:
        super().__init__(struct_size=c.sizeof(self), **values)


class OpenOptions(_Struct):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("threads", c.c_int32),
        ("variant", c.c_char_p),
        ("onnxruntime", c.c_char_p),
        ("log", c.c_void_p),
        ("log_context", c.c_void_p),
        ("allocator", c.c_void_p),
        ("sha256", c.c_char_p),
        ("public_keys", c.c_char_p),
        ("provider", c.c_char_p),
        ("engines", c.c_char_p),
        ("trust_engines", c.c_int32),
        ("reserved", c.c_int32),
    ]


class Description(_Struct):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("task_count", c.c_uint32),
        ("name", c.c_char_p),
        ("version", c.c_char_p),
        ("sha256", c.c_char_p),
        ("statement", c.c_char_p),
        ("variant", c.c_char_p),
        ("int8_path", c.c_char_p),
        ("onnxruntime", c.c_char_p),
        ("height", c.c_int32),
        ("width", c.c_int32),
        ("channels", c.c_int32),
        ("max_length", c.c_int32),
        ("manifest", c.c_void_p),
        ("manifest_size", c.c_size_t),
        ("embedding_size", c.c_size_t),
        ("signature", c.c_int32),
        ("reserved", c.c_int32),
        ("provider", c.c_char_p),
    ]


class Task(_Struct):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("kind", c.c_int32),
        ("name", c.c_char_p),
        ("prompt", c.c_char_p),
        ("output_count", c.c_uint32),
        ("multi_label", c.c_int32),
        ("reads_text", c.c_int32),
        ("reads_values", c.c_int32),
    ]


class Call(_Struct):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("reserved", c.c_uint32),
        ("deadline_ms", c.c_double),
        ("cancel", c.c_void_p),
    ]


class Pixels(_Struct):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("type", c.c_int32),
        ("data", c.c_void_p),
        ("size", c.c_size_t),
        ("stride", c.c_size_t),
        ("width", c.c_uint32),
        ("height", c.c_uint32),
        ("photometric", c.c_int32),
        ("window", c.c_int32),
        ("window_low", c.c_int32),
        ("window_high", c.c_int32),
        ("window_centre", c.c_double),
        ("window_width", c.c_double),
        ("rescale_slope", c.c_double),
        ("rescale_intercept", c.c_double),
        ("dicom_modality", c.c_char_p),
        ("body_part", c.c_char_p),
        ("view", c.c_char_p),
        ("burned_in_annotation", c.c_char_p),
    ]


class ResultInfo(_Struct):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("status", c.c_int32),
        ("reason", c.c_char_p),
        ("task", c.c_char_p),
        ("count", c.c_uint32),
        ("reserved", c.c_uint32),
        ("text_ms", c.c_double),
        ("fusion_ms", c.c_double),
        ("total_ms", c.c_double),
        ("ood_score", c.c_double),
    ]


class Item(_Struct):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("positive", c.c_int32),
        ("name", c.c_char_p),
        ("probability", c.c_double),
        ("output", c.c_uint32),
        ("logit", c.c_float),
        ("point", c.c_int32),
        ("reserved", c.c_int32),
        ("threshold", c.c_double),
        ("sensitivity", c.c_double),
        ("specificity", c.c_double),
    ]


class Value(c.Structure):
    _fields_ = [("name", c.c_char_p), ("text", c.c_char_p), ("number", c.c_double)]


class ClassifyOptions(_Struct):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("value_count", c.c_uint32),
        ("values", c.POINTER(Value)),
        ("text", c.c_char_p),
        ("sensitivity", c.c_double),
        ("specificity", c.c_double),
    ]


class Member(c.Structure):
    _fields_ = [("output", c.c_uint32), ("states", c.c_int32)]


class Set(_Struct):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("n", c.c_uint32),
        ("complete", c.c_int32),
        ("other", c.c_int32),
    ]


class Match(c.Structure):
    _fields_ = [("index", c.c_uint32), ("score", c.c_float), ("match_logit", c.c_float)]


class SelftestReport(_Struct):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("checks", c.c_uint32),
        ("files", c.c_uint32),
        ("reserved", c.c_uint32),
        ("worst_difference", c.c_double),
        ("tolerance", c.c_double),
    ]


class CError(Exception):
    """A status that is not UMD_OK; the name is that of the Python class."""

    def __init__(self, status: int) -> None:
        super().__init__(library().umd_last_error().decode())
        self.status = status
        self.name = library().umd_status_name(status).decode()


@functools.cache
def library() -> Any:
    """The loaded library, with the result types that are no status."""
    loaded = c.CDLL(str(library_path()))
    for name in ("umd_last_error", "umd_version", "umd_status_name"):
        getattr(loaded, name).restype = c.c_char_p
    return loaded


def check(status: int) -> None:
    """Raise what went wrong."""
    if status != OK:
        raise CError(status)


def pixels_of(image: np.ndarray[Any, Any], **facts: Any) -> Pixels:
    """Describe an array (H, W) or (H, W, 1 or 3), of any strides along the rows."""
    types = {"uint8": UINT8, "uint16": UINT16, "int16": INT16}
    facts.setdefault("photometric", RGB if image.ndim == 3 and image.shape[2] == 3 else MONOCHROME2)
    size = (image.shape[0] - 1) * image.strides[0] + image[0].nbytes
    return Pixels(
        type=types[image.dtype.name],
        data=image.ctypes.data,
        size=size,
        stride=image.strides[0],
        width=image.shape[1],
        height=image.shape[0],
        **facts,
    )


class CImage:
    """An encoded image."""

    def __init__(self, handle: c.c_void_p) -> None:
        self.handle = handle

    def __del__(self) -> None:
        library().umd_image_free(self.handle)

    def embedding(self) -> np.ndarray[Any, Any]:
        """(D,) float32."""
        return _fill(functools.partial(library().umd_embed_image, self.handle), np.float32)

    def ask(
        self,
        question: str | bytes,
        task: str | None = None,
        call: Call | None = None,
        coverage: float | None = None,
    ) -> CResult:
        """Items of the answer."""
        arguments = (_bytes(question), _bytes(task), _ref(call))
        return self._result(library().umd_ask, *arguments, coverage=coverage)

    def classify(
        self,
        task: str,
        text: str | None = None,
        structured: Mapping[str, Any] | None = None,
        call: Call | None = None,
        coverage: float | None = None,
        **wanted: float,
    ) -> CResult:
        """Items of the classification; `sensitivity` or `specificity` may be wanted."""
        given = structured or {}
        values = (Value * max(1, len(given)))(*[_value(k, v) for k, v in given.items()])
        options = ClassifyOptions(
            value_count=len(given), values=values, text=_bytes(text), **wanted
        )
        arguments = (_bytes(task), c.byref(options), _ref(call))
        return self._result(library().umd_classify, *arguments, coverage=coverage)

    def _result(self, function: Any, *arguments: Any, coverage: float | None) -> CResult:
        out = c.c_void_p()
        check(function(self.handle, *arguments, c.byref(out)))
        return CResult(out, coverage)


def _value(name: str, value: Any) -> Value:
    if isinstance(value, str):
        return Value(name.encode(), value.encode(), 0.0)
    return Value(name.encode(), None, float(value))


def _bytes(text: str | bytes | None) -> bytes | None:
    return text.encode() if isinstance(text, str) else text


def _ref(struct: c.Structure | None) -> Any:
    return None if struct is None else c.byref(struct)


def _fill(function: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """Ask for the size, then for the values."""
    count = c.c_size_t()
    check(function(None, c.byref(count)))
    values = np.zeros(count.value, dtype)
    check(function(values.ctypes.data_as(c.c_void_p), c.byref(count)))
    return values


class CResult:
    """An answer or classification, copied out."""

    def __init__(self, handle: c.c_void_p, coverage: float | None = None) -> None:
        try:
            self._read(handle)
            self.set = None if coverage is None else _read_set(handle, coverage)
        finally:
            library().umd_result_free(handle)

    def _read(self, handle: c.c_void_p) -> None:
        info = ResultInfo()
        check(library().umd_get_result(handle, c.byref(info)))
        self.status, self.reason = info.status, info.reason.decode()
        self.task = info.task.decode()
        self.total_ms = info.total_ms
        self.ood_score = info.ood_score
        self.items = []
        self.points = []
        for index in range(info.count):
            item = Item()
            check(library().umd_get_item(handle, c.c_uint32(index), c.byref(item)))
            self.items.append(
                (item.name.decode(), item.probability, bool(item.positive), item.logit)
            )
            point = (item.point, item.threshold, item.sensitivity, item.specificity)
            self.points.append(point)


def _read_set(handle: c.c_void_p, coverage: float) -> tuple[list[tuple[int, int]], int, bool, int]:
    """Members (output, states), records behind the set, whether it is complete, and `other`."""
    found, count = Set(), c.c_size_t()
    function = functools.partial(library().umd_get_set, handle, c.c_double(coverage))
    check(function(c.byref(found), None, c.byref(count)))
    members = (Member * max(1, count.value))()
    check(function(c.byref(found), members, c.byref(count)))
    read = [(item.output, item.states) for item in members[: count.value]]
    return read, found.n, bool(found.complete), found.other


class CPredictor:
    """An opened bundle."""

    def __init__(self, path: Path | str, **options: Any) -> None:
        self.handle = c.c_void_p()
        options.setdefault("onnxruntime", str(onnxruntime_library()).encode())
        given = OpenOptions(**options)
        check(library().umd_open(str(path).encode(), c.byref(given), c.byref(self.handle)))

    def __del__(self) -> None:
        library().umd_close(self.handle)

    def describe(self) -> Description:
        """What the bundle says."""
        facts = Description()
        check(library().umd_describe(self.handle, c.byref(facts)))
        return facts

    def encode(self, image: np.ndarray[Any, Any], call: Call | None = None, **facts: Any) -> CImage:
        """Encode an array."""
        return self.encode_pixels(pixels_of(image, **facts), call)

    def encode_pixels(self, pixels: Pixels, call: Call | None = None) -> CImage:
        """Encode pixels described by the caller."""
        out = c.c_void_p()
        check(library().umd_encode(self.handle, c.byref(pixels), _ref(call), c.byref(out)))
        return CImage(out)

    def preprocess(self, image: np.ndarray[Any, Any], **facts: Any) -> np.ndarray[Any, Any]:
        """(C * H * W,) float32."""
        pixels = pixels_of(image, **facts)
        return _fill(
            functools.partial(library().umd_preprocess, self.handle, c.byref(pixels)), np.float32
        )

    def tokenize(self, text: str | bytes) -> list[int]:
        """`input_ids` of a text."""
        function = functools.partial(library().umd_tokenize, self.handle, _bytes(text))
        ids: list[int] = _fill(function, np.int64).tolist()
        return ids

    def selftest(self) -> SelftestReport:
        """Run the golden vectors."""
        report = SelftestReport()
        check(library().umd_selftest(self.handle, None, c.byref(report)))
        return report
