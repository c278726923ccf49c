"""The header alone: every language standard, the exported names, the codes, the versions."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import umd_edge
from support.c_library import BINDINGS, INCLUDE, compiler, library, library_path
from support.requirements import lacking
from umd_edge import errors

STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-fsyntax-only"]
HEADER = (INCLUDE / "umd_edge.h").read_text(encoding="utf-8")


@pytest.mark.parametrize("standard", ["c99", "c11"])
def test_header_compiles_as_c_without_a_warning(standard: str, tmp_path: Path) -> None:
    source = tmp_path / "empty.c"
    source.write_text('#include "umd_edge.h"\nint main(void) { return 0; }\n')
    command = [compiler(), f"-std={standard}", *STRICT, f"-I{INCLUDE}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_wrapper_and_header_compile_as_cpp_without_a_warning(tmp_path: Path) -> None:
    found = shutil.which("c++")
    if found is None:
        lacking("cc", "no C++ compiler `c++` on the path")
    source = tmp_path / "empty.cpp"
    source.write_text('#include "umd_edge.hpp"\nint main() { return 0; }\n')
    folders = [f"-I{INCLUDE}", f"-I{BINDINGS / 'cpp' / 'include'}"]
    done = subprocess.run(
        [found, "-std=c++17", *STRICT, *folders, str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_exported_symbols_are_the_committed_ones_and_those_of_the_header() -> None:
    if shutil.which("nm") is None:
        lacking("cc", "no `nm` on the path")
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(library_path())],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    exported = sorted(line.split()[-1] for line in listing.splitlines())
    committed = (BINDINGS / "c" / "umd_edge.symbols").read_text().split()
    declared = sorted(set(re.findall(r"^UMD_API [^;]*?\b(umd_\w+)\(", HEADER, re.M)))
    assert exported == committed == declared


def _python_errors() -> set[str]:
    classes = inspect.getmembers(errors, inspect.isclass)
    return {name for name, kind in classes if issubclass(kind, errors.UmdEdgeError)}


def test_every_python_error_has_exactly_one_status() -> None:
    codes = {int(code) for code in re.findall(r"UMD_(?:OK|ERROR\w*) = (\d+)", HEADER)}
    names = [library().umd_status_name(code).decode() for code in sorted(codes)]
    only_c = {"Ok", "OutOfMemory", "BufferTooSmall", "Cancelled", "DeadlineExceeded"}
    assert len(set(names)) == len(names)
    assert set(names) - only_c == _python_errors()


def test_status_divided_by_ten_is_the_exit_code() -> None:
    for code in range(10, 60):
        name = library().umd_status_name(code).decode()
        if name != "unknown status":
            assert getattr(errors, name).exit_code == code // 10, name


def test_versions_agree() -> None:
    cmake = (BINDINGS / "c" / "CMakeLists.txt").read_text()
    abi = re.search(r"#define UMD_ABI_VERSION (\d+)", HEADER)
    assert library().umd_version().decode() == umd_edge.__version__
    assert f"VERSION {umd_edge.__version__} " in cmake
    assert abi is not None
    assert library().umd_abi_version() == int(abi[1])
