"""Places where nothing can or must be written, and empty names: refused before any work."""

from __future__ import annotations

import sys

import pytest

from support.command import png, run
from umd_edge._cli import _app

CLASSIFY = ("classify", "film.png", "--task", "chest-xray")
EXPLAIN = ("explain", "film.png", "--task", "chest-xray")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with an image, a folder and a log."""
    monkeypatch.chdir(tmp_path)
    png(tmp_path / "film.png")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def listing(folder) -> dict[str, bytes | None]:
    return {str(path): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ((*EXPLAIN, "--out", "film.png"), "would replace what is read"),
        ((*EXPLAIN, "--out", "folder.png"), "no file can be written there"),
        ((*CLASSIFY, "--out-fhir", "film.png"), "would replace its own source"),
        ((*CLASSIFY, "--out-fhir", ""), "names no file"),
        ((*CLASSIFY, "--out-fhir", "/dev/null"), "no file can be written there"),
        ((*CLASSIFY, "--audit", ""), "names no file"),
        ((*CLASSIFY, "--out", "missing/r.csv"), "no file can be written there"),
        (("sbom", "--out", ""), "no file can be written there"),
        (("sbom", "--out", "folder.png"), "no file can be written there"),
        (("sbom", "--out", "missing/sbom.json"), "no file can be written there"),
        (("demo", "film.png", "--out", ""), "no folder that can be written to"),
        (("demo", "film.png", "--out", "film.png"), "no folder that can be written to"),
        (("demo", "film.png", "--out", "film.png/deep"), "no folder that can be written to"),
    ],
)
def test_a_place_that_cannot_be_written_is_exit_2_and_changes_nothing(
    line, expected, folder, tiny_bundle
):
    before = listing(folder)
    done = run(*line, "--bundle", tiny_bundle)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ") and expected in done.err, done.err
    assert done.err.count("\n") == 1
    assert listing(folder) == before


def test_two_reports_do_not_share_a_file(folder, tiny_bundle):
    pytest.importorskip("highdicom", reason="the extra `sr` is not installed")
    done = run(*CLASSIFY, "--bundle", tiny_bundle, "--out-sr", "r", "--out-fhir", "r")
    assert done.code == 2
    assert "both name 'r'" in done.err
    assert not (folder / "r").exists()


def test_a_closed_output_is_no_internal_error(folder, tiny_bundle, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it behind `>&-`
    assert _app.run([*CLASSIFY, "--bundle", str(tiny_bundle)]) == 0


def test_an_empty_name_is_not_the_folder_at_hand(folder, tiny_bundle):
    done = run("info", "--bundle", "")
    assert (done.code, done.out) == (3, "")
    assert "the path of the bundle is empty" in done.err
    done = run("classify", "", "--task", "chest-xray", "--bundle", tiny_bundle)
    assert done.code == 4
    assert "the path of the image is empty" in done.err


@pytest.mark.parametrize("since", ["yesterday", "", "31.01.2026", "2026-01-31 08:30"])
def test_a_time_that_is_none_does_not_hide_records(since, folder, tiny_bundle):
    assert run(*CLASSIFY, "--bundle", tiny_bundle, "--audit", "log").code == 0
    done = run("audit", "show", "log", "--since", since)
    assert (done.code, done.out) == (2, "")
    assert "in UTC is needed" in done.err
    assert "chest-xray" in run("audit", "show", "log", "--since", "2020-01-31T08:30Z").out
    assert "chest-xray" not in run("audit", "show", "log", "--since", "9999-01-01").out


@pytest.mark.parametrize("option", ["--anchor", "--after"])
def test_an_anchor_that_is_no_hash_is_exit_2(option, folder, tiny_bundle):
    assert run(*CLASSIFY, "--bundle", tiny_bundle, "--audit", "log").code == 0
    done = run("audit", "verify", "log", option, "xyz")
    assert done.code == 2
    assert "'xyz' is no hash of a record" in done.err
