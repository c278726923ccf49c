"""What the fitted keys of a bundle do to results, in Python and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.bundles import repack
from support.command import run
from umd_edge import Predictor, UsageError
from umd_edge._postprocess import probabilities

CURVE = {
    "thresholds": [0.0, 0.3, 1.0],
    "sensitivities": [0.95, 0.8, 0.1],
    "specificities": [0.01, 0.6, 0.99],
    "n_positive": 20,
    "n_negative": 30,
}
STATES = {
    "present": {"n": 20, "thresholds": [0.3, 0.0]},
    "absent": {"n": 30, "thresholds": [0.3, 0.0]},
}


def _fit(manifest: dict[str, Any]) -> None:
    vqa, chest, breast, _ = manifest["tasks"]
    vqa["probability"] = {"kind": "softmax", "temperature": 0.7, "other": 0.3}
    vqa["probability"]["platt"] = {"a": 0.8, "b": -0.2}
    vqa["conformal"] = {
        "method": "lac",
        "coverages": [0.8, 0.9],
        "n": 50,
        "thresholds": [0.05, None],
        "other": {"n": 9, "thresholds": [0.01, None]},
    }
    chest["operating_curves"] = {"Pneumonia": CURVE, "Effusion": CURVE}
    chest["conformal"] = {
        "method": "lac_by_class",
        "coverages": [0.8, 0.9],
        "labels": {label: STATES for label in chest["labels"]},
    }
    chest["thresholds"] = {"abstain": 1.0}
    breast["operating_curves"] = {label: CURVE for label in breast["labels"]}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repack(tmp_path_factory.mktemp("fitted") / "fitted.umd", edit=_fit)


@pytest.fixture(scope="module")
def predictor(fitted: Path) -> Predictor:
    return Predictor.load(fitted)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (20, 24), dtype=np.uint8)


@pytest.fixture(scope="module")
def picture(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("picture") / "scan.png"
    Image.fromarray(image).save(place)
    return place


def test_a_sensitivity_decides_at_its_operating_point(predictor: Predictor, image: np.ndarray):
    result = predictor.classify(image, "chest-xray", sensitivity=0.95)
    by_label = {finding.label: finding for finding in result.findings}
    assert by_label["Pneumonia"].positive and by_label["Effusion"].positive
    assert by_label["No Finding"].operating_point is None
    point = by_label["Effusion"].to_dict()["operating_point"]
    assert point == {
        "threshold": 0.0,
        "sensitivity": 0.95,
        "specificity": 0.01,
        "n_positive": 20,
        "n_negative": 30,
        "reached": True,
    }
    strict = predictor.classify(image, "chest-xray", specificity=0.99)
    assert not any(finding.positive for finding in strict.findings if finding.operating_point)


def test_probabilities_do_not_depend_on_what_is_asked(predictor: Predictor, image: np.ndarray):
    encoded = predictor.encode(image)
    plain = encoded.classify("chest-xray")
    asked = encoded.classify("chest-xray", sensitivity=0.8, coverage=0.8)
    assert [f.probability for f in plain.findings] == [f.probability for f in asked.findings]
    assert "prediction_set" not in plain.to_dict()
    assert "operating_point" not in plain.findings[1].to_dict()


def test_a_coverage_gives_a_set_of_states(predictor: Predictor, image: np.ndarray):
    result = predictor.classify(image, "chest-xray", coverage=0.8)
    chosen = result.prediction_set
    assert chosen is not None and chosen.states is not None
    for finding in result.findings:
        p = finding.probability
        wanted = [s for s, share in (("present", p), ("absent", 1 - p)) if share >= 0.3]
        assert list(chosen.states[finding.label]) == wanted
    assert result.to_dict()["prediction_set"]["n"] == 20


def test_an_answer_has_its_set_and_says_where_nothing_is_excluded(
    predictor: Predictor, image: np.ndarray
):
    encoded = predictor.encode(image)
    answer = encoded.ask("which organ ?", coverage=0.8)
    chosen = answer.prediction_set
    assert chosen is not None and chosen.outputs[0] == answer.answer
    assert chosen.other is True
    listed = [(answer.answer, answer.probability)]
    listed += [(item.answer, item.probability) for item in answer.alternatives]
    assert {name for name, p in listed if p >= 0.05} == set(chosen.outputs) & dict(listed).keys()
    everything = encoded.ask("which organ ?", coverage=0.9).prediction_set
    assert everything is not None and everything.complete and len(everything.outputs) == 8
    assert encoded.ask("which organ ?").prediction_set is None


def test_a_multi_label_task_abstains_with_a_reason(predictor: Predictor, image: np.ndarray):
    result = predictor.classify(image, "chest-xray")
    assert result.status == "abstain"
    assert result.reason == "the mean certainty of the labels is below the task's threshold of 1"
    assert result.findings


def test_evaluation_sees_the_scaled_probabilities(predictor: Predictor, image: np.ndarray):
    encoded = predictor.encode(image)
    task = predictor.manifest.task("vqa")
    assert task is not None
    logits = predictor._engine.example_logits(encoded, task, "which organ ?", None)
    scaled = predictor.probabilities(encoded, task, "which organ ?")
    assert np.array_equal(scaled, probabilities(logits, task))
    assert scaled.max() == encoded.ask("which organ ?").probability


@pytest.mark.parametrize(
    ("task", "asked", "told"),
    [
        ("chest-xray", {"sensitivity": 0.99}, "0.950 at most"),
        ("chest-xray", {"sensitivity": 0.9, "specificity": 0.9}, "not both"),
        ("chest-xray", {"coverage": 1.0}, "above 0 and below 1"),
        ("skin-lesion", {"sensitivity": 0.9}, "no operating curves"),
        ("skin-lesion", {"coverage": 0.9}, "no conformal thresholds"),
    ],
)
def test_what_a_bundle_cannot_give_is_told_before_the_image_is_read(
    predictor: Predictor, task: str, asked: dict[str, float], told: str
):
    with pytest.raises(UsageError, match=told):
        predictor.classify("no-such-file.png", task, **asked)


class TestMissingValues:
    """Absent is not zero: the mask of a value tells the model which it is."""

    def test_left_out_and_none_are_the_same(self, predictor: Predictor, image: np.ndarray):
        encoded = predictor.encode(image)
        nothing = encoded.classify("skin-lesion").findings
        assert encoded.classify("skin-lesion", structured={}).findings == nothing
        named = {"itch": None, "age": None, "region": None}
        assert encoded.classify("skin-lesion", structured=named).findings == nothing

    @pytest.mark.parametrize("given", [{"itch": False}, {"age": 60}, {"region": "face"}])
    def test_a_value_that_is_fed_as_zero_differs_from_none(
        self, predictor: Predictor, image: np.ndarray, given: dict[str, Any]
    ):
        engine = predictor._engine
        pair = engine.tasks.structured(engine.tasks.classification("skin-lesion"), given)
        assert pair is not None
        assert not pair[0].any() and pair[1].sum() == 1  # the number is 0, and it is there
        encoded = predictor.encode(image)
        present = encoded.classify("skin-lesion", structured=given).findings
        assert present != encoded.classify("skin-lesion").findings

    def test_missing_text_is_the_prompt_alone(self, predictor: Predictor, image: np.ndarray):
        encoded = predictor.encode(image)
        without = encoded.classify("chest-xray").findings
        assert encoded.classify("chest-xray", text=None).findings == without
        assert encoded.classify("chest-xray", text="fever").findings != without

    def test_the_default_bundle_never_sees_the_number_of_a_missing_value(self, image: np.ndarray):
        predictor = Predictor.default()
        encoded = predictor.encode(image)
        task = predictor._engine.tasks.classification("skin-lesion")
        width = len(predictor.manifest.structured_fields)
        missing, present = np.zeros(width, np.float32), np.ones(width, np.float32)
        zero = np.zeros(width, np.float32)

        def logits(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
            pair = (values.astype(np.float32), mask)
            return predictor._engine.example_logits(encoded, task, task.prompt, pair)

        assert np.array_equal(logits(zero, missing), logits(zero + 3, missing))
        assert not np.array_equal(logits(zero, missing), logits(zero, present))


class TestCommand:
    def test_classify_prints_where_it_decided(self, fitted: Path, picture: Path):
        asked = ["--task", "chest-xray", "--bundle", fitted]
        found = run("classify", picture, *asked, "--sensitivity", "0.95", "--coverage", "0.8")
        assert found.code == 0
        assert "(sensitivity 0.95, specificity 0.01)" in found.out
        assert "not excluded at 80.0 %" in found.out

    def test_json_has_the_documented_keys(self, fitted: Path, picture: Path):
        asked = ["--task", "chest-xray", "--bundle", fitted, "--json"]
        found = run("classify", picture, *asked, "--specificity", "0.5", "--coverage", "0.9")
        line = json.loads(found.out)
        assert set(line["prediction_set"]) == {
            *("coverage", "outputs", "states", "n", "complete", "reason")
        }
        assert line["findings"][1]["operating_point"]["threshold"] == 0.3
        asked = [picture, "which organ ?", "--bundle", fitted, "--json", "--coverage", "0.8"]
        answer = json.loads(run("ask", *asked).out)["answers"][0]
        assert set(answer["prediction_set"]) == {
            *("coverage", "outputs", "other", "n", "complete", "reason")
        }

    def test_info_says_what_can_be_asked_for(self, fitted: Path):
        found = run("info", "--bundle", fitted).out
        assert "fitted: temperature 1.5, --sensitivity and --specificity, --coverage" in found
        assert "fitted: scaling, --coverage" in found

    def test_ask_prints_the_set(self, fitted: Path, picture: Path):
        found = run("ask", picture, "which organ ?", "--bundle", fitted, "--coverage", "0.9")
        assert "not excluded at 90.0 %" in found.out
        assert "50 validation records exclude nothing" in found.out

    @pytest.mark.parametrize(
        "asked",
        [["--sensitivity", "0.99"], ["--coverage", "2"], ["--sensitivity", "high"]],
    )
    def test_a_request_that_cannot_be_met_is_a_usage_error(
        self, fitted: Path, picture: Path, asked: list[str]
    ):
        found = run("classify", picture, "--task", "chest-xray", "--bundle", fitted, *asked)
        assert found.code == 2
        assert "Traceback" not in found.err
