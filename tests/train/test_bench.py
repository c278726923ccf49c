"""What a training step costs is measured on a preset, and an unknown preset is refused."""

from __future__ import annotations

import pytest

from umd_edge.errors import UsageError
from umd_edge_train.bench import bench_presets


def test_a_preset_is_measured_in_a_process_of_its_own():
    seen: list[str] = []
    report = bench_presets(
        ["tiny"], steps=2, images=2, texts=1, precision="float32", on_preset=seen.append
    )
    found = report["presets"]["tiny"]
    assert seen == ["tiny"]
    assert found["parameters"] > 1_000_000
    assert found["peak_memory_bytes"] > 100_000_000
    for kind in ("finetune", "pretrain"):
        rates = found[kind]
        assert 0.0 < rates["low"] <= rates["images_per_second"] <= rates["high"]


def test_an_unknown_preset_is_refused_before_anything_is_measured():
    with pytest.raises(UsageError, match=r"huge.*base"):
        bench_presets(
            ["tiny", "huge"], steps=1, images=2, texts=1, precision="float32", on_preset=pytest.fail
        )
