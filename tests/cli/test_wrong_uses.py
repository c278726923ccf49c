"""Uses that nobody means and some day somebody makes, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.command import png, run_json

PROGRAM = [sys.executable, "-m", "umd_edge"]
ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.skipif(os.name == "nt", reason="names are not bytes there")


def command(*arguments: object, **options) -> tuple[int, str, str]:
    """Exit code, output and messages of the command in a process of its own."""
    line = [os.fsencode(part) if isinstance(part, Path) else part for part in arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= options.pop("environment", {})
    done = subprocess.run(
        [*PROGRAM, *(part if isinstance(part, bytes) else str(part) for part in line)],
        capture_output=True,
        env=environment,
        timeout=60,
        **options,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode()


def raw(folder: Path, name: bytes) -> Path:
    """A path that is no valid UTF-8; skipped where the file system has none."""
    path = folder / os.fsdecode(name)
    try:
        path.touch()
    except OSError:
        pytest.skip("file names are text on this file system")
    return path


def test_a_question_that_is_no_text_is_refused_and_recorded(tiny_bundle: Path, tmp_path: Path):
    log = tmp_path / "log"
    image = png(raw(tmp_path, b"scan\xff.png"))
    use = ("--bundle", tiny_bundle, "--audit", log)
    code, _, error = command("ask", image, b"what\xff ?", *use)
    assert (code, error.count("\n")) == (4, 1), error
    assert "no valid UTF-8" in error
    shown = run_json("audit", "show", log, "--question", "what\udcff ?")
    assert [record["error"] for record in shown] == ["TextInputError"]


def test_a_name_that_is_no_text_does_not_cost_the_report(tiny_bundle: Path, tmp_path: Path):
    png(tmp_path / "x.png")
    data, page = raw(tmp_path, b"site\xff.jsonl"), raw(tmp_path, b"page\xff.html")
    record = {"id": "1", "patient_id": "1", "image": "x.png", "question": "what ?", "answer": "yes"}
    data.write_text(json.dumps(record) + "\n")
    use = ("--task", "vqa", "--data", data, "--bundle", tiny_bundle, "--report", page)
    code, _, error = command("evaluate", *use)
    assert code == 0, error
    assert r"site\udcff.jsonl" in page.read_text("utf-8")


@pytest.mark.parametrize("language", ["C", "POSIX"])
def test_words_and_names_of_other_scripts_in_a_plain_locale(
    language: str, tiny_bundle: Path, tmp_path: Path
):
    image = png(tmp_path / "café 肺.png")
    question = "Où est le cœur ?"
    code, out, error = command(
        *("ask", image, question.encode(), "--bundle", tiny_bundle, "--json"),
        environment={"LC_ALL": language, "LANG": language},
    )
    assert code == 0, error
    line = json.loads(out)
    assert (Path(line["image"]).name, line["answers"][0]["question"]) == (image.name, question)


def test_a_pipe_is_not_waited_for(tiny_bundle: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "data.jsonl")
    data = ("--data", tmp_path / "data.jsonl")
    code, _, error = command("evaluate", "--task", "vqa", *data, "--bundle", tiny_bundle)
    assert code == 4
    assert "is no plain file; name a JSONL file" in error


def test_no_home_and_a_folder_that_has_gone(tiny_bundle: Path, tmp_path: Path):
    image = png(tmp_path / "x.png")
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'cd "$0" && rmdir "$0" && unset HOME && exec "{sys.executable}" -m umd_edge "$@"'
    line = ["classify", image, "--task", "chest-xray", "--bundle", tiny_bundle, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shell = ["/bin/sh", "-c", script, str(gone), *map(str, line)]
    done = subprocess.run(shell, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["task"] == "chest-xray"


@pytest.mark.parametrize("stream", [">&-", "> /dev/full"])
def test_an_output_that_takes_nothing(stream: str, tiny_bundle: Path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    script = f'exec "{sys.executable}" -m umd_edge info --bundle "$0" {stream}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shell = ["/bin/sh", "-c", script, str(tiny_bundle)]
    done = subprocess.run(shell, capture_output=True, text=True, env=environment)
    expected = (0, "") if stream == ">&-" else (1, "error: cannot write: No space left on device\n")
    assert (done.returncode, done.stderr) == expected


def test_ctrl_c_before_the_command_is_loaded_leaves_no_traceback(tmp_path: Path):
    # A module that is loaded early, and waits for the signal.
    (tmp_path / "click.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(5)\n"
    )
    code, out, error = command(
        "info", environment={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    )
    assert (code, out, error) == (128 + signal.SIGINT, "", "interrupted\n")
