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


def _vendor_header(places: dict[int, str]) -> str:
    """A stand-in for onnxruntime_c_api.h: the table of functions, and two element types."""
    members = [f"void (*{places.get(place, f'other_{place}')})(void);" for place in range(180)]
    types = (
        "enum { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7 };"
    )
    return f"typedef struct OrtApi {{ {' '.join(members)} }} OrtApi;\n{types}\n"


@pytest.mark.parametrize("moved", [False, True])
def test_own_declarations_are_compared_with_the_header_of_onnxruntime(
    moved: bool, tmp_path: Path
) -> None:
    source = BINDINGS / "c" / "src" / "ort.h"
    functions = re.findall(r"X\((\d+), (\w+),", source.read_text(encoding="utf-8"))
    places = {int(place): name for place, name in functions}
    if moved:
        places[10], places[11] = "elsewhere", places[10]
    (tmp_path / "onnxruntime_c_api.h").write_text(_vendor_header(places))
    folders = [f"-I{INCLUDE}", f"-I{tmp_path}"]
    command = [compiler(), "-std=c11", *STRICT, "-DUMD_USE_ORT_HEADER", *folders]
    done = subprocess.run(
        [*command, str(source.with_suffix(".c"))], capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) == moved
    assert ("CreateSessionOptions has moved" in done.stderr) == moved


def _python_errors() -> set[str]:
    classes = inspect.getmembers(errors, inspect.isclass)
    return {name for name, kind in classes if issubclass(kind, errors.UmdEdgeError)}


def test_every_python_error_has_exactly_one_status() -> None:
    codes = {int(code) for code in re.findall(r"UMD_(?:OK|ERROR\w*) = (\d+)", HEADER)}
    names = [library().umd_status_name(code).decode() for code in sorted(codes)]
    only_c = {"Ok", "OutOfMemory", "BufferTooSmall"}
    assert len(set(names)) == len(names)
    assert set(names) - only_c == _python_errors()


def test_the_page_names_every_status_with_its_code() -> None:
    page = (BINDINGS.parent / "docs" / "c-api.md").read_text(encoding="utf-8")
    listed = {name: int(code) for code, name in re.findall(r"\| (\d+) \| `(\w+)`", page)}
    assert set(listed) == _python_errors()
    for name, code in listed.items():
        assert library().umd_status_name(code).decode() == name


def test_the_example_of_the_page_compiles(tmp_path: Path) -> None:
    page = (BINDINGS.parent / "docs" / "c-api.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"```c\n(.*?)```", page, re.S)
    source = tmp_path / "page.c"
    source.write_text(
        '#include "umd_edge.h"\n'
        "int report(const char *message);\nint run(const uint8_t *frame);\n"
        f"int run(const uint8_t *frame)\n{{\n{body}\nreturn (int)status;\n}}\n"
    )
    command = [compiler(), "-std=c99", *STRICT, f"-I{INCLUDE}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


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
