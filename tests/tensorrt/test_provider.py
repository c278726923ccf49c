"""From `umd-edge build-engine` to an answer, on a fake TensorRT and a fake driver.

The fakes keep the order and the rules of the calls, and compute with onnxruntime: what is tested is
all that stands between a bundle and TensorRT, not TensorRT.
"""

from __future__ import annotations

import gc
import json
import os
import threading

import numpy as np
import pytest

from support.command import run, run_json
from umd_edge import (
    Bundle,
    BundleIntegrityError,
    InferenceError,
    Predictor,
    ProviderUnavailableError,
    SessionOptions,
    UsageError,
)
from umd_edge._tensorrt_builder import Profile
from umd_edge._tensorrt_bundle import build_engines, engine_cache, tensorrt_variant

pytestmark = pytest.mark.usefixtures("fake_driver", "fake_tensorrt")


def load(bundle_path, engines) -> Predictor:
    return Predictor.load(bundle_path, SessionOptions(provider="tensorrt", engines=engines))


def test_engines_answer_as_the_processor_does(bundle_path, engines):
    gpu = load(bundle_path, engines)
    cpu = Predictor.load(bundle_path, variant="fp32")
    assert (gpu.variant, gpu.provider) == ("fp32", "tensorrt")
    image = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    for question in ("which organ is shown ?", "ct"):
        ours, theirs = gpu.ask(image, question), cpu.ask(image, question)
        assert ours.answer == theirs.answer
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-6)
        assert ours.provider == "tensorrt"
    assert [check.passed for check in gpu.verify().checks]


def test_command_builds_verifies_and_finds_everything_there_the_second_time(bundle_path, tmp_path):
    where = ("--bundle", bundle_path, "--engines", tmp_path / "e")
    (first,) = run_json("build-engine", *where)
    assert [item["part"] for item in first["engines"]] == ["vision", "text", "fusion"]
    assert all(item["built"] for item in first["engines"])
    assert (first["variant"], first["bundle"]) == ("fp32", Bundle.open(bundle_path).sha256)
    (second,) = run_json("build-engine", *where)
    assert not any(item["built"] for item in second["engines"])
    assert [i["path"] for i in first["engines"]] == [i["path"] for i in second["engines"]]
    (third,) = run_json("build-engine", *where, "--rebuild")
    assert all(item["built"] for item in third["engines"])
    (checked,) = run_json("verify", *where, "--provider", "tensorrt")
    assert checked["provider"] == "tensorrt"


def test_lines_on_standard_error_tell_how_far_it_is(bundle_path, tmp_path, monkeypatch):
    done = run("build-engine", "--bundle", bundle_path, "--engines", tmp_path / "e")
    assert done.code == 0
    for part in ("vision", "text", "fusion"):
        assert f"{part}: " in done.err
    assert "s gone" in done.err
    assert str(tmp_path / "e") in done.out


def test_inference_never_builds(bundle_path, tmp_path):
    with pytest.raises(ProviderUnavailableError, match="umd-edge build-engine"):
        load(bundle_path, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"FAKE_CUDA_VERSION": "13000"}, "driver 'CUDA 12.6' and not 'CUDA 13.0'"),
        ({"FAKE_TENSORRT": "10.16.2"}, "version '10.3.0' and not '10.16.2'"),
    ],
)
def test_engine_of_another_driver_or_release_is_not_used(
    bundle_path, engines, monkeypatch, fake_tensorrt, change, told
):
    fake_tensorrt(change.get("FAKE_TENSORRT", "10.3.0"))
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProviderUnavailableError, match=told):
        load(bundle_path, engines)


def test_damaged_engine_is_not_used(bundle_path, engines):
    for path in engines.glob("*.engine"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(ProviderUnavailableError, match=r"damaged.*--rebuild"):
        load(bundle_path, engines)


def test_engine_without_description_is_not_used(bundle_path, engines):
    for path in engines.glob("*.json"):
        path.write_text("[1, 2")
    with pytest.raises(ProviderUnavailableError, match="damaged"):
        load(bundle_path, engines)


def test_engine_under_the_name_of_another_is_not_used(bundle_path, engines):
    """Swapped files have right hashes of their own and wrong keys."""
    first, second, _ = sorted(engines.glob("*.engine"))
    for suffix in (".engine", ".json"):
        one, other = first.with_suffix(suffix), second.with_suffix(suffix)
        a, b = one.read_bytes(), other.read_bytes()
        one.write_bytes(b)
        other.write_bytes(a)
    with pytest.raises(ProviderUnavailableError, match="damaged"):
        load(bundle_path, engines)


def test_input_outside_the_profile_is_refused_with_the_limits(bundle_path, tmp_path):
    folder = tmp_path / "small"
    build_engines(Bundle.open(bundle_path), profile=Profile(2, 6), folder=folder)
    predictor = load(bundle_path, folder)
    graphs = predictor._engine.graphs
    words = np.ones((1, 7), np.int64)
    with pytest.raises(InferenceError, match=r"input_ids.*\(1, 7\).*\(1, 1\) to \(2, 6\)"):
        graphs.text.run({"input_ids": words, "attention_mask": words})
    with pytest.raises(InferenceError, match="pixel_values"):
        graphs.vision.run({"pixel_values": np.zeros((3, 3, 16, 16), np.float32)})
    with pytest.raises(InferenceError, match="float64"):
        graphs.vision.run({"pixel_values": np.zeros((1, 3, 16, 16))})
    assert graphs.text.run({"input_ids": words[:, :6], "attention_mask": words[:, :6]})


def test_newest_profile_is_used(bundle_path, engines):
    build_engines(Bundle.open(bundle_path), profile=Profile(1, 5), folder=engines)
    for path in engines.glob("*.engine"):
        small = "batch 1..1," in path.with_suffix(".json").read_text()
        os.utime(path, (2e9, 2e9) if small else (1e9, 1e9))
    text = load(bundle_path, engines)._engine.graphs.text
    assert text._session.inputs["input_ids"].largest == (1, 5)


def test_arrays_that_are_not_contiguous_come_out_right(bundle_path, engines):
    vision = load(bundle_path, engines)._engine.graphs.vision
    pixels = np.random.default_rng(1).normal(size=(3, 16, 16, 2)).astype(np.float32)
    turned = pixels.transpose(3, 0, 1, 2)
    (given,) = vision.run({"pixel_values": turned}, ["image_embedding"])
    (wanted,) = vision.run({"pixel_values": np.ascontiguousarray(turned)}, ["image_embedding"])
    np.testing.assert_array_equal(given, wanted)


def test_threads_get_their_own_answers(bundle_path, engines):
    vision = load(bundle_path, engines)._engine.graphs.vision
    cpu = Predictor.load(bundle_path, variant="fp32")._engine.graphs.vision
    pixels = np.random.default_rng(2).normal(size=(8, 1, 3, 16, 16)).astype(np.float32)
    results: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        for _ in range(5):
            results[index] = vision.run({"pixel_values": pixels[index]})[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, result in results.items():
        np.testing.assert_allclose(result, cpu.run({"pixel_values": pixels[index]})[0], atol=1e-6)


def test_memory_is_given_back(bundle_path, engines, fake_driver):
    before = fake_driver.fake_live()
    predictor = load(bundle_path, engines)
    assert fake_driver.fake_live() > before
    del predictor
    gc.collect()
    assert fake_driver.fake_live() == before


def test_too_little_device_memory_is_told(bundle_path, engines, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_MEMORY", "16")
    with pytest.raises(InferenceError, match=r"cuMemAlloc.*CUDA_ERROR_OUT_OF_MEMORY"):
        load(bundle_path, engines)


def test_run_that_does_not_start_is_an_inference_error(bundle_path, engines, fake_tensorrt):
    fake_tensorrt("10.3.0", "execution")
    with pytest.raises(InferenceError, match="failed in TensorRT"):
        load(bundle_path, engines).encode(np.zeros((9, 9), np.uint8))


def test_failed_run_is_an_inference_error(bundle_path, engines, monkeypatch):
    predictor = load(bundle_path, engines)
    monkeypatch.setenv("FAKE_CUDA_WAIT", "700")
    with pytest.raises(InferenceError, match="cuStreamSynchronize"):
        predictor.encode(np.zeros((9, 9), np.uint8))


def test_engine_with_other_outputs_is_refused(bundle_path, engines):
    """The vision engine's description and bytes under the key of the text graph."""
    by_graph = {json.loads(p.read_text())["key"]["graph"]: p for p in engines.glob("*.json")}
    manifest = Bundle.open(bundle_path).manifest
    vision, text = (
        by_graph[manifest.files[f"graphs/{part}.fp32.onnx"].sha256] for part in ("vision", "text")
    )
    described = json.loads(text.read_text())
    described["sha256"] = json.loads(vision.read_text())["sha256"]
    text.write_text(json.dumps(described))
    text.with_suffix(".engine").write_bytes(vision.with_suffix(".engine").read_bytes())
    with pytest.raises(BundleIntegrityError, match="input_ids"):
        load(bundle_path, engines)


def test_timing_cache_is_handed_from_build_to_build(bundle_path, engines):
    (timing,) = engines.glob("*.timing")
    assert timing.read_bytes() == b"timed;" * 3  # one of each graph
    timing.write_bytes(b"of another GPU")
    build_engines(Bundle.open(bundle_path), folder=engines, rebuild=True)
    assert timing.read_bytes() == b"timed;" * 3  # begun anew


def test_folder_that_cannot_be_written_is_told_before_the_build(bundle_path, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("build-engine", "--bundle", bundle_path, "--engines", tmp_path / "file" / "e")
    assert done.code == 2
    assert "--engines" in done.err


def test_folder_of_engines_must_be_a_path():
    with pytest.raises(UsageError, match="engines"):
        SessionOptions(engines=3)  # type: ignore[arg-type]


def test_variant_for_tensorrt_is_chosen(bundle_path):
    from dataclasses import replace

    manifest = Bundle.open(bundle_path).manifest
    assert tensorrt_variant(manifest, None) == "fp32"
    assert tensorrt_variant(manifest, "int8") == "int8"
    variants = {**manifest.variants, "int8-trt": manifest.variants["int8"]}
    assert tensorrt_variant(replace(manifest, variants=variants), None) == "int8-trt"
    with pytest.raises(UsageError, match="no variant 'int4'"):
        tensorrt_variant(manifest, "int4")
    only = replace(manifest, variants={"int8": manifest.variants["int8"]})
    with pytest.raises(UsageError, match="none of which"):
        tensorrt_variant(only, None)


def test_engines_stand_beside_the_bundle_unless_told_otherwise(bundle_path):
    bundle = Bundle.open(bundle_path)
    assert engine_cache(bundle, None).folder == bundle_path.with_name("tiny.umd.engines")
    assert engine_cache(bundle, "x").folder.name == "x"


@pytest.mark.parametrize(
    ("trouble", "code", "told"),
    [
        ("refusal", 3, "Could not find any implementation"),
        ("memory", 5, "SIGKILL"),
        ("crash", 5, "SIGSEGV"),
        ("import", 5, "cannot be imported"),
        ("other calls", 5, "AttributeError: no such call"),
    ],
)
def test_trouble_has_its_exit_code_and_reason(
    bundle_path, tmp_path, fake_tensorrt, trouble, code, told
):
    fake_tensorrt("10.3.0", trouble)
    done = run("build-engine", "--bundle", bundle_path, "--engines", tmp_path / "e")
    assert (done.code, told in done.err) == (code, True), done.err
    assert not list((tmp_path / "e").glob("*.engine"))


@pytest.mark.parametrize("given", ["8", "8.6.1", "eight", "8.66"])
def test_compute_capability_that_is_none_is_refused(bundle_path, given):
    done = run("build-engine", "--bundle", bundle_path, "--compute-capability", given)
    assert done.code == 2
    assert "8.6 or 12.0" in done.err


def test_full_tensorrt_builds_for_the_gpu_that_is_there_alone(bundle_path, tmp_path):
    where = ("--bundle", bundle_path, "--engines", tmp_path / "e")
    done = run("build-engine", *where, "--compute-capability", "8.6")
    assert done.code == 5
    assert "tensorrt-rtx" in done.err
