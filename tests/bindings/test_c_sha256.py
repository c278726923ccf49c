"""SHA-256 in C, in portable code and by the processor's own instructions, against hashlib."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.c_library import BINDINGS, INCLUDE, LIBRARIES, build
from support.requirements import lacking

SOURCES = [BINDINGS / "c" / "src" / name for name in ("sha256.c", "sha256_native.c")]
Hash = Callable[[bytes], str]


def _load(path: Path) -> Hash:
    function = ctypes.CDLL(str(path)).umdi_sha256

    def sha256(data: bytes) -> str:
        out = ctypes.create_string_buffer(65)
        function(data, ctypes.c_size_t(len(data)), out)
        return out.value.decode()

    return sha256


@pytest.fixture(scope="module", params=["portable", "native"])
def sha256(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Hash:
    flags = ["-shared", "-fPIC", "-fvisibility=default"]
    if request.param == "portable":
        flags.append("-DUMD_PORTABLE")
    return _load(build(tmp_path_factory.mktemp("sha") / "libsha.so", flags, SOURCES))


def test_every_length_around_the_blocks(sha256: Hash) -> None:
    data = bytes(range(256)) * 2
    for length in range(len(data)):
        assert sha256(data[:length]) == hashlib.sha256(data[:length]).hexdigest(), length


@given(st.binary(max_size=3000), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_any_bytes_at_any_address(sha256: Hash, data: bytes, offset: int) -> None:
    assert sha256(bytes(offset) + data) == hashlib.sha256(bytes(offset) + data).hexdigest()


def test_one_changed_bit_changes_the_hash(sha256: Hash) -> None:
    data = bytearray(200)
    hashes = {sha256(bytes(data))}
    for position in range(0, 200, 9):
        data[position] ^= 0x10
        hashes.add(sha256(bytes(data)))
    assert len(hashes) == 24


@pytest.mark.slow
def test_instructions_of_aarch64_give_the_same_hashes(tmp_path: Path) -> None:
    compile_with, run_with = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if compile_with is None or run_with is None:
        lacking("aarch64", "no aarch64-linux-gnu-gcc and qemu-aarch64 on the path")
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "sha256.h"\n#include "sha256_blocks.h"\n'
        "int main(int count, char **arguments)\n{\n    char hex[UMDI_SHA256_HEX];\n"
        "    static unsigned char data[5000];\n    (void)arguments;\n"
        "    for (int i = 0; i < 5000; i++)\n        data[i] = (unsigned char)(i * 7);\n"
        '    puts(umdi_sha256_native() != NULL ? "native" : "portable");\n'
        "    for (size_t i = 0; i < 200; i++) {\n"
        "        umdi_sha256(data + i % 5, i * 25, hex);\n        puts(hex);\n    }\n"
        "    return count > 1;\n}\n"
    )
    program = tmp_path / "program"
    flags = ["-std=c11", "-O2", "-Wall", "-Werror", f"-I{INCLUDE}", f"-I{BINDINGS / 'c' / 'src'}"]
    sources = [str(tmp_path / "main.c"), *map(str, SOURCES)]
    subprocess.run([compile_with, *flags, *sources, "-o", str(program), *LIBRARIES], check=True)
    data = bytes(i * 7 % 256 for i in range(5000))
    wanted = [hashlib.sha256(data[i % 5 : i % 5 + i * 25]).hexdigest() for i in range(200)]
    for processor, kind in (("max", "native"), ("cortex-a53", None)):
        command = [run_with, "-cpu", processor, "-L", "/usr/aarch64-linux-gnu", str(program)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found, *hashes = done.stdout.split()
        assert hashes == wanted
        assert kind in (None, found)
