"""The audit log of rankings and evaluations."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from support.command import png, run, run_json
from support.retrieval import TEXTS, captions, pictures, searchable
from umd_edge import AuditLog, AuditWriteError, ImageInputError, Predictor, TextInputError
from umd_edge._audit_chain import verify_log
from umd_edge._audit_secret import keyed_hash, read_secret

TOP = 5


def records(log: Path) -> list[dict[str, Any]]:
    """All records behind the first one, of a log whose chain holds."""
    verify_log(log)
    return [json.loads(line) for line in log.read_bytes().splitlines()][1:]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return searchable(tmp_path / "search.umd")


@pytest.fixture
def films(tmp_path: Path) -> list[Path]:
    return pictures(tmp_path / "films", 7)


@pytest.mark.parametrize("form", ["given", "galleries"])
def test_a_ranking_leaves_a_record_for_each_image_and_each_text(
    form: str, bundle: Path, films: list[Path], tmp_path: Path
):
    with AuditLog(tmp_path / "log", operator="ward-3") as log:
        predictor = Predictor.load(bundle, audit=log)
        images: Any = films
        texts: Any = TEXTS
        if form == "galleries":
            images, texts = predictor.gallery(images=films), predictor.gallery(texts=TEXTS)
        ranking = predictor.rank(images, texts)
    found = records(tmp_path / "log")
    secret = read_secret(tmp_path / "log.secret")
    assert len(found) == len(films) + len(TEXTS)
    for row, record in enumerate(found[: len(films)]):
        assert record["input"] == {"file_sha256": sha256(films[row])}
        assert [(m["text"], m["score"], m["match_logit"]) for m in record["ranked"]] == [
            (keyed_hash(secret, "text", TEXTS[m.index]), m.score, m.match_logit)
            for m in ranking.texts_for(row, TOP)
        ]
    for row, record in enumerate(found[len(films) :]):
        assert record["input"] == {"text": keyed_hash(secret, "text", TEXTS[row])}
        assert [m["file_sha256"] for m in record["ranked"]] == [
            sha256(films[m.index]) for m in ranking.images_for(row, TOP)
        ]
        assert (record["of"], len(record["ranked"])) == (len(films), TOP)
    for record in found:
        assert (record["event"], record["task"], record["status"]) == ("result", "search", "ok")
        assert (record["operator"], record["int8_path"]) == ("ward-3", ranking.int8_path)
        assert record["bundle"] == ranking.bundle.to_dict()


@pytest.mark.parametrize(
    ("direction", "kind"), [("image_to_text", "file_sha256"), ("text_to_image", "text")]
)
def test_only_the_lists_that_were_asked_for_are_recorded(
    direction: Any, kind: str, bundle: Path, films: list[Path], tmp_path: Path
):
    with AuditLog(tmp_path / "log") as log:
        Predictor.load(bundle, audit=log).rank(films[:3], TEXTS[:3], direction=direction)
    assert [list(record["input"]) for record in records(tmp_path / "log")] == [[kind]] * 3


def test_no_word_and_no_name_stands_in_the_log(bundle: Path, tmp_path: Path):
    image = png(tmp_path / "Jane Doe.png")
    with AuditLog(tmp_path / "log") as log:
        Predictor.load(bundle, audit=log).rank([image], ["Jane Doe has a fever"])
    text = (tmp_path / "log").read_text()
    assert "Jane" not in text and "fever" not in text


def test_what_cannot_be_ranked_is_recorded_with_its_hash(
    bundle: Path, films: list[Path], tmp_path: Path
):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with AuditLog(tmp_path / "log") as log:
        predictor = Predictor.load(bundle, audit=log)
        skipped: list[int] = []
        predictor.gallery(images=[broken, films[0]], on_error=lambda i, _: skipped.append(i))
        with pytest.raises(ImageInputError):
            predictor.rank([broken], TEXTS)
        with pytest.raises(ImageInputError):
            predictor.rank([tmp_path / "gone.png"], TEXTS)
        with pytest.raises(TextInputError):
            predictor.rank(films, ["  "])
    assert skipped == [0]
    found = records(tmp_path / "log")
    assert [record["error"] for record in found] == ["ImageInputError"] * 3 + ["TextInputError"]
    hashes = [record["input"].get("file_sha256") for record in found]
    assert hashes == [sha256(broken), sha256(broken), None, None]


def test_a_ranking_is_not_handed_out_unrecorded(bundle: Path, films: list[Path], tmp_path: Path):
    with AuditLog(tmp_path / "log") as log:
        predictor = Predictor.load(bundle, audit=log)
    with pytest.raises(AuditWriteError, match="closed"):
        predictor.rank(films, TEXTS)


def test_texts_of_a_saved_gallery_have_a_hash_of_their_own(
    bundle: Path, films: list[Path], tmp_path: Path
):
    predictor = Predictor.load(bundle)
    predictor.gallery(texts=TEXTS).save(tmp_path / "texts.npz")
    from umd_edge import Gallery

    with AuditLog(tmp_path / "log") as log:
        Predictor.load(bundle, audit=log).rank(films[:1], Gallery.load(tmp_path / "texts.npz"))
    found = records(tmp_path / "log")
    assert [list(record["input"]) for record in found[1:]] == [["gallery_text"]] * len(TEXTS)
    assert len({record["input"]["gallery_text"] for record in found[1:]}) == len(TEXTS)


def test_the_command_ranks_into_a_log_and_shows_it(bundle: Path, films: list[Path], tmp_path: Path):
    log = tmp_path / "audit.jsonl"
    texts = [part for text in TEXTS for part in ("--text", text)]
    done = run("rank", films[0], *texts, "--bundle", bundle, "--audit", log)
    assert done.code == 0, done.err
    assert run("audit", "verify", log).code == 0
    shown = run_json("audit", "show", log, "--image", films[0])
    assert len(shown) == 1 + len(TEXTS)  # itself, and first of one in the list of each text
    assert len(run_json("audit", "show", log, "--text", TEXTS[0])) == 2
    table = run("audit", "show", log).out
    assert f"image {sha256(films[0])[:12]} (" in table


@pytest.mark.parametrize("report", [False, True])
def test_an_evaluation_leaves_a_record_for_each_record(
    report: bool, tiny_bundle: Path, tmp_path: Path
):
    predictor = Predictor.load(tiny_bundle)
    task = next(task for task in predictor.tasks if task.kind == "vqa")
    lines = []
    for index in range(4):
        image = png(tmp_path / f"{index // 2}.png", 20 + index // 2)
        record = {"id": f"r{index}", "patient_id": f"p{index}", "image": image.name}
        lines.append({**record, "question": f"is {index} shown ?", "answer": task.outputs[0]})
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = tmp_path / "audit.jsonl"
    more = ["--report", tmp_path / "site.html"] if report else []
    command = ("evaluate", "--task", task.name, "--data", data, "--bundle", tiny_bundle, "--audit")
    done = run(*command, log, *more)
    assert done.code == 0, done.err
    found = records(log)
    secret = read_secret(tmp_path / "audit.jsonl.secret")
    assert [record["input"]["question"] for record in found] == [
        keyed_hash(secret, "question", line["question"]) for line in lines
    ]
    for record, line in zip(found, lines, strict=True):
        answer = predictor.ask(tmp_path / line["image"], line["question"])
        assert record["purpose"] == "evaluation"
        assert record["input"]["file_sha256"] == sha256(tmp_path / line["image"])
        assert (record["decision"], record["status"]) == ([answer.answer], answer.status)
        assert record["scores"][answer.answer] == pytest.approx(answer.probability)
        assert len(record["scores"]) == min(TOP, len(task.outputs))
    assert len(run_json("audit", "show", log, "--question", lines[2]["question"])) == 1


def test_an_evaluation_of_a_retrieval_is_recorded_as_one(bundle: Path, tmp_path: Path):
    data = captions(tmp_path / "set", 6)
    log = tmp_path / "log"
    done = run("evaluate", "--task", "search", "--data", data, "--bundle", bundle, "--audit", log)
    assert done.code == 0, done.err
    found = records(log)
    assert {record["purpose"] for record in found} == {"evaluation"}
    assert len(found) == 6 + len({TEXTS[index % len(TEXTS)] for index in range(6)})


def test_an_image_that_ends_an_evaluation_is_recorded(tiny_bundle: Path, tmp_path: Path):
    (tmp_path / "x.png").write_bytes(b"none")
    record = {"id": "1", "patient_id": "1", "image": "x.png", "question": "what ?", "answer": "a"}
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(record) + "\n")
    command = ("evaluate", "--task", "vqa", "--data", data, "--bundle", tiny_bundle)
    done = run(*command, "--audit", tmp_path / "log")
    assert done.code == 4, done.err
    assert [record["error"] for record in records(tmp_path / "log")] == ["ImageInputError"]
