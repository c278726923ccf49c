"""Maps of decisions against whole runs of the graphs with the same patches hidden."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("onnx")

from support.explainable import explainable_bundle, proof
from support.pictures import gradient, make_dicom
from umd_edge import DeadlineExceededError, Explanation, Predictor, UsageError, limited
from umd_edge._explain import proven_methods
from umd_edge._explain_maps import TokenGrid, ablate, spread, windows
from umd_edge._postprocess import probabilities
from umd_edge._preprocess import PreprocessSpec
from umd_edge.errors import ProviderUnavailableError, StructuredInputError, UnknownTaskError

TASK = "skin-lesion"
VALUES = {"itch": True, "age": 61}
QUESTION = "is there a pleural effusion ?"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    proofs = {
        "skin-lesion": proof(attention=True, ablation=False),
        "breast-ultrasound": proof(attention=False, ablation=True),
        "chest-xray": proof(attention=False, ablation=False),
    }
    return explainable_bundle(
        tmp_path_factory.mktemp("explainable") / "tiny.umd",
        lambda manifest: manifest["extensions"].update(explanations=proofs),
    )


@pytest.fixture(scope="module")
def predictor(bundle):
    return Predictor.load(bundle, variant="fp32")


@pytest.fixture(scope="module")
def encoded(predictor):
    return predictor.encode(gradient())


def _log_probability(predictor, pixel_values, text, structured, row, task=TASK) -> float:
    """By the three whole graphs."""
    engine = predictor._engine
    tokens, _ = engine.graphs.vision.run({"pixel_values": pixel_values})
    words, _ = engine.text_features(text)
    spec = engine.tasks.classification(task)
    absent = np.zeros((1, 3), np.float32)
    values, mask = engine.tasks.structured(spec, structured) or (absent, absent)
    logits = engine.graphs.fusion.run(
        {
            "image_tokens": tokens,
            "text_tokens": words,
            "attention_mask": np.ones(words.shape[:2], np.int64),
            "structured_values": values,
            "structured_mask": mask,
        },
        ["logits_" + task.replace("-", "_")],
    )[0]
    return math.log(probabilities(logits, spec)[0, row])


@pytest.mark.parametrize("structured", [None, VALUES])
def test_ablation_is_the_fall_when_the_pixels_of_a_patch_become_the_mean_patch(
    predictor, encoded, structured
):
    # A cell of the tiny bundle is the mean of its 8 x 8 pixels, so a patch can be hidden there too.
    found = encoded.explain(task=TASK, method="ablation", structured=structured)
    row = predictor._engine.tasks.classification(TASK).outputs.index(found.target)
    pixels = encoded.pixel_values()
    cells = pixels.reshape(3, 2, 8, 2, 8).mean(axis=(2, 4))
    whole = _log_probability(predictor, pixels, "skin lesion", structured, row)
    expected = np.zeros((2, 2))
    for i in range(2):
        for j in range(2):
            hidden = pixels.copy()
            hidden[0, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8] = cells.mean(axis=(1, 2))[
                :, None, None
            ]
            fallen = _log_probability(predictor, hidden, "skin lesion", structured, row)
            expected[i, j] = whole - fallen
    np.testing.assert_allclose(found.map, expected, atol=2e-5)
    assert np.abs(expected).max() > 1e-3  # the maps are not equal for want of any effect
    assert found.probability == pytest.approx(math.exp(whole), rel=1e-5)


def test_attention_is_the_mean_over_words_and_given_values(predictor, encoded):
    found = encoded.explain(task=TASK, method="attention", structured=VALUES)
    words, _ = predictor._engine.text_features("skin lesion")
    values, mask = predictor._engine.tasks.structured(
        predictor._engine.tasks.classification(TASK), VALUES
    )
    tokens = encoded.features()[0][0]
    stream = np.concatenate([np.outer(values[0][mask[0] > 0], np.ones(8)), words[0]])
    products = np.exp(stream @ tokens.T)
    shares = products / products.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.map, shares.mean(axis=0).reshape(2, 2), atol=1e-6)
    # Negative control: a value that is not given does not attend
    assert not np.allclose(found.map, encoded.explain(task=TASK, method="attention").map)


def test_question_is_explained_by_its_answer_and_by_any_other(encoded, predictor):
    answer = encoded.ask(QUESTION)
    found = encoded.explain(question=QUESTION, method="ablation")
    assert (found.target, found.probability) == (answer.text, answer.probability)
    assert found.question == QUESTION and QUESTION not in repr(found)
    (last,) = (
        set(predictor._engine.tasks.vqa(None).outputs)
        - {
            answer.text,
            *(item.answer for item in answer.alternatives),
        }
        or {answer.alternatives[-1].answer},
    )
    other = encoded.explain(question=QUESTION, method="ablation", label=sorted(last)[0])
    assert 0 < other.probability < found.probability
    assert not np.allclose(other.map, found.map)


def test_maps_do_not_depend_on_what_was_asked_before(predictor):
    first = predictor.encode(gradient()).explain(task=TASK, method="ablation")
    again = predictor.encode(gradient())
    again.classify(TASK, structured=VALUES)
    again.explain(task=TASK, method="attention")
    np.testing.assert_array_equal(again.explain(task=TASK, method="ablation").map, first.map)


def test_threads_get_the_same_maps(bundle):
    encoded = Predictor.load(bundle).encode(gradient())

    def explained(index: int) -> np.ndarray:
        return encoded.explain(task=TASK, method=("attention", "ablation")[index % 2]).map

    with ThreadPoolExecutor(4) as pool:
        maps = list(pool.map(explained, range(12)))
    for index, found in enumerate(maps):
        np.testing.assert_array_equal(found, maps[index % 2])


def test_time_limit_stops_an_explanation(encoded):
    with pytest.raises(DeadlineExceededError), limited(timeout_s=1e-6):
        encoded.explain(task=TASK, method="ablation")


def test_explaining_leaves_the_answers_as_they_are(bundle):
    image = gradient()
    before = Predictor.load(bundle).classify(image, TASK)
    predictor = Predictor.load(bundle)
    predictor.encode(image).explain(task=TASK, method="ablation")
    after = predictor.classify(image, TASK)
    assert before.findings == after.findings


@pytest.mark.parametrize(
    ("task", "method"), [("skin-lesion", "attention"), ("breast-ultrasound", "ablation")]
)
def test_proven_method_is_the_default(encoded, task: str, method: str):
    found = encoded.explain(task=task)
    assert (found.method, found.proven) == (method, True)


def test_unproven_map_is_refused_unless_asked_for(encoded):
    with pytest.raises(UsageError, match=r"no map is shown for task 'chest-xray'.*centre prior"):
        encoded.explain(task="chest-xray")
    assert encoded.explain(task="chest-xray", unproven=True).proven is False
    assert encoded.explain(task="chest-xray", method="ablation").proven is False
    # A task that the proof does not name, too
    with pytest.raises(UsageError, match="no map is shown for task 'vqa'"):
        encoded.explain(question=QUESTION)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, UsageError, "say what to explain"),
        ({"task": "nothing"}, UnknownTaskError, "nothing"),
        ({"question": QUESTION, "task": TASK}, UnknownTaskError, "question-answering"),
        ({"question": QUESTION, "text": "x"}, UsageError, "belong to a classification"),
        ({"task": TASK, "method": "gradient"}, UsageError, "'gradient' given; one of"),
        ({"task": TASK, "label": "ACNE"}, UsageError, "no output of task 'skin-lesion'"),
        ({"task": TASK, "structured": {"bmi": 3}}, StructuredInputError, "bmi"),
    ],
)
def test_wrong_calls_are_refused(encoded, arguments, error, words: str):
    with pytest.raises(error, match=words):
        encoded.explain(**arguments)


@pytest.mark.parametrize(("method", "part"), [("attention", "fusion"), ("ablation", "vision")])
def test_bundle_without_the_tensors_says_so(tiny_bundle, method: str, part: str):
    encoded = Predictor.load(tiny_bundle).encode(gradient())
    with pytest.raises(UsageError, match=f"graphs/{part}.int8.onnx' names no tensor"):
        encoded.explain(task=TASK, method=method)


def test_engines_of_tensorrt_are_not_looked_into(predictor):
    insides = predictor._engine.graphs.insides
    options = dataclasses.replace(insides._options, provider="tensorrt")
    other = type(insides)(insides._bundle, insides._graphs, insides._specs, options, u8u8=False)
    with pytest.raises(ProviderUnavailableError, match="provider 'cpu'"):
        other.attention()


def test_image_outside_intended_use_has_no_map(predictor):
    data = make_dicom(gradient()[..., 0], Modality="MR")
    found = predictor.encode(data).explain(task="breast-ultrasound")
    assert (found.status, found.map, found.target) == ("outside_intended_use", None, "")
    assert found.to_dict()["map"] is None and "Modality" in found.reason
    with pytest.raises(UsageError, match="has no map"):
        found.at_image_resolution()


def test_other_statuses_come_with_a_map(bundle, encoded):
    # the tiny bundle's breast task abstains below 0.34
    found = encoded.explain(task="breast-ultrasound")
    assert found.status == encoded.classify("breast-ultrasound").status
    assert found.map is not None


def test_map_and_record_cannot_be_changed(encoded):
    found = encoded.explain(task=TASK)
    with pytest.raises(ValueError, match="read-only"):
        found.map[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.proven = True


def test_json_has_the_numbers_of_the_record(encoded):
    found = encoded.explain(task=TASK)
    line = found.to_dict()
    np.testing.assert_array_equal(np.float32(line["map"]), found.map)
    assert line["image_size"] == {"width": 52, "height": 40}
    assert set(line) >= {"bundle", "variant", "provider", "status", "reason", "timing_ms"}
    x, y = found.peak
    assert line["peak"] == {"x": x, "y": y}
    assert found.map[int(y * 2), int(x * 2)] == found.map.max()


def _explanation(values: np.ndarray, size: tuple[int, int], found: Explanation) -> Explanation:
    return dataclasses.replace(found, map=np.asarray(values, np.float32), image_size=size)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    up=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_map_is_stretched_as_pillow_stretches(encoded, rows, columns, up, seed):
    values = np.random.default_rng(seed).random((rows, columns))
    size = (rows * up[0], columns * up[1])
    found = _explanation(values, size, encoded.explain(task=TASK)).at_image_resolution()
    theirs = Image.fromarray(np.float32(values / values.max())).resize(
        size[::-1], Image.Resampling.BILINEAR
    )
    np.testing.assert_allclose(found, np.asarray(theirs), atol=1e-5)


def test_each_patch_lies_where_preprocessing_took_it_from(predictor):
    """A bright block is found again in the stretched map, also in an image of other proportions."""
    found = predictor.encode(gradient()).explain(task=TASK)
    values = np.zeros((7, 7))
    values[1, 5] = 1.0
    picture = _explanation(values, (350, 70), found).at_image_resolution()
    assert picture.shape == (350, 70)
    y, x = np.argwhere(picture == picture.max()).mean(axis=0)
    assert abs((y + 0.5) / 350 - 1.5 / 7) < 0.01 and abs((x + 0.5) / 70 - 5.5 / 7) < 0.02


def test_some_rows_are_those_of_the_whole(encoded):
    found = _explanation(np.eye(7), (90, 40), encoded.explain(task=TASK))
    np.testing.assert_array_equal(
        found.at_image_resolution(range(31, 60)), found.at_image_resolution()[31:60]
    )


def test_map_of_nothing_positive_is_all_zero(encoded):
    found = _explanation(-np.ones((2, 2)), (20, 30), encoded.explain(task=TASK))
    assert not found.at_image_resolution().any()


@pytest.mark.parametrize(
    ("count", "height", "width", "expected"),
    [
        (49, 112, 112, (7, 7, 0)),
        (50, 112, 112, (7, 7, 1)),
        (51, 112, 112, (7, 7, 1)),
        (197, 224, 224, (14, 14, 1)),
        (33, 64, 128, (4, 8, 1)),
    ],
)
def test_grid_follows_from_the_number_of_tokens(count, height, width, expected):
    grid = TokenGrid.of(count, PreprocessSpec(height=height, width=width))
    assert (grid.rows, grid.columns, grid.first) == expected


def test_tokens_that_are_no_grid_are_refused():
    with pytest.raises(UsageError, match="54 image tokens are no grid"):
        TokenGrid.of(54, PreprocessSpec(height=112, width=112))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_windows_cover_every_patch_and_stay_few(rows: int, columns: int):
    chosen = windows(rows, columns)
    assert 1 <= len(chosen) <= 28
    assert chosen.any(axis=0).all()
    assert len({window.tobytes() for window in chosen}) == len(chosen)
    for window in chosen:  # each is one rectangle
        y, x = np.nonzero(window)
        assert window[y.min() : y.max() + 1, x.min() : x.max() + 1].all()


def test_windows_of_a_seven_by_seven_grid_are_two_wide():
    chosen = windows(7, 7)
    assert len(chosen) == 28
    assert set(chosen.sum(axis=(1, 2))) == {4}


def test_ablated_cells_keep_the_others_and_the_mean():
    cells = np.random.default_rng(0).random((1, 5, 7, 7)).astype(np.float32)
    chosen = windows(7, 7)
    hidden = ablate(cells, chosen)
    for window, values in zip(chosen, hidden, strict=True):
        np.testing.assert_array_equal(values[:, ~window], cells[0][:, ~window])
        np.testing.assert_allclose(values[:, window].T, [cells[0].mean(axis=(1, 2))] * 4, rtol=1e-6)


def test_falls_are_averaged_over_the_windows_of_a_patch():
    chosen = windows(7, 7)
    falls = np.random.default_rng(0).random(len(chosen))
    found = spread(falls, chosen)
    for i, j in [(0, 0), (3, 4), (6, 2)]:
        assert found[i, j] == pytest.approx(falls[chosen[:, i, j]].mean(), rel=1e-6)


@pytest.mark.parametrize(
    "extensions",
    [
        {},
        {"explanations": []},
        {"explanations": {"vqa": 3}},
        {"explanations": {"vqa": {"attention": True}}},
        {"explanations": {"vqa": {"attention": {"proven": "yes"}, "magic": {"proven": True}}}},
    ],
)
def test_what_is_not_plainly_proven_is_not_proven(extensions):
    assert proven_methods(extensions, "vqa") == []


def test_the_larger_gain_comes_first():
    entries = proof(attention=True, ablation=True)
    entries["ablation"]["gain"] = 0.5
    assert proven_methods({"explanations": {"vqa": entries}}, "vqa") == ["ablation", "attention"]
    entries["ablation"]["gain"] = 0.1
    assert proven_methods({"explanations": {"vqa": entries}}, "vqa") == ["attention", "ablation"]
