from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from umd_edge import ProviderUnavailableError
from umd_edge._tensorrt_cache import EngineCache, EngineKey

KEY = EngineKey(
    graph="ab" * 32,
    library="tensorrt",
    version="10.3.0",
    gpu="Orin sm_87",
    driver="540.4.0 (CUDA 12.6)",
    precision="int8-trt",
    profile="batch 1..16, length 1..32",
)


@pytest.fixture
def cache(tmp_path):
    found = EngineCache(tmp_path / "engines")
    found.require_writable()
    return found


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None
)
@given(plan=st.binary(max_size=200))
def test_what_was_written_is_read(cache, plan):
    assert cache.write(KEY, plan, seconds=1.0) == cache.path(KEY)
    assert cache.has(KEY)
    assert cache.read(KEY, "v") == plan


@pytest.mark.parametrize("field", [field.name for field in fields(EngineKey)])
def test_every_field_of_the_key_makes_another_engine(cache, field):
    other = replace(KEY, **{field: 2 if field == "revision" else "other"})
    cache.write(KEY, b"plan", seconds=1.0)
    assert not cache.has(other)
    with pytest.raises(ProviderUnavailableError, match="build-engine") as caught:
        cache.read(other, "v")
    if field != "graph":  # what differs is told, of engines of the same graph
        assert f"{field} {getattr(KEY, field)!r} and not" in str(caught.value)


def test_nearest_engine_is_told(cache):
    cache.write(replace(KEY, version="10.1.0", driver="old", gpu="other"), b"a", seconds=1.0)
    cache.write(replace(KEY, version="10.1.0"), b"b", seconds=1.0)
    with pytest.raises(
        ProviderUnavailableError, match=r"built for version '10\.1\.0' and not"
    ) as e:
        cache.read(KEY, "v")
    assert "driver" not in str(e.value)


def test_time_of_an_earlier_release_is_expected(cache):
    assert cache.expected_seconds(KEY) is None
    cache.write(replace(KEY, version="10.1.0", driver="old"), b"a", seconds=61.5)
    assert cache.expected_seconds(KEY) == 61.5
    assert cache.expected_seconds(replace(KEY, gpu="Thor sm_110")) is None


@pytest.mark.parametrize("text", ["", "[]", '{"key": 3}', '{"key": {"graph": [1]}}', "\x00"])
def test_description_that_is_none_is_as_good_as_none(cache, text):
    path = cache.write(KEY, b"plan", seconds=1.0)
    path.with_suffix(".json").write_text(text)
    assert cache.expected_seconds(KEY) is None
    assert cache.newest_profile(KEY) == KEY
    with pytest.raises(ProviderUnavailableError, match="damaged"):
        cache.read(KEY, "v")
    with pytest.raises(ProviderUnavailableError, match="no TensorRT engine"):
        cache.read(replace(KEY, gpu="other"), "v")


def test_failed_write_leaves_the_folder_as_it_was(cache, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("umd_edge._files.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        cache.write(KEY, b"plan", seconds=1.0)
    assert list(cache.folder.iterdir()) == []


def test_timing_caches_are_kept_by_library_and_gpu(cache):
    cache.write_timing(KEY, b"times")
    assert cache.read_timing(replace(KEY, graph="cd" * 32, precision="fp32")) == b"times"
    assert cache.read_timing(replace(KEY, version="10.4.0")) == b""
    cache.write_timing(KEY, b"")
    assert cache.read_timing(KEY) == b"times"
