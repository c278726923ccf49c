from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_edge._records import Record
from umd_edge.errors import DataError
from umd_edge_train.corpus import _free_records, load_corpus
from umd_edge_train.recipe import Recipe, recipe_from_dict


def _write(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps({"patient_id": r["image"], **r}) + "\n" for r in records)
    (folder / name).write_text(text, encoding="utf-8")


def _recipe(free_with: str) -> Recipe:
    return recipe_from_dict(
        {
            "name": "captions",
            "datasets": [{"name": "c", "path": "set", "prefix": "images_", "free_with": free_with}],
            "tasks": [
                {"name": "pairs", "kind": "retrieval", "datasets": ["c"], "reads": ["caption"]}
            ],
        }
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pictures a (free), b (one of two questions is not), c (does not say), d (refused itself)."""
    for split in ("train", "val"):
        questions = [
            {"image": "a.png", "non_commercial": False},
            {"image": "b.png", "non_commercial": False},
            {"image": "b.png", "non_commercial": True},
            {"image": "c.png"},
            {"image": "d.png", "non_commercial": False},
        ]
        captions = [{"image": f"{name}.png", "caption": f"picture {name}"} for name in "abc"]
        captions.append({"image": "d.png", "caption": "picture d", "non_commercial": True})
        _write(tmp_path / "set", f"{split}.jsonl", questions)
        _write(tmp_path / "set", f"images_{split}.jsonl", captions)
    return tmp_path


def test_captions_are_as_free_as_all_questions_about_their_picture(data: Path):
    corpus = load_corpus(_recipe("{split}.jsonl"), data)
    assert [e.text for e in corpus.train[0][0].examples] == ["picture a"]
    assert corpus.texts == ("picture a",)
    assert corpus.sources["c"]["refused_non_commercial_records"] == 6  # of both splits
    assert corpus.sources["c"]["non_commercial_records"] == 0


def test_captions_that_do_not_say_so_are_not_free(data: Path):
    with pytest.raises(DataError, match="no record may be used for training"):
        load_corpus(_recipe(""), data)


def test_a_missing_manifest_of_licences_is_refused(data: Path):
    with pytest.raises(DataError, match="nothing"):
        load_corpus(_recipe("nothing-{split}.jsonl"), data)


_FLAGS = st.sampled_from([None, False, True])


@settings(max_examples=60, deadline=None)
@given(_FLAGS, st.lists(st.tuples(st.booleans(), _FLAGS), max_size=4))
def test_a_record_is_free_by_its_own_word_or_by_that_of_all_others(
    own: bool | None, others: list[tuple[bool, bool | None]]
):
    def record(image: str, flag: bool | None) -> Record:
        raw = {"image": image} | ({} if flag is None else {"non_commercial": flag})
        return Record(raw, 1, Path("x.jsonl"))

    flags = [flag for same, flag in others if same]
    by_others = bool(flags) and all(flag is False for flag in flags)
    wanted = own is False or (own is None and by_others)
    known = [record("a" if same else "b", flag) for same, flag in others]
    assert bool(_free_records([record("a", own)], known)) == wanted
