from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from support.command import png, run
from umd_edge import Predictor


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Six pictures in two folders, and a file that is none."""
    folder = tmp_path / "films"
    for index in range(6):
        place = folder / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        png(place / f"{index}.png", 20 + index)
    (folder / "a" / "cut.png").write_bytes((folder / "a" / "0.png").read_bytes()[:90])
    return folder


def command(films: Path, bundle: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("classify", films, "--task", "skin-lesion", "--bundle", bundle, "--out", out, *more)


def rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_say_what_the_library_says(films, tiny_bundle, tmp_path):
    out = tmp_path / "r.jsonl"
    done = run(*command(films, tiny_bundle, out))
    assert done.code == 4
    assert "cut.png" in done.err
    assert "7 rows, 7 of them new, 1 with an error" in done.out
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [line["index"] for line in lines] == list(range(7))
    predictor = Predictor.load(tiny_bundle)
    for line in lines:
        if "error" in line:
            assert Path(line["image"]).name == "cut.png"
            continue
        single = predictor.classify(line["image"], "skin-lesion").to_dict()
        assert line["findings"] == single["findings"]
        assert line["bundle"] == single["bundle"]


def test_a_second_run_tries_what_failed_and_adds_what_is_new(films, tiny_bundle, tmp_path):
    out = tmp_path / "r.csv"
    run(*command(films, tiny_bundle, out))
    before = out.read_bytes()
    png(films / "a" / "cut.png", 30)
    png(films / "b" / "later.png", 31)
    done = run(*command(films, tiny_bundle, out))
    assert done.code == 0
    assert "1 with an error are tried again" in done.err
    names = [Path(row["image"]).name for row in rows(out)]
    assert len(names) == len(set(names)) == 8
    kept = [line for line in before.splitlines() if b"cut.png" not in line]
    assert out.read_bytes().splitlines()[: len(kept)] == kept


def test_a_third_run_has_nothing_to_do(films, tiny_bundle, tmp_path):
    (films / "a" / "cut.png").unlink()
    out = tmp_path / "r.csv"
    assert run(*command(films, tiny_bundle, out)).code == 0
    before = out.read_bytes()
    done = run(*command(films, tiny_bundle, out, "--json"))
    assert json.loads(done.out) == {"out": str(out), "rows": 6, "new": 0, "errors": 0}
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "more",
    [
        ("--structured", '{"age": 50}'),
        ("--variant", "fp32"),
        ("--task", "breast-ultrasound"),
    ],
)
def test_rows_of_other_options_are_not_mixed(films, tiny_bundle, tmp_path, more):
    out = tmp_path / "r.csv"
    run(*command(films, tiny_bundle, out))
    before = out.read_bytes()
    done = run(*command(films, tiny_bundle, out, *more))
    assert done.code == 2
    assert "Name another file" in done.err
    assert out.read_bytes() == before


def test_an_image_that_is_named_twice_has_one_row(films, tiny_bundle, tmp_path):
    out, image = tmp_path / "r.csv", films / "b" / "1.png"
    use = ("--task", "skin-lesion", "--bundle", tiny_bundle, "--out", out)
    assert run("classify", image, image, films / "b", *use).code == 0
    assert [Path(row["image"]).name for row in rows(out)] == ["1.png", "3.png", "5.png"]


def test_an_unknown_task_is_told_before_a_file_is_made(films, tiny_bundle, tmp_path):
    out = tmp_path / "r.csv"
    done = run("classify", films, "--task", "nothing", "--bundle", tiny_bundle, "--out", out)
    assert done.code == 2
    assert not out.exists()


def test_a_slow_image_is_a_row_with_an_error(films, tiny_bundle, tmp_path, monkeypatch):
    from umd_edge import _encoding_calls

    original = _encoding_calls.load_image

    def slow(image, **options):
        if str(image).endswith("3.png"):
            import time

            time.sleep(1.2)
        return original(image, **options)

    (films / "a" / "cut.png").unlink()
    monkeypatch.setattr(_encoding_calls, "load_image", slow)
    out = tmp_path / "r.csv"
    done = run(*command(films, tiny_bundle, out, "--timeout", "1"))
    assert done.code == 5
    errors = {Path(row["image"]).name: row["error_type"] for row in rows(out)}
    assert errors == {f"{n}.png": "DeadlineExceededError" if n == 3 else "" for n in range(6)}


@pytest.mark.parametrize("name", ["classify", "ask"])
def test_a_time_limit_without_a_file_is_reported_and_the_others_go_on(
    films, tiny_bundle, name, monkeypatch
):
    images = sorted((films / "b").iterdir())
    given = (images[0], "which organ?") if name == "ask" else (*images, "--task", "skin-lesion")
    done = run(name, *given, "--bundle", tiny_bundle, "--timeout", "0.000001", "--json")
    assert done.code == 5
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert len(lines) == (1 if name == "ask" else 3)
    assert {line["error"]["type"] for line in lines} == {"DeadlineExceededError"}
    assert run(name, *given, "--bundle", tiny_bundle, "--timeout", "60", "--json").code == 0


@pytest.mark.parametrize("seconds", ["0", "-1", "soon"])
def test_a_time_limit_that_is_none_is_a_usage_error(films, tiny_bundle, tmp_path, seconds):
    done = run(*command(films, tiny_bundle, tmp_path / "r.csv", "--timeout", seconds))
    assert done.code == 2


def test_names_that_are_no_text_have_a_row(tiny_bundle, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    source = png(tmp_path / "a.png")
    (folder / 'comma, "quote"\nnewline.png').write_bytes(source.read_bytes())
    try:
        Path(str(folder) + "/\udcff.png").write_bytes(source.read_bytes())
    except OSError:
        pytest.skip("this file system has names of text alone")
    out = tmp_path / "r.csv"
    assert run(*command(folder, tiny_bundle, out)).code == 0
    names = {Path(row["image"]).name for row in rows(out)}
    assert names == {'comma, "quote"\nnewline.png', "\\udcff.png"}
    done = run(*command(folder, tiny_bundle, out, "--json"))
    assert json.loads(done.out)["new"] == 0


def test_real_films_have_the_rows_of_single_calls(shared_data, tmp_path):
    records = [
        json.loads(line)
        for line in (shared_data / "busi" / "val.jsonl").read_text("utf-8").splitlines()[:6]
    ]
    paths = [shared_data / "busi" / record["image"] for record in records]
    out = tmp_path / "r.csv"
    assert run("classify", *paths, "--task", "breast-ultrasound", "--out", out).code == 0
    predictor = Predictor.default()
    for row in rows(out):
        result = predictor.classify(row["image"], "breast-ultrasound")
        found = [float(row[f"probability_{item.label}"]) for item in result.findings]
        np.testing.assert_array_equal(found, [item.probability for item in result.findings])
