from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from umd_edge._records import Record, read_records
from umd_edge.errors import UmdEdgeError, UsageError
from umd_edge_train.data_check import check
from umd_edge_train.synth import MIN_IMAGES, QUADRANTS, SETS, Shape, render, synthesise


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth")
    synthesise(folder)
    return folder


def _records(folder: Path, name: str) -> list[Record]:
    return [r for s in ("train", "val", "test") for r in read_records(folder / name / f"{s}.jsonl")]


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def test_same_seed_gives_same_files_and_another_seed_does_not(tmp_path: Path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        synthesise(tmp_path / name, seed=seed, images=MIN_IMAGES, size=32)
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b")
    assert _digest(tmp_path / "a") != _digest(tmp_path / "c")


@pytest.mark.parametrize("name", SETS)
def test_records_have_the_fields_of_the_manifest(sets: Path, name: str):
    for record in _records(sets, name):
        assert {"id", "patient_id", "image", "split", "modality"} <= set(record.raw)
        assert record.get("license") == "CC0-1.0"
        assert record.get("non_commercial") is False
        with Image.open(record.image_path) as image:
            assert image.mode == "L"
            assert image.size == (record.get("width"), record.get("height"))


@pytest.mark.parametrize("name", SETS)
def test_no_patient_is_in_two_splits_and_some_have_several_pictures(sets: Path, name: str):
    splits: dict[str, set[str]] = {}
    pictures: dict[str, set[str]] = {}
    for record in _records(sets, name):
        splits.setdefault(record.get("patient_id"), set()).add(record.get("split"))
        pictures.setdefault(record.get("patient_id"), set()).add(record.get("image"))
    assert all(len(found) == 1 for found in splits.values())
    assert {s for found in splits.values() for s in found} == {"train", "val", "test"}
    assert max(len(found) for found in pictures.values()) > 1


def test_check_finds_nothing_wrong_but_the_boxes_of_the_findings(sets: Path):
    report = check([sets])
    assert not report.errors
    assert not report.look_alikes
    assert {issue.code for issue in report.issues} <= {"leak-presence", "leak-excludes"}
    by_name = {item.name: item for item in report.sets}
    given_away = {leak.field for leak in by_name["shapes"].leaks}
    assert given_away == {"lesions"}
    assert {k.field for k in by_name["values"].leaks} <= {"structured.marker_mg_l"}


def test_lesion_boxes_hold_the_bright_shape(sets: Path):
    for record in _records(sets, "shapes")[:60]:
        with Image.open(record.image_path) as image:
            pixels = np.asarray(image)
        boxes = record.get("lesions") or []
        for lesion in boxes:
            x0, y0, x1, y1 = (round(v * pixels.shape[0]) for v in lesion["bbox"])
            assert (pixels[y0:y1, x0:x1] > 220).mean() > 0.6
            pixels = pixels.copy()
            pixels[max(0, y0 - 1) : y1 + 1, max(0, x0 - 1) : x1 + 1] = 0
        assert pixels.max() < 220


def test_labels_of_findings_are_the_kinds_of_their_boxes(sets: Path):
    for record in _records(sets, "findings"):
        kinds = [lesion["kind"] for lesion in record.get("lesions") or []]
        assert record.get("labels") == (kinds or ["No Finding"])


def test_questions_are_open_and_closed_and_answered_in_their_answers(sets: Path):
    records = _records(sets, "questions")
    assert {r.get("answer_type") for r in records} == {"OPEN", "CLOSED"}
    assert {r.get("question_type") for r in records} == {
        "modality",
        "presence",
        "count",
        "position",
        "finding",
    }
    for record in records:
        assert record.get("answer") == record.get("answers")[0]
        assert record.get("yes_no") is (record.get("answer") in ("yes", "no"))


def test_count_answers_match_the_picture_list(sets: Path):
    captions = {
        r.get("image"): r.get("caption")
        for split in ("train", "val", "test")
        for r in read_records(sets / "questions" / f"images_{split}.jsonl")
    }
    counted = [r for r in _records(sets, "questions") if r.get("question_type") == "count"]
    for record in counted:
        assert captions[record.get("image")].count("quadrant") == int(record.get("answer"))


def test_values_are_missing_at_random_and_one_is_informative(sets: Path):
    records = _records(sets, "values")
    is_ill = np.array([r.get("labels") == ["ill"] for r in records])
    for name in ("marker_mg_l", "sodium_mmol_l", "smoker", "ward"):
        present = np.array([r.get(f"structured.{name}") is not None for r in records])
        assert 0.7 < present.mean() < 0.9
        assert abs(present[is_ill].mean() - present[~is_ill].mean()) < 0.15
    marker = np.array([r.get("structured.marker_mg_l") or np.nan for r in records], dtype=float)
    sodium = np.array([r.get("structured.sodium_mmol_l") or np.nan for r in records], dtype=float)
    gap = [np.nanmean(v[is_ill]) - np.nanmean(v[~is_ill]) for v in (marker, sodium)]
    assert gap[0] > 20
    assert abs(gap[1]) < 1.5


def test_shapes_are_learnable_by_a_nearest_mean_of_simple_features(sets: Path):
    """The bright area's height, width and fill tell the kinds apart: nothing else is needed."""

    def features(record: Record) -> list[float]:
        with Image.open(record.image_path) as image:
            bright = np.asarray(image) > 220
        if not bright.any():
            return [0.0, 0.0, 0.0]
        y, x = np.nonzero(bright)
        height, width = float(np.ptp(y)) + 1, float(np.ptp(x)) + 1
        return [width / height, 1.0, bright.sum() / (height * width)]

    records = _records(sets, "shapes")
    x = np.array([features(r) for r in records])
    y = np.array([r.get("labels")[0] for r in records])
    is_train = np.array([r.get("split") == "train" for r in records])
    names = np.unique(y)
    means = np.stack([x[is_train & (y == name)].mean(axis=0) for name in names])
    nearest = names[((x[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)]
    assert (nearest == y)[~is_train].mean() > 0.95


@given(
    kind=st.sampled_from(["disc", "square", "line"]),
    quadrant=st.sampled_from(QUADRANTS),
    x=st.floats(0.19, 0.31),
    y=st.floats(0.19, 0.31),
    radius=st.floats(0.09, 0.15),
)
@settings(max_examples=40, deadline=None)
def test_render_keeps_a_shape_inside_its_quadrant(kind, quadrant, x, y, radius):
    x, y = (x if "left" in quadrant else 1 - x), (y if "upper" in quadrant else 1 - y)
    shape = Shape(kind, quadrant, x, y, radius)
    pixels = render(np.zeros((64, 64)), (shape,), np.random.default_rng(0))
    rows, columns = np.nonzero(pixels > 150)
    assert rows.size
    assert (rows.max() < 32) if "upper" in quadrant else (rows.min() >= 32)
    assert (columns.max() < 32) if "left" in quadrant else (columns.min() >= 32)


@pytest.mark.parametrize(
    "settings_", [{"images": MIN_IMAGES - 1}, {"images": 0}, {"seed": -1}, {"size": 8}]
)
def test_synthesise_with_a_number_out_of_range_is_refused(tmp_path: Path, settings_):
    with pytest.raises(UsageError, match="are allowed"):
        synthesise(tmp_path, **settings_)
    assert not list(tmp_path.iterdir())


def test_synthesise_over_an_earlier_run_is_refused_and_changes_nothing(tmp_path: Path):
    synthesise(tmp_path, images=MIN_IMAGES, size=32)
    before = _digest(tmp_path)
    with pytest.raises(UsageError, match="exists already"):
        synthesise(tmp_path, seed=1, images=MIN_IMAGES, size=32)
    assert _digest(tmp_path) == before


def test_synthesise_into_a_file_is_an_error_of_ours_or_the_system(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(UmdEdgeError, match="cannot be written"):
        synthesise(blocked, images=MIN_IMAGES, size=32)


def test_every_line_is_one_json_object_with_unix_line_ends(sets: Path):
    for path in sets.rglob("*.jsonl"):
        data = path.read_bytes()
        assert data.endswith(b"}\n")
        assert b"\r" not in data
        assert all(isinstance(json.loads(line), dict) for line in data.splitlines())
