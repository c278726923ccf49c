from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.bundles import repack, tiny_files
from support.requirements import lacking
from umd_edge import Bundle, _tensorrt_cuda, _tensorrt_engine, _tensorrt_probe
from umd_edge._tensorrt_bundle import build_engines

FAKES = Path(__file__).resolve().parent.parent / "support" / "fake_tensorrt"


def _forget() -> None:
    for cached in (_tensorrt_probe.probe, _tensorrt_engine._cuda):
        cached.cache_clear()
    for name in _tensorrt_probe.LIBRARIES:
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def _afresh():
    """Whether TensorRT works is found out once a process; here it changes from test to test."""
    _forget()
    yield
    _forget()


@pytest.fixture(scope="session")
def fake_driver_file(tmp_path_factory) -> Path:
    """The fake driver library, compiled."""
    out = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(out), str(FAKES / "fake_cuda.c")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        lacking("cc", "there is no C compiler")
    assert done.returncode == 0, done.stderr
    return out


def _use_driver(monkeypatch, file: Path) -> None:
    monkeypatch.setattr(_tensorrt_cuda, "_NAMES", {sys.platform: str(file)})
    monkeypatch.setenv("LD_LIBRARY_PATH", str(file.parent))


def _use_tensorrt(monkeypatch, version: str, trouble: str) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", version)
    monkeypatch.setenv("FAKE_TENSORRT_TROUBLE", trouble)
    _forget()


@pytest.fixture
def fake_driver(monkeypatch, fake_driver_file):
    """The driver of this process and of its children is the fake; gives its library."""
    _use_driver(monkeypatch, fake_driver_file)
    return ctypes.CDLL(str(fake_driver_file))


@pytest.fixture
def fake_tensorrt(monkeypatch):
    """TensorRT is the fake; gives a function that chooses version and trouble."""
    monkeypatch.syspath_prepend(str(FAKES))

    def choose(version: str = "10.3.0", trouble: str = "") -> None:
        _use_tensorrt(monkeypatch, version, trouble)

    choose()
    return choose


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory) -> Path:
    """The tiny bundle with as many image tokens as it gives, which TensorRT must know."""
    onnx = pytest.importorskip("onnx")
    files = tiny_files()
    for name in ("graphs/fusion.fp32.onnx", "graphs/fusion.int8.onnx"):
        model = onnx.load_from_string(files[name])
        (tokens,) = (item for item in model.graph.input if item.name == "image_tokens")
        tokens.type.tensor_type.shape.dim[1].dim_value = 4
        files[name] = model.SerializeToString(deterministic=True)
    return repack(tmp_path_factory.mktemp("bundle") / "tiny.umd", files)


@pytest.fixture(scope="session")
def built_engines(tmp_path_factory, bundle_path, fake_driver_file) -> Path:
    """The engines of the float variant, built once."""
    folder = tmp_path_factory.mktemp("built") / "engines"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(FAKES))
        _use_driver(monkeypatch, fake_driver_file)
        _use_tensorrt(monkeypatch, "10.3.0", "")
        build_engines(Bundle.open(bundle_path), folder=folder)
    _forget()
    return folder


@pytest.fixture
def engines(built_engines, tmp_path, fake_driver, fake_tensorrt) -> Path:
    """A copy of them that a test may spoil."""
    return Path(shutil.copytree(built_engines, tmp_path / "engines"))
