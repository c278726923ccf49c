from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from support.bundles import repack, tiny_files, unpack, zip_bytes
from umd_edge import (
    Bundle,
    BundleError,
    BundleIntegrityError,
    BundleNotFoundError,
    ManifestError,
    Predictor,
    _arrays,
)
from umd_edge._selftest import read_golden, write_golden


def _library_zip(path: Path, entries: list[tuple[object, bytes]], method: int = 0) -> Path:
    """A zip by the standard library, with whatever names, links and methods it can write."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "graphs/../../evil", "/etc/evil", "C:\\evil", "a\\b", "./a", "a//b", "a/"),
        *("nul", "a" * 300, "a/b/c/d/e/f/g/h/i", ".hidden", "dot.", "é", "sp ace", "new\nline"),
    ],
)
def test_zip_slip_and_odd_names_are_refused(name: str, tmp_path: Path):
    path = _library_zip(
        tmp_path / "b.umd", [*((n, d) for n, d in tiny_files().items()), (name, b"x")]
    )
    with pytest.raises(BundleIntegrityError, match=r"may leave the bundle|damaged|extra fields"):
        Bundle.open(path)


def test_link_in_a_zip_is_refused(tmp_path: Path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = _library_zip(tmp_path / "b.umd", [*tiny_files().items(), (info, b"/etc/passwd")])
    with pytest.raises(BundleIntegrityError, match="link"):
        Bundle.open(path)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links on this system")
@pytest.mark.parametrize("target", ["/etc/passwd", "tokenizer.json", "/"])
def test_link_in_a_directory_is_refused(tmp_path: Path, target: str):
    folder = unpack(tmp_path / "b")
    (folder / "link").symlink_to(target)
    with pytest.raises(BundleIntegrityError, match="link"):
        Bundle.open(folder)


def test_link_put_there_after_opening_is_not_followed(tmp_path: Path):
    folder = unpack(tmp_path / "b")
    bundle = Bundle.open(folder)
    copy = tmp_path / "copy"
    (folder / "golden.npz").rename(copy)
    (folder / "golden.npz").symlink_to(copy)
    with pytest.raises(BundleIntegrityError, match="cannot be opened"):
        bundle.read("golden.npz")


def test_pipe_in_a_directory_is_refused(tmp_path: Path):
    folder = unpack(tmp_path / "b")
    os.mkfifo(folder / "pipe")
    with pytest.raises(BundleIntegrityError, match="not a plain file"):
        Bundle.open(folder)


def test_compressed_members_are_refused(tmp_path: Path):
    path = _library_zip(tmp_path / "b.umd", list(tiny_files().items()), zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleIntegrityError, match="compressed"):
        Bundle.open(path)


def test_decompression_bomb_is_refused_without_unpacking(tmp_path: Path):
    path = tmp_path / "b.umd"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("manifest.json", bytes(50_000_000))
    with pytest.raises(BundleIntegrityError, match="compressed"):
        Bundle.open(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["golden.npz", "GOLDEN.npz", "manifest.json"])
def test_duplicate_names_are_refused(tmp_path: Path, name: str):
    path = _library_zip(tmp_path / "b.umd", [*tiny_files().items(), (name, b"other")])
    with pytest.raises(BundleIntegrityError, match="twice"):
        Bundle.open(path)


def test_data_before_the_zip_is_refused(tmp_path: Path):
    path = tmp_path / "b.umd"
    path.write_bytes(b"#!/bin/sh\n" + zip_bytes(tiny_files()))
    with pytest.raises(BundleIntegrityError):
        Bundle.open(path)


def test_hidden_bytes_between_entries_are_refused(tmp_path: Path):
    data = bytearray(zip_bytes(tiny_files()))
    end = len(data) - 22
    offset = struct.unpack_from("<I", data, end + 16)[0]
    data[offset:offset] = b"hidden"
    struct.pack_into("<I", data, end + 6 + 16, offset + 6)
    (tmp_path / "b.umd").write_bytes(data)
    with pytest.raises(BundleIntegrityError, match="between"):
        Bundle.open(tmp_path / "b.umd")


def test_comment_and_trailing_bytes_are_refused(tmp_path: Path):
    path = _library_zip(tmp_path / "b.umd", list(tiny_files().items()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"hello"
    with pytest.raises(BundleIntegrityError):
        Bundle.open(path)
    path.write_bytes(zip_bytes(tiny_files()) + b"\0")
    with pytest.raises(BundleIntegrityError):
        Bundle.open(path)


def test_local_header_that_differs_from_the_directory_is_refused(tmp_path: Path):
    data = bytearray(zip_bytes(tiny_files()))
    start = data.index(b"manifest.json")
    data[start : start + 13] = b"manifest.jsox"
    (tmp_path / "b.umd").write_bytes(data)
    with pytest.raises(BundleIntegrityError, match="another name"):
        Bundle.open(tmp_path / "b.umd")


def test_too_many_entries_are_refused(tmp_path: Path):
    files = {**tiny_files(), **{f"f{i}": b"" for i in range(300)}}
    (tmp_path / "b.umd").write_bytes(zip_bytes(files))
    with pytest.raises(BundleIntegrityError, match="entries"):
        Bundle.open(tmp_path / "b.umd")
    with pytest.raises(BundleIntegrityError, match="more than"):
        Bundle.open(unpack(tmp_path / "folder", files))


def test_every_truncation_is_refused(tiny_bundle: Path, tmp_path: Path):
    data = tiny_bundle.read_bytes()
    path = tmp_path / "b.umd"
    for length in [*range(0, 100, 9), *range(100, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(BundleIntegrityError, match="no usable bundle"):
            Bundle.open(path)


def test_every_flipped_byte_is_noticed(tiny_bundle: Path, tmp_path: Path):
    data = tiny_bundle.read_bytes()
    path = tmp_path / "b.umd"
    rng = np.random.default_rng(0)
    # Dates and version numbers of the zip carry nothing and are not compared.
    free = _unused_zip_bytes(data)
    for position in rng.choice(len(data), 300, replace=False):
        if position in free:
            continue
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        with pytest.raises(BundleError):
            Bundle.open(path).check_files()


def _unused_zip_bytes(data: bytes) -> set[int]:
    free: set[int] = set()
    for signature, fields in (
        (b"PK\x03\x04", [(4, 6), (10, 14)]),
        (b"PK\x01\x02", [(4, 8), (12, 16), (36, 42)]),
    ):
        position = data.find(signature)
        while position >= 0:
            for start, stop in fields:
                free.update(range(position + start, position + stop))
            position = data.find(signature, position + 1)
    return free


@pytest.mark.parametrize("name", ["tokenizer.json", "graphs/vision.int8.onnx", "golden.npz"])
def test_altered_file_is_refused_before_it_is_used(name: str, tmp_path: Path):
    folder = unpack(tmp_path / "b")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleIntegrityError, match="SHA-256"):
        Predictor.load(folder).verify()


def test_file_of_another_size_is_refused_when_opened(tmp_path: Path):
    folder = unpack(tmp_path / "b")
    with (folder / "golden.npz").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleIntegrityError, match="bytes"):
        Bundle.open(folder)


def test_missing_and_surplus_files_are_refused(tmp_path: Path):
    folder = unpack(tmp_path / "b")
    (folder / "surplus.txt").write_text("x")
    with pytest.raises(BundleIntegrityError, match=r"surplus\.txt"):
        Bundle.open(folder)
    (folder / "surplus.txt").unlink()
    (folder / "golden.npz").unlink()
    with pytest.raises(BundleIntegrityError, match=r"missing.*golden\.npz"):
        Bundle.open(folder)


def test_huge_manifest_is_refused_before_it_is_parsed(tmp_path: Path):
    files = {**tiny_files(), "manifest.json": b" " * (5 << 20)}
    (tmp_path / "b.umd").write_bytes(zip_bytes(files))
    with pytest.raises(BundleIntegrityError, match="at most"):
        Bundle.open(tmp_path / "b.umd")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x05\x06", b"\x89PNG\r\n\x1a\n" * 9])
def test_something_else_is_no_bundle(content: bytes, tmp_path: Path):
    (tmp_path / "b.umd").write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="no usable bundle"):
        Bundle.open(tmp_path / "b.umd")


def test_empty_zip_has_no_manifest(tmp_path: Path):
    (tmp_path / "b.umd").write_bytes(zip_bytes({}))
    with pytest.raises(BundleNotFoundError, match=r"manifest\.json"):
        Bundle.open(tmp_path / "b.umd")


def test_device_is_no_bundle():
    with pytest.raises(BundleIntegrityError, match="neither"):
        Bundle.open("/dev/zero")


class TestGraphs:
    def _load(self, tmp_path: Path, name: str, data: bytes) -> None:
        Predictor.load(repack(tmp_path / "b.umd", {**tiny_files(), name: data}))

    @pytest.mark.parametrize("data", [b"", b"not onnx", b"\x08\x0a", bytes(1000)])
    def test_graph_that_is_no_onnx_is_refused(self, tmp_path: Path, data: bytes):
        with pytest.raises(BundleIntegrityError, match=r"vision\.int8\.onnx"):
            self._load(tmp_path, "graphs/vision.int8.onnx", data)

    def test_truncated_graph_is_refused(self, tmp_path: Path):
        data = tiny_files()["graphs/vision.int8.onnx"]
        with pytest.raises(BundleIntegrityError, match=r"vision\.int8\.onnx"):
            self._load(tmp_path, "graphs/vision.int8.onnx", data[: len(data) // 2])

    def test_graph_of_another_part_is_refused_with_both_lists(self, tmp_path: Path):
        data = tiny_files()["graphs/text.int8.onnx"]
        with pytest.raises(BundleIntegrityError, match=r"input_ids.*pixel_values"):
            self._load(tmp_path, "graphs/vision.int8.onnx", data)

    def test_graph_that_names_another_file_is_refused(self, tmp_path: Path):
        onnx = pytest.importorskip("onnx")
        model = onnx.load_from_string(tiny_files()["graphs/vision.fp32.onnx"])
        weight = model.graph.initializer[1]
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", "/etc/passwd"
        with pytest.raises(BundleIntegrityError, match="outside itself"):
            self._load(tmp_path, "graphs/vision.int8.onnx", model.SerializeToString())

    def test_tokenizer_that_is_none_is_refused(self, tmp_path: Path):
        with pytest.raises(ManifestError, match="tokenizer"):
            self._load(tmp_path, "tokenizer.json", b"{}")


class TestGolden:
    def test_round_trip(self):
        arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b/c": np.uint8([1, 2])}
        read = read_golden(write_golden(arrays))
        assert all(np.array_equal(read[key], value) for key, value in arrays.items())
        assert set(read) == set(arrays)

    def test_numpy_reads_what_is_written(self):
        data = write_golden({"a": np.arange(3)})
        assert np.array_equal(np.load(io.BytesIO(data), allow_pickle=False)["a"], [0, 1, 2])

    def test_file_of_numpy_is_read(self):
        out = io.BytesIO()
        np.savez_compressed(out, a=np.asfortranarray(np.arange(6).reshape(2, 3)))
        assert np.array_equal(read_golden(out.getvalue())["a"], [[0, 1, 2], [3, 4, 5]])

    def test_pickle_is_refused(self):
        out = io.BytesIO()
        np.savez(out, a=np.array([{"x": 1}], dtype=object))
        with pytest.raises(BundleIntegrityError, match="golden"):
            read_golden(out.getvalue())

    def test_bomb_is_refused_from_its_directory(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(_arrays, "_MAX_BYTES", 1 << 20)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.npy", bytes(2 << 20))
        with pytest.raises(BundleIntegrityError, match="256 MiB"):
            read_golden(out.getvalue())

    @pytest.mark.parametrize(
        "shape",
        [b"(99999999999,), }", b"(99999,99999), }", b"(-4,), }", b"(4,), ", b"(9, }", b"(("],
    )
    def test_header_that_does_not_fit_its_data_is_refused(self, shape: bytes):
        out = io.BytesIO()
        np.lib.format.write_array(out, np.zeros(4))
        old = b"(4,), }"
        data = out.getvalue().replace(old + b" " * (len(shape) - len(old)), shape)
        assert data != out.getvalue()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("a.npy", data)
        with pytest.raises(BundleIntegrityError, match="golden"):
            read_golden(packed.getvalue())

    @pytest.mark.parametrize("data", [b"", b"text", b"PK\x05\x06" + bytes(18)])
    def test_something_else_is_refused_or_empty(self, data: bytes):
        if data.startswith(b"PK"):
            assert read_golden(data) == {}
            return
        with pytest.raises(BundleIntegrityError, match="golden"):
            read_golden(data)
