"""Each mistake of a user: one line that says what to do, the documented exit code, no traceback."""

from __future__ import annotations

import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from support.command import png, run
from umd_edge._cli import _app


def huge_png(path: Path) -> Path:
    """A valid header of 60,000 x 60,000 pixels and hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    data = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 60_001)) + chunk(b"IEND", b"")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def pixelless_dicom(path: Path) -> Path:
    dicom = pytest.importorskip("pydicom")
    source = pytest.importorskip("pydicom.data").get_testdata_file("CT_small.dcm", download=False)
    dataset = dicom.dcmread(source)
    del dataset.PixelData
    dataset.save_as(path)
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


BAD_IMAGES = {
    "text named .png": lambda folder: written(folder / "x.png", b"this is text\n"),
    "missing": lambda folder: folder / "missing.png",
    "empty": lambda folder: written(folder / "empty.png", b""),
    "directory": lambda folder: folder,
    "huge header": lambda folder: huge_png(folder / "huge.png"),
    "dicom without pixels": lambda folder: pixelless_dicom(folder / "nothing.dcm"),
    "truncated": lambda folder: written(
        folder / "cut.png", png(folder / "whole.png").read_bytes()[:400]
    ),
}


def assert_one_clear_line(done, code):
    assert done.code == code, done.err
    lines = [line for line in done.err.splitlines() if not line.endswith("...")]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.err
    assert "internal error" not in done.err
    assert len(lines[0]) > 30


@pytest.mark.parametrize("kind", BAD_IMAGES)
@pytest.mark.parametrize("command", ["ask", "classify", "bench"])
def test_an_image_that_cannot_be_used_is_exit_4(kind, command, tiny_bundle, tmp_path):
    image = BAD_IMAGES[kind](tmp_path)
    arguments = {
        "ask": ["ask", image, "which organ?"],
        "classify": ["classify", image, "--task", "chest-xray"],
        "bench": ["bench", "--image", image],
    }[command]
    done = run(*arguments, "--bundle", tiny_bundle)
    assert_one_clear_line(done, 4)
    assert done.out == ""


@pytest.mark.parametrize("question", ["", "   "])
def test_an_empty_question_is_exit_4(question, tiny_bundle, tmp_path):
    done = run("ask", png(tmp_path / "a.png"), question, "--bundle", tiny_bundle)
    assert_one_clear_line(done, 4)
    assert "question is empty" in done.err


def test_an_unknown_task_is_exit_2_and_the_tasks_are_listed(tiny_bundle, tmp_path):
    image = png(tmp_path / "a.png")
    done = run("classify", image, "--task", "dental", "--bundle", tiny_bundle)
    assert_one_clear_line(done, 2)
    assert "chest-xray" in done.err
    asked = run("ask", image, "which organ?", "--task", "chest-xray", "--bundle", tiny_bundle)
    assert_one_clear_line(asked, 2)


def test_an_unknown_variant_is_exit_2_and_the_variants_are_listed(tiny_bundle, tmp_path):
    done = run("verify", "--bundle", tiny_bundle, "--variant", "int3")
    assert_one_clear_line(done, 2)
    assert "fp32" in done.err


@pytest.mark.parametrize("provider", ["cuda", "abacus"])
def test_an_unavailable_provider_is_exit_5_and_never_replaced(provider, tiny_bundle, tmp_path):
    if (
        provider == "cuda"
        and "cuda" in pytest.importorskip("umd_edge._session").available_providers()
    ):
        pytest.skip("this machine has CUDA")
    image = png(tmp_path / "a.png")
    done = run("ask", image, "which organ?", "--bundle", tiny_bundle, "--provider", provider)
    assert_one_clear_line(done, 5)
    assert "cpu" in done.err


@pytest.mark.parametrize("command", ["info", "verify", "doctor"])
def test_a_truncated_bundle_is_exit_3(command, tiny_bundle, tmp_path):
    data = tiny_bundle.read_bytes()
    cut = written(tmp_path / "cut.umd", data[: len(data) // 2])
    done = run(command, "--bundle", cut)
    assert done.code == 3
    assert "Traceback" not in done.err + done.out


def test_an_altered_bundle_is_exit_3(tiny_bundle, tmp_path):
    data = bytearray(tiny_bundle.read_bytes())
    place = data.index(b"graphs/") + 400
    data[place] ^= 1
    done = run("verify", "--bundle", written(tmp_path / "altered.umd", bytes(data)))
    assert_one_clear_line(done, 3)


def test_a_missing_bundle_is_exit_3(tmp_path):
    assert_one_clear_line(run("info", "--bundle", tmp_path / "none.umd"), 3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("{age: 61}", "not valid JSON"),
        ("nowhere.json", "neither a JSON object nor a readable"),
        ('{"weight": 80}', "not read by this task"),
        ('{"age": "old"}', "finite number"),
        ("{" * 100_000, "not valid JSON"),
    ],
)
def test_bad_structured_values_are_exit_4(given, says, tiny_bundle, tmp_path):
    image = png(tmp_path / "a.png")
    task = ("--task", "skin-lesion", "--structured", given)
    done = run("classify", image, *task, "--bundle", tiny_bundle)
    assert_one_clear_line(done, 4)
    assert says in done.err


def test_a_list_in_a_structured_file_is_exit_4(tiny_bundle, tmp_path):
    values = written(tmp_path / "values.json", b"[1, 2]")
    image = png(tmp_path / "a.png")
    task = ("--task", "skin-lesion", "--structured", values)
    done = run("classify", image, *task, "--bundle", tiny_bundle)
    assert_one_clear_line(done, 4)


@pytest.mark.parametrize(
    "arguments",
    [["classify", "a.png"], ["ask", "a.png"], ["explode"], ["info", "--nonsense"], ["evaluate"]],
)
def test_a_wrong_command_line_is_exit_2(arguments):
    done = run(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_missing_records_are_exit_4(tiny_bundle, tmp_path):
    data = ("--data", tmp_path / "none.jsonl")
    assert_one_clear_line(run("evaluate", "--task", "vqa", *data, "--bundle", tiny_bundle), 4)


def test_an_output_folder_that_cannot_be_made_is_exit_2(tiny_bundle, tmp_path):
    occupied = written(tmp_path / "file", b"")
    done = run("demo", png(tmp_path / "a.png"), "--out", occupied / "x", "--bundle", tiny_bundle)
    assert done.code == 2
    assert "--out" in done.err


def test_an_unforeseen_error_is_exit_1_without_its_text(monkeypatch, tiny_bundle):
    def fail(*_, **__):
        raise RuntimeError("Jane Doe, born 1950")

    monkeypatch.setattr(_app.cli, "invoke", fail)
    done = run("info", "--bundle", tiny_bundle)
    assert done.code == 1
    assert "RuntimeError" in done.err
    assert "Jane" not in done.err
    with pytest.raises(RuntimeError):
        run("--traceback", "info")


def test_a_program_whose_packages_are_missing_names_the_extra(monkeypatch, tmp_path, capsys):
    from umd_edge_export import cli

    monkeypatch.setitem(sys.modules, "umd_edge_export.bundle", None)  # ours: a broken installation
    line = ["bundle", str(tmp_path), "--range-data", str(tmp_path), "--out", str(tmp_path / "x")]
    assert cli.run(line) == 1
    assert "internal error" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "umd_edge_export.bundle")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert cli.run(line) == 5
    told = capsys.readouterr().err
    assert told == 'error: onnx is not installed: pip install "umd-edge[export]"\n'


def test_onnxruntime_that_was_taken_out_is_exit_5(monkeypatch, tiny_bundle):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = run("verify", "--bundle", tiny_bundle)
    assert_one_clear_line(done, 5)
    assert "pip install onnxruntime" in done.err
    done = run("doctor", "--bundle", tiny_bundle)
    assert done.code == 5
    assert re.search(r"^umd-edge +ok ", done.out, re.M)


def test_an_interrupt_is_quiet(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_app.cli, "invoke", interrupt)
    done = run("info")
    assert (done.code, done.err) == (130, "interrupted\n")


def command(*arguments, **options):
    given = [sys.executable, "-m", "umd_edge", *map(str, arguments)]
    return subprocess.Popen(
        given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_reader_that_goes_away_leaves_no_traceback(tiny_bundle):
    with command("info", "--bundle", tiny_bundle) as process:
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=60) == 141
    assert errors == ""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_leaves_no_traceback(tiny_bundle):
    with command("bench", "--runs", "100000", "--bundle", tiny_bundle) as process:
        assert process.stderr.readline() == "measuring ...\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"
