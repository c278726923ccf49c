from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from support.bundles import tiny_files
from support.command import png, run
from umd_edge._bundle import write_bundle
from umd_edge._files import write_whole
from umd_edge.errors import UsageError
from umd_edge_export.places import check_place


def test_file_is_written_and_replaced(tmp_path: Path):
    path = tmp_path / "x"
    write_whole(path, b"one")
    write_whole(path, b"two", private=True)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a pipe"])
def test_what_is_no_plain_file_is_not_replaced(kind: str, tmp_path: Path):
    place = tmp_path / "there"
    if kind == "folder":
        place.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        os.symlink(tmp_path / "pipe", place) if "link" in kind else os.rename(
            tmp_path / "pipe", place
        )
    before = place.lstat()
    with pytest.raises(OSError, match="no plain file"):
        write_whole(place, b"x")
    with pytest.raises(OSError, match="no plain file"):
        write_bundle(tiny_files(), place)
    with pytest.raises(UsageError, match="cannot be written"):
        check_place(place)
    after = place.lstat()
    assert (after.st_ino, stat.S_IFMT(after.st_mode)) == (
        before.st_ino,
        stat.S_IFMT(before.st_mode),
    )
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_commands_say_so_in_one_line(tiny_bundle: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    done = run("sbom", "--out", tmp_path / "pipe", "--no-extras", "--bundle", tiny_bundle)
    assert (done.code, done.err.count("\n")) == (2, 1)
    image = png(tmp_path / "x.png")
    fhir = ["--out-fhir", tmp_path / "pipe"]
    done = run("classify", image, "--task", "skin-lesion", "--bundle", tiny_bundle, *fhir)
    assert done.code != 0 and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_full_folder_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x"
    write_whole(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
