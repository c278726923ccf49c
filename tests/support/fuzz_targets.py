"""What the fuzzer and hypothesis call with bytes, for each kind of input that others send us.

A target returns, or raises what is a fault: an error outside the tree of `umd_edge.errors`, or an
answer that breaks a rule. It never raises because an input is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from support.bundles import TINY, tiny_files, zip_bytes
from support.clips import make_clip, moving_bar
from support.pictures import encode, gradient, make_dicom, png_header
from umd_edge import Bundle, Manifest, Predictor, UmdEdgeError
from umd_edge._audit_chain import encode_line, verify_log
from umd_edge._image import load_image
from umd_edge._json import dump_canonical, load_strict
from umd_edge._selftest import read_golden
from umd_edge._signature import read_public_keys
from umd_edge._structured import encode_structured
from umd_edge._tokenizer import TextTokenizer
from umd_edge._video import load_clip

MAX_PIXELS = 64_000_000
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    memory_bytes: int
    """Most that one input of at most 64 KiB may allocate in Python."""


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Let errors of the documented tree pass, and warnings too: they are not what is looked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UmdEdgeError as error:
            assert str(error), "an error without a message"
            assert error.exit_code in (2, 3, 4, 5), f"{type(error).__name__} is an internal error"


def run_image(data: bytes) -> None:
    """PNG and JPEG; the first byte says whether the checksums of a PNG are put right."""
    mode, body = data[:1], data[1:]
    if body.startswith(_PNG) and mode > b"\x7f":
        body = _with_right_checksums(body)
    with _refusals():
        _check_pixels(load_image(body).pixels)


def run_dicom(data: bytes) -> None:
    """DICOM; the first byte names a frame, or none."""
    frame = data[0] % 8 if data else 0
    with _refusals():
        loaded = load_image(data[1:], frame=frame or None)
        _check_pixels(loaded.pixels)
        assert "Secret" not in repr(loaded.dicom)


def run_clip(data: bytes) -> None:
    """A clip; the first byte says how many frames are taken."""
    with _refusals():
        clip = load_clip(data[1:], frames=1 + data[0] % 4 if data else 1)
        assert clip.images
        for loaded in clip.images:
            _check_pixels(loaded.pixels)


def _check_pixels(pixels: np.ndarray) -> None:
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (1, 3)
    assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
    assert pixels.flags.c_contiguous


def _with_right_checksums(data: bytes) -> bytes:
    out, position = bytearray(data[:8]), 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        end = position + 8 + length
        if end + 4 > len(data):
            break
        out += data[position:end] + zlib.crc32(data[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
    return bytes(out + data[position:])


def run_manifest(data: bytes) -> None:
    """`manifest.json`; what is accepted comes back the same."""
    with _refusals():
        manifest = Manifest.from_bytes(data)
        assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def run_json(data: bytes) -> None:
    """Strict JSON, and values for the structured fields of a task."""
    fields = _tiny_manifest().structured_fields
    try:
        value = load_strict(data)
    except ValueError:
        return
    assert load_strict(dump_canonical(value)) == value
    if isinstance(value, dict):
        with _refusals():
            values, mask = encode_structured(value, fields, allowed=[f.name for f in fields])
            assert np.isfinite(values).all() and set(np.unique(mask)) <= {0.0, 1.0}


def run_zip(data: bytes) -> None:
    """A `.umd` file: the bytes themselves, or after an odd first byte changes of the tiny one."""
    body = _patched(data[1:]) if data[:1] and data[0] % 2 else data[1:]
    with tempfile.NamedTemporaryFile(suffix=".umd") as file:
        file.write(body)
        file.flush()
        with _refusals():
            bundle = Bundle.open(file.name)
            bundle.check_files()
            assert bundle.manifest_bytes in body


def _patched(changes: bytes) -> bytes:
    """The tiny bundle with bytes changed: three bytes of place and one of value, each."""
    bundle = bytearray(TINY.read_bytes())
    # The zip's own structure is at the end and at the beginning: look there more often.
    for start in range(0, len(changes) - 3, 4):
        place = int.from_bytes(changes[start : start + 3], "little")
        index = -1 - place // 2 % 2000 if place % 2 else place // 2 % len(bundle)
        bundle[index] = changes[start + 3]
    return bytes(bundle)


def run_tokenizer(data: bytes) -> None:
    """A text for the tiny tokenizer, or after an odd first byte a tokenizer's file."""
    with _refusals():
        if data[:1] and data[0] % 2:
            tokenizer = TextTokenizer.from_bytes(data[1:], 12)
            text = "is there a pleural effusion ?"
        else:
            tokenizer = _tiny_tokenizer()
            text = data[1:].decode("utf-8", "surrogateescape" if data[:1] == b"\0" else "replace")
        ids, mask = tokenizer.encode([text])
        assert ids.shape == mask.shape and 0 < ids.shape[1] <= 12
        assert ids.min() >= 0 and (mask == 1).all()


def run_golden(data: bytes) -> None:
    """`golden.npz`."""
    with _refusals():
        assert all(array.dtype.kind in "biuf" for array in read_golden(data).values())


def run_audit(data: bytes) -> None:
    """An audit log."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with _refusals():
            report = verify_log(file.name)
            assert report.records > 0 and report.torn_bytes <= len(data)


def run_key(data: bytes) -> None:
    """A file of public keys."""
    with _refusals():
        assert all(len(key.raw) == 32 for key in read_public_keys(data))


def run_http(data: bytes) -> None:
    """A request: `METHOD PATH` and header lines, an empty line, the body."""
    status, body = _loop().run_until_complete(_request(data))
    assert 200 <= status < 500, f"status {status}: {body[:200]!r}"
    if status >= 400 and body:
        assert json.loads(body)["error"]["type"].endswith("Error")


async def _request(data: bytes) -> tuple[int, bytes]:
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, _, target = first.partition(b" ")
    path, _, query = target.partition(b"?")
    headers = [tuple(part.strip() for part in line.partition(b":")[::2]) for line in lines]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method.decode("latin-1"),
        "scheme": "http",
        "path": path.decode("utf-8", "replace") or "/",
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in headers],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8765),
    }
    pieces = [body[: len(body) // 2], body[len(body) // 2 :]]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    await _app()(scope, receive, send)
    (start,) = (message for message in sent if message["type"] == "http.response.start")
    answer = b"".join(message.get("body", b"") for message in sent)
    return start["status"], answer


@cache
def _app() -> Any:
    from umd_edge.serve import ServeOptions, create_app

    return create_app(_tiny_predictor(), ServeOptions(workers=1, max_request_bytes=1 << 20))


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@cache
def _tiny_manifest() -> Manifest:
    return Bundle.open(TINY).manifest


@cache
def _tiny_tokenizer() -> TextTokenizer:
    return TextTokenizer.from_bytes(tiny_files()["tokenizer.json"], 12)


@cache
def _tiny_predictor() -> Predictor:
    return Predictor.load(TINY)


def _image_seeds() -> list[bytes]:
    picture = Image.fromarray(gradient(20, 24))
    turned = Image.Exif()
    turned[0x0112] = 6
    found = [
        encode(picture),
        encode(picture.convert("L")),
        encode(picture.convert("P")),
        encode(picture.convert("LA")),
        encode(picture.convert("1")),
        encode(Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20))),
        encode(picture, "JPEG"),
        encode(picture, "JPEG", progressive=True, quality=20),
        encode(picture, "JPEG", exif=turned),
        encode(picture.convert("CMYK"), "JPEG"),
        png_header(60_000, 60_000),
    ]
    return [bytes([mode]) + data for data in found for mode in (0, 255)]


def _dicom_seeds() -> list[bytes]:
    from pydicom.uid import ImplicitVRLittleEndian, RLELossless

    grey = gradient(12, 16)[..., 0]
    wide = grey.astype(np.uint16) * 200
    found = [
        make_dicom(grey),
        make_dicom(wide, WindowCenter="1000", WindowWidth="500", RescaleSlope="2"),
        make_dicom(wide.astype(np.int16) - 900, PhotometricInterpretation="MONOCHROME1"),
        make_dicom(gradient(12, 16), PhotometricInterpretation="YBR_FULL"),
        make_dicom(np.stack([grey, grey + 1, grey + 2])),
        make_dicom(grey, TransferSyntaxUID=ImplicitVRLittleEndian),
        make_dicom(grey)[132:],
    ]
    with contextlib.suppress(Exception):  # a codec that is not installed
        import pydicom

        dataset = pydicom.dcmread(io.BytesIO(make_dicom(grey)))
        dataset.compress(RLELossless)
        out = io.BytesIO()
        dataset.save_as(out)
        found.append(out.getvalue())
    return [bytes([frame]) + data for data in found for frame in (0, 2)]


def _clip_seeds() -> list[bytes]:
    kinds = (("mp4", "mpeg4"), ("avi", "mpeg4"), ("mpeg", "mpeg1video"), ("avi", "mjpeg"))
    found = []
    for kind, codec in kinds:
        with contextlib.suppress(Exception):  # a codec that this ffmpeg lacks
            found.append(make_clip(moving_bar(4, 16, 16), kind, codec))
    assert found
    return [bytes([count]) + data for data in found for count in (0, 2)]


def _http_seeds() -> list[bytes]:
    png = encode(Image.fromarray(gradient(16, 16)))
    host = b"host: 127.0.0.1:8765"
    form = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        + png
        + b'\r\n--b\r\nContent-Disposition: form-data; name="task"\r\n\r\nskin-lesion\r\n--b--\r\n'
    )
    typed = b"content-type: multipart/form-data; boundary=b"
    return [
        *(b"GET %s\n%s\n\n" % (path, host) for path in (b"/", b"/healthz", b"/v1/info", b"/x")),
        b"POST /v1/classify\n%s\n%s\n\n%s" % (host, typed, form),
        b"POST /v1/ask?question=what%%20?\n%s\n\n%s" % (host, png),
        b"POST /v1/images\n%s\ncontent-type: image/png\n\n%s" % (host, png),
        b'POST /v1/ask\n%s\ncontent-type: application/json\n\n{"image_id": "x", "question": "?"}'
        % host,
        b"DELETE /v1/images/abc\n%s\n\n" % host,
        b"POST /v1/preview\n%s\n%s\n\n%s" % (host, typed, form),
        b"GET /v1/info\nhost: evil.example\norigin: http://evil.example\n\n",
    ]


def _audit_seeds() -> list[bytes]:
    lines, previous = [], "0" * 64
    for seq in range(3):
        record = {"audit": 1, "seq": seq, "previous": previous, "time": "2026", "event": "result"}
        line, previous = encode_line(record)
        lines.append(line + b"\n")
    return [b"".join(lines), b"".join(lines)[:-9]]


def _zip_seeds() -> list[bytes]:
    return [b"\0" + TINY.read_bytes(), b"\1" + bytes(40), b"\0" + zip_bytes({"a": b"b"})]


def _tokenizer_seeds() -> list[bytes]:
    texts = ["is there a pleural effusion ?", "É ﬁ 肺", "a" * 300, "[CLS] [SEP]"]
    return [b"\1" + tiny_files()["tokenizer.json"], *(b"\2" + text.encode() for text in texts)]


def _key_seeds() -> list[bytes]:
    from umd_edge._signature import PublicKey

    return [PublicKey(bytes(range(32))).to_pem(), bytes(32), b"ab" * 32]


_SMALL, _LARGE = 64 << 20, 1 << 30

TARGETS = {
    "image": Target(run_image, _image_seeds, _LARGE),
    "dicom": Target(run_dicom, _dicom_seeds, _LARGE),
    "clip": Target(run_clip, _clip_seeds, _LARGE),
    "manifest": Target(run_manifest, lambda: [tiny_files()["manifest.json"]], _SMALL),
    "json": Target(run_json, lambda: [b'{"age": 61, "itch": true, "region": "face"}'], _SMALL),
    "zip": Target(run_zip, _zip_seeds, _SMALL),
    "tokenizer": Target(run_tokenizer, _tokenizer_seeds, _SMALL),
    "golden": Target(run_golden, lambda: [tiny_files()["golden.npz"]], 300 << 20),
    "audit": Target(run_audit, _audit_seeds, _SMALL),
    "key": Target(run_key, _key_seeds, _SMALL),
    "http": Target(run_http, _http_seeds, _LARGE),
}


def findings(name: str) -> list[Path]:
    """Inputs that were once a fault, for one target."""
    folder = Path(__file__).resolve().parent.parent / "fuzz" / "findings" / name
    return sorted(folder.iterdir()) if folder.is_dir() else []
