"""The bytes that are loaded are the bytes whose hash was compared."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from support.bundles import repack, tiny_files, unpack, zip_bytes
from umd_edge import Bundle, BundleError, BundleIntegrityError, Predictor, _graphs, _tokenizer
from umd_edge._manifest import MAX_FILE_BYTES


def test_graphs_and_tokenizer_get_the_very_object_that_was_hashed(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    hashed: list[bytes] = []
    loaded: list[bytes] = []
    read, session = Bundle.read, _graphs.GraphSession
    from_bytes = _tokenizer.TextTokenizer.from_bytes

    def keep(self: Bundle, name: str) -> bytes:
        hashed.append(read(self, name))
        return hashed[-1]

    def opened(data: bytes, *rest: Any, **more: Any) -> Any:
        loaded.append(data)
        return session(data, *rest, **more)

    def tokens(data: bytes, length: int) -> Any:
        loaded.append(data)
        return from_bytes(data, length)

    monkeypatch.setattr(Bundle, "read", keep)
    monkeypatch.setattr(_graphs, "GraphSession", opened)
    monkeypatch.setattr(_tokenizer.TextTokenizer, "from_bytes", staticmethod(tokens))
    Predictor.load(tiny_bundle)
    assert len(loaded) == 4
    assert all(any(data is other for other in hashed) for data in loaded)


@pytest.mark.parametrize("form", ["file", "directory"])
def test_file_exchanged_between_opening_and_reading_is_refused(form: str, tmp_path: Path):
    path = tmp_path / "b"
    files = tiny_files()
    if form == "file":
        path.write_bytes(zip_bytes(files))
    else:
        unpack(path, files)
    bundle = Bundle.open(path)
    other = bytearray(files["tokenizer.json"])
    other[60] ^= 1
    if form == "file":
        path.write_bytes(zip_bytes({**files, "tokenizer.json": bytes(other)}))
    else:
        (path / "tokenizer.json").write_bytes(other)
    with pytest.raises(BundleIntegrityError):
        bundle.read("tokenizer.json")


def test_manifest_exchanged_after_opening_changes_nothing(tmp_path: Path):
    folder = unpack(tmp_path / "b")
    bundle = Bundle.open(folder)
    (folder / "manifest.json").write_bytes(b"{}")
    assert bundle.manifest.name == "tiny-test"
    bundle.check_files()


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links on this system")
@pytest.mark.parametrize("name", ["manifest.json", "graphs"])
def test_manifest_or_folder_that_is_a_link_is_refused(name: str, tmp_path: Path):
    folder = unpack(tmp_path / "b")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleIntegrityError, match="link"):
        Bundle.open(folder)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links on this system")
def test_folder_exchanged_for_a_link_after_opening_gives_no_other_bytes(tmp_path: Path):
    folder = unpack(tmp_path / "b")
    bundle = Bundle.open(folder)
    (folder / "graphs").rename(tmp_path / "elsewhere")
    (folder / "graphs").symlink_to(tmp_path / "elsewhere")
    name = "graphs/text.int8.onnx"
    data = bytearray((tmp_path / "elsewhere" / "text.int8.onnx").read_bytes())
    data[9] ^= 1
    (tmp_path / "elsewhere" / "text.int8.onnx").write_bytes(data)
    with pytest.raises(BundleIntegrityError):
        bundle.read(name)


def test_hard_linked_bundle_is_a_plain_file(tiny_bundle: Path, tmp_path: Path):
    copy = tmp_path / "a.umd"
    copy.write_bytes(tiny_bundle.read_bytes())
    os.link(copy, tmp_path / "b.umd")
    assert Bundle.open(tmp_path / "b.umd").sha256 == Bundle.open(tiny_bundle).sha256


def test_member_beyond_the_limit_is_refused_without_reading_it(tmp_path: Path):
    folder = unpack(tmp_path / "b")
    with (folder / "golden.npz").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # takes no space on the disk
    with pytest.raises(BundleIntegrityError, match="its manifest says"):
        Bundle.open(folder)


def test_manifest_that_asks_for_more_than_the_limit_is_refused(tmp_path: Path):
    def edit(manifest: dict[str, Any]) -> None:
        manifest["files"]["golden.npz"]["size"] = MAX_FILE_BYTES + 1

    with pytest.raises(BundleError, match=r"golden\.npz"):
        Bundle.open(repack(tmp_path / "b.umd", edit=edit))


def test_zip_that_claims_a_huge_member_is_refused_at_once(tmp_path: Path):
    data = bytearray(zip_bytes(tiny_files()))
    huge = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    local = data.index(b"PK\x03\x04")
    central = data.index(b"PK\x01\x02")
    data[local + 18 : local + 26] = huge
    data[central + 20 : central + 28] = huge
    (tmp_path / "b.umd").write_bytes(data)
    with pytest.raises(BundleIntegrityError):
        Bundle.open(tmp_path / "b.umd")


def test_signature_beyond_its_limit_is_not_read(tmp_path: Path):
    path = tmp_path / "b.umd"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in tiny_files().items():
            archive.writestr(name, data)
        archive.writestr("manifest.sig", bytes(513))
    with pytest.raises(BundleError, match="513 bytes"):
        Bundle.open(path, public_key=bytes(32))
