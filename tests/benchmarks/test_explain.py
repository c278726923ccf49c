"""How maps are judged: hand-made cases and plain arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks import explain as command
from benchmarks.explain_judge import BASELINES, STEPS, Judged, Measures, _curves, _pointing
from benchmarks.explain_maps import ALTERNATIVES, MAPS, USUAL, Case, make_map
from benchmarks.explain_report import markdown, proof
from support.explainable import explainable_bundle
from umd_edge import Predictor
from umd_edge._records import Example


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.load(explainable_bundle(tmp_path_factory.mktemp("judged") / "a.umd"))


@pytest.fixture
def case(predictor, tmp_path):
    path = tmp_path / "a.png"
    rows, columns = np.mgrid[0:30, 0:40]
    Image.fromarray(((rows * 8 + columns * 3) % 256).astype(np.uint8)).save(path)
    spec = next(task for task in predictor.tasks if task.name == "breast-ultrasound")
    example = Example("a", "p", path, spec.prompt, np.zeros(3, np.float32), np.zeros(3, np.float32))
    return Case(predictor, spec, example, [(0.0, 0.5, 0.5, 1.0)], [(0.5, 0.0, 1.0, 0.4)])


# Three by three patches do not fit a grid of two by two.
@pytest.mark.parametrize("name", sorted({*MAPS, *ALTERNATIVES, USUAL} - {"ablation-3x3"}))
def test_every_map_has_the_shape_of_the_grid_and_repeats(case, name: str):
    values = make_map(case, name)
    assert values.shape == (2, 2) and np.isfinite(values).all()
    np.testing.assert_array_equal(values, make_map(replace(case), name))


def test_curves_run_from_the_image_to_the_empty_one_and_back(case):
    curves = _curves(case, np.array([[4.0, 3.0], [2.0, 1.0]]))
    for base, empty in zip(BASELINES, (case.blurred, case.plain), strict=True):
        gone, shown = curves[f"deletion-{base}"], curves[f"insertion-{base}"]
        ends = case.probabilities(np.stack([case.small, empty]))[:, case.row]
        np.testing.assert_allclose([gone[0], shown[-1]], ends[0])
        np.testing.assert_allclose([gone[-1], shown[0]], ends[1])
    assert len(gone) == len(STEPS)


def test_the_strongest_patch_is_hidden_first(case):
    values = np.array([[0.0, 0.0], [5.0, 0.0]])
    hidden = case.small.copy()
    hidden[8:, :8] = case.plain[8:, :8]
    # one of four patches from 12.25 of 49 on: the fifth step (14) hides one
    found = _curves(case, values)["deletion-mean"][STEPS.index(14)]
    assert found == pytest.approx(case.probabilities(hidden[None])[0, case.row])


@pytest.mark.parametrize(
    ("values", "hit", "energy"),
    [([[0, 0], [1, 0]], 1.0, 1.0), ([[1, 0], [0, 0]], 0.0, 0.0), ([[1, 1], [2, 0]], 1.0, 0.5)],
)
def test_pointing_game_asks_for_the_box(case, values, hit: float, energy: float):
    assert _pointing(case, "attention", np.array(values, float)) == (hit, pytest.approx(energy))


def test_random_hits_as_often_as_patches_lie_in_boxes(case):
    assert _pointing(case, "random-1", np.eye(2))[0] == 0.25
    assert _pointing(case, "centre", np.ones((2, 2)))[0] == 1.0  # the box's corner is the centre


def _measures(hit: float, level: float) -> Measures:
    flat = np.full(len(STEPS), 0.5)
    curves = {f"deletion-{b}": flat for b in BASELINES}
    curves |= {f"insertion-{b}": flat + level for b in BASELINES}
    return Measures(curves, hit, hit)


def _judged(attention: list[float]) -> Judged:
    judged = Judged("breast-ultrasound")
    for index, hit in enumerate(attention):
        found = {name: _measures(0.0, 0.0) for name in MAPS}
        found["attention"] = _measures(hit, 0.1)
        judged.add(f"p{index}", found)
    return judged


def test_areas_are_those_of_the_curves():
    found = _measures(1.0, 0.1)
    assert found.area("deletion-mean") == pytest.approx(0.5)
    assert found.faithfulness == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("hits", "proven"), [([1.0] * 8, True), ([1.0] + [0.0] * 7, False), ([0.0] * 8, False)]
)
def test_proven_needs_an_interval_above_the_prior(hits, proven: bool):
    summary = _judged(hits).summary()
    report = {
        "split": "val",
        "tasks": {"breast-ultrasound": summary},
        "cost": {key: {"value": 1, "low": 1, "high": 1} for key in ("attention", "ablation")},
        "memory_bytes": {"plain": 0, "attention": 0, "ablation": 10**6},
    }
    entry = proof(report)["breast-ultrasound"]["attention"]
    assert (entry["proven"], entry["measure"], entry["n"]) == (proven, "pointing", 8)
    assert entry["gain"] == pytest.approx(np.mean(hits), abs=1e-4)
    assert "| attention |" in markdown(report)


def test_command_writes_a_proof_that_a_bundle_takes(tmp_path, monkeypatch):
    from umd_edge_export.explanations import write_explanations

    folder = tmp_path / "mine"
    folder.mkdir()
    lines = []
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        record = {"id": str(index), "patient_id": f"p{index}", "image": f"{index}.png"}
        record |= {"labels": ["benign"], "lesions": [{"bbox": [0, 0, 0.5, 0.5]}]}
        lines.append(json.dumps({**record, "non_commercial": index == 5}))
    for split in ("train", "val"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    bundle = explainable_bundle(tmp_path / "a.umd")
    monkeypatch.setattr(command, "SETS", {"breast-ultrasound": ("mine",)})
    monkeypatch.setattr(command, "memory", lambda *_: dict.fromkeys(("plain", *MAPS), 0))
    arguments = ["--data", tmp_path, "--bundle", bundle, "--rounds", 5, "--out", tmp_path / "out"]
    done = CliRunner().invoke(command.main, [str(item) for item in arguments])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert report["tasks"]["breast-ultrasound"]["attention"]["pointing"]["n"] == 5  # the free ones
    assert set(report["cost"]) == {"attention", "ablation"}
    with Image.open(tmp_path / "out" / "explain.png") as picture:
        assert picture.width > 100
    write_explanations(bundle, tmp_path / "out" / "proof.json", tmp_path / "b.umd")
