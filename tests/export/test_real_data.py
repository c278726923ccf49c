"""The whole export on real records; needs a trained checkpoint and the data sets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import umd_edge
from support.requirements import lacking
from umd_edge_export.bundle import build_bundle
from umd_edge_export.compare import compare

pytestmark = pytest.mark.slow

SETS = ("vqamed19", "vqarad", "nihcxr", "busi", "padufes")
VARIANTS = ("fp32", "cpu", "tensorrt")
NAMES = ("fp32", "int8", "int8-trt")


@pytest.fixture(scope="module")
def real_bundle(shared_data, tmp_path_factory):
    given = os.environ.get("UMD_EDGE_CHECKPOINT")
    root = Path(__file__).resolve().parents[2]
    folder = Path(given) if given else root / "checkpoints" / "default"
    if not (folder / "config.json").is_file():
        lacking("checkpoint", f"no checkpoint at {folder}; set UMD_EDGE_CHECKPOINT")
    data = [shared_data / name / "train.jsonl" for name in SETS]
    out = tmp_path_factory.mktemp("real") / "real.umd"
    return build_bundle(folder, data, out, variants=VARIANTS)


def test_gates_hold_on_real_records(real_bundle):
    report = json.loads(real_bundle.read("report.json"))
    assert report["parity"]["max_difference"] <= 1e-4
    assert all(report["invariance"][name]["bit_identical"] for name in NAMES)
    assert sum(report["sizes"]["int8"].values()) < 15e6


def test_int8_is_within_half_a_point_of_float(real_bundle, shared_data):
    predictors = [
        umd_edge.Predictor.load(real_bundle.path, variant=name) for name in ("fp32", "int8")
    ]
    result = compare(*predictors, [shared_data / name / "val.jsonl" for name in SETS])
    assert abs(result.pooled.difference) <= 0.005
    assert result.pooled.low >= -0.005
    assert result.pooled.changed_decisions <= 0.01


def test_verify_and_ask_on_the_real_bundle(real_bundle, shared_data):
    first = json.loads((shared_data / "vqarad" / "val.jsonl").read_text().splitlines()[0])
    for variant in ("fp32", "int8"):
        predictor = umd_edge.Predictor.load(real_bundle.path, variant=variant)
        predictor.verify()
        answer = predictor.ask(shared_data / "vqarad" / first["image"], first["question"])
        assert answer.status == "ok" and 0 < answer.probability <= 1
