"""The C test program: golden vectors on real images, threads, lost memory, sanitisers, examples."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import umd_edge
from support.bundles import tiny_files, zip_bytes
from support.c_library import (
    BINDINGS,
    INCLUDE,
    LIBRARIES,
    SOURCES,
    build,
    compiler,
    library_path,
    onnxruntime_library,
)
from support.c_vectors import write_vectors
from support.fitted import ood_arrays, scored_bundle
from support.requirements import lacking
from support.retrieval import searchable

PROGRAM = BINDINGS / "c" / "tests" / "umd_edge_test.c"
SANITISE = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
TOKEN_WIDTH = 16
"""Of the token statistics of the tiny bundle."""
SETS = ("vqarad", "vqamed19", "nihcxr", "busi", "padufes")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with the library in it and every access checked."""
    target = tmp_path_factory.mktemp("program") / "umd_edge_test"
    return build(target, SANITISE, [PROGRAM, *SOURCES])


def _linked(target: Path, source: Path) -> Path:
    """A program that uses the shared library."""
    folder = library_path().parent
    return build(target, [f"-Wl,-rpath,{folder}"], [source], [f"-L{folder}", "-lumd_edge"])


def _run(program: Path, *arguments: object, code: int = 0) -> str:
    # ONNX Runtime keeps memory until the end; `allocations` counts what the library keeps.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def _synthetic() -> Iterator[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(5)
    for shape in ((16, 16), (1, 1, 3), (7, 301), (300, 7, 3), (64, 65, 3), (31, 33)):
        yield rng.integers(0, 256, shape, dtype=np.uint8)
    yield rng.integers(0, 65_536, (40, 50), dtype=np.uint16)
    yield rng.integers(900, 1_100, (41, 23, 3), dtype=np.uint16)


@pytest.mark.parametrize("variant", ["int8", "fp32"])
def test_vectors_of_made_up_images(
    variant: str, program: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    predictor = umd_edge.Predictor.load(tiny_bundle, variant=variant)
    vectors = write_vectors(tmp_path / "vectors", predictor, [*_synthetic(), *_synthetic()])
    out = _run(program, "vectors", tiny_bundle, onnxruntime_library(), vectors, variant)
    assert out == "16 vectors\n"


def test_a_vector_that_differs_is_noticed(program: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    predictor = umd_edge.Predictor.load(tiny_bundle)
    vectors = write_vectors(tmp_path / "vectors", predictor, [*_synthetic()][:1])
    data = bytearray(vectors.read_bytes())
    for end, wrong in ((8, np.float64(0.25).tobytes()), (12, data[-12:-11] + b"\x00\x00\x01")):
        broken = data[:-end] + wrong + data[len(data) - end + len(wrong) :]
        assert len(broken) == len(data)
        vectors.write_bytes(broken)
        _run(program, "vectors", tiny_bundle, onnxruntime_library(), vectors, code=1)


def _real_images(folder: Path, count: int) -> Iterator[np.ndarray[Any, Any]]:
    """The first pictures of each set's training split, grey ones as grey."""
    for name in SETS:
        lines = (folder / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
        names = list(dict.fromkeys(json.loads(line)["image"] for line in lines))[:count]
        for index, image in enumerate(names):
            with Image.open(folder / name / image) as opened:
                grey = opened.mode in ("L", "I;16")
                pixels = np.asarray(opened if grey else opened.convert("RGB"))
            if index % 4 == 1:  # as from a detector of 12 bits
                pixels = pixels.astype(np.uint16) * 16 + 7
            yield pixels[: -1 - index % 3, index % 5 :] if index % 4 > 1 else pixels


def _default_bundle() -> Path:
    path = Path(umd_edge.__file__).parent / "bundles" / "default.umd"
    if not path.is_file():
        pytest.skip("this checkout has no default bundle")
    return path


@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_vectors_of_real_images_on_the_default_bundle(
    count: int, shared_data: Path, tmp_path: Path
) -> None:
    bundle = _default_bundle()
    predictor = umd_edge.Predictor.load(bundle)
    images = list(_real_images(shared_data, count))
    vectors = write_vectors(tmp_path / "vectors", predictor, images)
    program = _linked(tmp_path / "umd_edge_test", PROGRAM)
    out = _run(program, "vectors", bundle, onnxruntime_library(), vectors)
    assert out == f"{len(images)} vectors\n"
    assert len(images) == count * len(SETS)


def test_opening_needs_no_thread(tiny_bundle: Path, tmp_path: Path) -> None:
    """Where none can be had, the work of opening is done in the caller's."""
    (tmp_path / "none.c").write_text(
        "#include <errno.h>\n#include <pthread.h>\n"
        "int __wrap_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);"
        "\nint __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,\n"
        "                          void *(*start)(void *), void *argument)\n{\n"
        "    (void)thread, (void)attributes, (void)start, (void)argument;\n    return EAGAIN;\n}\n"
    )
    sources = [PROGRAM, tmp_path / "none.c", *SOURCES]
    program = build(tmp_path / "program", ["-O0", "-Wl,--wrap=pthread_create"], sources)
    _run(program, "threads", tiny_bundle, onnxruntime_library(), 1, 1, code=1)  # none can be had
    predictor = umd_edge.Predictor.load(tiny_bundle)
    vectors = write_vectors(tmp_path / "vectors", predictor, [*_synthetic()][:2])
    out = _run(program, "vectors", tiny_bundle, onnxruntime_library(), vectors)
    assert out == "2 vectors\n"


def test_eight_threads_give_the_same_bits(program: Path, tiny_bundle: Path) -> None:
    out = _run(program, "threads", tiny_bundle, onnxruntime_library(), 8, 50)
    assert out == "0 differences\n"


@pytest.mark.parametrize(("kind", "calls"), [("plain", 9), ("fitted", 11), ("searchable", 11)])
def test_every_lost_allocation_is_a_status_and_nothing_is_kept(
    kind: str, calls: int, program: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = tiny_bundle
    if kind == "fitted":
        bundle = scored_bundle(tmp_path / "fitted.umd", ood_arrays(TOKEN_WIDTH), fitted=True)
    elif kind == "searchable":
        bundle = searchable(tmp_path / "search.umd")
    out = _run(program, "allocations", bundle, onnxruntime_library())
    count, _ = out.split(" allocations")
    assert int(count) > 150
    assert out.endswith(f", {calls} calls\n")  # of 13: the others are refused by such a bundle


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_valgrind_finds_nothing(broken: bool, tiny_bundle: Path, tmp_path: Path) -> None:
    found = shutil.which("valgrind")
    if found is None:
        lacking("valgrind", "no valgrind on the path")
    sources = [PROGRAM, *SOURCES]
    if broken:  # what it must notice: a byte behind the end of a block
        head = "uint8_t *bytes, unsigned seed)\n{\n"
        fault = "    uint8_t *volatile block = malloc(8);\n    seed += block[9];\n"
        text = PROGRAM.read_text().replace(head, head + fault)
        sources[0] = tmp_path / "broken.c"
        sources[0].write_text(text)
    program = build(tmp_path / "program", ["-g", "-O0"], sources)
    suppressions = BINDINGS / "c" / "tests" / "valgrind.supp"
    command = [found, "-q", "--error-exitcode=9", f"--suppressions={suppressions}", str(program)]
    done = subprocess.run(
        [*command, "memory", str(tiny_bundle), str(onnxruntime_library()), "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 9) == broken, done.stderr
    if not broken:
        predictor = umd_edge.Predictor.load(tiny_bundle)
        vectors = write_vectors(tmp_path / "vectors", predictor, _synthetic())
        arguments = ["vectors", str(tiny_bundle), str(onnxruntime_library()), str(vectors)]
        subprocess.run([*command, *arguments], check=True, capture_output=True)


def test_library_leaves_no_identifier_of_the_machine(tiny_bundle: Path, tmp_path: Path) -> None:
    """Official builds of ONNX Runtime write one, and report, unless they are told not to."""
    program, home = _linked(tmp_path / "umd_edge_test", PROGRAM), tmp_path / "home"
    home.mkdir()
    quiet = ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI", "GITHUB_ACTIONS", "TF_BUILD")
    kept = {name: value for name, value in os.environ.items() if name not in quiet}
    subprocess.run(
        [str(program), "memory", str(tiny_bundle), str(onnxruntime_library()), "2"],
        env={**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")},
        check=True,
        capture_output=True,
    )
    assert list(home.rglob("*")) == []


@pytest.mark.slow
def test_memory_stays_flat(tiny_bundle: Path, tmp_path: Path) -> None:
    program = _linked(tmp_path / "umd_edge_test", PROGRAM)
    _run(program, "memory", tiny_bundle, onnxruntime_library(), 10_000)


@pytest.mark.slow
def test_eight_threads_of_a_thousand_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    program = _linked(tmp_path / "umd_edge_test", PROGRAM)
    out = _run(program, "threads", tiny_bundle, onnxruntime_library(), 8, 1000)
    assert out == "0 differences\n"


def _damaged(folder: Path) -> Sequence[Path]:
    """Bundles with random bytes changed, some with hashes that fit."""
    rng = np.random.default_rng(11)
    files = tiny_files()
    data = zip_bytes(files)
    paths = []
    for index in range(120):
        broken = bytearray(data if index % 2 else files["manifest.json"])
        for _ in range(1 + index % 4):
            broken[rng.integers(len(broken))] = rng.integers(256)
        if index % 2 == 0:
            broken = bytearray(zip_bytes({**files, "manifest.json": bytes(broken)}))
        paths.append(folder / f"{index}.umd")
        paths[-1].write_bytes(broken)
    return paths


def test_damaged_bundles_never_touch_memory_that_is_not_theirs(
    program: Path, tmp_path: Path
) -> None:
    paths = _damaged(tmp_path)
    verdicts = _run(program, "hostile", onnxruntime_library(), *paths).split()
    allowed = {"Ok", "BundleIntegrityError", "ManifestError", "BundleVersionError", "SelfTestError"}
    assert len(verdicts) == len(paths)
    assert set(verdicts) <= allowed
    assert verdicts.count("Ok") < len(paths) / 2


def test_device_loop_answers_every_frame(tiny_bundle: Path, tmp_path: Path) -> None:
    program = _linked(tmp_path / "device_loop", BINDINGS / "examples" / "device_loop.c")
    out = _run(program, tiny_bundle, onnxruntime_library(), 3)
    assert len(out.splitlines()) == 6
    _run(program, tmp_path / "none.umd", onnxruntime_library(), 1, code=3)


def test_desktop_example_gives_the_answers_of_python(tiny_bundle: Path, tmp_path: Path) -> None:
    found = shutil.which("c++")
    if found is None:
        lacking("cc", "no C++ compiler `c++` on the path")
    program, library = tmp_path / "desktop", library_path()
    folders = [f"-I{INCLUDE}", f"-I{BINDINGS / 'cpp' / 'include'}", f"-L{library.parent}"]
    source = BINDINGS / "examples" / "desktop.cpp"
    link = ["-lumd_edge", f"-Wl,-rpath,{library.parent}"]
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
    command = [found, "-std=c++17", *strict, *folders, str(source), "-o", str(program), *link]
    subprocess.run(command, check=True)
    image = np.random.default_rng(2).integers(0, 256, (30, 40), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "grey.pgm")
    out = _run(program, tiny_bundle, onnxruntime_library(), tmp_path / "grey.pgm", "chest ?")
    answer = umd_edge.Predictor.load(tiny_bundle).ask(image, "chest ?")
    names = [line.split("\t")[1] for line in out.splitlines()]
    assert names == [answer.answer, *(item.answer for item in answer.alternatives)]


def _check_asked(program: Sequence[str | Path], bundle: Path) -> None:
    """An example that asks two questions about a made-up frame gives the answers of Python."""
    questions = ("chest ?", "is there a lesion ?")
    out = _run(*program, bundle, onnxruntime_library(), *questions)
    frame = (np.arange(64 * 48) * 7 % 256).astype(np.uint8).reshape(48, 64)
    encoded = umd_edge.Predictor.load(bundle).encode(frame)
    wanted = [encoded.ask(text) for text in questions]
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[0] for row in rows] == [answer.answer for answer in wanted]
    assert np.allclose([float(row[1]) for row in rows], [a.probability for a in wanted], rtol=1e-14)


@pytest.mark.slow
def test_rust_example_gives_the_answers_of_python(tiny_bundle: Path, tmp_path: Path) -> None:
    found = shutil.which("rustc")
    if found is None:
        pytest.skip("no rustc on the path")
    program, library = tmp_path / "ask", library_path()
    rpath = f"link-arg=-Wl,-rpath,{library.parent}"
    link = ["-L", str(library.parent), "-l", "umd_edge", "-C", rpath]
    source = str(BINDINGS / "examples" / "ask.rs")
    subprocess.run([found, "-O", "-D", "warnings", source, "-o", str(program), *link], check=True)
    _check_asked([program], tiny_bundle)


@pytest.mark.slow
def test_c_sharp_example_gives_the_answers_of_python(tiny_bundle: Path, tmp_path: Path) -> None:
    compile_with, run_with = shutil.which("mcs"), shutil.which("mono")
    if compile_with is None or run_with is None:
        lacking("mono", "no `mcs` and `mono` on the path")
    program = tmp_path / "Ask.exe"
    source = BINDINGS / "examples" / "Ask.cs"
    subprocess.run([compile_with, "-warnaserror", f"-out:{program}", str(source)], check=True)
    shutil.copy(library_path(), tmp_path / "libumd_edge.so")
    _check_asked([run_with, program], tiny_bundle)
    done = subprocess.run(
        [run_with, str(program), str(tmp_path / "none.umd"), str(onnxruntime_library()), "chest ?"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "none.umd" in done.stderr


@pytest.mark.slow
def test_fuzzing_finds_nothing_in_a_fixed_budget(tmp_path: Path) -> None:
    found = shutil.which("clang")
    if found is None:
        lacking("clang", "no clang on the path; libFuzzer comes with it")
    target, folder = tmp_path / "fuzz", BINDINGS / "c"
    flags = ["-std=c11", "-g", "-O1", "-fsanitize=fuzzer,address,undefined"]
    sources = [str(folder / "tests" / "fuzz.c"), *map(str, SOURCES)]
    command = [found, *flags, "-fno-sanitize-recover=all", f"-I{INCLUDE}", f"-I{folder / 'src'}"]
    subprocess.run([*command, *sources, "-o", str(target), *LIBRARIES], check=True)
    files, corpus = tiny_files(), tmp_path / "corpus"
    corpus.mkdir()
    small = {name: files[name] for name in ("manifest.json", "tokenizer.json")}
    (corpus / "zip").write_bytes(b"\0" + zip_bytes(small))
    (corpus / "manifest").write_bytes(b"\1" + files["manifest.json"])
    (corpus / "tokenizer").write_bytes(b"\2\4scan" + files["tokenizer.json"])
    (corpus / "pixels").write_bytes(b"\3" + bytes(120) + bytes(range(200)))
    _run(target, corpus, "-runs=20000", "-max_len=8192", "-seed=1", "-timeout=60")


def _fetched_runtime(version: str, machine: str, folder: Path) -> Path:
    """The shared library in a wheel of onnxruntime from the package index."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    command += ["--only-binary=:all:", "--python-version", "311", f"onnxruntime=={version}"]
    for libc in ("2_28", "2_27"):
        command += ["--platform", f"manylinux_{libc}_{machine}"]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        lacking("index", f"onnxruntime {version} for {machine} cannot be fetched")
    with zipfile.ZipFile(next(folder.glob(f"onnxruntime-{version}-*{machine}.whl"))) as packed:
        (name,) = [n for n in packed.namelist() if "/libonnxruntime.so." in n]
        return Path(packed.extract(name, folder))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.20.1", "1.23.2"])
def test_the_same_program_runs_with_other_versions_of_onnxruntime(
    version: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the wheels that are fetched are for x86-64")
    runtime = _fetched_runtime(version, "x86_64", tmp_path)
    program = _linked(tmp_path / "umd_edge_test", PROGRAM)
    predictor = umd_edge.Predictor.load(tiny_bundle)
    vectors = write_vectors(tmp_path / "vectors", predictor, _synthetic())
    assert _run(program, "vectors", tiny_bundle, runtime, vectors) == "8 vectors\n"


def _cross_compiler() -> str:
    found = shutil.which("aarch64-linux-gnu-gcc")
    if found is None:
        lacking("aarch64", "no aarch64-linux-gnu-gcc on the path")
    return found


@pytest.mark.slow
def test_the_library_cross_compiles_for_aarch64(tmp_path: Path) -> None:
    target = tmp_path / "libumd_edge.so"
    flags = ["-std=c11", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Werror"]
    command = [_cross_compiler(), *flags, f"-I{INCLUDE}", *map(str, SOURCES)]
    subprocess.run([*command, "-o", str(target), *LIBRARIES], check=True)
    assert target.read_bytes()[18:20] == b"\xb7\x00"  # EM_AARCH64


@pytest.mark.slow
def test_aarch64_gives_the_numbers_of_this_machine(tiny_bundle: Path, tmp_path: Path) -> None:
    """Under qemu's user mode; its version 7.2 cannot load ONNX Runtime 1.31, and can 1.23."""
    compile_with, run_with = _cross_compiler(), shutil.which("qemu-aarch64")
    if run_with is None:
        lacking("aarch64", "no qemu-aarch64 on the path")
    runtime = _fetched_runtime("1.23.2", "aarch64", tmp_path)
    program = tmp_path / "umd_edge_test"
    flags = ["-std=c11", "-O2", "-ffp-contract=off", f"-I{INCLUDE}"]
    sources = map(str, [PROGRAM, *SOURCES])
    subprocess.run([compile_with, *flags, *sources, "-o", str(program), *LIBRARIES], check=True)
    predictor = umd_edge.Predictor.load(tiny_bundle)
    vectors = write_vectors(tmp_path / "vectors", predictor, _synthetic())
    emulated = [run_with, "-L", "/usr/aarch64-linux-gnu", str(program)]
    done = subprocess.run(
        [*emulated, "vectors", str(tiny_bundle), str(runtime), str(vectors)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "8 vectors\n"), done.stderr


@pytest.mark.slow
def test_cmake_installs_a_package_that_others_find(tiny_bundle: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        lacking("cc", "no CMake on the path")
    compiler()
    prefix, script = tmp_path / "prefix", BINDINGS.parent / "script" / "build-c"
    subprocess.run([str(script), str(prefix)], check=True, capture_output=True)
    assert (prefix / "lib" / "libumd_edge.so").stat().st_size <= 300_000
    project = tmp_path / "project"
    project.mkdir()
    example = (BINDINGS / "examples" / "device_loop.c").read_text()
    (project / "device_loop.c").write_text(example)
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(device C)\n"
        "find_package(umd_edge 0.1 REQUIRED)\nadd_executable(device_loop device_loop.c)\n"
        "target_link_libraries(device_loop umd_edge::umd_edge)\n"
    )
    work = str(tmp_path / "work")
    configure = ["cmake", "-S", str(project), "-B", work, f"-DCMAKE_PREFIX_PATH={prefix}"]
    for command in (configure, ["cmake", "--build", work]):
        subprocess.run(command, check=True, capture_output=True)
    _run(Path(work) / "device_loop", tiny_bundle, onnxruntime_library(), 1)


@pytest.mark.slow
def test_every_call_from_python_is_clean_under_the_sanitisers(tmp_path: Path) -> None:
    """The other test modules once more, with a library whose every access is checked."""
    library = build(tmp_path / "libumd_edge.so", [*SANITISE, "-shared", "-fPIC"])
    preload = []
    for name in ("libasan.so", "libubsan.so"):
        found = subprocess.run(
            [compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
        preload.append(found.stdout.strip())
    if not all(Path(path).is_absolute() for path in preload):
        lacking("cc", "the compiler's sanitisers cannot be loaded into Python")
    here = Path(__file__)
    modules = [path for path in sorted(here.parent.glob("test_c_*.py")) if path != here]
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UMD_EDGE_LIBRARY": str(library),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    done = subprocess.run(
        [*command, *map(str, modules)],
        cwd=BINDINGS.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
