from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.ood_bundle import noise, smooth, with_ood
from support.pictures import make_dicom
from umd_edge import (
    AuditLog,
    EncodedStudy,
    ImageInputError,
    Predictor,
    StructuredInputError,
    TextInputError,
    UnknownTaskError,
    UsageError,
)
from umd_edge._combine import combine_probabilities, combine_sets
from umd_edge._trust_sets import PredictionSet

QUESTION = "which organ is shown ?"
COVERAGES = {"coverages": [0.8, 0.9]}


def trusted(manifest) -> None:
    """Prediction sets and an operating curve, as a fitted bundle has them."""
    vqa, chest, breast, _ = manifest["tasks"]
    vqa["conformal"] = {**COVERAGES, "method": "lac", "n": 50, "thresholds": [0.13, 0.1]}
    breast["conformal"] = {**COVERAGES, "method": "lac", "n": 50, "thresholds": [0.36, 0.3]}
    state = {"n": 50, "thresholds": [0.5, 0.4]}
    chest["conformal"] = {
        **COVERAGES,
        "method": "lac_by_class",
        "labels": {name: {"present": state, "absent": state} for name in chest["labels"]},
    }
    chest["operating_curves"] = {
        "Pneumonia": {
            **{"thresholds": [0.2, 0.6], "sensitivities": [0.95, 0.6]},
            **{"specificities": [0.3, 0.9], "n_positive": 40, "n_negative": 60},
        }
    }


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return Predictor.load(with_ood(tmp_path_factory.mktemp("study") / "ood.umd", edit=trusted))


def plain(result) -> dict:
    """A result without its times and without what only a study has."""
    return {k: v for k, v in result.to_dict().items() if k not in ("timing_ms", "images")}


def shares(result) -> list[float]:
    return [finding.probability for finding in result.findings]


rows = st.integers(1, 6).flatmap(
    lambda count: st.lists(
        st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=count, max_size=count
    )
)


@settings(max_examples=100, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_combined_probability_is_the_mean_in_any_order(values, random):
    arrays = [np.array(row) for row in values]
    combined = combine_probabilities(arrays)
    np.testing.assert_allclose(combined, np.mean(arrays, axis=0), atol=1e-12)
    random.shuffle(arrays)
    assert np.array_equal(combined, combine_probabilities(arrays))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.integers(1, 5))
def test_equal_images_combine_to_themselves(row, count: int):
    combined = combine_probabilities([np.array(row)] * count)
    np.testing.assert_allclose(combined, row, rtol=1e-15, atol=0)
    if count == 1:
        assert combined.tolist() == row


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("chest-xray", {"text": "fever", "structured": {"age": 40}, "coverage": 0.8}),
        ("chest-xray", {"sensitivity": 0.9}),
        ("breast-ultrasound", {"coverage": 0.9}),
        ("skin-lesion", {"structured": {"itch": True}}),
    ],
)
def test_one_image_gives_what_it_gives_alone(predictor: Predictor, seed: int, task, options):
    for picture in (smooth(seed), noise(seed)):
        study = predictor.encode_study([picture])
        assert plain(study.classify(task, **options)) == plain(
            predictor.classify(picture, task, **options)
        )
        assert plain(study.ask(QUESTION, coverage=0.8)) == plain(
            predictor.ask(picture, QUESTION, coverage=0.8)
        )


def test_one_dicom_keeps_its_facts(predictor: Predictor):
    pytest.importorskip("pydicom")
    film = make_dicom(smooth(1)[..., 0], Modality="DX", BodyPartExamined="CHEST")
    alone = predictor.classify(film, "chest-xray")
    result = predictor.encode_study([film]).classify("chest-xray")
    assert result.dicom == alone.dicom is not None
    assert plain(result) == plain(alone)


def test_findings_are_the_mean_of_the_images_within(predictor: Predictor):
    pictures = [smooth(1), smooth(2), smooth(3)]
    result = predictor.encode_study(pictures).classify("chest-xray")
    alone = [predictor.classify(picture, "chest-xray") for picture in pictures]
    assert result.status == "ok"
    np.testing.assert_allclose(shares(result), np.mean([shares(a) for a in alone], axis=0))
    assert result.ood_score == max(item.ood_score for item in alone)
    limits = predictor.manifest.task("chest-xray").limits
    decided = [finding.positive for finding in result.findings]
    assert decided == (np.array(shares(result)) >= limits).tolist()
    assert result.images.to_dict() == {"given": 3, "used": 3, "left_out": []}


def test_images_that_are_not_within_are_left_out_and_counted(predictor: Predictor):
    pytest.importorskip("pydicom")
    wrong = make_dicom(smooth(5)[..., 0], Modality="CT")
    result = predictor.encode_study([noise(1), smooth(1), wrong, smooth(2)]).classify("chest-xray")
    alone = [shares(predictor.classify(smooth(seed), "chest-xray")) for seed in (1, 2)]
    np.testing.assert_allclose(shares(result), np.mean(alone, axis=0))
    assert (result.status, result.images.given, result.images.used) == ("ok", 4, 2)
    left = {item.index: item.status for item in result.images.left_out}
    assert left == {0: "out_of_distribution", 2: "outside_intended_use"}
    assert all(item.reason for item in result.images.left_out)


def test_without_an_image_within_the_status_says_so(predictor: Predictor):
    pytest.importorskip("pydicom")
    wrong = make_dicom(smooth(5)[..., 0], Modality="CT")
    result = predictor.encode_study([wrong, noise(1), noise(2)]).classify("chest-xray")
    alone = [shares(predictor.classify(noise(seed), "chest-xray")) for seed in (1, 2)]
    assert result.status == "out_of_distribution"
    assert result.reason.startswith("none of 2 images is within: ")
    np.testing.assert_allclose(shares(result), np.mean(alone, axis=0))
    outside = predictor.encode_study([wrong, wrong]).classify("chest-xray")
    assert (outside.status, outside.findings) == ("outside_intended_use", ())
    assert (outside.images.given, outside.images.used) == (2, 0)
    assert outside.ood_score is None


def test_the_order_of_images_changes_nothing(predictor: Predictor):
    pictures = [smooth(seed) for seed in range(4)] + [noise(1)]
    one = predictor.encode_study(pictures)
    other = predictor.encode_study(pictures[::-1])
    assert plain(one.classify("skin-lesion")) == plain(other.classify("skin-lesion"))
    assert plain(one.ask(QUESTION, coverage=0.8)) == plain(other.ask(QUESTION, coverage=0.8))


def test_the_answer_is_the_best_of_the_mean(predictor: Predictor):
    pictures = [smooth(seed) for seed in range(10, 15)]
    task = predictor.manifest.task("vqa")
    mean = np.mean(
        [predictor.probabilities(predictor.encode(p), task, QUESTION) for p in pictures], axis=0
    )
    answer = predictor.encode_study(pictures).ask(QUESTION)
    assert answer.answer == task.outputs[int(mean.argmax())]
    assert answer.probability == pytest.approx(mean.max())
    ranked = [answer.probability, *(item.probability for item in answer.alternatives)]
    assert ranked == pytest.approx(sorted(mean.tolist(), reverse=True)[:6])


def test_abstention_is_decided_on_the_mean(tmp_path: Path, predictor: Predictor):
    pictures = [smooth(seed) for seed in range(6)]
    combined = max(shares(predictor.encode_study(pictures).classify("breast-ultrasound")))

    def strict(limit: float):
        def edit(manifest):
            manifest["tasks"][2]["thresholds"] = {"abstain": limit}

        return Predictor.load(with_ood(tmp_path / f"{limit}.umd", edit=edit))

    for limit, status in ((combined + 1e-9, "abstain"), (combined - 1e-9, "ok")):
        study = strict(limit).encode_study(pictures)
        assert study.classify("breast-ultrasound").status == status


def test_a_set_holds_what_any_image_cannot_exclude(predictor: Predictor):
    pictures = [smooth(seed) for seed in range(6)]
    study = predictor.encode_study(pictures)
    for task in ("breast-ultrasound", "chest-xray"):
        alone = [predictor.classify(p, task, coverage=0.8).prediction_set for p in pictures]
        together = study.classify(task, coverage=0.8).prediction_set
        assert set(together.outputs) == {name for item in alone for name in item.outputs}
        assert together.coverage == 0.8


def test_sets_of_states_are_joined_state_by_state():
    one = PredictionSet(coverage=0.9, outputs=("a",), states={"a": ("present",), "b": ()}, n=9)
    two = PredictionSet(
        coverage=0.9,
        outputs=(),
        states={"a": ("absent",), "b": ("absent",)},
        n=9,
        complete=True,
        reason="too few",
    )
    joined = combine_sets([one, two], np.array([0.5, 0.1]), ("a", "b"))
    assert joined.states == {"a": ("present", "absent"), "b": ("absent",)}
    assert joined.outputs == ("a",)
    assert (joined.complete, joined.reason) == (True, "too few")


def test_timing_is_that_of_all_images(predictor: Predictor):
    study = predictor.encode_study([smooth(1), smooth(2)])
    assert study.timing.vision_ms == sum(image.timing.vision_ms for image in study.images) > 0
    assert study.classify("skin-lesion").timing.total_ms > 0


def test_an_unusable_image_is_an_error_unless_the_caller_hears_of_it(predictor: Predictor):
    with pytest.raises(ImageInputError):
        predictor.encode_study([smooth(1), b"no image"])
    heard = []
    study = predictor.encode_study(
        [b"no image", smooth(1)], on_error=lambda index, error: heard.append((index, error))
    )
    result = study.classify("chest-xray")
    assert [(index, type(error)) for index, error in heard] == [(0, ImageInputError)]
    assert result.findings == predictor.classify(smooth(1), "chest-xray").findings
    assert (result.images.given, result.images.used) == (2, 1)
    (left,) = result.images.left_out
    assert (left.index, left.status, left.reason) == (0, "error", "ImageInputError")


@pytest.mark.parametrize("images", [[], [b"no image"]])
def test_a_study_without_an_image_is_refused(predictor: Predictor, images):
    with pytest.raises(ImageInputError, match="no image of the study can be used"):
        predictor.encode_study(images, on_error=lambda index, error: None)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.classify("nothing"), UnknownTaskError),
        (lambda s: s.classify("vqa"), UnknownTaskError),
        (lambda s: s.ask(QUESTION, task="skin-lesion"), UnknownTaskError),
        (lambda s: s.ask("  "), TextInputError),
        (lambda s: s.classify("skin-lesion", text="fever"), TextInputError),
        (lambda s: s.classify("skin-lesion", structured={"crp": 1}), StructuredInputError),
        (lambda s: s.classify("chest-xray", sensitivity=0.9, specificity=0.9), UsageError),
        (lambda s: s.classify("skin-lesion", coverage=0.9), UsageError),
    ],
)
def test_wrong_requests_are_refused_as_for_one_image(predictor: Predictor, call, error):
    with pytest.raises(error):
        call(predictor.encode_study([smooth(1), smooth(2)]))


def test_a_study_is_recorded_under_every_image(predictor: Predictor, tmp_path: Path):
    log = AuditLog(tmp_path / "audit")
    audited = Predictor(predictor.bundle, predictor._engine.options, log)
    recorded = []
    original = log.record_result
    log.record_result = lambda result, *rest, **given: (  # type: ignore[method-assign]
        recorded.append((result, rest[1])),
        original(result, *rest, **given),
    )[1]
    result = audited.encode_study([smooth(1), smooth(2)]).classify("chest-xray")
    assert [item[0] for item in recorded] == [result, result]
    assert len({item[1]["pixels_sha256"] for item in recorded}) == 2


def test_a_repr_tells_nothing_about_a_patient(predictor: Predictor):
    study = predictor.encode_study([smooth(1), noise(1)])
    assert "left_out" not in repr(study.classify("chest-xray"))
    assert isinstance(study, EncodedStudy)
    assert QUESTION not in repr(study.ask(QUESTION))
