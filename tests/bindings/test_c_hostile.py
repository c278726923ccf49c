"""Damaged and hostile bundles: a status comes back, the same as Python's verdict, and no crash."""

from __future__ import annotations

import copy
import ctypes
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.bundles import repack, tiny_files, tiny_manifest, unpack, zip_bytes
from support.c_library import CError, CPredictor, OpenOptions, library, onnxruntime_library
from umd_edge import Bundle, BundleError
from umd_edge._json import load_strict

RUNTIME = str(onnxruntime_library()).encode()


def _open_memory(data: bytes) -> str:
    """Name of the status of opening the bytes of a zip."""
    options, handle = OpenOptions(onnxruntime=RUNTIME), ctypes.c_void_p()
    status = library().umd_open_memory(
        data, ctypes.c_size_t(len(data)), ctypes.byref(options), ctypes.byref(handle)
    )
    assert bool(handle) == (status == 0)
    library().umd_close(handle)
    name: bytes = library().umd_status_name(status)
    return name.decode()


def _python(data: bytes, folder: Path) -> str:
    path = folder / "bundle.umd"
    path.write_bytes(data)
    try:
        bundle = Bundle.open(path)
        bundle.check_files()
    except BundleError as error:
        return type(error).__name__
    return "Ok"


def test_a_zip_cut_anywhere_is_refused(tiny_bundle: Path) -> None:
    data = tiny_bundle.read_bytes()
    edges = [0, 1, 4, 21, 22, 29, 30, 31, 43, 44]
    end = [len(data) - n for n in (1, 2, 10, 21, 22, 23, 45, 46, 47, 60, 200, 500)]
    for length in (*edges, *end, *range(100, len(data), 997)):
        assert _open_memory(data[:length]) == "BundleIntegrityError", length


def test_every_changed_byte_of_the_zip_structure_is_noticed(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    data = tiny_bundle.read_bytes()
    (directory,) = struct.unpack("<I", data[-6:-2])
    for position in (
        *range(44),
        *range(directory, directory + 60),
        *range(len(data) - 22, len(data)),
    ):
        broken = bytearray(data)
        broken[position] ^= 0x21
        given = _open_memory(bytes(broken))
        # Dates and versions mean nothing, to Python either; a CRC-32 shows when a file is read.
        wanted = _python(bytes(broken), tmp_path)
        assert (given == "Ok") == (wanted == "Ok"), position


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_noise_is_no_bundle(data: bytes) -> None:
    assert _open_memory(data) == "BundleIntegrityError"


def _zip64_counts(data: bytes) -> bytes:
    return data[:-14] + b"\xff\xff\xff\xff" + data[-10:]


def _huge_directory(data: bytes) -> bytes:
    return data[:-10] + b"\xff\xff\xff\xff" + data[-6:]


@pytest.mark.parametrize("change", [_zip64_counts, _huge_directory, lambda d: d + b"x"])
def test_huge_counts_are_refused(tiny_bundle: Path, change: Callable[[bytes], bytes]) -> None:
    assert _open_memory(change(tiny_bundle.read_bytes())) == "BundleIntegrityError"


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/evil",
        "a\\b",
        "./a",
        "a//b",
        "a/",
        "nul",
        "Com1.txt",
        "a" * 201,
        ".hid",
        "é",
    ],
)
def test_names_that_leave_the_bundle_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "slip.umd"
    with zipfile.ZipFile(path, "w") as archive:
        for known, data in (*tiny_files().items(), (name, b"x")):
            archive.writestr(known, data)
    with pytest.raises(CError, match=r"leave the bundle|extra fields") as caught:
        CPredictor(path)
    assert caught.value.name == "BundleIntegrityError"


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.umd", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in tiny_files().items():
            archive.writestr(name, data)
    with pytest.raises(CError, match="compressed"):
        CPredictor(tmp_path / "z.umd")


def _changed_file(files: dict[str, bytes]) -> None:
    files["graphs/text.int8.onnx"] = files["graphs/text.int8.onnx"][:-1] + b"\xee"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_changed_file, "SHA-256"),
        (lambda f: f.pop("golden.npz"), "missing"),
        (lambda f: f.update(other=b"x"), "does not list"),
        (lambda f: f.update({"tokenizer.json": b"{}"}), "bytes, its manifest says"),
    ],
)
def test_files_other_than_the_manifest_says_are_refused(
    change: Callable[[dict[str, bytes]], object], message: str, tmp_path: Path
) -> None:
    files = tiny_files()
    change(files)
    folder = unpack(tmp_path / "folder", files)
    (tmp_path / "bundle.umd").write_bytes(zip_bytes(files))
    for path in (folder, tmp_path / "bundle.umd"):
        with pytest.raises(CError, match=message) as caught:
            CPredictor(path, variant=b"int8")
        assert caught.value.name == "BundleIntegrityError"


def test_links_and_missing_places_are_refused(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "folder")
    (folder / "golden.npz").unlink()
    (folder / "golden.npz").symlink_to("/etc/hostname")
    with pytest.raises(CError, match="link") as caught:
        CPredictor(folder)
    assert caught.value.name == "BundleIntegrityError"
    for place in (tmp_path / "none", tmp_path / "none" / "deeper"):
        with pytest.raises(CError, match="no bundle at"):
            CPredictor(place)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CError, match=r"no manifest\.json") as caught:
        CPredictor(tmp_path / "empty")
    assert caught.value.name == "BundleNotFoundError"


def test_external_weights_are_refused(tmp_path: Path) -> None:
    files = tiny_files()
    files["graphs/text.int8.onnx"] += b"\x0a\x08location"
    with pytest.raises(CError, match="outside itself"):
        CPredictor(repack(tmp_path / "b.umd", files), variant=b"int8")


@pytest.mark.parametrize("graph", [b"", b"\x00" * 40, b"\x08\x0a\x12\xff\xff\xff\xff\x0f"])
def test_graphs_that_are_none_are_refused(graph: bytes, tmp_path: Path) -> None:
    files = {**tiny_files(), "graphs/vision.int8.onnx": graph}
    with pytest.raises(CError) as caught:
        CPredictor(repack(tmp_path / "b.umd", files), variant=b"int8")
    assert caught.value.name == "BundleIntegrityError"


def test_graphs_with_other_inputs_are_refused(tmp_path: Path) -> None:
    files = tiny_files()
    files["graphs/vision.int8.onnx"] = files["graphs/text.int8.onnx"]
    with pytest.raises(CError, match="other inputs or outputs"):
        CPredictor(repack(tmp_path / "b.umd", files), variant=b"int8")


JSON_CASES = [
    *(b"", b"{", b"[" * 40, b"[" * 33 + b"]" * 33, b"\xef\xbb\xbf{}", b"{} x", b"nul", b"\xff{}"),
    *(b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":Infinity}', b'{"a":1e999}', b'{"a":01}', b'{"a":1.}'),
    *(b'{"a":.5}', b'{"a":+1}', b'{"a":9007199254740993}', b'{"a":' + b"1" * 41 + b"}", b"{a:1}"),
    *(b'{"a":"\\ud800"}', b'{"a":"\\udc00\\ud800"}', b'{"a":"\\x"}', b'{"a":"\n"}', b'{"a":"x}'),
    *(
        b"{'a':1}",
        b"[1,]",
        b'{"a":1,}',
        b'["\\u12"]',
        b"[1 2]",
        b'{"a" 1}',
        b"[1e]",
        b"-",
        b"[\x00]",
    ),
]


@pytest.mark.parametrize("source", JSON_CASES)
def test_json_that_is_not_strict_is_refused(source: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        load_strict(source)
    files = {**tiny_files(), "manifest.json": source}
    (tmp_path / "b.umd").write_bytes(zip_bytes(files))
    with pytest.raises(CError, match="strict JSON") as caught:
        CPredictor(tmp_path / "b.umd")
    assert caught.value.name == "ManifestError"


def test_json_at_its_limits_is_read(tmp_path: Path) -> None:
    deep: Any = {
        "integer": 2**53,
        "negative": -(2**53),
        "real": -1.5e-300,
        "text": "\U0001f600é\t/",
    }
    for _ in range(29):
        deep = [deep]

    path = repack(tmp_path / "b.umd", edit=lambda m: m["extensions"].update(deep=deep))
    assert CPredictor(path).describe().task_count == 4


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path of a JSON value."""
    found = [path]
    if isinstance(value, dict):
        for key in value:
            found += _places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            found += _places(value[index], (*path, index))
    return found


MANIFEST = tiny_manifest()
SKIPPED = {"provenance", "extensions"}
PLACES = [place for place in _places(MANIFEST)[1:] if place[0] not in SKIPPED]
OTHERS = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2.5,
    1e30,
    "",
    " ",
    "x",
    "../x",
    [],
    ["x"],
    [1],
    {},
    {"x": 1},
]


def _altered(place: tuple[Any, ...], value: Any, action: str) -> dict[str, Any]:
    manifest = copy.deepcopy(MANIFEST)
    parent = manifest
    for key in place[:-1]:
        parent = parent[key]
    if action == "delete":
        del parent[place[-1]]
    elif action == "add" and isinstance(parent, dict):
        parent["unknown"] = value
    else:
        parent[place[-1]] = value
    return manifest


@given(
    st.sampled_from(PLACES),
    st.sampled_from(OTHERS),
    st.sampled_from(["set", "set", "delete", "add"]),
)
@settings(max_examples=150, deadline=None)
def test_an_altered_manifest_gets_the_verdict_of_python(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], value: Any, action: str
) -> None:
    files = tiny_files()
    files["manifest.json"] = json.dumps(_altered(place, value, action)).encode()
    data = zip_bytes(files)
    given, wanted = _open_memory(data), _python(data, tmp_path_factory.getbasetemp())
    if wanted != "Ok":
        assert given == wanted, (place, value, action)
    elif place[0] not in (
        "variants",
        "preprocessing",
        "tasks",
        "structured_fields",
        "default_variant",
    ):
        # These also change what the graphs must look like, which Python checks later.
        assert given == "Ok", (place, value, action)


@pytest.mark.parametrize(
    ("edit", "name", "message"),
    [
        (lambda m: m.update(format_version=2), "BundleVersionError", "format_version 2"),
        (lambda m: m.update(requires=["new"]), "BundleVersionError", "'new'"),
        (lambda m: m.update(tasks=m["tasks"] * 2), "ManifestError", "names must differ"),
        (lambda m: m.update(tasks=[{}] * 2000), "ManifestError", "1024"),
        (lambda m: m.update(other=1), "ManifestError", "unknown key 'other'"),
        (
            lambda m: m["tasks"][0].update(answers=["a", "b", "a"]),
            "ManifestError",
            "occur twice",
        ),
    ],
)
def test_manifests_are_refused_with_the_reason(
    edit: Callable[[dict[str, Any]], object], name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CError, match=message) as caught:
        CPredictor(repack(tmp_path / "b.umd", edit=edit))
    assert caught.value.name == name


@pytest.mark.parametrize(
    "golden", [b"", b"PK", zip_bytes({"image.npy": b"\x93NUMPY\x01\x00\xff\xff"}), zip_bytes({})]
)
def test_an_unreadable_golden_file_is_refused(golden: bytes, tmp_path: Path) -> None:
    opened = CPredictor(repack(tmp_path / "b.umd", {**tiny_files(), "golden.npz": golden}))
    with pytest.raises(CError, match="golden file") as caught:
        opened.selftest()
    assert caught.value.name == "BundleIntegrityError"
