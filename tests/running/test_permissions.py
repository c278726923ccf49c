"""Permission lost on the way: nothing is lost, nothing stands twice, and the run goes on later."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.command import png, run
from support.retrieval import searchable

TESTS = Path(__file__).resolve().parent.parent
NOBODY = 65534

_AS_NOBODY = """
import contextlib, io, json, os, sys
from umd_edge._cli._app import run
lines = json.loads(sys.argv[1])
warm, *others = lines
assert run(warm) == 0  # everything is loaded: nobody may not read the interpreter's folder
if os.getuid() == 0:
    os.setuid(int(sys.argv[2]))
found = []
for line in others:
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        found.append([run(line), err.getvalue()])
print(json.dumps(found))
"""


def as_nobody(warm: list[object], *lines: list[object]) -> list[tuple[int, str]]:
    """Run command lines as somebody who may not read everything: exit code and messages of each."""
    arguments = json.dumps([[str(part) for part in line] for line in (warm, *lines)])
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, arguments, str(NOBODY)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [(code, text) for code, text in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture
def open_folder(tiny_bundle: Path):
    """A folder that everybody may read, with a bundle and five pictures."""
    folder = Path(tempfile.mkdtemp(prefix="umd-edge-"))
    folder.chmod(0o755)
    shutil.copy(tiny_bundle, folder / "tiny.umd")
    films = folder / "films"
    films.mkdir()
    for index in range(5):
        png(films / f"{index}.png", 20 + index)
    yield folder
    shutil.rmtree(folder)


def test_an_image_that_may_not_be_read_is_tried_again_when_it_may(open_folder: Path):
    films, place = open_folder / "films", open_folder / "out"
    place.mkdir()
    place.chmod(0o777)
    use = ("--task", "skin-lesion", "--bundle", open_folder / "tiny.umd")
    (films / "2.png").chmod(0)
    warm = ["classify", films / "0.png", *use, "--out", open_folder / "warm.csv"]
    line = ["classify", films, *use, "--out", place / "r.csv"]
    ((code, text),) = as_nobody(warm, line)
    assert code == 4
    assert "2.png" in text
    assert "Permission denied" in text
    with (place / "r.csv").open(newline="") as file:
        errors = {Path(row["image"]).name: row["error_type"] for row in csv.DictReader(file)}
    assert errors == {f"{n}.png": "ImageInputError" if n == 2 else "" for n in range(5)}
    (films / "2.png").chmod(0o644)
    assert run(*line).code == 0
    with (place / "r.csv").open(newline="") as file:
        rows = [(Path(row["image"]).name, row["error_type"]) for row in csv.DictReader(file)]
    assert sorted(rows) == [(f"{n}.png", "") for n in range(5)]


def test_a_results_file_that_may_not_be_written_is_named_and_stays(open_folder: Path):
    films, place = open_folder / "films", open_folder / "out"
    place.mkdir()
    use = ("--task", "skin-lesion", "--bundle", open_folder / "tiny.umd")
    kept = place / "kept.csv"
    assert run("classify", films / "0.png", *use, "--out", kept).code == 0
    before = kept.read_bytes()
    kept.chmod(0o444)
    place.chmod(0o555)
    warm = ["classify", films / "0.png", *use, "--out", open_folder / "warm.csv"]
    found = as_nobody(
        warm,
        ["classify", films, *use, "--out", kept],
        ["classify", films, *use, "--out", place / "new.jsonl"],
        ["classify", films, *use, "--out", open_folder / "nowhere" / "new.csv"],
    )
    place.chmod(0o755)
    assert [code for code, _ in found] == [1, 2, 2]
    for (_, text), name in zip(found, ("kept.csv", "new.jsonl", "new.csv"), strict=True):
        assert name in text
        assert "Traceback" not in text
    assert kept.read_bytes() == before
    kept.chmod(0o644)
    assert run("classify", films, *use, "--out", kept).code == 0
    assert kept.read_bytes().startswith(before)
    assert kept.read_bytes().count(b"\n") == 6


def test_a_folder_that_may_not_be_written_keeps_the_bundle_in_use(open_folder: Path):
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from umd_edge import PredictorSlot\n"
        f"place = Path({str(open_folder)!r})\n"
        "slot = PredictorSlot.open(place / 'tiny.umd', state=place / 'slot.json')\n"
        "slot.swap(place / 'tiny.umd')\n"
        "before = (place / 'slot.json').read_bytes()\n"
        "if os.getuid() == 0:\n"
        f"    os.setuid({NOBODY})\n"
        "else:\n"
        "    os.chmod(place, 0o555)\n"
        "try:\n"
        "    slot.swap(place / 'tiny.umd')\n"
        "except PermissionError as error:\n"
        "    print('refused', (place / 'slot.json').read_bytes() == before)\n"
        "slot.predictor.warm_up()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
    )
    open_folder.chmod(0o755)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["refused", "True"]


def test_what_may_not_be_looked_into_is_named_with_its_exit_code(open_folder: Path):
    closed, audit, gallery = (open_folder / name for name in ("closed", "audit", "gallery"))
    film, bundle = open_folder / "films" / "0.png", open_folder / "tiny.umd"
    search = searchable(open_folder / "search.umd")
    ranked = ["rank", film, "--text", "chest", "--gallery", gallery, "--bundle", search]
    assert run(*ranked).code == 0
    assert run("ask", film, "what ?", "--bundle", bundle, "--audit", audit).code == 0
    closed.mkdir()
    for path in (closed, gallery / "images.npz", open_folder / "audit.secret"):
        path.chmod(0)
    for path in (gallery, audit):
        path.chmod(0o755)
    found = as_nobody(
        ["info", "--bundle", bundle],
        ["info", "--bundle", closed],
        ["verify", "--bundle", closed / "model.umd"],
        ranked,
    )
    found += as_nobody(
        ["audit", "show", audit],
        ["audit", "show", audit, "--question", "what ?"],
    )
    assert [code for code, _ in found] == [3, 3, 4, 3]
    for (_, text), name in zip(found, ("closed", "model.umd", "gallery", "secret"), strict=True):
        last = text.splitlines()[-1]
        assert last.startswith("error: ") and name in last, text
        assert last.endswith("cannot be read: Permission denied"), text
    closed.chmod(0o755)
