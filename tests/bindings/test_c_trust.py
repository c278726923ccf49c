"""Scaling, operating points and prediction sets in C, compared with the Python runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import umd_edge
from support.bundles import repack
from support.c_library import CError, CImage, CPredictor
from support.fitted import CURVE, fit_everything, task_of
from umd_edge.errors import ManifestError, UsageError

IMAGE = np.random.default_rng(4).integers(0, 256, (60, 40), dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repack(tmp_path_factory.mktemp("trust") / "fitted.umd", edit=fit_everything)


@pytest.fixture(scope="module")
def image(bundle: Path) -> CImage:
    return CPredictor(bundle).encode(IMAGE)


@pytest.fixture(scope="module")
def encoded(bundle: Path) -> umd_edge.EncodedImage:
    return umd_edge.Predictor.load(bundle).encode(IMAGE)


TASKS = ["chest-xray", "breast-ultrasound", "skin-lesion"]


@pytest.mark.parametrize("task", TASKS)
def test_scaled_probabilities_are_those_of_python(
    task: str, image: CImage, encoded: umd_edge.EncodedImage
) -> None:
    _same_findings(task, image, encoded)


def _same_findings(task: str, image: CImage, encoded: umd_edge.EncodedImage) -> None:
    wanted: Any = encoded.classify(task)
    given = image.classify(task)
    probabilities = [finding.probability for finding in wanted.findings]
    assert np.allclose([item[1] for item in given.items], probabilities, rtol=1e-14, atol=0)
    assert [item[2] for item in given.items] == [f.positive for f in wanted.findings]
    assert (["ok", "abstain"][given.status], given.reason) == (wanted.status, wanted.reason)
    assert {point[0] for point in given.points} == {0}


def test_answers_that_are_not_listed_take_their_share(
    image: CImage, encoded: umd_edge.EncodedImage
) -> None:
    wanted, given = encoded.ask("chest ?"), image.ask("chest ?")
    ranked = [wanted.probability, *(item.probability for item in wanted.alternatives)]
    assert np.allclose([item[1] for item in given.items], ranked, rtol=1e-14, atol=0)


def test_a_multi_label_task_abstains_by_its_mean_certainty(image: CImage) -> None:
    given = image.classify("chest-xray")
    assert given.status == 1
    assert given.reason.startswith("the mean certainty of the labels is below")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "wanted", [{"sensitivity": 0.95}, {"sensitivity": 0.6}, {"specificity": 0.41}]
)
def test_operating_points_are_those_of_python(
    task: str, wanted: dict[str, float], image: CImage, encoded: umd_edge.EncodedImage
) -> None:
    _same_points(task, wanted, image, encoded)


def _same_points(
    task: str, wanted: dict[str, float], image: CImage, encoded: umd_edge.EncodedImage
) -> None:
    findings = encoded.classify(task, **wanted).findings  # type: ignore[arg-type]
    given = image.classify(task, **wanted)
    assert [item[2] for item in given.items] == [finding.positive for finding in findings]
    for finding, (point, *numbers) in zip(findings, given.points, strict=True):
        chosen = finding.operating_point
        assert (point == 0) == (chosen is None)
        if chosen is not None:
            assert point == (1 if chosen.reached else 2)
            assert numbers == [chosen.threshold, chosen.sensitivity, chosen.specificity]


@pytest.mark.parametrize("wanted", [{"sensitivity": 0.95}, {"specificity": 0.9}])
def test_a_curve_that_does_not_reach_gives_its_best_point_as_in_python(
    wanted: dict[str, float], tmp_path: Path
) -> None:
    short = {
        **CURVE,
        "sensitivities": [0.9, 0.9, 0.5, 0.1],
        "specificities": [0.2, 0.4, 0.8, 0.8],
    }

    def edit(manifest: dict[str, Any]) -> None:
        fit_everything(manifest)
        task = task_of(manifest, "chest-xray")
        task["operating_curves"] = dict(zip(task["labels"], [CURVE, short], strict=False))

    path = repack(tmp_path / "short.umd", edit=edit)
    point, *numbers = CPredictor(path).encode(IMAGE).classify("chest-xray", **wanted).points[1]
    encoded = umd_edge.Predictor.load(path).encode(IMAGE)
    finding = encoded.classify("chest-xray", **wanted).findings[1]  # type: ignore[arg-type]
    chosen = finding.operating_point
    assert chosen is not None and not chosen.reached and point == 2
    assert numbers == [chosen.threshold, chosen.sensitivity, chosen.specificity]
    assert chosen.threshold == (0.3 if "sensitivity" in wanted else 0.45)


@pytest.mark.parametrize("coverage", [0.3, 0.5, 0.75, 0.9, 0.95, 0.99])
def test_prediction_sets_are_those_of_python(
    coverage: float, image: CImage, encoded: umd_edge.EncodedImage
) -> None:
    _same_sets(coverage, image, encoded)


def _same_sets(coverage: float, image: CImage, encoded: umd_edge.EncodedImage) -> None:
    for task in TASKS:
        wanted = encoded.classify(task, coverage=coverage).prediction_set
        assert wanted is not None
        result = image.classify(task, coverage=coverage)
        names = [item[0] for item in result.items]
        assert result.set is not None
        members, n, complete, other = result.set
        assert (n, complete) == (wanted.n, wanted.complete)
        assert {-1: None, 0: False, 1: True}[other] is wanted.other
        if wanted.states is None:
            assert tuple(names[output] for output, _ in members) == wanted.outputs
        else:
            bits = {"present": 1, "absent": 2}
            states = {names[output]: state for output, state in members}
            assert states == {k: sum(bits[s] for s in v) for k, v in wanted.states.items()}
    answer = encoded.ask("chest ?", coverage=coverage).prediction_set
    given = image.ask("chest ?", coverage=coverage).set
    assert answer is not None
    assert given is not None
    assert len(given[0]) == len(answer.outputs)
    assert (given[1], given[2]) == (answer.n, answer.complete)
    assert answer.other is bool(given[3])


# --- negative controls: one byte of one fitted constant ---------------------------------------


def _change(values: list[Any], index: int, byte: int, bits: int = 1) -> None:
    """Change a byte of one number; byte 0 holds the last of its digits."""
    kept = np.array([values[index]], "<f8")
    kept.view(np.uint8)[byte] ^= bits
    values[index] = float(kept[0])


def _changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> CImage:
    """The picture in the bundle with another constant."""

    def edit(manifest: dict[str, Any]) -> None:
        fit_everything(manifest)
        # repeated objects of the fixture must not change together
        manifest["tasks"] = copy.deepcopy(manifest["tasks"])
        change(task_of(manifest, CHEST))

    return CPredictor(repack(folder / "changed.umd", edit=edit)).encode(IMAGE)


@pytest.mark.parametrize("name", ["scale", "bias"])
def test_one_changed_byte_of_the_scaling_makes_the_comparison_fail(
    name: str, encoded: umd_edge.EncodedImage, tmp_path: Path
) -> None:
    image = _changed(tmp_path, lambda task: _change(task["probability"][name], 0, 2))
    with pytest.raises(AssertionError):
        _same_findings(CHEST, image, encoded)


@pytest.mark.parametrize("column", ["thresholds", "sensitivities", "specificities"])
def test_one_changed_byte_of_a_curve_makes_the_comparison_fail(
    column: str, encoded: umd_edge.EncodedImage, tmp_path: Path
) -> None:
    def change(task: dict[str, Any]) -> None:
        _change(next(iter(task["operating_curves"].values()))[column], 0, 0)

    image = _changed(tmp_path, change)
    with pytest.raises(AssertionError):
        _same_points(CHEST, {"sensitivity": 0.95}, image, encoded)


def test_one_changed_byte_of_a_prediction_set_makes_the_comparison_fail(
    encoded: umd_edge.EncodedImage, tmp_path: Path
) -> None:
    def change(task: dict[str, Any]) -> None:
        states = next(iter(task["conformal"]["labels"].values()))
        _change(states["absent"]["thresholds"], 1, 6, 0b101)  # 0.52 becomes 0.68

    image = _changed(tmp_path, change)
    with pytest.raises(AssertionError):
        _same_sets(0.8, image, encoded)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    [
        {"sensitivity": 0.96},
        {"specificity": 0.95},
        {"sensitivity": 0.5, "specificity": 0.5},
        {"sensitivity": 1.0},
        {"sensitivity": -0.1},
        {"specificity": float("nan")},
    ],
)
def test_what_no_label_can_promise_is_refused_as_in_python(
    wanted: dict[str, float], image: CImage, encoded: umd_edge.EncodedImage
) -> None:
    with pytest.raises(UsageError):
        encoded.classify("skin-lesion", **wanted)  # type: ignore[arg-type]
    with pytest.raises(CError) as caught:
        image.classify("skin-lesion", **wanted)
    assert caught.value.name == "UsageError"


def test_a_bundle_without_fits_says_so(tiny_bundle: Path) -> None:
    image = CPredictor(tiny_bundle).encode(IMAGE)
    for wanted in ({"sensitivity": 0.9}, {"coverage": 0.9}):
        with pytest.raises(CError, match="umd-edge-export trust") as caught:
            image.classify("breast-ultrasound", **wanted)  # type: ignore[arg-type]
        assert caught.value.name == "UsageError"


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, float("nan")])
def test_a_coverage_that_is_none_is_refused(coverage: float, image: CImage) -> None:
    with pytest.raises(CError, match="coverage"):
        image.classify("breast-ultrasound", coverage=coverage)


def test_facts_that_contradict_are_outside_the_intended_use(tmp_path: Path) -> None:
    def views(manifest: dict[str, Any]) -> None:
        task_of(manifest, "chest-xray")["applies_to"] = {"view": ["PA", "AP"]}
        task_of(manifest, "skin-lesion")["applies_to"] = {"burned_in_annotation": ["YES", "NO"]}

    opened = CPredictor(repack(tmp_path / "views.umd", edit=views))
    for facts, task, tag in (
        ({"view": b"LATERAL"}, "chest-xray", "ViewPosition (0018,5101)"),
        ({"view": b"pa"}, "chest-xray", None),
        ({"view": b"LATERAL"}, "skin-lesion", None),
        ({"burned_in_annotation": b"YES"}, "chest-xray", "BurnedInAnnotation (0028,0301)"),
        ({"burned_in_annotation": b"YES"}, "skin-lesion", None),
        ({"burned_in_annotation": b"NO"}, "chest-xray", None),
    ):
        result = opened.encode(IMAGE, **facts).classify(task)
        assert (result.status == 3) == (tag is not None), (facts, task)
        assert tag is None or tag in result.reason


def _broken(path: tuple[str, ...], value: object) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: dict[str, Any]) -> None:
        fit_everything(manifest)
        # repeated objects of the fixture must not change together
        manifest["tasks"] = copy.deepcopy(manifest["tasks"])
        place: Any = task_of(manifest, path[0])
        for key in path[1:-1]:
            place = place[key]
        place[path[-1]] = value

    return edit


SKIN, CHEST = "skin-lesion", "chest-xray"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((SKIN, "probability", "scale"), [1.0]),
        ((SKIN, "probability", "scale"), [0.0] * 6),
        ((SKIN, "probability", "bias"), "none"),
        ((SKIN, "probability", "platt"), {"a": 1.0}),
        ((SKIN, "probability", "platt"), {"a": 0.0, "b": 0.0}),
        ((CHEST, "probability", "other"), 1.0),
        ((SKIN, "operating_curves"), {"unheard of": CURVE}),
        ((SKIN, "operating_curves"), []),
        ((SKIN, "conformal", "method"), "guess"),
        ((SKIN, "conformal", "method"), "lac_by_class"),
        ((SKIN, "conformal", "coverages"), [0.9, 0.8, 0.95, 0.99]),
        ((SKIN, "conformal", "thresholds"), [0.1, 0.2, 0.3, 0.4]),
        ((SKIN, "conformal", "thresholds"), [0.4, None, 0.3, 0.2]),
        ((SKIN, "conformal", "thresholds"), [0.4, 0.3]),
        ((SKIN, "conformal", "thresholds"), [1.4, 0.3, 0.2, 0.1]),
        ((SKIN, "conformal", "n"), -1),
        ((SKIN, "conformal", "more"), 1),
        ((CHEST, "conformal", "labels"), {}),
    ],
)
def test_what_is_fitted_wrongly_is_refused_as_in_python(
    path: tuple[str, ...], value: object, tmp_path: Path
) -> None:
    broken = repack(tmp_path / "broken.umd", edit=_broken(path, value))
    with pytest.raises(ManifestError):
        umd_edge.Predictor.load(broken)
    with pytest.raises(CError) as caught:
        CPredictor(broken)
    assert caught.value.name == "ManifestError"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("thresholds", [0.3, 0.05, 0.45, 0.6]),
        ("sensitivities", [0.1, 0.5, 0.8, 0.95]),
        ("specificities", [0.2, 0.4, 0.7]),
        ("n_positive", 0),
        ("n_negative", 1.5),
    ],
)
def test_a_curve_that_is_none_is_refused_as_in_python(
    column: str, value: object, tmp_path: Path
) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        task = task_of(manifest, SKIN)
        task["operating_curves"] = {task["labels"][0]: {**CURVE, column: value}}

    broken = repack(tmp_path / "broken.umd", edit=edit)
    with pytest.raises(ManifestError):
        umd_edge.Predictor.load(broken)
    with pytest.raises(CError) as caught:
        CPredictor(broken)
    assert caught.value.name == "ManifestError"
