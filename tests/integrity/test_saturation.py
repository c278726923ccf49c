from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.bundles import repack, tiny_files
from support.command import run
from support.requirements import lacking
from umd_edge import Predictor, SelfTestError, SessionOptions, _saturation
from umd_edge._manifest import VariantSpec
from umd_edge._saturation import saturation_error
from umd_edge._selftest import read_golden, write_golden
from umd_edge._session import needs_u8u8

GRAPHS = {part: f"graphs/{part}.onnx" for part in ("vision", "text", "fusion")}


def _eight_bits(out: Path) -> Path:
    """The tiny bundle, its weights said to be of 8 bits."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["variants"]["int8"]["notes"]["weight_bits"] = 8

    return repack(out, edit=edit)


@pytest.mark.parametrize("bits", [None, 2, 7, 8, 99, "x"])
def test_sums_are_right_here_for_every_width(bits: object):
    notes = {} if bits is None else {"weight_bits": bits}
    variant = VariantSpec(graphs=GRAPHS, golden_tolerance=0.0, notes=notes)
    for u8u8 in (False, True):
        if u8u8 or sys.platform == "linux":
            assert saturation_error(variant, SessionOptions(), u8u8=u8u8) == 0.0


def test_graph_is_the_one_that_onnx_builds():
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    weights = onnx.numpy_helper.from_array(np.full((16, 16), 5, np.int8), "b")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "p",
        [helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, [1, 16])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, 16])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    built = model.SerializeToString(deterministic=True)
    assert built == _saturation._BEFORE + bytes([5]) * 256 + _saturation._BEHIND


def test_processor_that_saturates_fails_the_self_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Saturating(_saturation.GraphSession):
        """Adds two products in 16 bits, as `vpmaddubsw` does."""

        def run(self, feeds: Any, names: Any = None) -> Any:
            largest = 127
            pairs = np.minimum(feeds["a"].astype(np.int64) * largest * 2, 32_767)
            return [np.repeat(pairs.sum() // 2, 16)[None].astype(np.int32)]

    monkeypatch.setattr(_saturation, "GraphSession", Saturating)
    path = _eight_bits(tmp_path / "b.umd")
    with pytest.raises(SelfTestError, match=r"8-bit sums by 2\.56e"):
        Predictor.load(path, self_test=True)
    Predictor.load(path)  # nobody asked
    assert Predictor.load(path, variant="fp32", self_test=True).variant == "fp32"


def test_self_test_on_request_runs_the_golden_vectors(tmp_path: Path):
    files = tiny_files()
    golden = dict(read_golden(files["golden.npz"]))
    golden["int8/logits_vqa"] = golden["int8/logits_vqa"] + 1
    path = repack(tmp_path / "b.umd", {**files, "golden.npz": write_golden(golden)})
    Predictor.load(path)
    with pytest.raises(SelfTestError, match="logits_vqa"):
        Predictor.load(path, self_test=True)
    call = ["ask", "none.png", "what ?", "--bundle", path]
    assert run(*call, "--self-test").code == 3
    assert run(*call).code == 4


@pytest.mark.slow
def test_processor_without_vnni_is_caught_where_its_features_lie(tmp_path: Path):
    qemu = shutil.which("qemu-x86_64")
    if qemu is None:
        lacking("qemu", "qemu-x86_64 (Debian: qemu-user) is not installed")
    if needs_u8u8():
        pytest.skip("this processor has no VNNI, so the runtime takes the safe way anyway")
    # The emulated processor cannot do what /proc/cpuinfo, which is the host's, says.
    command = [qemu, "-cpu", "Haswell", sys.executable, "-m", "umd_edge", "verify", "--bundle"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def verify(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, str(path)], capture_output=True, text=True, check=False, env=environment
        )

    done = verify(_eight_bits(tmp_path / "b.umd"))
    assert done.returncode == 3, done.stderr
    assert "8-bit sums by 2.56e+05" in done.stderr
    done = verify(repack(tmp_path / "seven.umd"))
    assert done.returncode == 0, done.stderr
