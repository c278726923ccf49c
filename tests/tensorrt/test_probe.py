from __future__ import annotations

import sys

import pytest

from umd_edge import ProviderUnavailableError, _tensorrt_child, _tensorrt_cuda, _tensorrt_probe
from umd_edge._session import available_providers
from umd_edge._tensorrt_child import run_child
from umd_edge._tensorrt_cuda import Cuda, driver_version
from umd_edge._tensorrt_probe import Device, probe, require_device, require_library

MODULE = "umd_edge._tensorrt_probe"


def test_what_is_here_is_found_out_in_a_child(fake_driver, fake_tensorrt):
    facts = probe()
    assert (facts.library, facts.version) == ("tensorrt", "10.3.0")
    assert facts.device == Device("Fake Orin", (8, 7), "CUDA 12.6")
    assert facts.device.sm == "sm_87"
    assert facts.usable
    assert "tensorrt" in available_providers()
    assert "tensorrt" not in sys.modules


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"FAKE_CUDA_INIT": "100"}, "CUDA_ERROR_NO_DEVICE"),
        ({"FAKE_CUDA_INIT": "999"}, "999"),
        ({"FAKE_CUDA_DEVICES": "0"}, "no GPU"),
    ],
)
def test_driver_without_a_gpu(fake_driver, fake_tensorrt, monkeypatch, variables, told):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    facts = probe()
    assert facts.library == "tensorrt"
    assert facts.device is None
    assert told in facts.device_problem
    assert require_library() == facts
    with pytest.raises(ProviderUnavailableError, match=r"available: \['cpu'"):
        require_device()


def test_runtime_that_crashes_takes_the_child_alone(fake_driver, fake_tensorrt):
    fake_tensorrt("10.3.0", "crash")
    facts = probe()
    assert "SIGSEGV while starting tensorrt" in facts.device_problem
    assert facts.device is not None
    assert not facts.usable
    assert "tensorrt" not in available_providers()


def test_runtime_is_not_started_without_a_driver(fake_tensorrt, monkeypatch, tmp_path):
    """As that is where some TensorRT end the interpreter."""
    monkeypatch.setattr(_tensorrt_cuda, "_NAMES", {sys.platform: str(tmp_path / "none.so")})
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    fake_tensorrt("11.4.1", "crash")
    facts = probe()
    assert (facts.library, facts.version) == ("tensorrt", "11.4.1")
    assert "cannot be loaded" in facts.device_problem


def test_library_that_cannot_be_imported_is_told(fake_driver, fake_tensorrt):
    fake_tensorrt("10.3.0", "import")
    facts = probe()
    assert not facts.library
    assert "ImportError" in facts.library_problem
    with pytest.raises(ProviderUnavailableError, match="another release"):
        require_library()


def test_machine_with_nothing(monkeypatch):
    monkeypatch.setattr(_tensorrt_probe.importlib.util, "find_spec", lambda name: None)
    assert not _tensorrt_probe.is_installed()
    assert "tensorrt" not in available_providers()


def test_folder_of_that_name_is_no_tensorrt(monkeypatch, tmp_path):
    (tmp_path / "trt_folder").mkdir()
    (tmp_path / "trt_module.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(_tensorrt_probe, "LIBRARIES", ("trt_folder",))
    assert not _tensorrt_probe.is_installed()
    monkeypatch.setattr(_tensorrt_probe, "LIBRARIES", ("trt_folder", "trt_module"))
    assert _tensorrt_probe.is_installed()


def test_frozen_program_starts_no_child(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert "ordinary Python" in probe().library_problem


def test_probe_runs_once(monkeypatch):
    calls = []

    def ended(*arguments, **options):
        calls.append(arguments)
        return _tensorrt_child.Ending(0)

    monkeypatch.setattr(_tensorrt_probe, "run_child", ended)
    assert probe() is probe()
    assert len(calls) == 1


def test_child_that_does_not_end_is_stopped(fake_driver):
    lines = []
    ending = run_child("time", "sleep", on_line=lines.append, timeout_s=0.2, beat_s=0.1)
    assert not ending.ok  # sleep without an argument: a plain exit code
    code = "import time; time.sleep(60)"
    ending = run_child("builtins", "exec", code, on_line=lines.append, timeout_s=0.2, beat_s=0.1)
    assert str(ending) == "no answer"
    assert lines == []


def test_child_is_heard_and_beats_come_meanwhile():
    lines, beats = [], []
    code = "import time\nprint('TensorRT says hello')\nprint('{\"a\": 1}')\nprint('[2]')\n"
    code += "import sys; sys.stdout.flush(); time.sleep(0.5)"
    ending = run_child(
        "builtins", "exec", code, on_line=lines.append, on_beat=lambda: beats.append(1), beat_s=0.05
    )
    assert ending.ok
    assert lines == [{"a": 1}]
    assert beats


@pytest.mark.parametrize(
    ("code", "told"), [(3, "exit code 3"), (-9, "SIGKILL"), (-200, "signal 200"), (None, "answer")]
)
def test_ending_in_words(code, told):
    ending = _tensorrt_child.Ending(code)
    assert told in str(ending)
    assert not ending.ok


def test_driver_tells_the_gpu(fake_driver, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_VERSION", "13020")
    cuda = Cuda()
    assert (cuda.name, cuda.compute_capability) == ("Fake Orin", (8, 7))
    assert cuda.cuda_version == "13.2"


def test_driver_version_is_read_where_the_system_tells_it(monkeypatch, tmp_path):
    file = tmp_path / "version"
    monkeypatch.setattr(_tensorrt_cuda, "_KERNEL_DRIVER", file)
    assert driver_version("12.6") == "CUDA 12.6"
    file.write_text("")
    assert driver_version("12.6") == "CUDA 12.6"
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\nGCC 12\n"
    )
    assert driver_version("12.6") == "540.4.0 (CUDA 12.6)"


def test_signatures_are_those_of_the_library(fake_driver):
    for name in _tensorrt_cuda._SIGNATURES:
        assert hasattr(fake_driver, name)
