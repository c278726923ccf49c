"""`umd-edge-export trust`: a bundle in, labelled records, the same bundle out with fitted tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

import umd_edge
from support.bundles import TINY, repack, tiny_files
from support.export_fixtures import make_records
from umd_edge import Predictor
from umd_edge._bundle import Bundle
from umd_edge_export.cli import run
from umd_edge_export.trust import fit_bundle, write_fitted

LABELS = ("benign", "malignant", "normal")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty-six pictures of 28 patients, labelled for three tasks at random."""
    folder = tmp_path_factory.mktemp("records")
    rng = np.random.default_rng(7)
    lines: list[dict[str, Any]] = []
    for index in range(56):
        name = f"{index}.png"
        low, high = sorted(rng.integers(0, 256, 2))
        pixels = rng.integers(low, high + 1, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        lines.append(
            {
                "id": str(index),
                "patient_id": f"p{index // 2}",
                "image": name,
                "labels": [LABELS[int(rng.integers(3))]],
                "question": "which organ is shown ?",
                "answer": ["yes", "ct", "chest", "spleen"][int(rng.integers(4))],
                "non_commercial": False,
            }
        )
    path = folder / "val.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def carded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with a card and a report."""
    files = tiny_files()
    files["MODEL_CARD.md"] = b"# tiny\n\n## Tasks\n\none\n\n## Limits\n\n* not real\n"
    files["report.json"] = b'{"gates": []}\n'
    return repack(tmp_path_factory.mktemp("carded") / "tiny.umd", files)


@pytest.fixture(scope="module")
def fitted(carded: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fitted") / "fitted.umd"
    bundle, tasks = fit_bundle(carded, [records])
    write_fitted(bundle, tasks, [records], out)
    return out


def test_graphs_and_golden_vectors_stay_byte_for_byte(carded: Path, fitted: Path):
    before, after = Bundle.open(carded), Bundle.open(fitted)
    changed = {name for name in before.manifest.files if before.read(name) != after.read(name)}
    assert changed == {"MODEL_CARD.md", "report.json"}
    assert before.sha256 != after.sha256
    Predictor.load(fitted).verify()


def test_every_task_with_records_is_fitted_and_the_others_stay(carded: Path, fitted: Path):
    before, after = Bundle.open(carded).manifest, Bundle.open(fitted).manifest
    by_name = {task.name: task for task in after.tasks}
    assert by_name["vqa"].conformal is not None
    assert set(by_name["breast-ultrasound"].operating_curves) == set(LABELS)
    assert by_name["skin-lesion"] == before.task("skin-lesion")
    assert [task.name for task in after.tasks] == [task.name for task in before.tasks]


def test_the_manifest_fits_its_schema(fitted: Path):
    schema = json.loads((Path(umd_edge.__file__).parent / "manifest.schema.json").read_text())
    document = json.loads(Bundle.open(fitted).manifest_bytes)
    jsonschema.validate(document, schema)
    document["tasks"][0]["conformal"]["thresholds"][0] = 2
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


def test_the_result_gives_what_was_asked_for(fitted: Path, records: Path):
    predictor = Predictor.load(fitted)
    image = records.parent / "0.png"
    result = predictor.classify(image, "breast-ultrasound", sensitivity=0.8, coverage=0.8)
    assert result.prediction_set is not None and result.prediction_set.n == 56
    assert all(finding.operating_point for finding in result.findings)
    answer = predictor.ask(image, "which organ is shown ?", coverage=0.5)
    assert answer.prediction_set is not None


def test_report_and_card_say_what_was_fitted(fitted: Path):
    bundle = Bundle.open(fitted)
    report = json.loads(bundle.read("report.json"))["trust"]
    assert report["variant"] == "int8"
    assert report["data"][0]["name"].endswith("/val.jsonl")
    breast = report["tasks"]["breast-ultrasound"]
    assert (breast["records"], breast["groups"]) == (56, 28)
    assert sum(breast["positives"].values()) == 56
    assert 0 < report["tasks"]["vqa"]["answers_not_listed"] < 1
    card = bundle.read("MODEL_CARD.md").decode()
    assert (
        card.index("## Tasks") < card.index("## Probabilities and doubt") < card.index("## Limits")
    )
    assert "`breast-ultrasound` | 56 | 28" in card
    assert "p0" not in bundle.read("report.json").decode()  # no patient


def test_fitting_again_gives_the_same_bytes(fitted: Path, records: Path, tmp_path: Path):
    bundle, tasks = fit_bundle(fitted, [records])
    again = write_fitted(bundle, tasks, [records], tmp_path / "again.umd")
    assert again.path.read_bytes() == fitted.read_bytes()


def test_what_was_fitted_before_does_not_count(records: Path, tmp_path: Path):
    def edit(manifest: dict[str, Any]) -> None:
        manifest["tasks"][2]["probability"] = {"kind": "softmax", "temperature": 9.0}

    _, tasks = fit_bundle(repack(tmp_path / "a.umd", edit=edit), [records])
    _, plain = fit_bundle(TINY, [records])
    assert tasks["breast-ultrasound"].task == plain["breast-ultrasound"].task


class TestCommand:
    @pytest.fixture
    def call(self, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
        def command(*arguments: object) -> tuple[int, str, str]:
            code = run(["trust", *map(str, arguments)])
            captured = capsys.readouterr()
            return code, captured.out, captured.err

        return command

    def test_out_may_be_the_bundle_itself(self, call, carded: Path, records: Path, tmp_path: Path):
        place = tmp_path / "site.umd"
        place.write_bytes(carded.read_bytes())
        code, out, err = call(place, "--data", records, "--out", place, "--json")
        assert code == 0, err
        result = json.loads(out)
        assert result["bundle"]["sha256"] == Bundle.open(place).sha256
        assert result["tasks"]["vqa"]["records"] == 56
        assert "fitted vqa:" in err
        assert [item.name for item in tmp_path.iterdir()] == ["site.umd"]

    @pytest.mark.slow
    def test_a_report_has_table_picture_and_figures(
        self, call, carded: Path, records: Path, tmp_path: Path
    ):
        code, _, err = call(carded, "--data", records, "--report", tmp_path / "proof")
        assert code == 0, err
        figures = json.loads((tmp_path / "proof" / "trust.json").read_text())["tasks"]
        assert set(figures) == {"vqa", "breast-ultrasound"}
        assert figures["vqa"]["coverage"]["0.9"]["splits"] == 200
        with Image.open(tmp_path / "proof" / "trust.png") as picture:
            assert picture.width > 800
        assert "`breast-ultrasound` | 56 (28)" in (tmp_path / "proof" / "trust.md").read_text()

    def test_a_failed_fit_leaves_the_bundle_alone(
        self, call, carded: Path, records: Path, tmp_path: Path
    ):
        place = tmp_path / "site.umd"
        place.write_bytes(carded.read_bytes())
        code, _, err = call(place, "--data", records, "--out", place, "--max-risk", 0)
        assert code == 3 and "--max-abstain" in err
        assert place.read_bytes() == carded.read_bytes()

    def test_neither_out_nor_report_is_a_usage_error(self, call, records: Path):
        code, _, err = call(TINY, "--data", records)
        assert code == 2 and "--out" in err

    def test_a_folder_that_is_missing_is_told_before_the_work(self, call, records: Path):
        code, _, err = call(TINY, "--data", records, "--out", "no/such/folder/a.umd")
        assert code == 2 and "cannot be written" in err

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            ({"non_commercial": True}, "--allow-non-commercial"),
            ({"labels": ["cyst"], "question": None, "answer": None}, "fits one of the tasks"),
            ({"image": "absent.png"}, "absent.png"),
        ],
    )
    def test_records_that_cannot_be_used_are_input_errors(
        self, call, records: Path, tmp_path: Path, line: dict[str, Any], told: str
    ):
        record = json.loads(records.read_text().split("\n")[0])
        (tmp_path / "0.png").write_bytes((records.parent / "0.png").read_bytes())
        data = tmp_path / "data.jsonl"
        data.write_text(json.dumps({**record, **line}))
        code, _, err = call(TINY, "--data", data, "--out", tmp_path / "a.umd")
        assert code == 4 and told in err
        assert not (tmp_path / "a.umd").exists()


@pytest.mark.slow
def test_a_checkpoint_becomes_a_fitted_bundle(checkpoint_dir: Path, tmp_path: Path):
    ranges = make_records(tmp_path / "ranges", 12)
    labelled = make_records(tmp_path / "labelled", 36)
    out = tmp_path / "fitted.umd"
    options = ["--range-data", ranges, "--fit-data", labelled, "--variants", "fp32", "--out", out]
    assert run(["bundle", *map(str, [checkpoint_dir, *options])]) == 0
    fitted = Bundle.open(out)
    assert any(task.conformal is not None for task in fitted.manifest.tasks)
    assert "## Probabilities and doubt" in fitted.read("MODEL_CARD.md").decode()
    assert set(json.loads(fitted.read("report.json"))) >= {"parity", "gates", "trust"}
    assert not [item for item in tmp_path.iterdir() if item.name.startswith(".fitted")]


def test_records_of_the_ranges_are_not_fitted_on(checkpoint_dir: Path, tmp_path: Path, capsys):
    ranges = make_records(tmp_path / "ranges", 12)
    options = ["--range-data", ranges, "--fit-data", ranges, "--out", tmp_path / "a.umd"]
    assert run(["bundle", *map(str, [checkpoint_dir, *options])]) == 2
    assert "--fit-data" in capsys.readouterr().err
