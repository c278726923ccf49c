from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import umd_edge

_ROOT = Path(umd_edge.__file__).resolve().parent.parent


def _modules_after(code: str) -> set[str]:
    program = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); {code}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


@pytest.fixture(scope="module")
def imported() -> set[str]:
    return _modules_after("import umd_edge")


@pytest.mark.parametrize("name", ["torch", "transformers", "onnx", "pydicom", "sklearn"])
def test_import_loads_no_training_package_or_extra(imported: set[str], name: str):
    assert name not in imported


@pytest.mark.parametrize("name", ["onnxruntime", "PIL", "tokenizers", "click", "zipfile"])
def test_import_leaves_heavy_parts_to_their_first_use(imported: set[str], name: str):
    assert name not in imported


def test_import_of_the_training_parts_is_seen_by_this_test():
    assert "PIL" in _modules_after("import umd_edge, PIL.Image")


def test_array_through_a_bundle_needs_no_training_package_and_no_pydicom():
    bundle = Path(__file__).resolve().parent.parent / "data" / "tiny.umd"
    modules = _modules_after(
        "import umd_edge, numpy; "
        f"p = umd_edge.Predictor.load({str(bundle)!r}); "
        "p.ask(numpy.zeros((9, 9), 'uint8'), 'what is shown ?')"
    )
    assert "onnxruntime" in modules
    assert not modules & {"torch", "transformers", "onnx", "pydicom"}


def test_import_prints_nothing_and_starts_no_thread():
    program = (
        f"import sys; sys.path.insert(0, {str(_ROOT)!r}); import umd_edge, threading; "
        "sys.exit(threading.active_count() - 1)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
