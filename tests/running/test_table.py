from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_edge import MissingDependencyError, UsageError
from umd_edge._table import open_table
from umd_edge._table_rows import CsvRows, columns_of, flatten, run_of

LABELS = ("No Finding", 'A, "b"\nc', "é")
RUN = run_of({"task": "t"})
KINDS = ("csv", "jsonl", "parquet")


def line(index: int, image: str = "", **more) -> dict:
    """What `classify` prints for one image."""
    findings = [
        {"label": label, "probability": 0.1 * place + 0.01, "positive": place == 1}
        for place, label in enumerate(LABELS)
    ]
    return {
        "image": image or f"films/{index:03d}.png",
        "index": index,
        "bundle": {"name": "tiny", "version": "1", "sha256": "0" * 64},
        "variant": "int8",
        "provider": "cpu",
        "int8_path": "native",
        "timing_ms": {"decode": 1.5, "total": 2.0},
        "task": "t",
        "status": "ok",
        "reason": "",
        "findings": findings,
        **more,
    }


def failed(index: int) -> dict:
    error = {"type": "ImageInputError", "message": 'no "image",\nat all'}
    return {"image": f"films/{index:03d}.png", "index": index, "error": error}


def write(path: Path, lines, run: str = RUN, *, finish: bool = True) -> None:
    with open_table(path, LABELS, run) as rows:
        for item in lines:
            rows.add(item)
        if finish:
            rows.finish()


def read(path: Path) -> list[dict]:
    """The rows, by readers that know nothing of how they were written."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, strict=True))
    if path.suffix == ".jsonl":
        return [json.loads(text) for text in path.read_bytes().split(b"\n")[:-1]]
    return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()


def images(path: Path) -> list[str]:
    return [row["image"] for row in read(path)]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_say_what_the_lines_said(tmp_path: Path, kind: str):
    path = tmp_path / f"r.{kind}"
    write(path, [line(0, dicom={"frame": 2}), failed(1)])
    first, second = read(path)
    if kind == "jsonl":
        assert first == {**line(0, dicom={"frame": 2}), "run": RUN}
        assert second == {**failed(1), "run": RUN}
        return
    for label, finding in zip(LABELS, line(0)["findings"], strict=True):
        assert float(first[f"probability_{label}"]) == finding["probability"]
        assert int(first[f"positive_{label}"]) == finding["positive"]
    assert (first["status"], first["bundle_name"], first["error_type"] or "") == ("ok", "tiny", "")
    assert (float(first["decode_ms"]), int(first["index"])) == (1.5, 0)
    assert json.loads(first["more"]) == {"dicom": {"frame": 2}}
    assert second["error_type"] == "ImageInputError"
    assert second["error_message"] == 'no "image",\nat all'
    assert not second["probability_é"]


def test_parquet_columns_have_types(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "r.parquet", [line(0)])
    schema = parquet.read_schema(tmp_path / "r.parquet")
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert (types["index"], types["probability_é"], types["positive_é"], types["image"]) == (
        *("int64", "double", "bool", "string"),
    )


@given(
    names=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
        min_size=1,
        max_size=6,
        unique=True,
    ),
    kind=st.sampled_from(["csv", "jsonl"]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_names_survive_a_cut_anywhere(tmp_path_factory, names, kind, data):
    folder = tmp_path_factory.mktemp("cut")
    whole, cut = folder / f"whole.{kind}", folder / f"cut.{kind}"
    lines = [line(index, name) for index, name in enumerate(names)]
    write(whole, lines)
    content = whole.read_bytes()
    cut.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with open_table(cut, LABELS, RUN) as rows:
        assert rows.done == set(names[: len(rows.done)])
        for item in lines[len(rows.done) :]:
            rows.add(item)
    assert cut.read_bytes() == content
    assert images(cut) == names


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_keeps_each_whole_row(tmp_path: Path, kind: str):
    path = tmp_path / f"r.{kind}"
    write(path, [line(index) for index in range(3)], finish=False)
    place = tmp_path / "r.parquet.part" if kind == "parquet" else path
    content = place.read_bytes()
    header = 0 if kind != "csv" else content.index(b"more\r\n") + 6
    size = (len(content) - header) // 3
    for end in range(0, len(content) + 1, 29):
        place.write_bytes(content[:end])
        with open_table(path, LABELS, RUN) as rows:
            assert len(rows.done) == max(0, end - header) // size
        assert content.startswith(place.read_bytes())


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_leaves_the_rows_of_one_uninterrupted_run(tmp_path: Path, kind: str):
    lines = [line(index) for index in range(9)]
    whole, parts = tmp_path / f"whole.{kind}", tmp_path / f"parts.{kind}"
    write(whole, lines)
    write(parts, lines[:4], finish=False)
    write(parts, lines[4:6], finish=True)
    write(parts, lines[6:], finish=True)
    assert read(parts) == read(whole)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {whole.name, parts.name}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_an_error_are_taken_out_to_be_tried_again(tmp_path: Path, kind: str):
    path = tmp_path / f"r.{kind}"
    write(path, [line(0), failed(1), line(2), failed(3)])
    with open_table(path, LABELS, RUN) as rows:
        assert (rows.resumed, rows.retried) == (2, 2)
        assert rows.done == {"films/000.png", "films/002.png"}
        rows.add(line(3))
        rows.finish()
    assert images(path) == ["films/000.png", "films/002.png", "films/003.png"]


def test_taking_out_rows_keeps_the_file_as_private_as_it_was(tmp_path: Path):
    path = tmp_path / "r.csv"
    write(path, [failed(0)])
    path.chmod(0o600)
    write(path, [line(0)])
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_another_run_are_refused_and_stay(tmp_path: Path, kind: str):
    path = tmp_path / f"r.{kind}"
    write(path, [line(0)])
    before = read(path)
    with pytest.raises(UsageError, match="another bundle, variant, provider, task or option"):
        open_table(path, LABELS, run_of({"task": "u"}))
    if kind == "parquet":  # its rows stand apart again, and the next right run goes on with them
        (tmp_path / "r.parquet.part").unlink()
    assert read(path) == before


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_of_another_task_are_refused(tmp_path: Path, kind: str):
    path = tmp_path / f"r.{kind}"
    write(path, [line(0)])
    content = path.read_bytes()
    with pytest.raises(UsageError, match="cannot be gone on with"):
        open_table(path, ("other",), RUN)
    assert path.read_bytes() == content


FOREIGN = {
    "text": b"dear diary\n",
    "text without an end": b"dear diary",
    "picture": b"\xff\xd8\xff\xe0" + bytes(5000),
    "another table": b"image,index\na.png,0\n",
    "other JSON": b'{"a": 1}\n',
    "JSON without a run": b'{"image": "a"}\n',
    "JSON that is cut inside": b'{"image": "a", "run": "' + RUN.encode() + b'"}\n{"ima\n{}\n',
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_none_of_ours_is_refused_and_stays(tmp_path: Path, kind: str, name: str):
    path = tmp_path / f"r.{kind}"
    path.write_bytes(FOREIGN[name])
    with pytest.raises(UsageError, match="Name another file"):
        open_table(path, LABELS, RUN)
    assert path.read_bytes() == FOREIGN[name]


def test_damage_in_the_middle_is_not_cut_off_with_all_behind_it(tmp_path: Path):
    path = tmp_path / "r.csv"
    write(path, [line(index) for index in range(40)])
    data = path.read_bytes()
    broken = data[:5000].replace(b"films/000.png", b'films/"00.png') + data[5000:]
    path.write_bytes(broken)
    with pytest.raises(UsageError, match="Name another file"):
        open_table(path, LABELS, RUN)
    assert path.read_bytes() == broken


@pytest.mark.parametrize("name", ["results", "results.txt", "results.csv.gz"])
def test_an_unknown_suffix_is_refused(tmp_path: Path, name: str):
    with pytest.raises(UsageError, match=r"\.csv, \.jsonl or \.parquet"):
        open_table(tmp_path / name, LABELS, RUN)
    assert not list(tmp_path.iterdir())


def test_parquet_without_its_extra_is_told_before_any_work(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"umd-edge\[parquet\]"):
        open_table(tmp_path / "r.parquet", LABELS, RUN)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_being_written_is_not_written_twice(tmp_path: Path):
    path = tmp_path / "r.csv"
    with open_table(path, LABELS, RUN), pytest.raises(UsageError, match="another process"):
        open_table(path, LABELS, RUN)
    open_table(path, LABELS, RUN).__exit__(None, None, None)


def test_an_image_never_gets_two_rows(tmp_path: Path):
    with open_table(tmp_path / "r.csv", LABELS, RUN) as rows:
        rows.add(line(0))
        with pytest.raises(ValueError, match="a row already"):
            rows.add(line(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_folder_is_an_error_of_the_file_system(tmp_path: Path, kind: str):
    with pytest.raises(FileNotFoundError):
        open_table(tmp_path / "nowhere" / f"r.{kind}", LABELS, RUN)


_LIMITED = """
import resource, sys
sys.path[:0] = {path!r}
from pathlib import Path
from running.test_table import line, open_table, LABELS, RUN
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
with open_table(Path({out!r}), LABELS, RUN) as rows:
    for index in range(50):
        try:
            rows.add(line(index))
        except OSError as error:
            print(index, error.filename)
            sys.exit(7)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_whole_rows_to_go_on_with(tmp_path: Path, kind: str):
    path = tmp_path / f"r.{kind}"
    program = _LIMITED.format(path=sys.path, limit=4000, out=str(path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    written, named = done.stdout.split(maxsplit=1)
    place = tmp_path / "r.parquet.part" if kind == "parquet" else path
    assert named.strip() == str(place)
    assert place.read_bytes().endswith(b"\n")
    with open_table(path, LABELS, RUN) as rows:
        assert len(rows.done) == int(written) > 0
        for index in range(int(written), 50):
            rows.add(line(index))
        rows.finish()
    assert images(path) == [f"films/{index:03d}.png" for index in range(50)]


def test_a_disk_that_fills_while_errors_are_taken_out_loses_nothing(tmp_path: Path, monkeypatch):
    path = tmp_path / "r.csv"
    write(path, [line(0), failed(1), line(2)])
    content = path.read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device", str(source))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "replace", full)
        open_table(path, LABELS, RUN)
    assert path.read_bytes() == content
    assert images(path) == ["films/000.png", "films/001.png", "films/002.png"]
    with open_table(path, LABELS, RUN) as rows:
        assert rows.retried == 1


def test_run_differs_whenever_anything_differs():
    facts = {"bundle": "a", "task": "t", "options": {"text": "x"}}
    changed = [
        {**facts, "bundle": "b"},
        {**facts, "task": "u"},
        {**facts, "options": {}},
        {**facts, "options": {"text": "y"}},
    ]
    runs = [run_of(item) for item in (facts, *changed)]
    assert len(set(runs)) == 5
    assert run_of(dict(reversed(facts.items()))) == runs[0]


def test_flattening_loses_nothing_but_the_order():
    given = line(3, prediction_set={"coverage": 0.9})
    given["findings"][1]["operating_point"] = {"threshold": 0.2}
    flat = flatten({**given, "run": RUN})
    assert set(flat) <= set(columns_of(LABELS))
    more = json.loads(flat["more"])
    assert more["prediction_set"] == {"coverage": 0.9}
    assert more["findings"] == [{"label": LABELS[1], "operating_point": {"threshold": 0.2}}]


def test_a_row_of_another_length_is_no_row():
    with pytest.raises(ValueError, match="columns"):
        CsvRows(("image", "run", "error_type")).decode(b"a,b\n")
