"""A model owes what it knows to the records of all models behind it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.training import write_recipe
from umd_edge_export.card import model_card
from umd_edge_train.checkpoint import load_checkpoint
from umd_edge_train.finetuning import finetune
from umd_edge_train.lineage import BEFORE, ancestor, distinct_sources, weights_of
from umd_edge_train.pretraining import pretrain
from umd_edge_train.recipe import load_recipe

_A = {"manifests": {"train.jsonl": "aa"}, "licences": {"CC0": 3}, "train_records": 3}
_B = {"manifests": {"train.jsonl": "bb"}, "licences": {"CC-BY-NC": 2}, "train_records": 2}
_BOUND = {**_B, "non_commercial_records": 2}


def test_a_source_counts_once_however_many_models_read_it():
    first = ancestor({"a": _A}, "1")
    second = ancestor({"a": _A, "teacher 1": first}, "2")
    data = {"a": _A, "teacher 1": first, "teacher 2": second, BEFORE: first}
    assert distinct_sources(data) == {"a": _A}
    assert second["train_records"] == 3
    assert second["licences"] == {"CC0": 3}


def test_a_source_of_a_model_far_behind_is_named_by_its_way():
    far = ancestor({"a": _A, "secret": _BOUND}, "1")
    near = ancestor({"a": _A, BEFORE: far}, "2")
    found = distinct_sources({"a": _A, "teacher 1": near})
    assert set(found) == {"a", f"teacher 1: {BEFORE}: secret"}
    assert near["non_commercial_records"] == 2


def test_totals_without_their_sources_speak_for_themselves_unless_the_model_is_known():
    total = {"weights": "1", "licences": {"CC0": 6}, "train_records": 6}
    assert set(distinct_sources({"a": _A, "teacher 1": total})) == {"a", "teacher 1"}
    known = ancestor({"b": _B}, "1")
    found = distinct_sources({"a": _A, "teacher 1": total, "teacher 2": known})
    assert set(found) == {"a", "teacher 2: b"}


def _card(data: dict[str, Any], **recipe: Any) -> str:
    provenance = {"data": data, "recipe": recipe}
    return model_card("m", "1", (), provenance, {"sizes": {"int8": 1}}, {})


def test_the_card_tells_of_bound_records_behind_a_free_run():
    before = ancestor({"secret": _BOUND}, "1")
    card = _card({"a": _A, BEFORE: before})
    assert f"| {BEFORE}: secret | ? | 2 | CC-BY-NC (2) |" in card
    assert "2 of the records are restricted to non-commercial use." in card
    assert f"models behind it ({BEFORE})" in card
    assert "No record is restricted" in _card({"a": _A})


def test_the_card_says_which_labels_decisions_lean_to():
    tasks = [{"name": "skin", "label_cost": {"melanoma": 2.5}}, {"name": "other"}]
    assert "* `skin` leans: " in _card({"a": _A}, tasks=tasks)
    assert "(melanoma 2.5; the rest 1)" in _card({"a": _A}, tasks=tasks)
    assert "leans" not in _card({"a": _A}, tasks=[{"name": "other", "label_cost": {}}])


@pytest.mark.parametrize("free", [True, False])
def test_a_run_names_what_its_pre_training_read(synth: Path, tmp_path: Path, free: bool):
    """The pictures of the first run are bound, those of the second are free."""
    first = write_recipe(tmp_path, "shapes").rename(tmp_path / "first.toml")
    second = write_recipe(tmp_path, "values")
    data = tmp_path / "data"
    shutil.copytree(synth, data)
    for path in (data / "shapes").glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps({**record, "non_commercial": not free}) for record in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = ("optim.epochs=1", "allow_non_commercial=true")
    pretrain(load_recipe(first, settings), data, tmp_path / "pre")
    finetune(
        load_recipe(second, ("optim.epochs=1",)),
        data,
        tmp_path / "run",
        init=tmp_path / "pre" / "final",
    )
    provenance = load_checkpoint(tmp_path / "run" / "final").provenance
    before = provenance["data"][BEFORE]
    assert before["weights"] == weights_of(tmp_path / "pre" / "final")
    assert set(distinct_sources(provenance["data"])) == {"values", f"{BEFORE}: shapes"}
    assert provenance["non_commercial"] is not free
    assert (before["non_commercial_records"] == 0) is free
