from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from support.command import COMMON_KEYS, run, run_json
from support.pictures import make_dicom
from support.retrieval import TEXTS, captions, pictures, searchable
from umd_edge import Predictor

MATCH_KEYS = {"index", "score", "match_logit"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return searchable(tmp_path_factory.mktemp("bundle") / "tiny.umd")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path / "films")
    return tmp_path / "films"


def _texts(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--text", text)]


# --- what is printed ----------------------------------------------


def test_texts_come_first_then_images(bundle: Path, folder: Path):
    lines = run_json("rank", folder, *_texts(*TEXTS[:2]), "--bundle", bundle, "--top", 3)
    assert [line.get("text") for line in lines] == [*TEXTS[:2], *[None] * 6]
    assert [line["index"] for line in lines] == [0, 1, *range(6)]
    for line in lines[:2]:
        assert COMMON_KEYS - {"image"} | {"text", "status", "images", "method"} <= set(line)
        assert [set(match) for match in line["images"]] == [MATCH_KEYS | {"image"}] * 3
        for match in line["images"]:
            assert match["image"] == str(folder / f"{match['index']}.png")
    for line in lines[2:]:
        assert COMMON_KEYS | {"status", "texts"} <= set(line)
        assert [match["text"] for match in line["texts"]] == [
            TEXTS[match["index"]] for match in line["texts"]
        ]


def test_the_command_ranks_as_the_library_does(bundle: Path, folder: Path):
    paths = sorted(folder.iterdir())
    ranking = Predictor.load(bundle).rank(paths, TEXTS, method="fusion")
    lines = run_json(
        *("rank", *paths, *_texts(*TEXTS), "--bundle", bundle, "--method", "fusion", "--top", 6)
    )
    for index, line in enumerate(lines[: len(TEXTS)]):
        found = [(match["index"], match["match_logit"]) for match in line["images"]]
        assert found == [(m.index, m.match_logit) for m in ranking.images_for(index)]


def test_images_may_be_named_in_three_ways(bundle: Path, folder: Path):
    def images(*arguments: object) -> list[str]:
        given = ("--text", "brain", "--direction", "image_to_text", "--bundle", bundle)
        return [line["image"] for line in run_json("rank", *arguments, *given)]

    paths = [str(path) for path in sorted(folder.iterdir())]
    (folder / "notes.txt").write_text("not an image", encoding="utf-8")
    (folder / ".hidden.png").write_text("not an image", encoding="utf-8")
    assert images(folder) == paths
    assert images(*paths) == paths
    assert images("--image", paths[0], *paths[1:]) == paths


def test_a_file_of_texts_is_read_line_by_line(bundle: Path, folder: Path, tmp_path: Path):
    file = tmp_path / "texts.txt"
    file.write_text("\n".join([*TEXTS, "", " brain "]), encoding="utf-8")
    lines = run_json(
        *("rank", folder, "--texts", file, "--direction", "text_to_image", "--bundle", bundle)
    )
    assert [line["text"] for line in lines] == [*TEXTS, "brain"]


def test_people_get_tables(bundle: Path, folder: Path):
    done = run("rank", folder, "--text", "brain", "--bundle", bundle, "--top", 2)
    assert done.code == 0
    first = done.out.splitlines()[:3]
    assert first[0] == "brain:"
    assert all(line.startswith("  ") and line.endswith(".png") for line in first[1:])
    assert f"{folder / '0.png'}:" in done.out


# --- galleries ----------------------------------------------------


def test_a_gallery_answers_without_its_images(bundle: Path, folder: Path, tmp_path: Path):
    given = ("--text", "brain", "--gallery", tmp_path / "cache", "--bundle", bundle)
    before = run_json("rank", folder, *given)
    for path in folder.iterdir():
        path.unlink()
    after = run_json("rank", *given)
    assert after[0]["images"] == before[0]["images"]
    assert [line["image"] for line in after[1:]] == [line["image"] for line in before[1:]]
    assert before[0]["timing_ms"]["vision"] > 0
    assert after[0]["timing_ms"]["vision"] == 0
    quick = run_json("rank", *given, "--method", "embedding")
    assert {match["match_logit"] for match in quick[0]["images"]} == {None}


def test_a_gallery_of_another_variant_is_refused_or_made_again(
    bundle: Path, folder: Path, tmp_path: Path
):
    given = ("--text", "brain", "--gallery", tmp_path / "cache", "--bundle", bundle)
    run_json("rank", folder, *given)
    done = run("rank", folder, *given, "--variant", "fp32")
    assert done.code == 4
    assert "instead of 'fp32'" in done.err
    assert run("rank", *given, "--variant", "fp32").code == 4
    run_json("rank", folder, *given, "--variant", "fp32", "--rebuild")
    run_json("rank", *given, "--variant", "fp32")


# --- what goes wrong ----------------------------------------------


def test_a_bad_image_is_a_line_and_the_others_go_on(bundle: Path, folder: Path):
    (folder / "2.png").write_bytes(b"no picture")
    done = run(
        *("rank", folder, "--image", "/no/such.png", "--text", "brain"),
        *("--bundle", bundle, "--json"),
    )
    assert done.code == 4
    lines = [json.loads(line) for line in done.out.splitlines()]
    bad = {line["image"]: line["error"] for line in lines if "error" in line}
    assert set(bad) == {"/no/such.png", str(folder / "2.png")}
    assert {error["type"] for error in bad.values()} == {"ImageInputError"}
    assert [line["index"] for line in lines[1:]] == list(range(7))
    named = {match["image"]: match["index"] for match in lines[0]["images"]}
    assert set(named) == {str(folder / f"{i}.png") for i in (0, 1, 3, 4, 5)}
    assert all(lines[1 + index]["image"] == image for image, index in named.items())
    assert done.err.count("error: ") == 2


def test_nothing_but_bad_images_leaves_only_errors(bundle: Path):
    done = run("rank", "/no/such.png", "--text", "brain", "--bundle", bundle, "--json")
    assert done.code == 4
    assert [set(json.loads(line)) for line in done.out.splitlines()] == [
        {"image", "index", "error"}
    ]
    assert run("rank", "/no/such.png", "--text", "brain", "--bundle", bundle).out == ""


def test_an_image_outside_the_intended_use_says_so(tmp_path: Path, folder: Path):
    pytest.importorskip("pydicom")
    bundle = searchable(tmp_path / "b.umd", applies_to={"dicom_modality": ["US"]})
    make_dicom(np.arange(400, dtype=np.uint16).reshape(20, 20), folder / "film.dcm", Modality="CR")
    lines = run_json("rank", folder, "--text", "brain", "--bundle", bundle)
    state = {line["image"]: (line["status"], len(line["texts"])) for line in lines[1:]}
    assert state.pop(str(folder / "film.dcm")) == ("outside_intended_use", 0)
    assert set(state.values()) == {("ok", 1)}
    assert lines[0]["status"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["{films}"], 2, "no text given"),
        (["--text", "brain"], 2, "no image given"),
        (["{films}", "--text", "brain", "--method", "magic"], 2, "magic"),
        (["{films}", "--text", "brain", "--candidates", "0"], 2, "candidates"),
        (["{films}", "--text", "brain", "--task", "vqa"], 2, "['search']"),
        (["{films}", "--text", " "], 4, "text 0 is empty"),
        (["{films}", "--texts", "/no/such/file"], 4, "no readable UTF-8 file"),
        (["{empty}", "--text", "brain"], 4, "holds no file ending in"),
        (["--text", "brain", "--gallery", "{empty}"], 4, "no gallery at"),
        (["{films}", "--text", "brain", "--gallery", "{films}/0.png/x"], 2, "no folder"),
    ],
)
def test_a_wrong_call_is_one_line(
    bundle: Path, folder: Path, tmp_path: Path, arguments: list[str], code: int, expected: str
):
    (tmp_path / "empty").mkdir()
    places = {"films": folder, "empty": tmp_path / "empty"}
    done = run("rank", *(word.format(**places) for word in arguments), "--bundle", bundle)
    assert done.code == code, done.err
    assert expected in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_a_bundle_without_a_retrieval_task_is_refused(tiny_bundle: Path, folder: Path):
    done = run("rank", folder, "--text", "brain", "--bundle", tiny_bundle)
    assert done.code == 2
    assert "not trained to match" in done.err


# --- evaluate -----------------------------------------------------


def test_evaluate_measures_recall(bundle: Path, tmp_path: Path):
    data = captions(tmp_path)
    [report] = run_json("evaluate", "--task", "search", "--data", data, "--bundle", bundle)
    assert (report["n"], report["dropped"]) == (6, 0)
    for way in ("image_to_text", "text_to_image"):
        recalls = [report["metrics"][f"{way}_r{k}"]["value"] for k in (1, 5, 10)]
        assert recalls == sorted(recalls)
        assert recalls[-1] == 1.0
        assert report["metrics"][f"embedding_{way}_medr"]["value"] >= 1
