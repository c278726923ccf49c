"""No command but `serve` opens a socket, and none writes a file that the user did not name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.command import png
from umd_edge._cli._app import _MODULES

TESTS = Path(__file__).resolve().parent.parent
DEVICES = ("/dev/null", "/dev/tty")


def quiet_nothing() -> dict[str, str]:
    """The environment without what keeps onnxruntime quiet in tests and in builds."""
    quiet = ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI", "GITHUB_ACTIONS", "TF_BUILD")
    return {name: value for name, value in os.environ.items() if name not in quiet}


def watch(folder: Path, *lines: list[object]) -> dict:
    """Run command lines in one process and tell what it opened."""
    jobs, report = folder / "jobs.json", folder / "report.json"
    jobs.write_text(json.dumps([[str(part) for part in line] for line in lines]))
    place = folder / "work"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "running.watched", str(jobs), str(report)],
        capture_output=True,
        text=True,
        cwd=place,
        env={
            **quiet_nothing(),
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "home" / ".cache"),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(report.read_text())
    seen["written"] = [path for path in seen["written"] if path not in DEVICES]
    left = [*place.rglob("*"), *(folder / "home").rglob("*")]  # of native libraries, too
    seen["left"] = sorted(str(path) for path in left)
    return seen


def commands(bundle: Path, image: Path, records: Path) -> dict[str, list[object]]:
    """A sound call of every command that writes nothing, by name."""
    use = ("--bundle", bundle)
    return {
        "classify": ["classify", image, "--task", "skin-lesion", *use],
        "ask": ["ask", image, "which organ?", *use],
        "rank": ["rank", image, "--text", "chest", *use],  # refused: no retrieval task
        "explain": ["explain", image, "--help"],
        "info": ["info", *use],
        "verify": ["verify", *use],
        "evaluate": ["evaluate", "--task", "vqa", "--data", records, *use],
        "bench": ["bench", "--runs", "10", *use],
        "doctor": ["doctor"],
        "c-info": ["c-info"],
        "audit": ["audit", "--help"],
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What all commands that write nothing have opened together."""
    from support.labelled import make_labelled
    from umd_edge import Predictor

    folder = tmp_path_factory.mktemp("watched")
    bundle = TESTS / "data" / "tiny.umd"
    records = make_labelled(folder / "records", Predictor.load(bundle), 6)
    lines = commands(bundle, png(folder / "a.png"), records)
    found = watch(folder, *lines.values())
    return {**found, "names": list(lines)}


def test_no_command_opens_a_socket(seen: dict):
    assert seen["sockets"] == []
    codes = dict(zip(seen["names"], seen["codes"], strict=True))
    assert [name for name, code in codes.items() if code not in (0, 2, 5)] == []
    assert codes["classify"] == codes["ask"] == codes["evaluate"] == codes["bench"] == 0


def test_no_command_writes_what_nobody_named(seen: dict):
    assert seen["written"] == []
    assert seen["left"] == []


def test_every_command_is_watched_or_is_known_to_write(seen: dict):
    writing = {"demo", "build-engine", "sbom"}  # into a folder or file that is named
    assert set(seen["names"]) | writing | {"serve"} == set(_MODULES)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_results_file_is_all_that_classify_writes(tmp_path: Path, tiny_bundle: Path, kind: str):
    image, out = png(tmp_path / "a.png"), tmp_path / "out" / f"r.{kind}"
    out.parent.mkdir()
    line = ["classify", image, "--task", "skin-lesion", "--bundle", tiny_bundle, "--out", out]
    found = watch(tmp_path, line)
    assert found["codes"] == [0]
    assert found["sockets"] == []
    assert found["left"] == []
    beside = {out, out.with_name(f"r.{kind}.part"), out.with_name(f".r.{kind}.tmp"), out.parent}
    assert {Path(path) for path in found["written"]} <= beside
    assert str(out) in found["written"]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_named_files_are_all_that_is_written(tmp_path: Path, tiny_bundle: Path):
    from support.labelled import make_labelled
    from umd_edge import Predictor

    records = make_labelled(tmp_path / "records", Predictor.load(tiny_bundle), 6)
    image, named = png(tmp_path / "a.png"), tmp_path / "named"
    named.mkdir()
    found = watch(
        tmp_path,
        ["ask", image, "which organ?", "--bundle", tiny_bundle, "--audit", named / "log.jsonl"],
        ["ask", image, "which organ?", "--bundle", tiny_bundle, "--out-fhir", named / "r.json"],
        ["evaluate", "--task", "vqa", "--data", records, "--bundle", tiny_bundle],
    )
    assert found["codes"] == [0, 0, 0]
    assert found["sockets"] == []
    assert found["left"] == []
    assert {Path(path).parent for path in found["written"]} <= {named, named.parent}
    assert any(path.startswith(str(named)) for path in found["written"])


def test_what_needs_a_whole_bundle_keeps_to_the_named_files(tmp_path: Path):
    """Searching, explaining, the demo, the bill of materials and reports, with the default one."""
    import umd_edge
    from support.labelled import make_labelled

    bundle = Path(umd_edge.__file__).parent / "bundles" / "default.umd"
    if not bundle.is_file():
        pytest.skip("this checkout has no default bundle")
    records = make_labelled(tmp_path / "records", umd_edge.Predictor.load(bundle), 6)
    image, named = png(tmp_path / "a.png"), tmp_path / "named"
    named.mkdir()
    found = watch(
        tmp_path,
        ["rank", image, "--text", "axial ct image of the chest"],
        ["explain", image, "--question", "which plane?", "--unproven", "--out", named / "map.png"],
        ["demo", image, "--out", named / "demo"],
        ["sbom", "--out", named / "sbom.json"],
        ["audit", "show", named / "none.jsonl"],
        ["evaluate", "--task", "vqa", "--data", records, "--report", named / "site.html"],
        ["classify", image, "--task", "skin-lesion", "--audit", named / "log.jsonl"],
        ["audit", "verify", named / "log.jsonl"],
    )
    assert found["codes"] == [0, 0, 0, 0, found["codes"][4], 0, 0, 0]
    assert found["codes"][4] != 0
    assert found["sockets"] == []
    assert found["left"] == []
    elsewhere = {Path(path) for path in found["written"] if named not in Path(path).parents}
    assert elsewhere <= {named}
    made = {path.name for path in named.iterdir()}
    assert {"map.png", "demo", "sbom.json", "site.html", "log.jsonl"} <= made


_HOME_OF = """
import sys
from pathlib import Path
if sys.argv[2] == "ours":
    import umd_edge
    predictor = umd_edge.Predictor.load(sys.argv[1])
    import umd_edge_export
import onnxruntime
"""


def home_after(folder: Path, whose: str) -> list[str]:
    """What native code has left in an empty home folder."""
    home = folder / whose
    home.mkdir()
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    bundle = str(TESTS / "data" / "tiny.umd")
    env = {**quiet_nothing(), **places, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", _HOME_OF, bundle, whose], env=env, check=True)
    return sorted(path.name for path in home.rglob("*"))


def test_onnxruntime_keeps_no_identifier_of_the_machine(tmp_path: Path):
    assert home_after(tmp_path, "ours") == []
    if not home_after(tmp_path, "theirs"):
        pytest.skip("this build of onnxruntime has no telemetry that could be off")


def test_the_watcher_sees_sockets_and_files(tmp_path: Path):
    """The negative control: a program that does both is found out."""
    program = (
        "import sys, socket\n"
        "from running import watched\n"
        "sys.addaudithook(watched._note)\n"
        "watched.watching = True\n"
        f"open({str(tmp_path / 'x')!r}, 'w').close()\n"
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.close()\n"
        "watched.watching = False\n"
        "print(len(watched.seen['sockets']), len(watched.seen['written']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
    )
    sockets, written = map(int, done.stdout.split())
    assert sockets >= 2
    assert written == 1
