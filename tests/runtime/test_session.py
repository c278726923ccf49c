from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.bundles import repack, tiny_files
from umd_edge import (
    Bundle,
    BundleIntegrityError,
    InferenceError,
    Predictor,
    ProviderUnavailableError,
    SessionOptions,
    _session,
)
from umd_edge._graphs import Graphs, fusion_outputs, graph_specs
from umd_edge._session import GraphSession, available_providers, needs_u8u8

VISION = tiny_files()["graphs/vision.fp32.onnx"]
SPEC = graph_specs(Bundle.open(Path(__file__).parent.parent / "data" / "tiny.umd").manifest)


def _open(**options) -> GraphSession:
    return GraphSession(VISION, "v.onnx", SPEC["vision"], SessionOptions(**options), u8u8=False)


def test_cpu_is_always_there():
    assert available_providers()[0] == "cpu"


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino"])
def test_absent_provider_is_an_error_that_lists_the_present_ones(
    monkeypatch: pytest.MonkeyPatch, provider: str
):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderUnavailableError, match=r"available: \['cpu'\].*install"):
        _open(provider=provider)


def test_provider_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch):
    import onnxruntime

    def broken(*args, **options):
        raise RuntimeError("libcudart.so.13: cannot open shared object file")

    names = ["CPUExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    with pytest.raises(ProviderUnavailableError, match="did not start"):
        _open(provider="cuda")


def test_provider_that_was_silently_replaced_is_an_error(monkeypatch: pytest.MonkeyPatch):
    import onnxruntime

    real = onnxruntime.InferenceSession
    names = ["CPUExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda data, settings, **_: real(data, settings, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(ProviderUnavailableError, match="cuda"):
        _open(provider="cuda")


def test_threads_and_sequential_mode_reach_onnxruntime():
    settings = _open(threads=3)._session.get_session_options()
    assert settings.intra_op_num_threads == 3
    assert not settings.enable_cpu_mem_arena


@pytest.mark.parametrize(
    "feeds",
    [
        {"pixel_values": np.zeros((1, 3, 16, 16), np.float64)},
        {"pixel_values": np.zeros((1, 3, 7, 7), np.float32)},
        {"pixel_values": np.zeros((3, 16, 16), np.float32)},
        {"something": np.zeros((1, 3, 16, 16), np.float32)},
        {},
    ],
)
def test_every_failure_of_a_run_becomes_an_inference_error(feeds: dict):
    session = _open()
    with pytest.raises(InferenceError, match=r"v\.onnx") as caught:
        session.run(feeds)
    assert caught.value.__cause__ is not None


def test_outputs_come_in_the_order_of_the_format():
    session = _open()
    tokens, embedding = session.run({"pixel_values": np.zeros((2, 3, 16, 16), np.float32)})
    assert session.output_names == ("image_tokens", "image_embedding")
    assert (tokens.shape, embedding.shape) == ((2, 4, 8), (2, 8))


def test_fusion_has_logits_of_each_task_but_retrieval():
    from dataclasses import replace

    from umd_edge._task import TaskSpec

    manifest = Bundle.open(Path(__file__).parent.parent / "data" / "tiny.umd").manifest
    retrieval = TaskSpec(name="search", kind="retrieval", outputs=())
    more = replace(manifest, tasks=(*manifest.tasks, retrieval))
    assert fusion_outputs(more) == fusion_outputs(manifest)
    assert fusion_outputs(manifest)[-1] == "match_logit"
    assert "logits_chest_xray" in fusion_outputs(manifest)


def test_task_without_output_in_the_graph_is_refused(tmp_path: Path):
    def edit(manifest):
        manifest["tasks"][0]["name"] = "other"

    with pytest.raises(BundleIntegrityError, match="logits_other"):
        Predictor.load(repack(tmp_path / "b.umd", edit=edit))


CPUINFO = "processor\t: 0\nflags\t\t: fpu sse avx2 {}\n"


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "", True),
        ("AMD64", "avx512f", True),
        ("x86_64", "avx512_vnni", False),
        ("x86_64", "avx_vnni", False),
        ("aarch64", "", False),
    ],
)
def test_processor_is_probed_for_saturating_products(
    monkeypatch: pytest.MonkeyPatch, machine: str, flags: str, expected: bool
):
    monkeypatch.setattr(_session.platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda *args, **options: CPUINFO.format(flags))
    assert needs_u8u8() is expected


def test_processor_that_cannot_be_probed_takes_the_safe_way(monkeypatch: pytest.MonkeyPatch):
    def absent(*args, **options):
        raise FileNotFoundError

    monkeypatch.setattr(_session.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "read_text", absent)
    assert needs_u8u8()


@pytest.mark.parametrize(
    ("variant", "notes", "saturates", "expected"),
    [
        ("int8", {"weight_bits": 7}, True, "native"),
        ("int8", {"weight_bits": 8}, True, "u8u8"),
        ("int8", {}, True, "u8u8"),
        ("int8", {}, False, "native"),
        ("fp32", {}, True, ""),
    ],
)
def test_way_of_summing_is_chosen_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant, notes, saturates, expected
):
    from umd_edge import _graphs

    def edit(manifest):
        manifest["variants"][variant]["notes"] = notes

    monkeypatch.setattr(_graphs, "needs_u8u8", lambda: saturates)
    path = repack(tmp_path / "b.umd", edit=edit)
    assert Graphs(Bundle.open(path), variant, SessionOptions()).int8_path == expected
    predictor = Predictor.load(path, variant=variant)
    result = predictor.classify(np.zeros((9, 9), np.uint8), "skin-lesion")
    assert result.to_dict()["int8_path"] == expected
    assert predictor.verify().checks
