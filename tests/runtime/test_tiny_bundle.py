from __future__ import annotations

from pathlib import Path

import pytest

from umd_edge import Predictor


def test_committed_bundle_is_what_its_builder_gives(tiny_bundle: Path, tmp_path: Path):
    pytest.importorskip("onnx", reason="the clean environment of the wheel has no onnx")
    from support.tiny_bundle import build_tiny_bundle

    assert build_tiny_bundle(tmp_path / "tiny.umd").read_bytes() == tiny_bundle.read_bytes()


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_tiny_bundle_passes_its_self_test(tiny_bundle: Path, variant: str):
    report = Predictor.load(tiny_bundle, variant=variant).verify()
    assert report.variant == variant
    assert {"pixel_values", "input_ids", "logits_vqa", "match_logit"} <= {
        check.name for check in report.checks
    }
