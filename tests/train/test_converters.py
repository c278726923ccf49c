from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support import public_sets as sets
from umd_edge._records import Record, read_records
from umd_edge.errors import DataError, UsageError
from umd_edge_train.converters import CONVERTERS, ConvertOptions, ConvertReport, convert
from umd_edge_train.converters.sample import Sample
from umd_edge_train.converters.splits import group_names, hashed_split
from umd_edge_train.data_check import check
from umd_edge_train.data_cli import data

FORMATS = list(CONVERTERS)
PUBLISHED = [name for name in FORMATS if name not in ("pad-ufes-20", "medicat")]
QUESTIONS = ["vqa-rad", "slake", "vqa-med-2019"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The layout of every set; read only."""
    folder = tmp_path_factory.mktemp("public")
    return {name: build(folder / name) for name, build in sets.BUILDERS.items()}


def _read(out: Path) -> list[Record]:
    return [record for path in sorted(out.glob("*.jsonl")) for record in read_records(path)]


def _by_patient(records: list[Record]) -> dict[str, set[str]]:
    splits: dict[str, set[str]] = defaultdict(set)
    for record in records:
        splits[record.get("patient_id")].add(record.source.stem)
    return splits


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(data, ["convert", *(str(argument) for argument in arguments)])


def _files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".jsonl", ".json")}


# --- every set ----------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_converted_set_has_sound_records_and_disjoint_splits(tmp_path: Path, sources, name):
    convert(name, sources[name], tmp_path / "out")
    records = _read(tmp_path / "out")
    assert len({record.get("id") for record in records}) == len(records) > 0
    for record in records:
        with Image.open(record.image_path) as image:
            assert image.size == (16, 16)
        assert record.get("split") == record.source.stem
        assert record.get("source_url").startswith("https://")
        assert None not in record.raw.values()
    assert all(len(splits) == 1 for splits in _by_patient(records).values())
    report = check([tmp_path / "out"])
    assert [issue for issue in report.issues if issue.severity == "error"] == []


@pytest.mark.parametrize("name", QUESTIONS)
def test_converted_questions_have_all_fields_of_a_question(tmp_path: Path, sources, name):
    convert(name, sources[name], tmp_path / "out")
    for record in _read(tmp_path / "out"):
        question, answer = record.get("question"), record.get("answer")
        assert question == " ".join(question.split())
        assert record.get("answers")[0] == answer
        assert record.get("answer_type") in ("OPEN", "CLOSED")
        assert record.get("yes_no") is (answer.lower() in ("yes", "no"))
        assert record.get("question_type")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_splits_are_kept_and_recorded(tmp_path: Path, sources, name):
    by_patient = convert(name, sources[name], tmp_path / "a")
    published = convert(name, sources[name], tmp_path / "b", ConvertOptions(splits="published"))
    records = _read(tmp_path / "b")
    assert all(record.get("official_split") == record.source.stem for record in records)
    official = {r.get("id"): r.get("official_split") for r in _read(tmp_path / "a")}
    assert official == {record.get("id"): record.source.stem for record in records}
    assert by_patient.official_counts == published.official_counts
    assert published.official_counts == {s: c["records"] for s, c in published.counts.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_report_says_what_was_done(tmp_path: Path, sources, name):
    options = ConvertOptions(seed=3)
    report = convert(name, sources[name], tmp_path / "out", options)
    written = json.loads((tmp_path / "out" / "convert.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.to_dict()))
    assert written["options"]["seed"] == 3
    assert written["source"] == name
    assert str(tmp_path) not in json.dumps(written)
    for file, digest in written["sources"].items():
        assert hashlib.sha256((sources[name] / file).read_bytes()).hexdigest() == digest
    counted = {s: len(read_records(tmp_path / "out" / f"{s}.jsonl")) for s in written["counts"]}
    assert counted == {split: counts["records"] for split, counts in written["counts"].items()}


@pytest.mark.parametrize("name", FORMATS)
def test_same_source_and_options_give_the_same_files(tmp_path: Path, sources, name):
    convert(name, sources[name], tmp_path / "a")
    convert(name, sources[name], tmp_path / "b")
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


@pytest.mark.parametrize("name", FORMATS)
def test_folder_of_another_set_is_refused_and_nothing_is_written(tmp_path: Path, sources, name):
    other = "slake" if name != "slake" else "roco"
    with pytest.raises(DataError, match=r"needed|here"):
        convert(name, sources[other], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_missing_picture_is_an_error_with_its_place_or_counted(tmp_path: Path, name):
    source = sets.BUILDERS[name](tmp_path / "source")
    victim = sorted(p for p in source.rglob("*") if p.suffix in (".jpg", ".png"))[-1]
    victim.unlink()
    with pytest.raises(DataError, match=r"(:|record )\d+: its picture is not in") as caught:
        convert(name, source, tmp_path / "out")
    assert victim.stem not in str(caught.value)
    assert not (tmp_path / "out").exists()
    report = convert(name, source, tmp_path / "out", ConvertOptions(missing="drop"))
    assert report.dropped["missing picture"] >= 1
    assert all(record.image_path.is_file() for record in _read(tmp_path / "out"))


# --- splits -------------------------------------------------------


@given(
    units=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_any_patients_in_any_order_give_the_same_disjoint_splits(
    tmp_path_factory: pytest.TempPathFactory, units, order, seed
):
    folder = tmp_path_factory.mktemp("pad")
    rows = [sets.pad_row(unit, lesion) for lesion, unit in enumerate(units)]
    for row in rows:
        (folder / "a" / "images").mkdir(parents=True, exist_ok=True)
        (folder / "a" / "images" / row["img_id"]).write_bytes(row["img_id"].encode())
    shutil.copytree(folder / "a", folder / "b")
    sets.csv_file(folder / "a" / "metadata.csv", sets.PAD_COLUMNS, rows)
    order.shuffle(rows)
    sets.csv_file(folder / "b" / "metadata.csv", sets.PAD_COLUMNS, rows)
    options = ConvertOptions(seed=seed)
    for name in "ab":
        convert("pad-ufes-20", folder / name, folder / f"out-{name}", options)
    records = _read(folder / "out-a")
    assert len(records) == len(units)
    splits = _by_patient(records)
    assert all(len(found) == 1 for found in splits.values())
    assert len(splits) == len(set(units))
    manifests = [
        {p.name: p.read_bytes() for p in (folder / f"out-{name}").glob("*.jsonl")} for name in "ab"
    ]
    assert manifests[0] == manifests[1]


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_groups_are_the_connected_parts_of_units_and_links(pairs):
    # Reference: spread the smallest name over every shared unit or link until nothing changes.
    expected = {unit: f"u{unit}" for unit, _ in pairs}
    for _ in pairs:
        for link in {link for _, link in pairs}:
            members = {unit for unit, other in pairs if other == link}
            least = min(expected[unit] for unit in members)
            expected.update(
                {u: least for u, n in expected.items() for m in members if n == expected[m]}
            )
    folder = Path(__file__).parent
    samples = [
        Sample(
            key=(), unit=f"u{unit}", image=folder / f"test_{unit}", fields={}, links=(f"l{link}",)
        )
        for unit, link in pairs
    ]
    patch = pytest.MonkeyPatch()
    patch.setattr("umd_edge_train.converters.splits._digests", lambda *_: {})
    try:
        assert group_names(samples) == [expected[unit] for unit, _ in pairs]
    finally:
        patch.undo()


def test_hashed_splits_have_the_shares_asked_for_and_depend_on_the_seed():
    names = [f"p{n}" for n in range(4000)]
    splits = [hashed_split(name, 0, 0.1, 0.2) for name in names]
    assert splits.count("val") == pytest.approx(400, abs=60)
    assert splits.count("test") == pytest.approx(800, abs=80)
    assert splits != [hashed_split(name, 1, 0.1, 0.2) for name in names]
    # A larger share moves nobody back.
    larger = [hashed_split(name, 0, 0.1, 0.3) for name in names]
    assert all(b == "test" for a, b in zip(splits, larger, strict=True) if a == "test")


def test_pictures_of_the_same_bytes_and_of_one_case_stay_together(tmp_path: Path):
    source = tmp_path / "source"
    images = [f"synpic{n}" for n in range(30)]
    for n, image in enumerate(images):  # pairs of identical pictures
        sets.picture(source / "VQA_RAD Image Folder" / f"{image}.jpg", seed=n // 2)
    case = {"image_case_url": "https://medpix.nlm.nih.gov/case?id=one"}
    questions = [
        sets.rad_question(n, image, **(case if n % 10 == 0 else {}))
        for n, image in enumerate(images)
    ]
    sets.json_file(source / "VQA_RAD Dataset Public.json", questions)
    convert("vqa-rad", source, tmp_path / "out")
    patient = {Path(r.get("image")).stem: r.get("patient_id") for r in _read(tmp_path / "out")}
    assert all(patient[f"synpic{n}"] == patient[f"synpic{n + 1}"] for n in range(0, 30, 2))
    assert patient["synpic0"] == patient["synpic10"] == patient["synpic20"]
    assert len(set(patient.values())) == 15 - 2


def test_hashing_tells_how_far_it_is_and_reads_only_what_may_be_identical(tmp_path: Path):
    source = sets.vqa_rad(tmp_path / "source")
    images = sorted((source / "VQA_RAD Image Folder").iterdir())
    for extra, path in enumerate(images[:3], start=1):  # behind a picture's end: still readable
        path.write_bytes(path.read_bytes().ljust(4000 + extra, b"\0"))
    for path in images[3:]:
        path.write_bytes(path.read_bytes().ljust(4000, b"\0"))
    told: list[tuple[int, int]] = []
    convert("vqa-rad", source, tmp_path / "out", on_hash=lambda *now: told.append(now))
    assert told == [(done, len(images) - 3) for done in range(1, len(images) - 2)]


def test_one_medpix_picture_has_one_patient_and_split_in_both_sets(tmp_path: Path, sources):
    for name in ("vqa-rad", "vqa-med-2019"):
        convert(name, sources[name], tmp_path / name)
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for name in ("vqa-rad", "vqa-med-2019"):
        for record in _read(tmp_path / name):
            stem = Path(record.get("image")).stem
            places[stem].add((record.get("patient_id"), record.source.stem))
    assert len(places) == 14
    assert all(len(found) == 1 for found in places.values())


def test_val_is_carved_from_the_published_train_by_patient(tmp_path: Path, sources):
    options = ConvertOptions(splits="published", carve_val=0.4)
    report = convert("vqa-rad", sources["vqa-rad"], tmp_path / "out", options)
    records = _read(tmp_path / "out")
    val = [record for record in records if record.source.stem == "val"]
    assert val
    assert {record.get("official_split") for record in val} == {"train"}
    of_val = {record.get("patient_id") for record in val}
    train = {r.get("patient_id") for r in records if r.source.stem == "train"}
    assert not of_val & train
    assert report.official_counts == {"train": 20, "test": 4}


def test_patients_that_published_splits_share_are_counted_and_said(tmp_path: Path, sources):
    report = convert(
        "vqa-rad", sources["vqa-rad"], tmp_path / "o", ConvertOptions(splits="published")
    )
    shared = [s for s in _by_patient(_read(tmp_path / "o")).values() if len(s) > 1]
    assert report.shared_patients == len(shared) == 4
    assert any("4 patients are in more than one" in warning for warning in report.warnings)


def test_options_that_do_not_fit_are_refused(tmp_path: Path, sources):
    cases: list[tuple[str, ConvertOptions, str]] = [
        ("pad-ufes-20", ConvertOptions(splits="published"), "no published splits"),
        ("vqa-rad", ConvertOptions(language="en"), "no option language"),
        ("slake", ConvertOptions(language="de"), "language 'de' given"),
        ("slake", ConvertOptions(splits="published", carve_val=0.1), "val split of its own"),
        ("roco", ConvertOptions(subset="retrieval"), "published splits"),
        ("melinda", ConvertOptions(label="colour"), "label 'colour' given"),
        ("vqa-med-2019", ConvertOptions(categories=("size",)), "categories"),
        ("roco", ConvertOptions(strict_counts=True), "no published counts are known"),
        ("imagenet", ConvertOptions(), "format 'imagenet' given"),
    ]
    for name, options, message in cases:
        with pytest.raises(UsageError, match=message):
            convert(name, sources.get(name, tmp_path), tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"val_share": -0.1},
        {"val_share": 0.5, "test_share": 0.5},
        {"carve_val": 0.1},
        {"carve_val": 1.0, "splits": "published"},
    ],
)
def test_shares_that_leave_no_training_are_refused(changes):
    with pytest.raises(UsageError, match=r"allowed|published splits only"):
        ConvertOptions(**changes)


# --- counts -------------------------------------------------------


def test_other_counts_than_published_are_a_warning_or_with_strict_counts_an_error(
    tmp_path: Path, sources
):
    done = _run("slake", sources["slake"], tmp_path / "a")
    assert done.exit_code == 0
    assert "warning: train: 8 where 4919 were published" in done.stderr
    done = _run("slake", sources["slake"], tmp_path / "b", "--strict-counts")
    assert done.exit_code == 4
    assert "train: 8 where 4919 were published" in done.stderr
    assert not (tmp_path / "b").exists()


def test_strict_counts_pass_where_the_counts_are_the_published_ones(tmp_path: Path, monkeypatch):
    source = sets.slake(tmp_path / "source")
    counts = {"train": 8, "train open": 8, "train closed": 0, "train pictures": 8, "pictures": 13}
    counts |= {"val": 2, "test": 3}
    monkeypatch.setattr("umd_edge_train.converters.slake._ENGLISH_COUNTS", counts)
    report = convert("slake", source, tmp_path / "out", ConvertOptions(strict_counts=True))
    assert report.expected_counts == {split: (n, n) for split, n in counts.items()}


@pytest.mark.parametrize("key", ["train", "train open", "val closed", "test pictures", "pictures"])
def test_strict_counts_name_what_differs(tmp_path: Path, monkeypatch, key: str):
    source = sets.slake(tmp_path / "source")
    monkeypatch.setattr("umd_edge_train.converters.slake._ENGLISH_COUNTS", {key: 77})
    with pytest.raises(DataError, match=rf"ones: {key}: \d+ where 77 were published; take"):
        convert("slake", source, tmp_path / "out", ConvertOptions(strict_counts=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "slake",
            {},
            {
                **{"train": 4919, "train open": 2976, "train closed": 1943, "train pictures": 450},
                **{"val": 1053, "val open": 631, "val closed": 422, "val pictures": 96},
                **{"test": 1061, "test open": 645, "test closed": 416, "test pictures": 96},
            },
        ),
        ("slake", {"language": "zh"}, {}),
        ("vqa-rad", {}, {"train": 1797, "test": 451, "pictures": 315}),
        ("vqa-med-2019", {}, {"train": 12800, "val": 2000, "test": 500}),
        (
            "vqa-med-2019",
            {"categories": ("modality", "plane", "organ")},
            {"train": 9600, "val": 1500, "test": 375},
        ),
        (
            "roco",
            {"subset": "retrieval", "splits": "published"},
            {"val": 2000, "test": 2000},
        ),
        ("pad-ufes-20", {}, {"records": 2298, "patients": 1373}),
    ],
)
def test_published_counts_are_those_of_the_options(
    tmp_path: Path, sources, name, options, expected
):
    report = convert(name, sources[name], tmp_path / "out", ConvertOptions(**options))
    assert report.expected_counts == {key: (count, count) for key, count in expected.items()}


# --- pictures and files -------------------------------------------


@pytest.mark.parametrize("images", ["reference", "link", "copy"])
def test_pictures_are_placed_as_asked_and_the_source_is_unchanged(tmp_path: Path, images):
    source = sets.pad_ufes(tmp_path / "source")
    before = {p: p.read_bytes() for p in source.rglob("*") if p.is_file()}
    convert("pad-ufes-20", source, tmp_path / "out", ConvertOptions(images=images))
    assert {p: p.read_bytes() for p in source.rglob("*") if p.is_file()} == before
    record = _read(tmp_path / "out")[0]
    original = next(source.rglob(Path(record.get("image")).name))
    assert record.image_path.samefile(original) is (images != "copy")
    assert record.image_path.read_bytes() == original.read_bytes()
    (tmp_path / "source").rename(tmp_path / "moved")
    assert record.image_path.exists() is (images != "reference")


def test_reference_stays_right_when_source_and_set_move_together(tmp_path: Path):
    sets.slake(tmp_path / "here" / "source")
    convert("slake", tmp_path / "here" / "source", tmp_path / "here" / "sets" / "slake")
    (tmp_path / "here").rename(tmp_path / "there")
    records = _read(tmp_path / "there" / "sets" / "slake")
    assert all(record.image_path.is_file() for record in records)


@pytest.mark.parametrize("images", ["reference", "link", "copy"])
def test_failing_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch, images):
    source = sets.slake(tmp_path / "source")
    calls = {"reference": (Path, "symlink_to"), "link": (os, "link"), "copy": (shutil, "copyfile")}
    done: list[int] = []

    def fail(*_: Any, **__: Any) -> None:
        done.append(1)
        if len(done) == 3 or images == "reference":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*calls[images], fail)
    with pytest.raises(UsageError, match="No space left on device"):
        convert("slake", source, tmp_path / "out", ConvertOptions(images=images))
    assert done
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_interrupted_run_leaves_nothing_behind(tmp_path: Path, sources):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(
            *("slake", sources["slake"], tmp_path / "out", ConvertOptions(images="copy")),
            on_progress=interrupt,
        )
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_refused_and_left_alone(tmp_path: Path, sources):
    (tmp_path / "out").mkdir()
    kept = sets.text(tmp_path / "out" / "mine.txt", "mine")
    with pytest.raises(UsageError, match="exists already"):
        convert("slake", sources["slake"], tmp_path / "out")
    assert [*tmp_path.rglob("*.*")] == [kept]


def test_missing_source_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no such folder"):
        convert("slake", tmp_path / "absent", tmp_path / "out")


def test_nothing_left_to_convert_is_an_error(tmp_path: Path, sources):
    for path in sets.slake(tmp_path / "source").glob("*.json"):
        sets.json_file(path, [sets.slake_question(1, 0, "zh")])
    with pytest.raises(DataError, match="no record is left"):
        convert("slake", tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/passwd", "..\\secret.jpg", "C:/secret.jpg"]
)
def test_picture_name_that_leaves_the_folder_is_refused(tmp_path: Path, name):
    source = sets.slake(tmp_path / "source")
    sets.picture(tmp_path / "source" / "secret.jpg")
    sets.json_file(source / "train.json", [sets.slake_question(1, 0, img_name=name)])
    with pytest.raises(DataError, match=r"train\.json: record 1: its picture's name leads out"):
        convert("slake", source, tmp_path / "out", ConvertOptions(missing="drop"))


# --- the command --------------------------------------------------


def test_command_prints_counts_and_as_json_the_report(tmp_path: Path, sources):
    done = _run("pad-ufes-20", sources["pad-ufes-20"], tmp_path / "a", "--seed", 5)
    assert done.exit_code == 0, done.stderr
    assert "split unit: patient" in done.stdout
    done = _run("pad-ufes-20", sources["pad-ufes-20"], tmp_path / "b", "--json", "--seed", 5)
    report = ConvertReport(**json.loads(done.stdout))
    assert sum(counts["records"] for counts in report.counts.values()) == 18
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


@pytest.mark.parametrize(
    ("images", "bars"),
    [
        ("reference", ["comparing pictures"]),
        ("copy", ["comparing pictures", "placing pictures"]),
    ],
)
def test_command_shows_the_progress_of_what_it_does_on_stderr(
    tmp_path: Path, sources, images: str, bars: list[str]
):
    done = _run("slake", sources["slake"], tmp_path / "out", "--images", images, "--json")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert lines == bars
    assert json.loads(done.stdout)["format"] == "slake"


def test_a_command_that_hashes_nothing_shows_no_bar(tmp_path: Path):
    source = sets.slake(tmp_path / "source")
    for extra, path in enumerate(sorted(source.rglob("*.jpg"))):
        path.write_bytes(path.read_bytes().ljust(4000 + extra, b"\0"))
    done = _run("slake", source, tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "comparing" not in done.stderr


def test_command_hands_every_option_over(tmp_path: Path, sources):
    arguments = "--splits published --carve-val 0.3 --images copy --missing drop --seed 4".split()
    done = _run("vqa-rad", sources["vqa-rad"], tmp_path / "out", "--json", *arguments)
    assert done.exit_code == 0, done.stderr
    given = json.loads(done.stdout)["options"]
    expected = {"splits": "published", "carve_val": 0.3, "images": "copy", "missing": "drop"}
    assert expected.items() <= given.items()
    done = _run("vqa-med-2019", sources["vqa-med-2019"], tmp_path / "m", "--category", "plane")
    assert {r.get("question_type") for r in _read(tmp_path / "m")} == {"plane"}


@pytest.mark.parametrize(
    ("code", "arguments"),
    [(2, ["imagenet", "a", "b"]), (4, ["slake", "absent", "b"]), (2, ["slake", "absent"])],
)
def test_command_has_the_exit_codes_of_the_project(tmp_path: Path, monkeypatch, code, arguments):
    monkeypatch.chdir(tmp_path)
    done = _run(*arguments)
    assert done.exit_code == code
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []
