from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from support.bundles import tiny_manifest
from support.retrieval import captions, searchable
from umd_edge import Predictor
from umd_edge._evaluate import evaluate_file
from umd_edge.errors import DataError, UnknownTaskError, UsageError
from umd_edge_train.cli import main
from umd_edge_train.experiments.facets import _places, compare_with_facets, facet_scores

VQA = next(task for task in tiny_manifest()["tasks"] if task["kind"] == "vqa")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return searchable(tmp_path_factory.mktemp("bundle") / "tiny.umd")


def _with_facets(folder: Path, values: list[str]) -> Path:
    data = captions(folder)
    records = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    for index, record in enumerate(records):
        record["facets"] = {"plane": values[index % len(values)]}
    data.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return data


def _answers() -> list[str]:
    return [str(answer) for answer in VQA.get("answers", VQA.get("labels"))]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_scores_are_the_mean_log_probability_of_the_named_facets(data: st.DataObject):
    images, texts, facets, answers = (data.draw(st.integers(1, 4)) for _ in range(4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    logs = np.log(rng.uniform(0.01, 1.0, (images, facets, answers)))
    named = rng.integers(-1, answers, (texts, facets))
    found = facet_scores(logs, named)
    for image in range(images):
        for text in range(texts):
            total = 0.0
            for facet in range(facets):
                known = [
                    logs[image, facet, named[other, facet]]
                    for other in range(texts)
                    if named[other, facet] >= 0
                ]
                if named[text, facet] >= 0:
                    total += logs[image, facet, named[text, facet]]
                elif known:
                    total += sum(known) / len(known)
            assert found[image, text] == pytest.approx(total / facets)


def test_places_count_what_scores_higher():
    places = _places(np.asarray([[0.5, 2.0, 0.5, -1.0], [1.0, 1.0, 1.0, 1.0]]))
    assert places.tolist() == [[1, 0, 1, 3], [0, 0, 0, 0]]


def test_both_searches_are_measured_on_the_same_queries(bundle: Path, tmp_path: Path):
    data = _with_facets(tmp_path / "d", _answers()[:2])
    predictor = Predictor.load(bundle)
    found = compare_with_facets(predictor, data, retrieval_task="search", vqa_task=str(VQA["name"]))
    assert (found.images, found.texts) == (6, 5)
    reference = evaluate_file(predictor, "search", data).metrics
    for name, value in found.model.items():
        assert value.value == pytest.approx(reference[name].value)
        gain = found.model[name].value - found.facets[name].value
        assert found.difference[name].value == pytest.approx(gain)
    # two kinds of captions only: the right one of five is never told apart by its facets
    assert found.facets["image_to_text_r1"].value < 1.0
    assert found.facets["image_to_text_r5"].value == 1.0


def test_the_command_prints_a_table_and_logs_it(bundle: Path, tmp_path: Path):
    data = _with_facets(tmp_path / "d", _answers()[:2])
    log = tmp_path / "LOG.md"
    arguments = ["facets", str(bundle), "--data", str(data), "--task", "search", "--log", str(log)]
    done = CliRunner().invoke(main, [*arguments, "--vqa-task", str(VQA["name"])])
    assert done.exit_code == 0, done.output
    assert "| image_to_text_r1 |" in done.stdout
    assert "splits: as the files stand" in done.stdout
    assert "| image_to_text_r1 |" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"retrieval_task": "find"}, UnknownTaskError, "find"),
        ({"vqa_task": "search"}, UsageError, "search"),
        ({}, DataError, "facets"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    bundle: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], word: str
):
    names = {"retrieval_task": "search", "vqa_task": str(VQA["name"])} | changes
    with pytest.raises(error, match=word):
        compare_with_facets(Predictor.load(bundle), captions(tmp_path / "d"), **names)


def test_a_test_split_is_not_looked_at_unlogged(bundle: Path, tmp_path: Path):
    data = _with_facets(tmp_path / "d", _answers()[:2]).rename(tmp_path / "images_test.jsonl")
    done = CliRunner().invoke(main, ["facets", str(bundle), "--data", str(data)])
    assert done.exit_code == 2
    assert "--log" in done.output
