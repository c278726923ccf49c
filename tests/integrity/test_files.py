from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.bundles import tiny_files
from support.command import png, run
from umd_edge._bundle import Bundle, write_bundle
from umd_edge._claims import claim_file, claim_folder, remove_unheld
from umd_edge._files import whole_file, write_whole
from umd_edge.errors import UsageError
from umd_edge_export.places import check_place

NOBODY = 65534


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


@pytest.fixture
def held(tmp_path: Path):
    """A writer of `x` that is at work."""
    with claim_file("x", tmp_path) as file:
        yield Path(file.name)


def test_what_a_killed_writer_left_is_used_again(tmp_path: Path):
    left = tmp_path / ".x.0.tmp"
    left.write_bytes(b"half of it, and more")
    with whole_file(tmp_path / "x") as file:
        assert Path(file.name) == left and left.stat().st_size == 0
        file.write(b"all")
    assert (tmp_path / "x").read_bytes() == b"all"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(os.name == "nt", reason="a file that is open cannot be removed at all there")
def test_a_writer_at_work_is_not_disturbed(tmp_path: Path, held: Path):
    write_whole(tmp_path / "x", b"mine")
    assert not remove_unheld(held)
    assert held.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [held.name, "x"]


def test_killed_writers_leave_one_file_however_many_there_were(tmp_path: Path):
    killed = []
    for _ in range(40):
        killed.append(claim_file("x", tmp_path))
        killed[-1].__enter__().close()  # and never renamed: as the system ends a killed process
    assert len(list(tmp_path.iterdir())) == 1


def test_writers_at_the_same_time_do_not_mix(tmp_path: Path):
    contents = [bytes([number]) * 20_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            list(pool.map(lambda data: write_whole(tmp_path / "x", data), contents))
            assert (tmp_path / "x").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_folders_at_the_same_time_are_each_its_own(tmp_path: Path):
    def work(number: int) -> None:
        for _ in range(20):
            with claim_folder("x", tmp_path) as folder:
                (folder / "mine").write_text(str(number))
                assert [path.name for path in folder.iterdir()] == ["mine"]
                assert (folder / "mine").read_text() == str(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_way_is_removed_and_not_followed(tmp_path: Path):
    other = tmp_path / "other"
    other.write_bytes(b"kept")
    (tmp_path / ".x.0.tmp").symlink_to(other)
    write_whole(tmp_path / "x", b"new")
    assert other.read_bytes() == b"kept"
    assert not (tmp_path / "x").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "x"]


def test_locks_that_the_file_system_does_not_know_are_taken_for_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fcntl = pytest.importorskip("fcntl")

    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", unknown)
    for number in range(40):
        (tmp_path / f".x.{number}.tmp").write_bytes(b"somebody's")
    write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 41


@pytest.mark.parametrize("limit", [100, 30_000])
def test_a_full_disk_keeps_the_old_bundle(limit: int, tiny_bundle: Path, tmp_path: Path):
    resource = pytest.importorskip("resource")
    place = tmp_path / "b.umd"
    place.write_bytes(tiny_bundle.read_bytes())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_bundle(tiny_files(), place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(place)
    Bundle.open(place).check_files()
    assert list(tmp_path.iterdir()) == [place]


_CLOSED = """
import os, sys
sys.path[:0] = sys.argv[3].split(os.pathsep)
from support.bundles import tiny_files
from umd_edge._bundle import write_bundle
files = tiny_files()
if os.getuid() == 0:
    os.setuid(int(sys.argv[2]))
try:
    write_bundle(files, sys.argv[1])
except PermissionError as error:
    print(error.filename)
"""


@pytest.mark.skipif(os.name == "nt", reason="permissions of another kind")
def test_a_folder_that_may_no_longer_be_written_keeps_the_old_bundle(tiny_bundle: Path):
    with tempfile.TemporaryDirectory(prefix="umd-edge-") as name:
        place = Path(name) / "b.umd"
        place.write_bytes(tiny_bundle.read_bytes())
        Path(name).chmod(0o555)
        paths = os.pathsep.join(path for path in sys.path if path)
        arguments = [sys.executable, "-c", _CLOSED, str(place), str(NOBODY), paths]
        done = subprocess.run(arguments, capture_output=True, text=True)
        Path(name).chmod(0o755)
        assert (done.returncode, done.stdout) == (0, f"{place}\n"), done.stderr
        Bundle.open(place).check_files()
        assert list(Path(name).iterdir()) == [place]


def test_a_missing_folder_is_told_by_the_name_that_was_given(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(tmp_path / "nowhere" / "x", b"")
    assert caught.value.filename == str(tmp_path / "nowhere" / "x")
