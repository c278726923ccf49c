"""The default bundle's maps on real images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from umd_edge import Predictor
from umd_edge._explain import proven_methods
from umd_edge._insides import ATTENTION, CELLS

TASK = "breast-ultrasound"


@pytest.fixture(scope="module")
def predictor():
    predictor = Predictor.default()
    graphs = predictor.manifest.variants[predictor.variant].graphs
    for part, name in (("vision", CELLS), ("fusion", ATTENTION)):
        if name.encode() not in predictor.bundle.read(graphs[part]):
            pytest.skip("the default bundle was exported before its graphs named these tensors")
    return predictor


@pytest.fixture(scope="module")
def lesions(shared_data):
    lines = (shared_data / "busi" / "val.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [
        (shared_data / "busi" / record["image"], [item["bbox"] for item in record["lesions"]])
        for record in records
        if record.get("lesions")
    ]


def _share_inside(points, lesions) -> float:
    hits = [
        any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in boxes)
        for (x, y), (_, boxes) in zip(points, lesions, strict=True)
    ]
    return float(np.mean(hits))


def test_attention_points_at_lesions_more_often_than_the_centre(predictor, lesions):
    found = [predictor.encode(path).explain(task=TASK, method="attention") for path, _ in lesions]
    centre = _share_inside([(0.5, 0.5)] * len(lesions), lesions)
    assert _share_inside([item.peak for item in found], lesions) > centre + 0.15
    # Negative control: the same maps beside other images
    turned = [item.peak for item in found[7:] + found[:7]]
    assert _share_inside(turned, lesions) < centre + 0.15


def test_default_map_of_the_default_bundle_is_a_proven_one(predictor, lesions):
    proven = proven_methods(predictor.manifest.extensions, TASK)
    if not proven:
        pytest.skip("the default bundle carries no proof of its maps")
    found = predictor.encode(lesions[0][0]).explain(task=TASK)
    assert (found.method, found.proven) == (proven[0], True)


def test_ablation_of_a_real_image_is_no_matter_of_its_batch(predictor, lesions, monkeypatch):
    from umd_edge import _explain

    encoded = predictor.encode(lesions[1][0])
    whole = encoded.explain(task=TASK, method="ablation").map
    monkeypatch.setattr(_explain, "_CHUNK", 5)
    np.testing.assert_array_equal(encoded.explain(task=TASK, method="ablation").map, whole)
