"""The wheel as users get it: built, installed alone, tested there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RUNTIME = {"numpy", "onnxruntime", "tokenizers", "pillow", "click"}

pytestmark = pytest.mark.slow


def run(*arguments: object, **options: object) -> str:
    done = subprocess.run(
        [str(argument) for argument in arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY)
    run(sys.executable, *build)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel, tmp_path_factory):
    """A Python with the wheel, its dependencies, and what it takes to run tests."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", folder)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (python, "-m", "pip", "install", "-q", "-c", REPOSITORY / "constraints.txt")
    run(*pip, wheel)
    listed = run(python, "-m", "pip", "list", "--format=freeze").lower()
    installed = {line.split("==")[0] for line in listed.splitlines()}
    assert RUNTIME <= installed
    assert not {"torch", "transformers", "onnx", "pydicom"} & installed
    run(*pip, "pytest", "hypothesis")
    return python


def test_the_wheel_holds_the_three_packages_and_nothing_beside_them(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    packages = {"umd_edge", "umd_edge_train", "umd_edge_export"}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} <= packages
    # for programs in C and C++, where `umd-edge c-info` says
    beside = {name.split(".data/", 1)[1] for name in names if ".data/" in name}
    assert beside == {"data/include/umd_edge.h", "data/include/umd_edge.hpp"}
    assert "umd_edge/py.typed" in names
    assert "umd_edge/manifest.schema.json" in names
    page = {"index.html", "page.css", "page.js", "results.js", "service.js"}
    assert {f"umd_edge/serve/page/{name}" for name in page} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_runtime_tests_pass_with_the_runtime_dependencies_alone(
    clean_python, tmp_path, monkeypatch
):
    # The copied tests stand elsewhere, and would look for the data beside themselves.
    beside = REPOSITORY.parent / "shared" / "data"
    monkeypatch.setenv("UMD_EDGE_DATA", os.environ.get("UMD_EDGE_DATA", str(beside)))
    tests = tmp_path / "tests"
    for part in ("runtime", "support", "data"):
        shutil.copytree(REPOSITORY / "tests" / part, tests / part)
    shutil.copy(REPOSITORY / "tests" / "conftest.py", tests)
    settings = tests / "pytest.ini"
    settings.write_text(
        "[pytest]\naddopts = --import-mode=importlib\npythonpath = .\nmarkers = slow: long\n"
    )
    output = run(clean_python, "-m", "pytest", "-q", "-m", "not slow", "runtime", cwd=tests)
    assert " passed" in output


def test_the_installed_command_works(clean_python, tiny_bundle, tmp_path):
    command = clean_python.parent / "umd-edge"
    assert "self-tests passed" in run(command, "doctor", "--bundle", tiny_bundle, cwd=tmp_path)
    default = REPOSITORY / "umd_edge" / "bundles" / "default.umd"
    if default.is_file():
        assert run(command, "verify", cwd=tmp_path).rstrip().endswith("ok")


def test_dicom_without_its_extra_is_exit_5_and_names_the_extra(clean_python, tiny_bundle, tmp_path):
    image = tmp_path / "image.dcm"
    image.write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00\x00\x00\x00\x00")
    command = clean_python.parent / "umd-edge"
    done = subprocess.run(
        [command, "ask", image, "which organ?", "--bundle", tiny_bundle],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5
    assert 'pip install "umd-edge[dicom]"' in done.stderr


def test_the_service_without_its_extra_is_exit_5_and_names_the_extra(clean_python, tiny_bundle):
    command = clean_python.parent / "umd-edge"
    done = subprocess.run(
        [command, "serve", "--port", "0", "--bundle", tiny_bundle],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5
    assert 'pip install "umd-edge[serve]"' in done.stderr
