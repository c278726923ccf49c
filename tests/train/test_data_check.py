from __future__ import annotations

import io
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from umd_edge._task import TaskSpec
from umd_edge.errors import DataError
from umd_edge_train._check_leaks import Sample, find_leaks
from umd_edge_train._check_pictures import HASH_LIMIT, look_alikes, read_pictures
from umd_edge_train._check_render import to_html, to_text
from umd_edge_train.data_check import DataReport, check
from umd_edge_train.data_cli import data
from umd_edge_train.synth import synthesise


def _noise(seed: int, size: int = 48) -> Image.Image:
    """A smooth random picture, unlike every other seed's."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)


def _write(folder: Path, lines: dict[str, list[dict[str, Any]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in lines.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def _record(folder: Path, number: int, **changes: Any) -> dict[str, Any]:
    """A sound record with a picture of its own."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    name = f"images/{number}.png"
    _noise(number).save(folder / name)
    record = {
        "id": f"r{number}",
        "patient_id": f"p{number}",
        "image": name,
        "labels": ["a" if number % 2 else "b"],
        "license": "CC0-1.0",
        "non_commercial": False,
    }
    return {key: value for key, value in {**record, **changes}.items() if value is not ...}


@pytest.fixture
def sound(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of a sound set in `tmp_path/set`, to be damaged and written by a test."""
    folder = tmp_path / "set"
    numbers = {"train": range(8), "val": range(8, 12), "test": range(12, 16)}
    return {split: [_record(folder, n) for n in some] for split, some in numbers.items()}


def _codes(report: DataReport) -> set[str]:
    return {issue.code for issue in report.issues}


def _checked(tmp_path: Path, lines: dict[str, list[dict[str, Any]]]) -> DataReport:
    return check([_write(tmp_path / "set", lines)])


def test_sound_set_has_no_issue_and_right_counts(tmp_path: Path, sound):
    report = _checked(tmp_path, sound)
    assert report.issues == ()
    assert report.exit_code == 0
    (item,) = report.sets
    assert item.splits["train"] == {"records": 8, "pictures": 8, "patients": 8}
    assert item.tables["label"]["a"] == {"train": 4, "val": 2, "test": 2}
    assert item.tables["license"]["CC0-1.0"] == {"train": 8, "val": 4, "test": 4}
    assert report.pictures == {"ok": 16}


def test_patient_in_two_splits_is_an_error(tmp_path: Path, sound):
    sound["test"][0]["patient_id"] = "p0"
    report = _checked(tmp_path, sound)
    (issue,) = report.errors
    assert (issue.code, issue.count, report.exit_code) == ("shared-patient", 1, 4)


def test_same_patient_number_in_two_sets_is_no_error(tmp_path: Path, sound):
    other = {
        split: [_record(tmp_path / "other", 100 + int(r["id"][1:])) for r in records]
        for split, records in sound.items()
    }
    other["test"][0]["patient_id"] = "p0"
    _write(tmp_path / "set", sound)
    _write(tmp_path / "other", other)
    assert check([tmp_path]).issues == ()


def test_missing_broken_and_misnamed_pictures_are_told_apart(tmp_path: Path, sound):
    folder = tmp_path / "set"
    (folder / "images" / "0.png").unlink()
    whole = (folder / "images" / "1.png").read_bytes()
    (folder / "images" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images" / "2.png").write_text("not a picture")
    (folder / "images" / "3.png").write_bytes(b"")
    Image.new("L", (40, 40), 7).save(folder / "images" / "4.png")
    report = _checked(tmp_path, sound)
    assert report.pictures == {"ok": 11, "missing": 1, "broken": 3, "blank": 1}
    counts = {issue.code: (issue.severity, issue.count) for issue in report.issues}
    assert counts == {
        "missing-image": ("error", 1),
        "broken-image": ("error", 3),
        "blank-image": ("warning", 1),
    }


def test_truncated_jpeg_is_broken(tmp_path: Path, sound):
    folder = tmp_path / "set"
    buffer = io.BytesIO()
    _noise(0, 300).save(buffer, "JPEG")
    for name, part in (("cut", 0.6), ("whole", 1.0)):
        cut = buffer.getvalue()[: int(part * len(buffer.getvalue()))]
        (folder / "images" / f"{name}.jpg").write_bytes(cut)
    states = {
        p.path.stem: p.state
        for p in read_pictures([folder / "images" / f"{n}.jpg" for n in ("cut", "whole")])
    }
    assert states == {"cut": "broken", "whole": "ok"}


def test_huge_png_header_is_broken_and_not_decoded(tmp_path: Path):
    path = tmp_path / "huge.png"
    _noise(0).save(path)
    data_ = bytearray(path.read_bytes())
    data_[16:24] = (60_000).to_bytes(4, "big") * 2
    path.write_bytes(bytes(data_))
    (picture,) = read_pictures([path])
    assert picture.state == "broken"


def test_sixteen_bit_and_colour_pictures_are_read(tmp_path: Path):
    values = np.random.default_rng(0).integers(0, 65535, (40, 40)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    _noise(1).convert("RGB").save(tmp_path / "colour.png")
    found = read_pictures([tmp_path / n for n in ("deep.png", "colour.png")])
    assert [picture.state for picture in found] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("change", "code", "severity"),
    [
        ({"image": ...}, "no-image", "error"),
        ({"image": "../../secret.png"}, "bad-image-path", "error"),
        ({"image": "/etc/passwd"}, "bad-image-path", "error"),
        ({"labels": "a"}, "bad-labels", "error"),
        ({"labels": ["a", 3]}, "bad-labels", "error"),
        ({"id": "r1"}, "same-id", "error"),
        ({"id": ...}, "no-id", "warning"),
        ({"patient_id": ...}, "no-patient", "warning"),
        ({"split": "val"}, "split-differs", "warning"),
        ({"license": ...}, "no-license", "warning"),
        ({"non_commercial": ...}, "license-unclear", "warning"),
        ({"non_commercial": "no"}, "license-unclear", "warning"),
        ({"non_commercial": True}, "non-commercial", "warning"),
        ({"question": "what?", "labels": ...}, "no-answer", "warning"),
        ({"image": "images/1.png", "labels": ["a"]}, "same-record", "warning"),
    ],
)
def test_faulty_record_is_reported_with_its_line(tmp_path: Path, sound, change, code, severity):
    sound["train"][2] = {k: v for k, v in {**sound["train"][2], **change}.items() if v is not ...}
    report = _checked(tmp_path, sound)
    found = [issue for issue in report.issues if issue.code == code]
    assert [(issue.severity, issue.count) for issue in found] == [(severity, 1)]
    assert found[0].where == ("set/train.jsonl:3",)
    assert report.exit_code == (4 if severity == "error" else 0)


def test_label_that_training_never_shows_is_counted(tmp_path: Path, sound):
    sound["test"][0]["labels"] = ["c"]
    report = _checked(tmp_path, sound)
    assert _codes(report) == {"unseen-answer"}
    assert report.sets[0].unseen["test"] == {"records": 4, "out_of_vocabulary": 1}


def test_answer_counts_as_seen_in_another_spelling_or_among_answers(tmp_path: Path, sound):
    for number, record in enumerate([r for some in sound.values() for r in some]):
        record.pop("labels")
        record |= {"question": f"q{number}?", "answer": "Yes" if number % 2 else "no"}
    sound["val"][0] |= {"answer": "YES."}
    sound["val"][1] |= {"answer": "affirmative", "answers": ["affirmative", "yes"]}
    sound["val"][2] |= {"answer": "perhaps"}
    report = _checked(tmp_path, sound)
    assert report.sets[0].unseen["val"] == {"records": 4, "out_of_vocabulary": 1}


def test_same_bytes_in_two_splits_is_an_error_and_within_one_a_warning(tmp_path: Path, sound):
    images = tmp_path / "set" / "images"
    shutil.copy(images / "0.png", images / "12.png")
    shutil.copy(images / "1.png", images / "2.png")
    report = _checked(tmp_path, sound)
    found = {issue.code: (issue.severity, issue.count) for issue in report.issues}
    assert found == {"shared-picture": ("error", 1), "same-picture": ("warning", 1)}


def test_one_file_used_by_two_splits_is_an_error(tmp_path: Path, sound):
    sound["test"][0]["image"] = "images/0.png"
    assert "shared-picture" in _codes(_checked(tmp_path, sound))


def test_altered_copy_in_another_split_is_found_and_other_pictures_are_not(tmp_path: Path, sound):
    images = tmp_path / "set" / "images"
    copy = _noise(0, 96).point([min(255, int(255 * (i / 255) ** 1.3)) for i in range(256)])
    copy.save(images / "12.jpg", quality=60)
    sound["test"][0]["image"] = "images/12.jpg"
    report = _checked(tmp_path, sound)
    (pair,) = report.look_alikes
    assert {pair.first, pair.second} == {"set/train.jsonl:1", "set/test.jsonl:1"}
    assert pair.similarity > 0.97
    (issue,) = report.issues
    assert (issue.code, issue.severity) == ("look-alike", "warning")


def test_altered_copy_between_two_sets_is_found(tmp_path: Path, sound):
    other = {"test": [_record(tmp_path / "other", 50)]}
    _noise(0, 64).save(tmp_path / "other" / "images" / "50.png")
    _write(tmp_path / "set", sound)
    _write(tmp_path / "other", other)
    report = check([tmp_path / "set", tmp_path / "other"])
    assert len(report.look_alikes) == 1
    assert [i.dataset for i in report.issues if i.code == "look-alike"] == ["*"]


def test_similar_hash_alone_is_no_look_alike(tmp_path: Path):
    """The same slope under different detail: the hashes are near, the gradients are not."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 120, 64)[None, :] + np.zeros((64, 1))
    for name in ("a", "b"):
        detail = np.kron(rng.integers(0, 60, (16, 16)), np.ones((4, 4)))
        Image.fromarray((slope + detail).astype(np.uint8)).save(tmp_path / f"{name}.png")
    a, b = read_pictures([tmp_path / "a.png", tmp_path / "b.png"])
    assert a.hash_bits is not None
    assert b.hash_bits is not None
    assert (a.hash_bits != b.hash_bits).sum() <= HASH_LIMIT
    assert look_alikes([a], [b]) == []


@given(st.integers(0, 10_000), st.sampled_from([40, 95]), st.floats(0.6, 1.6))
@settings(max_examples=30, deadline=None)
def test_recompressed_and_scaled_copy_always_looks_alike(tmp_path_factory, seed, quality, scale):
    folder = tmp_path_factory.mktemp("pair")
    _noise(seed, 100).save(folder / "a.png")
    _noise(seed, 100).resize((int(100 * scale),) * 2).save(folder / "b.jpg", quality=quality)
    a, b = read_pictures([folder / "a.png", folder / "b.jpg"])
    assert [(i, j) for i, j, _ in look_alikes([a], [b])] == [(0, 0)]


def _samples(rng: np.random.Generator, presence: dict[str, np.ndarray], y: np.ndarray, **fields):
    return [
        Sample(
            f"p{i}",
            (f"label{y[i]}",),
            {n: int(rng.integers(2)) for n, given_ in presence.items() if given_[i]}
            | {n: v[i] for n, v in fields.items()},
        )
        for i in range(len(y))
    ]


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9), st.integers(2, 6))
@settings(max_examples=6, deadline=None)
def test_presence_that_depends_on_the_label_is_always_flagged(seed, rate, k):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, 600)
    told = np.where(y == 0, rng.random(600) < 0.95, rng.random(600) < 0.3)
    leaks = find_leaks(
        _samples(rng, {"told": told, "random": rng.random(600) < rate}, y), frozenset()
    )
    # The random field passes in all but one set of fifty, which the next test looks at.
    assert leaks[0].field == "told"
    assert leaks[0].label == "label0" or k == 2


def test_random_presence_is_rarely_flagged_over_many_sets():
    flagged = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 3, 120)
        presence = {f"f{i}": rng.random(120) < 0.5 for i in range(10)}
        flagged += len(find_leaks(_samples(rng, presence, y), frozenset()))
    assert flagged <= 2


def test_records_of_one_patient_count_once():
    """Forty frames of four patients say no more about a label than four patients do."""
    samples = [
        Sample(f"p{i % 4}", ("a",) if i % 2 else ("b",), {"x": 1} if i % 2 else {})
        for i in range(160)
    ]
    assert find_leaks(samples, frozenset()) == ()


def test_values_that_settle_the_answer_or_rule_labels_out_are_told_apart():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    code = [f"C{v}" for v in y]
    biopsied = [bool(v >= 2 or rng.random() < 0.2) for v in y]
    fair = [bool(rng.random() < 0.3 + 0.1 * v) for v in y]
    samples = _samples(rng, {}, y, code=code, biopsied=biopsied, fair=fair)
    kinds = {leak.field: leak.kind for leak in find_leaks(samples, frozenset())}
    assert kinds == {"code": "determines", "biopsied": "excludes"}


def test_text_that_names_its_own_answer_is_flagged():
    names = ["melanoma", "naevus", "keratosis"]
    samples = [
        Sample(
            f"p{i}",
            (names[i % 3],),
            {
                "note": f"patient {i} with a {names[i % 3]} here",
                "fair": f"compared {i} with {names[(i // 3) % 3]}",
            },
        )
        for i in range(90)
    ]
    found = [(k.kind, k.field) for k in find_leaks(samples, frozenset())]
    assert found == [("mentions", "note")]


def test_leak_report_is_the_same_each_time():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    samples = _samples(rng, {"told": y == 0}, y)
    assert find_leaks(samples, frozenset()) == find_leaks(samples, frozenset()) != ()


def _task(**changes: Any) -> TaskSpec:
    task = {
        "name": "grade",
        "kind": "classification",
        "labels": ["bad", "good"],
        "prompt": "what is it?",
        "reads": ["structured.told"],
        "target": {"field": "labels", "map": {"a": "bad", "b": "good", "c": "good"}},
    }
    return TaskSpec.from_dict({**task, **changes})


def test_tasks_map_labels_and_mark_the_leaks_that_they_read(tmp_path: Path):
    folder = tmp_path / "set"
    records = [_record(folder, n, labels=["abc"[n % 3]]) for n in range(60)]
    for record in records:
        if record["labels"] == ["a"]:
            record["structured"] = {"told": True}
    _write(folder, {"train": records[:40], "val": records[40:]})
    (item,) = check([folder], [_task()]).sets
    assert set(item.tables["label"]) == {"bad", "good"}
    read_by = {leak.field: leak.read_by for leak in item.leaks}
    assert read_by == {"structured": ("grade",), "structured.told": ("grade",)}
    # Without the task the labels stay as they are, and nothing is known to be read.
    (item,) = check([folder]).sets
    assert set(item.tables["label"]) == {"a", "b", "c"}
    assert {leak.read_by for leak in item.leaks} == {()}


@pytest.mark.parametrize(
    ("content", "message"),
    [("{broken\n", "not valid JSON"), ("[1]\n", "JSON object"), ("\n", "holds no records")],
)
def test_unreadable_manifest_is_a_data_error_with_its_line(tmp_path: Path, content, message):
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        check([tmp_path])


def test_folder_without_sets_and_missing_path_and_nothing_are_data_errors(tmp_path: Path):
    with pytest.raises(DataError, match=r"train\.jsonl"):
        check([tmp_path])
    with pytest.raises(DataError, match="no such file"):
        check([tmp_path / "absent"])
    with pytest.raises(DataError, match="no data given"):
        check([])


def test_no_message_or_table_tells_a_patient_a_file_name_or_a_rare_answer(tmp_path: Path, sound):
    secret = "Mustermann"
    for record in sound["train"][:2]:
        record |= {"id": secret, "patient_id": secret, "image": f"images/{secret}.png"}
    sound["test"][0] |= {"patient_id": secret, "note": secret, "question": "q", "answer": secret}
    report = _checked(tmp_path, sound)
    assert {"same-id", "shared-patient", "missing-image"} <= _codes(report)
    shown = to_text(report) + to_html(report) + json.dumps(report.to_dict())
    assert secret.lower() not in shown.lower()


def test_html_is_self_contained_and_escaped(tmp_path: Path, sound):
    for record in sound["train"]:
        record["labels"] = ["<script>alert(1)</script>"]
    page = to_html(_checked(tmp_path, sound))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"<img|src=|href=|url\(|@import", page)


def _run(*arguments: str | Path):
    return CliRunner().invoke(data, [str(a) for a in arguments])


def test_cli_synth_then_check_gives_a_table_json_and_html(tmp_path: Path):
    made = _run("synth", "--out", tmp_path / "sets", "--images", 40, "--seed", 1)
    assert made.exit_code == 0
    assert next(Path(line).name for line in made.stdout.split()) == "shapes"
    page = tmp_path / "out" / "report.html"
    shown = _run("check", tmp_path / "sets", "--report", page)
    assert shown.exit_code == 0
    assert "answers and labels" in shown.stdout
    assert "reading pictures" in shown.stderr
    assert "reading pictures" not in shown.stdout
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [p.name for p in page.parent.iterdir()] == ["report.html"]
    as_json = _run("check", tmp_path / "sets" / "shapes", "--json")
    report = json.loads(as_json.stdout)
    assert report["format_version"] == 1
    assert [s["name"] for s in report["sets"]] == ["shapes"]


def test_cli_check_of_a_set_with_errors_exits_with_4_and_still_reports(tmp_path: Path, sound):
    sound["val"][0]["patient_id"] = "p0"
    folder = _write(tmp_path / "set", sound)
    result = _run("check", folder)
    assert result.exit_code == 4
    assert "shared-patient" in result.stdout
    assert json.loads(_run("check", "--json", folder).stdout)["issues"][0]["severity"] == "error"


def test_cli_check_reads_single_files(tmp_path: Path, sound):
    folder = _write(tmp_path / "set", sound)
    result = _run("check", "--json", folder / "train.jsonl")
    assert list(json.loads(result.stdout)["sets"][0]["splits"]) == ["train"]


@pytest.mark.parametrize("content", ["{", "{}", '[{"name": "x"}]'])
def test_cli_check_with_bad_tasks_is_a_manifest_error(tmp_path: Path, sound, content):
    (tmp_path / "tasks.json").write_text(content)
    folder = _write(tmp_path / "set", sound)
    result = _run("check", folder, "--tasks", tmp_path / "tasks.json")
    assert result.exit_code == 3
    assert result.stderr.count("error: ") == 1


def test_cli_errors_are_one_line_with_their_exit_code(tmp_path: Path, sound):
    absent = _run("check", tmp_path / "absent")
    assert (absent.exit_code, absent.stdout) == (4, "")
    assert "no such file" in absent.stderr.splitlines()[-1]
    few = _run("synth", "--out", tmp_path / "sets", "--images", 3)
    assert few.exit_code == 2
    assert "40 images or more" in few.stderr.splitlines()[-1]
    (tmp_path / "file").write_text("x")
    folder = _write(tmp_path / "set", sound)
    report = _run("check", folder, "--report", tmp_path / "file" / "report.html")
    assert report.exit_code == 2
    assert "cannot be written" in report.stderr.splitlines()[-1]


def test_cli_check_without_paths_is_a_usage_error():
    assert _run("check").exit_code == 2


# Real data ---------------------------------------------------------------------------------------

PADUFES_TELLING = {
    "sex",
    "structured.smoke",
    "structured.drink",
    "structured.pesticide",
    "structured.skin_cancer_history",
    "structured.cancer_history",
    "structured.has_piped_water",
    "structured.has_sewage_system",
    "structured.fitzpatrick",
    "structured.diameter_1_mm",
    "structured.diameter_2_mm",
    "structured.grew",
    "structured.changed",
}


def test_padufes_flags_what_is_filled_in_for_biopsied_lesions_only(shared_data: Path):
    report = check([shared_data / "padufes"])
    kinds = {leak.field: leak.kind for leak in report.sets[0].leaks}
    assert {name for name, kind in kinds.items() if kind == "presence"} == PADUFES_TELLING
    assert kinds["code"] == "determines"
    assert kinds["biopsied"] == "excludes"
    allowed = {f"structured.{n}" for n in ("itch", "hurt", "bleed", "elevation")}
    assert not (allowed | {"age", "region"}) & set(kinds)


def test_busi_flags_boxes_and_covidcxr_its_coarse_label(shared_data: Path):
    busi, covid = check([shared_data / "busi", shared_data / "covidcxr"]).sets
    assert {(k.field, k.kind) for k in busi.leaks} == {("lesions", "presence")}
    assert ("coarse", "determines") in {(k.field, k.kind) for k in covid.leaks}


def test_real_sets_share_neither_patients_nor_pictures_between_splits(shared_data: Path):
    report = check([shared_data])
    assert len(report.sets) == 7
    assert set(report.pictures) == {"ok"}
    assert report.errors == ()
    assert report.look_alikes == ()


def test_medpix_pictures_in_both_vqa_sets_are_found_when_the_splits_differ(
    shared_data: Path, tmp_path: Path
):
    """Known duplicates of two real sets: as train of one against test of the other."""
    paths: dict[str, list[Path]] = {}
    for name in ("vqarad", "vqamed19"):
        names = set()
        for split in ("train", "val", "test"):
            text = (shared_data / name / f"{split}.jsonl").read_text(encoding="utf-8")
            names |= {json.loads(line)["image"] for line in text.splitlines()}
        paths[name] = [shared_data / name / image for image in sorted(names)]
    found = look_alikes(*(read_pictures(some) for some in paths.values()))
    assert 42 <= len(found) <= 60


@pytest.mark.parametrize("name", ["nihcxr", "covidcxr", "busi"])
def test_real_pictures_are_found_after_recompression_and_never_confused(
    shared_data: Path, tmp_path: Path, name: str
):
    text = (shared_data / name / "train.jsonl").read_text(encoding="utf-8")
    images = sorted({json.loads(line)["image"] for line in text.splitlines()})
    chosen = random.Random(0).sample(images, 60)
    for index, image in enumerate(chosen):
        with Image.open(shared_data / name / image) as picture:
            half = (picture.width // 2, picture.height // 2)
            picture.convert("L").resize(half).save(tmp_path / f"{index:02d}.jpg", quality=50)
    originals = read_pictures([shared_data / name / image for image in chosen])
    copies = read_pictures(sorted(tmp_path.iterdir()))
    pairs = {(i, j) for i, j, _ in look_alikes(originals, copies)}
    assert len({(i, i) for i in range(60)} & pairs) >= 59
    patients = {
        json.loads(line)["image"]: json.loads(line)["patient_id"] for line in text.splitlines()
    }
    wrong = [(i, j) for i, j in pairs if patients[chosen[i]] != patients[chosen[j]]]
    assert wrong == []


def test_padufes_with_a_patient_moved_is_caught(shared_data: Path, tmp_path: Path):
    """Negative control of the real-data checks: one record moved to another split."""
    source = shared_data / "padufes"
    lines = {
        s: (source / f"{s}.jsonl").read_text(encoding="utf-8").splitlines()[:30]
        for s in ("train", "test")
    }
    patients = [json.loads(line)["patient_id"] for line in lines["train"]]
    twice = next((i for i, p in enumerate(patients) if patients.count(p) > 1), None)
    moved = lines["train"][0 if twice is None else twice]
    lines["test"].append(moved)
    folder = tmp_path / "padufes"
    shutil.copytree(source / "images", folder / "images")
    for split, kept in lines.items():
        (folder / f"{split}.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    codes = {issue.code for issue in check([folder]).errors}
    assert {"shared-patient", "shared-picture"} <= codes


def test_synthesised_set_with_a_field_filled_in_for_one_label_is_caught(tmp_path: Path):
    synthesise(tmp_path, images=200, size=32)
    folder = tmp_path / "values"
    for split in ("train", "val", "test"):
        path = folder / f"{split}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            if record["labels"] == ["well"]:
                record["structured"].pop("smoker", None)
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    told = {k.field for k in check([folder]).sets[0].leaks if k.kind == "presence"}
    assert told == {"structured.smoker"}


def test_every_issue_code_is_in_the_documentation():
    root = Path(__file__).resolve().parents[2]
    sources = [
        *(root / "train" / "umd_edge_train").glob("_check_*.py"),
        root / "train" / "umd_edge_train" / "data_check.py",
    ]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    codes = set(re.findall(r'"(?:error|warning)",\s*"([a-z]+(?:-[a-z]+)+)"', text))
    codes |= {f"leak-{kind}" for kind in re.findall(r'kind="([a-z]+)"', text)}
    listed = (root / "docs" / "data.md").read_text(encoding="utf-8")
    assert len(codes) > 15
    assert {code for code in codes if f"`{code}`" not in listed} == set()
