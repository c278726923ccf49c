from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from support.bundles import repack, tiny_files, unpack, zip_bytes
from umd_edge import Bundle, BundleIntegrityError, BundleNotFoundError
from umd_edge._bundle import write_bundle
from umd_edge.errors import BundleError


def test_identity_is_the_hash_of_the_manifest(tiny_bundle: Path):
    expected = hashlib.sha256(tiny_files()["manifest.json"]).hexdigest()
    assert Bundle.open(tiny_bundle).sha256 == expected


def test_directory_and_zip_are_the_same_bundle(tiny_bundle: Path, tmp_path: Path):
    zipped, folder = Bundle.open(tiny_bundle), Bundle.open(unpack(tmp_path / "b"))
    assert zipped.sha256 == folder.sha256
    assert zipped.read("golden.npz") == folder.read("golden.npz")
    assert zipped.size_bytes == folder.size_bytes


def test_zip_tool_of_the_standard_library_reads_the_bundle(tiny_bundle: Path):
    import zipfile

    with zipfile.ZipFile(tiny_bundle) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.namelist()[0] == "manifest.json"


def test_writing_is_deterministic_and_leaves_no_temporary_file(tmp_path: Path):
    files = tiny_files()
    write_bundle(files, tmp_path / "a.umd")
    write_bundle(dict(reversed(files.items())), tmp_path / "b.umd")
    assert (tmp_path / "a.umd").read_bytes() == (tmp_path / "b.umd").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.umd", "b.umd"]


def test_writing_from_a_directory_gives_the_same_bytes(tiny_bundle: Path, tmp_path: Path):
    write_bundle(unpack(tmp_path / "folder"), tmp_path / "c.umd")
    assert (tmp_path / "c.umd").read_bytes() == tiny_bundle.read_bytes()


def test_writing_something_wrong_keeps_the_old_file(tmp_path: Path):
    out = tmp_path / "a.umd"
    write_bundle(tiny_files(), out)
    before = out.read_bytes()
    with pytest.raises(BundleIntegrityError):
        write_bundle({**tiny_files(), "golden.npz": b"altered"}, out)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_writing_without_manifest_is_refused(tmp_path: Path):
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        write_bundle({"a": b""}, tmp_path / "a.umd")


def test_writing_an_unsafe_name_is_refused(tmp_path: Path):
    with pytest.raises(BundleError, match="unsafe names"):
        write_bundle({**tiny_files(), "../evil": b""}, tmp_path / "a.umd")


def test_writing_from_a_missing_directory_is_refused(tmp_path: Path):
    with pytest.raises(BundleNotFoundError):
        write_bundle(tmp_path / "absent", tmp_path / "a.umd")


def test_missing_bundle_is_told_with_its_path(tmp_path: Path):
    with pytest.raises(BundleNotFoundError, match=r"absent\.umd"):
        Bundle.open(tmp_path / "absent.umd")


def test_directory_without_manifest_is_no_bundle(tmp_path: Path):
    with pytest.raises(BundleNotFoundError, match=r"manifest\.json"):
        Bundle.open(tmp_path)


def test_file_that_is_not_listed_cannot_be_read(tiny_bundle: Path):
    with pytest.raises(BundleIntegrityError, match="not listed"):
        Bundle.open(tiny_bundle).read("manifest.json")


def test_signature_is_noticed(tmp_path: Path):
    files = {**tiny_files(), "manifest.sig": b"x"}
    (tmp_path / "s.umd").write_bytes(zip_bytes(files))
    assert Bundle.open(tmp_path / "s.umd").is_signed
    assert not Bundle.open(repack(tmp_path / "u.umd")).is_signed


def test_check_files_reads_every_byte(tmp_path: Path):
    folder = unpack(tmp_path / "b")
    bundle = Bundle.open(folder)
    bundle.check_files()
    data = bytearray((folder / "golden.npz").read_bytes())
    data[-40] ^= 1
    (folder / "golden.npz").write_bytes(data)
    with pytest.raises(BundleIntegrityError, match=r"golden\.npz.*SHA-256"):
        bundle.check_files()
