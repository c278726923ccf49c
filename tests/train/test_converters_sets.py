"""What is particular to each public set."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support import public_sets as sets
from umd_edge._records import Record, read_records
from umd_edge.errors import DataError
from umd_edge_train.converters import ConvertOptions, ConvertReport, convert

PUBLISHED = ConvertOptions(splits="published")


def _convert(
    name: str, source: Path, options: ConvertOptions | None = None
) -> tuple[list[Record], ConvertReport]:
    out = source.parent / f"{source.name}-out"
    report = convert(name, source, out, options)
    return [r for path in sorted(out.glob("*.jsonl")) for r in read_records(path)], report


def _refused(name: str, source: Path, message: str, options: ConvertOptions | None = None) -> str:
    """The conversion fails, without a result; returns the message."""
    with pytest.raises(DataError, match=message) as caught:
        _convert(name, source, options)
    assert [path.name for path in source.parent.iterdir()] == [source.name]
    return str(caught.value)


def _values(records: list[Record], name: str) -> Counter[Any]:
    return Counter(record.get(name) for record in records)


# --- VQA-RAD ------------------------------------------------------


def test_vqa_rad_takes_the_test_split_from_the_phrase_type(tmp_path: Path):
    records, _ = _convert("vqa-rad", sets.vqa_rad(tmp_path / "source"), PUBLISHED)
    for record in records:
        is_test = record.get("phrase_type") in ("test_para", "test_freeform")
        assert record.get("official_split") == ("test" if is_test else "train")
    assert _values(records, "answer_type") == {"CLOSED": 12, "OPEN": 12}
    assert _values(records, "answer") == {"Yes": 12, "3": 12}
    assert _values(records, "license") == {"CC0-1.0": 24}


def test_vqa_rad_in_mevf_files_leaves_out_the_copy_of_the_test_split(tmp_path: Path):
    source = tmp_path / "source"
    for n in range(3):
        sets.picture(source / "images" / f"synpic{n}.jpg")
    sets.json_file(source / "trainset.json", [sets.rad_question(1, "synpic0")])
    tests = [sets.rad_question(2, "synpic1"), sets.rad_question(3, "synpic2")]
    for name in ("testset.json", "valset.json"):
        sets.json_file(source / name, tests)
    records, report = _convert("vqa-rad", source, PUBLISHED)
    assert _values(records, "split") == {"train": 1, "test": 2}
    assert report.expected_counts["train"] == (3064, 3064)
    assert report.expected_counts["test closed"] == (272, 272)
    assert "valset.json" not in report.sources


def test_vqa_rad_with_both_kinds_of_files_is_refused(tmp_path: Path):
    source = sets.vqa_rad(tmp_path / "source")
    sets.json_file(source / "trainset.json", [])
    _refused("vqa-rad", source, "their splits differ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"qid": 1,\n]', r"Public\.json:3: not valid JSON"),
        ('{"qid": 1}', "a JSON list of records"),
        ("[1]", "record 1: a JSON object"),
        ("[" * 5000, "not valid JSON"),
    ],
)
def test_vqa_rad_with_broken_json_is_refused_with_its_line(tmp_path: Path, content, message):
    source = sets.vqa_rad(tmp_path / "source")
    sets.text(source / "VQA_RAD Dataset Public.json", content)
    _refused("vqa-rad", source, message)


@pytest.mark.parametrize("change", [{"question": " "}, {"answer": None}, {"answer": ["Secret"]}])
def test_vqa_rad_record_without_a_part_is_refused_without_its_values(tmp_path: Path, change):
    source = sets.vqa_rad(tmp_path / "source", pictures=1)
    record = sets.rad_question(1, "synpic0", organ="Secret", **change)
    sets.json_file(source / "VQA_RAD Dataset Public.json", [record])
    assert "Secret" not in _refused("vqa-rad", source, rf"record 1: .*`{next(iter(change))}`")


# --- SLAKE --------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "expected"),
    [(None, {"en": 13}), ("zh", {"zh": 13}), ("all", {"en": 13, "zh": 13})],
)
def test_slake_keeps_the_language_asked_for_and_counts_the_other(
    tmp_path: Path, language, expected
):
    options = ConvertOptions(language=language)
    records, report = _convert("slake", sets.slake(tmp_path / "source"), options)
    assert _values(records, "language") == expected
    assert report.dropped.get("other language", 0) == 26 - len(records)


def test_slake_of_hugging_face_and_in_its_own_folder_is_read(tmp_path: Path):
    inner = sets.slake(tmp_path / "source" / "Slake1.0")
    (inner / "validate.json").rename(inner / "validation.json")
    records, report = _convert("slake", tmp_path / "source", PUBLISHED)
    assert _values(records, "split") == {"train": 8, "val": 2, "test": 3}
    assert "Slake1.0/validation.json" in report.sources


# --- VQA-Med 2019 -------------------------------------------------


def test_vqa_med_has_the_category_of_every_question(tmp_path: Path):
    records, _ = _convert("vqa-med-2019", sets.vqa_med(tmp_path / "source"))
    kinds = {"modality": "ct scan", "plane": "plane", "organ": "organ", "abnormality": "wrong"}
    assert all(kinds[r.get("question_type")] in r.get("question") for r in records)
    assert _values(records, "answer_type") == {"CLOSED": 12, "OPEN": 34}


def test_vqa_med_reference_answers_have_alternatives_and_optional_parts(tmp_path: Path):
    records, _ = _convert("vqa-med-2019", sets.vqa_med(tmp_path / "source"), PUBLISHED)
    (record,) = [r for r in records if "synpic21" in r.get("image")]
    assert record.get("answer") == "(large) cyst"
    assert record.get("answers") == ["(large) cyst", "cyst", "multi-cystic mass"]


def test_vqa_med_left_out_categories_are_counted(tmp_path: Path):
    options = ConvertOptions(categories=("modality", "plane", "organ"))
    records, report = _convert("vqa-med-2019", sets.vqa_med(tmp_path / "source"), options)
    assert "abnormality" not in _values(records, "question_type")
    assert report.dropped == {"other category": 12}


def test_vqa_med_unpacked_twice_and_without_categories_is_read(tmp_path: Path):
    source = sets.vqa_med(tmp_path / "source")
    name = "ImageClef-2019-VQA-Med-Training"
    (source / name).rename(source / "inner")
    (source / name).mkdir()
    (source / "inner").rename(source / name / name)
    for path in (source / name / name / "QAPairsByCategory").iterdir():
        path.unlink()
    (source / name / name / "QAPairsByCategory").rmdir()
    _refused(
        "vqa-med-2019", source, "categories are unknown", ConvertOptions(categories=("plane",))
    )
    records, _ = _convert("vqa-med-2019", source, PUBLISHED)
    train = [record for record in records if record.get("split") == "train"]
    assert len(train) == 32
    assert _values(train, "question_type") == {None: 32}


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("C2_Plane_train.txt", "synpic0|Secret", r"C2_Plane_train\.txt:1: 3 fields"),
        ("C2_Plane_train.txt", "synpic0|Secret|", r"C2_Plane_train\.txt:1: 3 fields"),
        ("C2_Plane_train.txt", "synpic0|Secret|axial", "32 lines where the category files have 25"),
        ("VQAMed2019_Test_Questions_w_Ref_Answers.txt", "a|size|Secret|b", r"txt:1: its category"),
    ],
)
def test_vqa_med_broken_line_is_refused_with_its_place(tmp_path: Path, file, line, message):
    source = sets.vqa_med(tmp_path / "source")
    sets.text(next(source.rglob(file)), line + "\n")
    assert "Secret" not in _refused("vqa-med-2019", source, message)


def test_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path):
    source = sets.vqa_med(tmp_path / "source")
    next(source.rglob("C2_Plane_val.txt")).write_bytes(b"synpic8|what plane?|axial\n\xff|b|c\n")
    _refused("vqa-med-2019", source, r"C2_Plane_val\.txt:2: not UTF-8")


# --- ROCO ---------------------------------------------------------


def test_roco_has_article_and_licence_of_every_picture(tmp_path: Path):
    records, _ = _convert("roco", sets.roco(tmp_path / "source"), PUBLISHED)
    for record in records:
        number = int(record.get("roco_id")[5:])
        assert record.get("patient_id") == f"roco-PMC{1000 + number // 2}"
        terms = (record.get("license"), record.get("non_commercial"))
        assert terms == (("CC-BY", False), ("CC-BY-NC-SA", True), (None, None))[number % 3]
        assert record.get("text") == f"Axial CT scan number {number}."


def test_roco_article_is_in_one_split_by_patients(tmp_path: Path):
    records, report = _convert("roco", sets.roco(tmp_path / "source"))
    assert report.shared_patients == 0
    assert len({r.get("patient_id") for r in records}) == 11
    _, published = _convert("roco", sets.roco(tmp_path / "again"), PUBLISHED)
    assert published.shared_patients == 1


def test_roco_captions_of_several_lines_and_short_ones(tmp_path: Path):
    source = sets.roco(tmp_path / "source")
    path = source / "data" / "test" / "radiology" / "captions.txt"
    lines = path.read_text().splitlines()
    lines[0] = "ROCO_00016\tShort text"
    sets.text(path, "\n".join([*lines, " goes \ton."]))
    records, report = _convert("roco", source, PUBLISHED)
    assert report.dropped == {"text under three words": 1}
    assert "Axial CT scan number 20. goes on." in _values(records, "text")


def test_roco_references_are_pairs_of_their_own(tmp_path: Path):
    source = sets.roco(tmp_path / "source")
    for split in ("train", "val", "test"):
        found = [{"roco_image_id": "PMC1000_fig-1.jpg", "gorc_references": ["Seen in  figure 1."]}]
        found += [{"roco_image_id": "PMC1_other.jpg", "gorc_references": None}]
        sets.json_lines(source / "refs" / f"roco_{split}_references.jsonl", found)
    options = ConvertOptions(references=source / "refs")
    records, report = _convert("roco", source, options)
    assert _values(records, "text_kind") == {"caption": 20, "reference": 1}
    (first,) = [r for r in records if r.get("text_kind") == "reference"]
    (second,) = [r for r in records if r.get("text") == "Axial CT scan number 1."]
    assert first.get("text") == "Seen in figure 1."
    assert first.get("image") == second.get("image")
    assert report.options["references"] == "refs"
    with pytest.raises(DataError, match=r"no 'roco_train_references\.jsonl'"):
        convert("roco", source, tmp_path / "b", ConvertOptions(references=source / "data"))


def test_roco_retrieval_takes_the_first_after_the_published_shuffle(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("umd_edge_train.converters.roco._RETRIEVAL", 2)
    options = ConvertOptions(splits="published", subset="retrieval", strict_counts=True)
    source = sets.roco(tmp_path / "source")
    records, report = _convert("roco", source, options)
    random.seed(42)  # the published preparation shuffles the lines of one split after the other
    for name, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        path = source / "data" / name / "radiology" / "captions.txt"
        lines = path.read_text().strip().split("\n")
        random.shuffle(lines)
        wanted = {line.split("\t")[0] for line in (lines if split == "train" else lines[:2])}
        assert wanted == {r.get("roco_id") for r in records if r.get("split") == split}
    assert report.dropped == {"not in the retrieval subset": 6}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("captions.txt", "A caption\n", r"captions\.txt:1: a line such as"),
        ("captions.txt", "ROCO_00016 Secret\n", r"captions\.txt:1: a line such as"),
        ("captions.txt", "ROCO_00016\n", r"captions\.txt:1: a tab"),
        (
            "licences.txt",
            "ROCO_ID,PMC_ID,CC\nROCO_00016;Secret\n",
            r"licences\.txt:2: three fields",
        ),
    ],
)
def test_roco_broken_line_is_refused_with_its_place(tmp_path: Path, file, content, message):
    source = sets.roco(tmp_path / "source")
    sets.text(source / "data" / "test" / "radiology" / file, content)
    assert "Secret" not in _refused("roco", source, message)


# --- MedICaT ------------------------------------------------------


def test_medicat_keeps_radiology_and_makes_a_pair_of_every_text(tmp_path: Path):
    records, report = _convert("medicat", sets.medicat(tmp_path / "source"))
    assert _values(records, "text_kind") == {"caption": 20, "reference": 20}
    assert report.dropped == {"not radiology": 1, "text under three words": 20}
    assert "Figure 1. Barium enema of patient 3." in _values(records, "text")
    assert _values(records, "license") == {"CC-BY-NC-ND": 40}
    assert _values(records, "non_commercial") == {True: 40}
    assert len({record.get("patient_id") for record in records}) == 10


def test_medicat_published_splits_are_the_last_figures_of_the_shuffle(tmp_path: Path, monkeypatch):
    source = sets.medicat(tmp_path / "source")
    _refused("medicat", source, "need more than 2000", PUBLISHED)
    monkeypatch.setattr("umd_edge_train.converters.medicat._HELD_OUT", 3)
    records, _ = _convert("medicat", source, PUBLISHED)
    random.seed(42)
    order = list(range(20))
    random.shuffle(order)
    wanted = {"val": order[-6:-3], "test": order[-3:]}
    for split, places in wanted.items():
        found = {Path(r.get("image")).name for r in records if r.get("split") == split}
        figures = [sets.medicat_figure(place // 2, place % 2 + 1) for place in places]
        assert found == {f"{figure['pdf_hash']}_{figure['fig_uri']}" for figure in figures}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"Secret": 1', "jsonl:1: not valid JSON"),
        ("[1]", "jsonl:1: a JSON object"),
        ('{"radiology": true, "fig_uri": "Secret"}', "jsonl:1: no `pdf_hash`"),
    ],
)
def test_medicat_broken_line_is_refused_with_its_place(tmp_path: Path, line, message):
    source = sets.medicat(tmp_path / "source")
    sets.text(source / "release" / sets.MEDICAT_FILE, line + "\n")
    assert "Secret" not in _refused("medicat", source, message)


def test_medicat_references_of_another_type_are_refused(tmp_path: Path):
    source = sets.medicat(tmp_path / "source")
    figure = sets.medicat_figure(1, 1, s2orc_references="Secret")
    sets.json_lines(source / "release" / sets.MEDICAT_FILE, [figure])
    assert "Secret" not in _refused("medicat", source, "jsonl:1: `s2orc_references`")


# --- MELINDA ------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "label"), [(None, "B"), ("i_meth", "pull down"), ("i_meth_label", "A")]
)
def test_melinda_has_the_label_of_the_column_asked_for(tmp_path: Path, column, label):
    source = sets.melinda(tmp_path / "source")
    records, _ = _convert("melinda", source, ConvertOptions(label=column))
    assert {tuple(record.get("labels")) for record in records} == {(label,)}
    assert 'Blot, "lane" 1, with a second line' in _values(records, "caption")
    assert _values(records, "license") == {None: 14}
    assert all(re.fullmatch(r"melinda-123450\d\d", r.get("patient_id")) for r in records)


def test_melinda_figures_of_one_article_stay_together(tmp_path: Path):
    source = sets.melinda(tmp_path / "source")
    files = [f"PMC777777_{n}.jpg" for n in range(6)]
    for file in files:
        sets.picture(source / "melinda_images" / file)
    rows = [dict.fromkeys(sets.MELINDA_COLUMNS, "x") | {"figure_file": file} for file in files]
    sets.csv_file(source / "train.csv", sets.MELINDA_COLUMNS, rows)
    records, _ = _convert("melinda", source)
    assert _values(records, "patient_id")["melinda-PMC777777"] == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("figure_file,caption\na,Secret\n", r"dev\.csv:1: no column 'p_meth_label'"),
        ("figure_file,caption,p_meth_label\nSecret,b\n", r"dev\.csv:2: 2 fields where .* has 3"),
        ('figure_file,caption,p_meth_label\n"Secret,b,c\n', r"dev\.csv:2: not valid CSV"),
        ("", r"dev\.csv:1: no column"),
    ],
)
def test_melinda_broken_row_is_refused_with_its_place(tmp_path: Path, content, message):
    source = sets.melinda(tmp_path / "source")
    sets.text(source / "dev.csv", content)
    assert "Secret" not in _refused("melinda", source, message)


# --- PAD-UFES-20 --------------------------------------------------


def _pad(folder: Path, *rows: dict[str, Any]) -> Path:
    for n, row in enumerate(rows):
        part = f"imgs_part_{n % 3 + 1}"
        sets.picture(folder / "images" / part / part / row["img_id"])
    sets.csv_file(folder / "metadata.csv", sets.PAD_COLUMNS, rows)
    return folder


def test_pad_ufes_values_have_their_types_and_unknown_ones_are_absent(tmp_path: Path):
    values = {"itch": "True", "grew": "UNK", "fitspatrick": "3.0", "diameter_1": "6.0"}
    more = {"gender": "FEMALE", "background_father": "POMERANIA", "biopsed": "True", "smoke": ""}
    row = sets.pad_row(1, 2, diagnostic="BCC", **values, **more)
    ((record,), _) = _convert("pad-ufes-20", _pad(tmp_path / "source", row))
    assert record.get("structured") == {"itch": True, "fitzpatrick": 3.0, "diameter_1_mm": 6.0}
    assert record.get("labels") == ["basal cell carcinoma"]
    assert (record.get("age"), record.get("sex"), record.get("region")) == (55.0, "F", "neck")
    assert (record.get("code"), record.get("biopsied")) == ("BCC", True)
    assert "POMERANIA" not in json.dumps(dict(record.raw))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"itch": "Secret"}, r"metadata\.csv:2: `itch` must be"),
        ({"age": "Secret"}, r"metadata\.csv:2: `age` must be a number"),
        ({"gender": "Secret"}, r"metadata\.csv:2: `gender` must be"),
        ({"diagnostic": "Secret"}, r"metadata\.csv:2: `diagnostic` must be one of"),
        ({"patient_id": ""}, r"metadata\.csv:2: no `patient_id`"),
    ],
)
def test_pad_ufes_value_of_another_kind_is_refused_without_showing_it(
    tmp_path: Path, change, message
):
    source = _pad(tmp_path / "source", sets.pad_row(1, 2, **change))
    assert "Secret" not in _refused("pad-ufes-20", source, message)


# --- against independent conversions of the real sets --------------


def test_vqa_rad_agrees_with_an_independent_conversion(tmp_path: Path, shared_data: Path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "images").symlink_to(shared_data / "vqarad" / "images")
    wanted = read_records(shared_data / "vqarad" / "test.jsonl")
    questions: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for record in wanted:
        same = ("question", "answer", "answer_type", "question_type", "phrase_type")
        questions[record.get("official_split")].append(
            {
                "qid": record.get("id"),
                "image_name": Path(record.get("image")).name,
                "image_organ": record.get("organ"),
                "image_case_url": record.get("source_url"),
                **{key: record.get(key) for key in same},
            }
        )
    for split, items in questions.items():
        sets.json_file(source / f"{split}set.json", items)
    records, _ = _convert("vqa-rad", source, PUBLISHED)
    keys = (
        "question answer answer_type yes_no question_type organ phrase_type official_split license"
    )

    def facts(some: list[Record]) -> Counter[tuple[Any, ...]]:
        return Counter(
            (Path(r.get("image")).name, *(r.get(key) for key in keys.split())) for r in some
        )

    assert facts(records) == facts(wanted)


def test_pad_ufes_agrees_with_an_independent_conversion(tmp_path: Path, shared_data: Path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "images").symlink_to(shared_data / "padufes" / "images")
    wanted = read_records(shared_data / "padufes" / "test.jsonl")
    columns = {"fitzpatrick": "fitspatrick", "diameter_1_mm": "diameter_1"}
    columns |= {"diameter_2_mm": "diameter_2"}
    sexes = {"F": "FEMALE", "M": "MALE", None: ""}
    rows = [
        {
            "patient_id": record.get("patient_id"),
            "lesion_id": record.get("lesion_id"),
            "img_id": Path(record.get("image")).name,
            "diagnostic": record.get("code"),
            "biopsed": record.get("biopsied"),
            "age": record.get("age"),
            "gender": sexes[record.get("sex")],
            "region": (record.get("region") or "").upper(),
            **{columns.get(key, key): v for key, v in record.get("structured").items()},
        }
        for record in wanted
    ]
    sets.csv_file(source / "metadata.csv", sets.PAD_COLUMNS, rows)
    records, _ = _convert("pad-ufes-20", source)
    keys = "labels code biopsied lesion_id age sex region modality license structured".split()

    def facts(some: list[Record]) -> dict[str, list[Any]]:
        return {Path(r.get("image")).name: [r.get(key) for key in keys] for r in some}

    assert facts(records) == facts(wanted)
    theirs = {Path(r.get("image")).name: r.get("patient_id") for r in wanted}
    ours: dict[str, set[str]] = {}
    for record in records:
        ours.setdefault(record.get("patient_id"), set()).add(theirs[Path(record.get("image")).name])
    assert all(len(patients) == 1 for patients in ours.values())
