from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def trace() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trace_script", ROOT / "script" / "_trace.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TESTS = """
import pytest

@pytest.mark.parametrize("value", [1, 2])
def test_one(value): assert value

class TestGroup:
    def test_two(self): pytest.skip("not here")
    def test_three(self): assert False
"""


def _project(folder: Path, *selectors: str) -> list[str]:
    """A small project whose only requirement names such tests; arguments of the command."""
    (folder / "tests").mkdir()
    (folder / "tests" / "test_x.py").write_text(TESTS)
    tests = ", ".join(f'"{name}"' for name in selectors)
    (folder / "r.toml").write_text(
        f'[[requirement]]\nid = "A-1"\ntext = "a < b"\ntests = [{tests}]\n'
    )
    names = ["--requirements", "r.toml", "--root", ".", "--out", "out"]
    return [name if name.startswith("--") else str(folder / name) for name in names]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Results of the project's tests, in pytest's own words."""
    folder = tmp_path_factory.mktemp("results")
    _project(folder)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=."]
    command += ["--import-mode=importlib", "--junitxml=results.xml"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run(
        [*command, "tests"], cwd=folder, env=environment, capture_output=True, check=False
    )
    return str(folder / "results.xml")


def test_every_requirement_of_the_project_names_tests_that_exist(trace: ModuleType):
    requirements = trace.read_requirements(ROOT / "docs" / "requirements.toml")
    assert trace.missing_tests(requirements, ROOT) == []
    assert len(requirements) > 30


@pytest.mark.parametrize(
    ("selector", "state", "code"),
    [
        ("tests/test_x.py::test_one", "passed", 0),
        ("tests/test_x.py::TestGroup::test_two", "skipped", 0),
        ("tests/test_x.py::TestGroup::test_three", "failed", 1),
        ("tests/test_x.py::TestGroup", "failed", 1),
        ("tests/test_x.py", "failed", 1),
    ],
)
def test_results_reach_the_requirement(
    trace: ModuleType, tmp_path: Path, results: str, selector: str, state: str, code: int
):
    arguments = _project(tmp_path, selector)
    assert trace.main([*arguments, "--junit", results]) == code
    with (tmp_path / "out" / "requirements.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["requirement"], row["test"], row["state"]) == ("A-1", selector, state)
    page = (tmp_path / "out" / "requirements.html").read_text()
    assert "a &lt; b" in page and f">{state}</td>" in page


def test_counts_are_those_of_the_parametrised_tests(
    trace: ModuleType, tmp_path: Path, results: str
):
    arguments = _project(tmp_path, "tests/test_x.py")
    trace.main([*arguments, "--junit", results])
    with (tmp_path / "out" / "requirements.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["passed"], row["skipped"], row["failed"]) == ("2", "1", "1")


@pytest.mark.parametrize(
    "selector",
    ["tests/test_y.py", "tests/test_x.py::test_four", "tests/test_x.py::TestGroup::test_one"],
)
def test_selector_without_a_test_fails(
    trace: ModuleType, tmp_path: Path, selector: str, capsys: pytest.CaptureFixture[str]
):
    assert trace.main(_project(tmp_path, selector)) == 1
    assert f"A-1: no test {selector}" in capsys.readouterr().err


def test_test_that_did_not_run_is_no_proof(trace: ModuleType, tmp_path: Path):
    arguments = _project(tmp_path, "tests/test_x.py::test_one")
    (tmp_path / "empty.xml").write_text("<testsuites/>")
    assert trace.main(arguments) == 0
    assert trace.main([*arguments, "--junit", str(tmp_path / "empty.xml")]) == 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        '[[requirement]]\nid = "A"\ntext = "b"\ntests = []',
        '[[requirement]]\nid = "A"\ntext = "b"',
        '[[requirement]]\nid = "A"\ntext = "b"\ntests = ["x"]\n' * 2,
        "no TOML",
    ],
)
def test_list_that_makes_no_sense_is_refused(trace: ModuleType, tmp_path: Path, content: str):
    arguments = _project(tmp_path, "tests/test_x.py")
    (tmp_path / "r.toml").write_text(content)
    assert trace.main(arguments) == 1
    assert not (tmp_path / "out").exists()
