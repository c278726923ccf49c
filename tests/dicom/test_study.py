from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from support.command import png, run  # noqa: E402
from support.dcmtk import program  # noqa: E402
from support.pictures import gradient, make_dicom  # noqa: E402
from umd_edge import DicomInputError, ImageInputError, MissingDependencyError  # noqa: E402
from umd_edge._image import load_image  # noqa: E402
from umd_edge._study import Study, list_images, list_studies  # noqa: E402

GREY = gradient()[..., 2]
SMALL = GREY[:16, :16].copy()
DIRECTORIES = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"


def instance(path: Path, study: int, series: int, number: int, **tags: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    make_dicom(
        SMALL,
        path,
        StudyInstanceUID=f"1.2.{study}",
        SeriesInstanceUID=f"1.2.{study}.{series}",
        SOPInstanceUID=f"1.2.{study}.{series}.{number}",
        SeriesNumber=series,
        InstanceNumber=number,
        **tags,
    )
    return path


def outline(studies: tuple[Study, ...]) -> list[tuple[str | None, list[list[str]]]]:
    """Study -> names of the files of each of its series."""
    return [
        (
            study.study_instance_uid,
            [[Path(item.path).name for item in series.instances] for series in study.series],
        )
        for study in studies
    ]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two studies in three series, pictures, and what is no image; names say nothing."""
    instance(tmp_path / "x/c", 1, 2, 10)
    instance(tmp_path / "x/a", 1, 2, 9)
    instance(tmp_path / "b.txt", 1, 1, 1)
    instance(tmp_path / "y/d.png", 2, 1, 1)
    png(tmp_path / "z.png").rename(tmp_path / "z.dcm")
    (tmp_path / "README.md").write_text("no image", encoding="utf-8")
    (tmp_path / ".hidden").write_bytes(make_dicom(SMALL))
    make_dicom(
        SMALL,
        tmp_path / "report",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33",
        **dict.fromkeys(("Rows", "Columns", "PixelData")),
    )
    return tmp_path


def test_folder_is_sorted_into_studies_series_and_instances(archive: Path):
    left_out: list[tuple[str, str]] = []
    studies = list_studies(archive, on_left_out=lambda *told: left_out.append(told))
    assert outline(studies) == [
        ("1.2.1", [["b.txt"], ["a", "c"]]),
        (None, [["z.dcm"]]),
        ("1.2.2", [["d.png"]]),
    ]
    assert [(Path(path).name, reason) for path, reason in left_out] == [
        ("README.md", "no image by its content"),
        ("report", "DICOM, but a structured report"),
    ]


def test_instances_say_what_they_are(archive: Path):
    found = {Path(item.path).name: item for item in list_images(archive)}
    assert (found["a"].kind, found["z.dcm"].kind) == ("dicom", "image")
    assert (found["a"].number, found["a"].series_number, found["a"].frames) == (9, 2, 1)
    assert found["a"].sop_instance_uid == "1.2.1.2.9"
    assert "1.2.1" not in repr(found["a"])


def test_progress_reaches_all_files(archive: Path):
    told: list[tuple[int, int]] = []
    list_studies(archive, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 7) for n in range(1, 8)]


def test_one_file_is_a_list_of_one(tmp_path: Path):
    path = instance(tmp_path / "a.dcm", 1, 1, 1)
    assert [item.path for item in list_images(path)] == [str(path)]


def test_link_to_a_folder_is_not_followed(archive: Path, tmp_path: Path):
    (tmp_path / "x" / "again").symlink_to(tmp_path)
    assert len(list(list_images(archive))) == 5


def test_damaged_file_stays_in_the_list(tmp_path: Path):
    (tmp_path / "a.dcm").write_bytes(make_dicom(SMALL)[:300])
    instance(tmp_path / "b.dcm", 1, 1, 1)
    assert {Path(item.path).name for item in list_images(tmp_path)} == {"a.dcm", "b.dcm"}


def test_numbers_that_are_none_come_last(tmp_path: Path):
    for name, number in (("a", None), ("b", 2), ("c", 1)):
        make_dicom(SMALL, tmp_path / name, SeriesInstanceUID="1.2", InstanceNumber=number)
    assert [Path(item.path).name for item in list_images(tmp_path)] == ["c", "b", "a"]


def test_deflated_header_is_not_unpacked_without_a_limit(tmp_path: Path, monkeypatch):
    from umd_edge import _dicom_file

    bomb = make_dicom(
        np.zeros((2000, 2000), np.uint8),
        tmp_path / "a.dcm",
        TransferSyntaxUID=pydicom.uid.DeflatedExplicitVRLittleEndian,
    )
    assert len(bomb) < 10_000
    (item,) = list_images(tmp_path)
    assert item.sop_instance_uid == "1.2.3"
    monkeypatch.setattr(_dicom_file, "MAX_INFLATED_BYTES", 1000)
    (item,) = list_images(tmp_path)
    assert item.sop_instance_uid is None  # refused; decoding it will say why


@pytest.mark.parametrize("name", ["DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit"])
def test_carried_dicomdir_lists_its_images(name: str):
    if not (DIRECTORIES / name).is_file():
        pytest.skip("this pydicom does not carry it")
    studies = list_studies(DIRECTORIES / name)
    found = [item for study in studies for series in study.series for item in series.instances]
    assert (len(studies), len(found)) == (6, 31)
    for item in found:
        dataset = pydicom.dcmread(item.path, stop_before_pixels=True)
        assert item.sop_instance_uid == dataset.SOPInstanceUID
        assert item.study_instance_uid == dataset.StudyInstanceUID


def written_by_dcmtk(folder: Path) -> Path:
    """A DICOMDIR that DCMTK made of the files in a folder."""
    command = [program("dcmmkdir"), "--general-purpose", "--invent", "--recurse"]
    subprocess.run([*command, "+id", "."], cwd=folder, check=True, capture_output=True, timeout=60)
    return folder / "DICOMDIR"


def _medium(folder: Path) -> Path:
    for study, series, number in ((1, 1, 2), (1, 1, 1), (1, 2, 1), (2, 1, 1)):
        name = f"IM{study}{series}{number}"
        instance(
            folder / "IMAGES" / name,
            study,
            series,
            number,
            StudyID="1",
            StudyDate="20200101",
            StudyTime="1200",
        )
    return folder


def test_dicomdir_by_dcmtk_is_sorted_like_its_folder(tmp_path: Path):
    directory = written_by_dcmtk(_medium(tmp_path))
    instance(tmp_path / "IMAGES" / "LATER", 3, 1, 1)  # not in the DICOMDIR
    expected = [("1.2.1", [["IM111", "IM112"], ["IM121"]]), ("1.2.2", [["IM211"]])]
    assert outline(list_studies(directory)) == expected
    assert len(outline(list_studies(tmp_path))) == 3


def test_dicomdir_finds_files_whose_names_became_small(tmp_path: Path):
    directory = written_by_dcmtk(_medium(tmp_path))
    (tmp_path / "IMAGES").rename(tmp_path / "images")
    for path in (tmp_path / "images").iterdir():
        path.rename(path.with_name(path.name.lower()))
    assert len(list(list_images(directory))) == 4


def test_file_that_a_dicomdir_names_and_is_gone_is_reported_when_used(tmp_path: Path, tiny_bundle):
    directory = written_by_dcmtk(_medium(tmp_path))
    (tmp_path / "IMAGES" / "IM211").unlink()
    command = ("classify", directory, "--task", "chest-xray", "--bundle", tiny_bundle, "--json")
    done = run(*command)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 4
    assert [line["image"] for line in lines if "error" in line] == [
        str(tmp_path / "IMAGES" / "IM211")
    ]
    assert sum("dicom" in line for line in lines) == 3


def _with_file_id(directory: Path, parts: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom would rather not write this
        dataset = pydicom.dcmread(directory)
        for record in dataset.DirectoryRecordSequence:
            if record.DirectoryRecordType == "IMAGE":
                record.ReferencedFileID = parts
        out = io.BytesIO()
        dataset.save_as(out)
    directory.write_bytes(out.getvalue())


@pytest.mark.parametrize("parts", [["..", "SECRET"], ["IMAGES", "..", "..", "X"], ["/etc/passwd"]])
def test_dicomdir_that_leads_out_of_its_folder_is_refused(tmp_path: Path, parts: list[str]):
    directory = written_by_dcmtk(_medium(tmp_path))
    _with_file_id(directory, parts)
    with pytest.raises(DicomInputError, match=r"ReferencedFileID \(0004,1500\) leads out"):
        list_studies(directory)


def test_dicomdir_that_leads_through_a_link_is_refused(tmp_path: Path):
    medium = tmp_path / "medium"
    directory = written_by_dcmtk(_medium(medium))
    outside = instance(tmp_path / "outside", 9, 9, 9)
    (medium / "IMAGES" / "IM211").unlink()
    (medium / "IMAGES" / "IM211").symlink_to(outside)
    with pytest.raises(DicomInputError, match="through a link"):
        list_studies(directory)


def test_file_that_only_has_the_name_of_a_dicomdir_is_refused(tmp_path: Path):
    make_dicom(SMALL, tmp_path / "DICOMDIR")
    with pytest.raises(DicomInputError, match="is not a DICOMDIR"):
        list_studies(tmp_path / "DICOMDIR")


def test_folder_without_an_image_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_text("no image", encoding="utf-8")
    with pytest.raises(ImageInputError, match="no image in"):
        list_studies(tmp_path)
    with pytest.raises(ImageInputError, match="no file or folder"):
        list_studies(tmp_path / "nowhere")


def test_command_classifies_a_folder_and_says_what_it_left_out(archive: Path, tiny_bundle):
    done = run("classify", archive, "--task", "chest-xray", "--bundle", tiny_bundle, "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0
    assert [Path(line["image"]).name for line in lines] == ["b.txt", "a", "c", "z.dcm", "d.png"]
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line.get("dicom", {}).get("series_instance_uid") for line in lines] == [
        "1.2.1.1",
        "1.2.1.2",
        "1.2.1.2",
        None,
        "1.2.2.1",
    ]
    assert "5 images, 3 series, 2 studies" in done.err
    assert "2 files left out" in done.err


def test_command_refuses_a_folder_without_an_image(tmp_path: Path, tiny_bundle):
    done = run("classify", tmp_path, "--task", "chest-xray", "--bundle", tiny_bundle)
    assert done.code == 4
    assert "no image in" in done.err


def test_images_of_two_studies_are_not_combined(archive: Path, tiny_bundle):
    command = ("classify", archive, "--task", "chest-xray", "--bundle", tiny_bundle, "--combine")
    done = run(*command, "--json")
    assert done.code == 4
    assert "2 studies by their StudyInstanceUID (0020,000D)" in done.err
    assert "findings" not in done.out
    assert run(*command[:1], archive / "x", *command[2:]).code == 0


def test_without_pydicom_the_other_images_are_still_listed(archive: Path, tiny_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert len(list(list_images(archive))) == 6  # the report, too: nobody can tell
    command = ("classify", archive, "--task", "chest-xray", "--bundle", tiny_bundle, "--json")
    done = run(*command)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 5
    assert [Path(line["image"]).name for line in lines if "error" not in line] == ["z.dcm"]
    assert 'pip install "umd-edge[dicom]"' in done.err
    with pytest.raises(MissingDependencyError, match=r"umd-edge\[dicom\]"):
        list_studies(DIRECTORIES / "DICOMDIR")


def test_dicomdir_is_no_picture(tmp_path: Path):
    directory = written_by_dcmtk(_medium(tmp_path))
    with pytest.raises(DicomInputError, match=r"a directory \(DICOMDIR\), not a picture"):
        load_image(directory)
