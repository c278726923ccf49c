from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.pictures import make_dicom
from support.retrieval import TEXTS, captions, pictures, searchable
from umd_edge import (
    DataError,
    ImageInputError,
    InferenceError,
    Predictor,
    TextInputError,
    UnknownTaskError,
    UsageError,
)
from umd_edge._evaluate import evaluate_file
from umd_edge._evaluation import MetricValue
from umd_edge._rank import PairScores, score_pairs
from umd_edge._records import build_examples, read_records
from umd_edge._retrieval_metrics import evaluate_retrieval, retrieval_items


@pytest.fixture(scope="module", params=["int8", "fp32"])
def predictor(request, tmp_path_factory) -> Predictor:
    bundle = searchable(tmp_path_factory.mktemp("bundle") / "tiny.umd")
    return Predictor.load(bundle, variant=request.param)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    return pictures(tmp_path_factory.mktemp("pictures"))


def _alone(predictor: Predictor, image: Any, text: str) -> float:
    """`match_logit` of one pair, straight from the graphs."""
    graphs = predictor._engine.graphs
    ids, mask = predictor._engine.tokenizer.encode([text])
    empty = np.zeros((1, len(predictor.manifest.structured_fields)), np.float32)
    feeds = {
        "image_tokens": predictor.encode(image).features()[0],
        "text_tokens": graphs.text.run({"input_ids": ids, "attention_mask": mask})[0],
        "attention_mask": mask,
        "structured_values": empty,
        "structured_mask": empty,
    }
    outputs = dict(zip(graphs.fusion.output_names, graphs.fusion.run(feeds), strict=True))
    return float(outputs["match_logit"][0])


# --- rank ---------------------------------------------------------


def test_scores_are_the_cosines_of_the_embeddings(predictor: Predictor, images: list[Path]):
    ranking = predictor.rank(images, TEXTS, method="embedding")
    for row, path in enumerate(images):
        image = predictor.encode(path).embedding.astype(np.float64)
        for column, text in enumerate(TEXTS):
            other = predictor._engine.text_features(text)[1][0].astype(np.float64)
            cosine = image @ other / np.linalg.norm(image) / np.linalg.norm(other)
            assert ranking.scores[row, column] == pytest.approx(cosine, abs=1e-6)
    assert ranking.match_logits is None
    assert not ranking.scores.flags.writeable


def test_match_logits_are_those_of_each_pair_run_alone(predictor: Predictor, images: list[Path]):
    ranking = predictor.rank(images, TEXTS, method="fusion")
    alone = [[_alone(predictor, path, text) for text in TEXTS] for path in images]
    if predictor.variant == "int8":
        assert ranking.match_logits.tolist() == alone
    else:
        np.testing.assert_allclose(ranking.match_logits, alone, rtol=1e-5)


def test_the_default_bundle_gives_the_same_bits_in_any_batch():
    engine = Predictor.default()._engine
    side = engine.manifest.preprocessing.height
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(5, 1, 3, side, side)).astype(np.float32)
    tokens = np.concatenate([engine.run_vision(one)[0] for one in pixels])
    text = engine.text_features("axial ct of the chest")[0]
    together = engine.match_logits(tokens, np.repeat(text, 5, axis=0))
    alone = [float(engine.match_logits(tokens[i : i + 1], text)[0]) for i in range(5)]
    assert together.tolist() == alone
    assert len(set(alone)) > 1


def test_lists_are_in_order_and_name_every_item(predictor: Predictor, images: list[Path]):
    ranking = predictor.rank(images, TEXTS, method="fusion")
    for image in range(len(images)):
        found = ranking.texts_for(image)
        logits = [match.match_logit for match in found]
        assert logits == sorted(logits, reverse=True)
        assert sorted(match.index for match in found) == list(range(len(TEXTS)))
    for text in range(len(TEXTS)):
        best = ranking.images_for(text, 1)[0]
        assert best.match_logit == ranking.match_logits[:, text].max()


def test_two_stages_hand_only_the_shortlists_to_the_fusion(
    predictor: Predictor, images: list[Path]
):
    ranking = predictor.rank(images, TEXTS, candidates=2)
    fused = np.isfinite(ranking.match_logits)
    cosine = ranking.scores
    for image in range(len(images)):
        shortlist = np.argsort(-cosine[image], kind="stable")[:2]
        assert fused[image, shortlist].all()
        found = [match.index for match in ranking.texts_for(image)]
        assert set(found[:2]) == set(shortlist.tolist())
        behind = cosine[image, found[2:]]
        assert (np.diff(behind) <= 0).all()
    assert not fused.all()


def test_one_query_costs_one_shortlist(predictor: Predictor, images: list[Path]):
    ranking = predictor.rank(images, TEXTS[:1], candidates=2)
    assert np.isfinite(ranking.match_logits).sum() == 2
    one_way = predictor.rank(images, TEXTS, candidates=1, direction="text_to_image")
    assert np.isfinite(one_way.match_logits).sum() == len(TEXTS)
    assert "texts_for_images" not in one_way.to_dict()
    with pytest.raises(UsageError, match="only text_to_image was ranked"):
        one_way.texts_for(0)


def test_company_changes_nothing(predictor: Predictor, images: list[Path]):
    every = predictor.rank(images, TEXTS, candidates=3).texts_for(2, 3)
    fewer = predictor.rank(images[2:3], TEXTS, candidates=3).texts_for(0, 3)
    assert [match.index for match in every] == [match.index for match in fewer]
    if predictor.variant == "int8":  # float sums may depend on the batch
        assert every == fewer


def test_result_says_what_gave_it(predictor: Predictor, images: list[Path]):
    ranking = predictor.rank(images, TEXTS[:2])
    document = json.loads(json.dumps(ranking.to_dict(top=1), allow_nan=False))
    assert document["bundle"] == predictor.info.to_dict()
    assert (document["variant"], document["provider"]) == (predictor.variant, "cpu")
    assert (document["task"], document["method"], document["status"]) == (
        "search",
        "two_stage",
        "ok",
    )
    assert [len(matches) for matches in document["texts_for_images"]] == [1] * len(images)
    assert set(document["images_for_texts"][0][0]) == {"index", "score", "match_logit"}
    assert document["timing_ms"]["vision"] > 0
    assert document["timing_ms"]["text"] > 0


def test_the_prompt_of_the_task_stands_before_each_text(tmp_path: Path, images: list[Path]):
    plain = Predictor.load(searchable(tmp_path / "plain.umd"))
    prompted = Predictor.load(searchable(tmp_path / "prompted.umd", prompt="what is"))
    with_prompt = prompted.rank(images, ["brain"], method="embedding")
    spelled_out = plain.rank(images, ["what is brain"], method="embedding")
    assert with_prompt.scores.tolist() == spelled_out.scores.tolist()
    assert with_prompt.scores.tolist() != plain.rank(images, ["brain"]).scores.tolist()


def test_an_image_that_the_task_is_not_for_is_in_no_list(tmp_path: Path, images: list[Path]):
    pytest.importorskip("pydicom")
    bundle = searchable(tmp_path / "b.umd", applies_to={"dicom_modality": ["US"]})
    rows = np.arange(400, dtype=np.uint16).reshape(20, 20)
    given = [images[0], make_dicom(rows, Modality="CR"), make_dicom(rows + 1, Modality="US")]
    ranking = Predictor.load(bundle).rank(given, TEXTS, method="fusion")
    assert (ranking.status, ranking.outside) == ("outside_intended_use", (1,))
    assert "1 of 3 images" in ranking.reason
    assert ranking.texts_for(1) == ()
    for text in range(len(TEXTS)):
        assert {match.index for match in ranking.images_for(text)} == {0, 2}


# --- what is refused ----------------------------------------------


def test_a_bundle_without_a_retrieval_task_is_refused(tiny_bundle: Path, images: list[Path]):
    with pytest.raises(UnknownTaskError, match="not trained to match"):
        Predictor.load(tiny_bundle).rank(images, TEXTS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "magic"}, "'magic' given; one of"),
        ({"direction": "up"}, "'up' given; one of"),
        ({"candidates": 0}, "candidates 0 given"),
        ({"candidates": True}, "candidates True given"),
        ({"task": "vqa"}, "retrieval tasks of this bundle: \\['search'\\]"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(
    predictor: Predictor, changes: dict[str, Any], expected: str
):
    with pytest.raises(UsageError, match=expected):
        predictor.rank(["/no/such/file.png"], TEXTS, **changes)


def test_bad_inputs_are_refused(predictor: Predictor, images: list[Path]):
    with pytest.raises(UsageError, match="no image given"):
        predictor.rank([], TEXTS)
    with pytest.raises(UsageError, match="no text given"):
        predictor.rank(images, [])
    with pytest.raises(TextInputError, match="text 1 is empty"):
        predictor.rank(images, ["brain", " "])
    with pytest.raises(ImageInputError, match="no file at"):
        predictor.rank([*images, "/no/such/file.png"], TEXTS)
    ranking = predictor.rank(images, TEXTS[:1])
    with pytest.raises(UsageError, match=r"text 1 given; 0\.\.0 were ranked"):
        ranking.images_for(1)
    with pytest.raises(UsageError, match="image -1 given"):
        ranking.texts_for(-1)


def test_scores_that_are_no_numbers_are_refused():
    one = np.ones((1, 2), np.float32)
    with pytest.raises(InferenceError, match="embedding is zero or not finite"):
        score_pairs(0 * one, one, lambda i, t: np.zeros(len(i), np.float32))
    with pytest.raises(InferenceError, match="match logit is not finite"):
        score_pairs(one, one, lambda i, t: np.full(len(i), np.nan, np.float32))


def test_too_many_pairs_are_refused():
    many = np.ones((6000, 1), np.float32)
    with pytest.raises(UsageError, match="36000000 pairs"):
        score_pairs(many, many, lambda i, t: np.zeros(len(i), np.float32), method="embedding")


# --- order --------------------------------------------------------


def _reference_order(cosine: list[float], logits: list[float], candidates: int) -> list[int]:
    """Two stages by the textbook: sort, cut, sort the head again."""
    first = sorted(range(len(cosine)), key=lambda index: -cosine[index])
    head, tail = first[:candidates], first[candidates:]
    return sorted(sorted(head), key=lambda index: -logits[index]) + tail


small = st.integers(-3, 3).map(lambda number: number / 4)


@settings(deadline=None)
@given(
    st.lists(st.tuples(small, small), min_size=1, max_size=8),
    st.integers(1, 8),
)
def test_places_follow_the_textbook(rows: list[tuple[float, float]], candidates: int):
    cosine = np.asarray([[row[0] for row in rows]], np.float32)
    logits = np.asarray([[row[1] for row in rows]], np.float32)
    scores = PairScores(
        method="two_stage", candidates=candidates, cosine=cosine, match_logits=logits
    )
    order = np.argsort(scores.text_places()[0], kind="stable").tolist()
    assert order == _reference_order(cosine[0].tolist(), logits[0].tolist(), candidates)


@settings(deadline=None)
@given(st.lists(st.lists(small, min_size=3, max_size=3), min_size=1, max_size=5))
def test_equal_scores_share_a_place_and_no_others_do(rows: list[list[float]]):
    cosine = np.asarray(rows, np.float32)
    scores = PairScores(method="embedding", candidates=1, cosine=cosine, match_logits=None)
    for places, values in (
        (scores.text_places(), cosine),
        (scores.image_places(), cosine.T),
    ):
        for place, value in zip(places, values, strict=True):
            wanted = [sorted(set(value.tolist()), reverse=True).index(item) for item in value]
            assert place.tolist() == wanted


# --- metrics ------------------------------------------------------


def _by_hand(score: list[list[float]], pairs: list[tuple[int, int]], axis: int) -> list[int]:
    """Rank of each query: the items that beat or equal the best right one, wrong ones only."""
    ranks = []
    for pair in pairs:
        query = pair[axis]
        right = {other[1 - axis] for other in pairs if other[axis] == query}
        row = score[query] if axis == 0 else [line[query] for line in score]
        best = max(row[item] for item in right)
        ranks.append(1 + sum(row[i] >= best for i in range(len(row)) if i not in right))
    return ranks


@st.composite
def retrieval_cases(draw):
    images, texts = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    score = [[draw(small) for _ in range(texts)] for _ in range(images)]
    pair = st.tuples(st.integers(0, images - 1), st.integers(0, texts - 1))
    pairs = draw(st.lists(pair, min_size=1, max_size=8))
    groups = [str(draw(st.integers(0, 3))) for _ in pairs]
    return score, pairs, groups


def _metrics(score, pairs, groups) -> dict[str, MetricValue]:
    cosine = np.asarray(score, np.float32)
    scores = PairScores(method="embedding", candidates=1, cosine=cosine, match_logits=None)
    return evaluate_retrieval(
        text_places=scores.text_places(),
        image_places=scores.image_places(),
        pairs=pairs,
        groups=groups,
    )


@settings(deadline=None, max_examples=60)
@given(retrieval_cases())
def test_metrics_agree_with_brute_force(case):
    score, pairs, groups = case
    metrics = _metrics(score, pairs, groups)
    for axis, name in enumerate(("image_to_text", "text_to_image")):
        ranks = _by_hand(score, pairs, axis)
        for k in (1, 5, 10):
            share = sum(rank <= k for rank in ranks) / len(ranks)
            assert metrics[f"{name}_r{k}"].value == pytest.approx(share)
        assert metrics[f"{name}_medr"].value == np.median(ranks)
        assert metrics[f"{name}_medr"].n == len(pairs)


@settings(deadline=None, max_examples=10)
@given(retrieval_cases())
def test_intervals_agree_with_a_bootstrap_that_repeats_records(case):
    score, pairs, groups = case
    metrics = _metrics(score, pairs, groups)
    names = sorted(set(groups))
    ranks = np.asarray(_by_hand(score, pairs, 0))
    draws = np.random.default_rng(0).integers(0, len(names), size=(1000, len(names)))
    medians = []
    for draw in draws:
        chosen = [i for name in draw for i in range(len(ranks)) if groups[i] == names[name]]
        medians.append(np.median(ranks[chosen]))
    metric = metrics["image_to_text_medr"]
    if len(names) < 2:
        assert metric.low is None
    else:
        assert [metric.low, metric.high] == pytest.approx(np.quantile(medians, [0.025, 0.975]))


def test_a_model_that_tells_nothing_apart_reaches_nothing():
    pairs = [(index, index) for index in range(20)]
    metrics = _metrics(np.zeros((20, 20)).tolist(), pairs, [str(i) for i in range(20)])
    assert metrics["image_to_text_r10"].value == 0.0
    assert metrics["text_to_image_medr"].value == 20.0


def test_metrics_refuse_what_does_not_fit():
    square = np.zeros((2, 2))
    for places, pairs, groups in (
        (np.zeros((2, 3)), [(0, 0)], ["a"]),
        (square, [(0, 2)], ["a"]),
        (square, [(-1, 0)], ["a"]),
        (square, [(0, 0)], ["a", "b"]),
        (square, [], []),
    ):
        with pytest.raises(DataError):
            evaluate_retrieval(text_places=places, image_places=square, pairs=pairs, groups=groups)


# --- evaluate -----------------------------------------------------


def test_equal_captions_and_equal_pictures_are_one_item(predictor: Predictor, tmp_path: Path):
    data = captions(tmp_path)
    (tmp_path / "5.png").write_bytes((tmp_path / "0.png").read_bytes())
    lines = data.read_text(encoding="utf-8").replace('"brain"', '"Chest  X ray"')
    data.write_text(lines, encoding="utf-8")
    task = predictor.manifest.task("search")
    examples = build_examples(read_records(data), task, predictor.manifest.structured_fields)
    items = retrieval_items(examples.examples)
    assert [path.name for path in items.images] == [f"{i}.png" for i in range(5)]
    assert items.texts == ("chest x ray", *TEXTS[2:])
    assert items.pairs.tolist() == [[0, 0], [1, 0], [2, 1], [3, 2], [4, 3], [0, 0]]


def test_evaluate_file_agrees_with_ranking_by_hand(predictor: Predictor, tmp_path: Path):
    data = captions(tmp_path)
    steps: list[tuple[int, int]] = []
    result = evaluate_file(
        predictor, "search", data, on_progress=lambda done, total: steps.append((done, total))
    )
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    ranking = predictor.rank(paths, TEXTS)
    pairs = [(index, index % len(TEXTS)) for index in range(6)]
    ranks = _by_hand(ranking.match_logits.tolist(), pairs, 0)
    assert result.metrics["image_to_text_r1"].value == np.mean(np.asarray(ranks) <= 1)
    ranks = _by_hand(ranking.scores.tolist(), pairs, 1)
    assert result.metrics["embedding_text_to_image_medr"].value == np.median(ranks)
    assert (result.n, result.dropped) == (6, {})
    assert steps[-1][0] == steps[-1][1]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_a_record_with_an_unusable_picture_is_an_error(predictor: Predictor, tmp_path: Path):
    data = captions(tmp_path)
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="mend or remove"):
        evaluate_file(predictor, "search", data)
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match=r"captions\.jsonl:\d+: .*mend or remove"):
        evaluate_file(predictor, "search", data)


def test_real_captions_are_ranked(predictor: Predictor, shared_data: Path, tmp_path: Path):
    lines = (shared_data / "vqamed19" / "images_val.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines[:40]]
    for record in records:
        record["image"] = f"vqamed19/{record['image']}"
    data = tmp_path / "val.jsonl"
    data.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    (tmp_path / "vqamed19").symlink_to(shared_data / "vqamed19")
    result = evaluate_file(predictor, "search", data)
    assert result.n == 40
    pool = len({record["caption"] for record in records})
    recalls = [result.metrics[f"image_to_text_r{k}"].value for k in (1, 5, 10)]
    assert recalls == sorted(recalls)
    assert 1 <= result.metrics["image_to_text_medr"].value <= pool
