"""The builder against fakes of TensorRT 10.3, 10.16 and 11: which calls it makes, in which form."""

from __future__ import annotations

import importlib
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.bundles import tiny_files
from umd_edge import BundleIntegrityError, ProviderUnavailableError, UsageError
from umd_edge._tensorrt_builder import Profile, build_engine
from umd_edge._tensorrt_job import build_in_child
from umd_edge._tensorrt_progress import BuildProgress

TEXT = tiny_files()["graphs/text.fp32.onnx"]


@pytest.fixture
def trt(fake_tensorrt):
    """Gives the fake module of a version."""

    def choose(version: str, trouble: str = ""):
        fake_tensorrt(version, trouble)
        sys.modules.pop("tensorrt", None)
        module = importlib.import_module("tensorrt")
        module.CALLS.clear()
        return module

    return choose


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3", "10.16.2", "11.0.0", "11.4.1.106"])
def test_networks_are_strongly_typed_in_every_release(trt, version):
    module = trt(version)
    built = build_engine(module, TEXT, Profile(4, 9), name="text", workspace_bytes=1 << 28)
    assert built.plan.endswith(TEXT)
    assert built.timing_cache == b"timed;"
    assert module.CALLS == [
        ("create_network", 2),
        ("clear_flag", "TF32"),
        ("set_memory_pool_limit", 1 << 28),
    ]


def test_release_without_the_flag_of_strong_typing(trt, monkeypatch):
    module = trt("11.9.0")
    monkeypatch.delattr(module, "NetworkDefinitionCreationFlag")
    build_engine(module, TEXT, Profile(), name="text")
    assert module.CALLS[0] == ("create_network", 0)


def test_release_without_a_progress_monitor_or_tf32(trt, monkeypatch):
    module = trt("11.9.0")

    class NoFlags:
        pass

    monkeypatch.delattr(module, "IProgressMonitor")
    monkeypatch.setattr(module, "BuilderFlag", NoFlags)
    monkeypatch.setattr(
        module.Builder, "build_serialized_network", lambda self, network, config: b"plan"
    )
    assert build_engine(module, TEXT, Profile(), name="text").plan == b"plan"
    assert module.CALLS == [("create_network", 2)]


@pytest.mark.parametrize("version", ["8.6.2", "10.0.1", "10.2.0"])
def test_release_that_is_too_old_is_refused(trt, version):
    with pytest.raises(ProviderUnavailableError, match=rf"{version}.*10\.3"):
        build_engine(trt(version), TEXT, Profile(), name="text")


def test_graph_that_the_parser_refuses_is_named_with_the_reason(trt):
    with pytest.raises(BundleIntegrityError, match=r"'v\.onnx'.*shiftIsAllZeros.*int8-trt"):
        build_engine(trt("10.3.0"), b"no graph", Profile(), name="v.onnx")


def test_refusal_of_the_builder_shows_errors_and_no_warnings(trt):
    with pytest.raises(BundleIntegrityError, match="any implementation") as caught:
        build_engine(trt("10.3.0", "refusal"), TEXT, Profile(), name="text")
    assert "not the reason" not in str(caught.value)


def test_error_of_the_child_comes_back_as_itself(fake_tensorrt):
    with pytest.raises(BundleIntegrityError, match="shiftIsAllZeros"):
        build_in_child("tensorrt", b"no graph", Profile(), name="text")


def test_child_tells_phases_and_the_estimate(fake_tensorrt, monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_STEP_S", "0.6")
    seen = []
    build_in_child("tensorrt", TEXT, Profile(), name="text", on_status=seen.append)
    assert seen[0].phase == "" and seen[0].remaining_s is None
    timed = [item for item in seen if item.phase == "Timing graph nodes" and item.done]
    assert timed and timed[-1].steps == 4
    assert timed[-1].remaining_s is not None
    assert [item.elapsed_s for item in seen] == sorted(item.elapsed_s for item in seen)
    expecting = []
    build_in_child(
        "tensorrt", TEXT, Profile(), name="text", expected_s=1e6, on_status=expecting.append
    )
    assert all(item.remaining_s > 1e5 for item in expecting)


def test_interrupted_build_leaves_no_child(fake_tensorrt, monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_STEP_S", "30")

    def interrupt(status):
        if status.phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_in_child("tensorrt", TEXT, Profile(), name="text", on_status=interrupt)


@settings(deadline=None)
@given(st.integers(1, 1024), st.integers(1, 4096), st.integers(1, 500))
def test_profile_covers_batches_and_lengths(batch, length, width):
    profile = Profile(batch, length)
    low, usual, high = profile.shapes("text_tokens", (-1, -1, width))
    assert (low, high) == ((1, 1, width), (batch, length, width))
    assert all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True))
    fixed = (3, width)
    assert profile.shapes("anything", fixed) == (fixed, fixed, fixed)


@pytest.mark.parametrize(
    ("name", "shape"), [("image_tokens", (-1, -1, 8)), ("pixel_values", (-1, 3, -1, 8))]
)
def test_axis_that_no_profile_covers_is_refused(name, shape):
    with pytest.raises(BundleIntegrityError, match=name):
        Profile().shapes(name, shape)


@pytest.mark.parametrize(("batch", "length"), [(0, 1), (1, 0), (1025, 1), (1, 4097)])
def test_profile_out_of_bounds_is_refused(batch, length):
    with pytest.raises(UsageError, match="allowed"):
        Profile(batch, length)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@settings(deadline=None)
@given(st.integers(1, 40), st.floats(0.1, 100))
def test_estimate_of_equal_steps_is_what_is_left(steps, seconds):
    clock, told = Clock(), []
    progress = BuildProgress(lambda *news: told.append(news), clock)
    progress.phase_start("build", None, steps)
    assert told[-1] == ("build", 0, steps, None)
    for step in range(steps):
        clock.now += seconds
        progress.step_complete("build", step)
        name, done, of, left = told[-1]
        assert (name, done, of) == ("build", step + 1, steps)
        assert left == pytest.approx(seconds * (steps - step - 1), abs=1e-6)


def test_step_at_hand_is_judged_by_the_phase_inside_it():
    """Five quick steps say nothing about the sixth, which is where the time goes."""
    clock, told = Clock(), []
    progress = BuildProgress(lambda *news: told.append(news), clock)
    progress.phase_start("build", None, 6)
    for step in range(5):
        clock.now += 0.001
        progress.step_complete("build", step)
    progress.phase_start("time", "build", 10)
    for step in range(2):
        clock.now += 30
        progress.step_complete("time", step)
    assert told[-1][:3] == ("time", 2, 10)
    assert told[-1][3] == pytest.approx(240, rel=0.01)
    progress.phase_finish("time")
    progress.step_complete("build", 5)
    assert told[-1][:3] == ("build", 6, 6)
    assert told[-1][3] == 0


def test_news_of_an_unknown_phase_are_borne():
    progress = BuildProgress(lambda *news: None)
    progress.step_complete("never begun", 3)
    progress.phase_finish("never begun")
