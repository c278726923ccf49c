from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from support.bundles import repack
from support.command import png, run, run_json
from umd_edge import Predictor, __version__
from umd_edge._bench import Overhead
from umd_edge._evaluation import evaluate_vqa
from umd_edge._records import VQAReference

COMMANDS = [
    *("classify", "ask", "rank", "info", "verify", "evaluate", "bench", "doctor", "build-engine"),
    "demo",
]


def vqa_records(folder, n=12):
    """Records whose answers the bundle's vocabulary partly holds."""
    lines = []
    for index in range(n):
        png(folder / f"{index // 3}.png", side=40 + index // 3)
        record = {
            "id": f"r{index}",
            "patient_id": f"p{index // 3}",
            "image": f"{index // 3}.png",
            "question": ["which organ is shown?", "what modality?", "is there pneumonia?"][
                index % 3
            ],
            "answer": ["chest", "ct", "no"][index % 3],
            "answer_type": ["OPEN", "OPEN", "CLOSED"][index % 3],
            "question_type": ["organ", "modality", "abnormality"][index % 3],
        }
        lines.append(json.dumps(record))
    data = folder / "data.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    return data


def skin_records(folder, labels):
    lines = []
    for index, label in enumerate(labels):
        png(folder / f"{index}.png", side=30 + index)
        record = {"patient_id": str(index), "image": f"{index}.png", "labels": [label], "age": 50}
        lines.append(json.dumps(record))
    data = folder / "skin.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    return data


def test_evaluate_has_the_documented_shape_and_the_predictors_figures(tiny_bundle, tmp_path):
    data = vqa_records(tmp_path)
    (found,) = run_json("evaluate", "--task", "vqa", "--data", data, "--bundle", tiny_bundle)
    assert set(found) >= {"task", "n", "dropped", "metrics"}
    assert (found["task"], found["n"], found["dropped"]) == ("vqa", 12, 0)
    assert set(found["metrics"]["accuracy"]) == {"value", "low", "high", "n"}
    predictor = Predictor.load(tiny_bundle)
    records = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    answers = [predictor.ask(tmp_path / r["image"], r["question"]) for r in records]
    wanted = evaluate_vqa(
        predictions=[answer.answer for answer in answers],
        confidences=[answer.probability for answer in answers],
        references=[
            VQAReference((r["answer"],), r["answer_type"], r["question_type"]) for r in records
        ],
        groups=[r["patient_id"] for r in records],
    )
    assert found["metrics"] == {name: value.to_dict() for name, value in wanted.items()}
    assert {"closed_accuracy", "open_accuracy", "accuracy_organ"} <= set(wanted)


def test_evaluate_of_labels_names_them_as_the_manifest_does(tiny_bundle, tmp_path):
    data = skin_records(tmp_path, ["MEL", "NEV", "MEL", "BCC"])
    (found,) = run_json(
        "evaluate", "--task", "skin-lesion", "--data", data, "--bundle", tiny_bundle
    )
    names = {"accuracy", "balanced_accuracy", "macro_auroc", "macro_f1", "brier", "ece"}
    assert names | {"auroc_MEL", "auroc_SEK"} <= set(found["metrics"])
    assert found["metrics"]["auroc_SEK"]["value"] is None


def test_evaluate_fails_on_an_unmapped_label_unless_told_to_drop(tiny_bundle, tmp_path):
    data = skin_records(tmp_path, ["MEL", "wart", "NEV"])
    command = ("evaluate", "--task", "skin-lesion", "--data", data, "--bundle", tiny_bundle)
    refused = run(*command)
    assert refused.code == 4
    assert "wart" in refused.err
    (found,) = run_json(*command, "--drop-unmapped")
    assert (found["n"], found["dropped"]) == (2, 1)
    assert "left out: 1" in run(*command, "--drop-unmapped").err


def test_evaluate_does_not_leave_out_a_record_whose_image_is_missing(tiny_bundle, tmp_path):
    data = vqa_records(tmp_path)
    (tmp_path / "2.png").unlink()
    done = run("evaluate", "--task", "vqa", "--data", data, "--bundle", tiny_bundle)
    assert done.code == 4
    assert "data.jsonl:7:" in done.err
    assert "r6" not in done.err


def test_evaluate_without_a_fitting_record_is_exit_4(tiny_bundle, tmp_path):
    data = vqa_records(tmp_path)
    done = run("evaluate", "--task", "skin-lesion", "--data", data, "--bundle", tiny_bundle)
    assert done.code == 4
    assert "no record fits" in done.err
    assert "Give records with image, " in done.err


def test_evaluate_says_which_records_a_task_takes(tiny_bundle, tmp_path):
    def of_ultrasound(manifest):
        for task in manifest["tasks"]:
            task["select"] = {"modality": ["Ultrasound"]}

    bundle = repack(tmp_path / "us.umd", edit=of_ultrasound)
    data = skin_records(tmp_path, ["MEL", "NEV"])
    done = run("evaluate", "--task", "skin-lesion", "--data", data, "--bundle", bundle)
    assert done.code == 4
    assert "{'not selected': 2}" in done.err
    assert "labels and modality among ['Ultrasound']" in done.err


def test_evaluate_table_shows_values_and_intervals(tiny_bundle, tmp_path):
    data = vqa_records(tmp_path)
    done = run("evaluate", "--task", "vqa", "--data", data, "--bundle", tiny_bundle)
    assert done.code == 0
    assert "accuracy_excluding_abnormality" in done.out
    assert " to " in done.out


def test_info_tells_tasks_hash_and_that_it_is_no_medical_device(tiny_bundle):
    (found,) = run_json("info", "--bundle", tiny_bundle)
    assert [task["name"] for task in found["tasks"]][:2] == ["vqa", "chest-xray"]
    assert found["sha256"] == Predictor.load(tiny_bundle).info.sha256
    assert found["intended_use"]["not_a_medical_device"] is True
    text = run("info", "--bundle", tiny_bundle).out
    assert "Not a medical device" in text
    assert "chest-xray" in text


def test_verify_reports_the_known_answers(tiny_bundle):
    (found,) = run_json("verify", "--bundle", tiny_bundle)
    assert found["status"] == "ok"
    names = {check["name"] for check in found["checks"]}
    assert {"pixel_values", "input_ids", "image_tokens", "match_logit"} <= names
    assert run("verify", "--bundle", tiny_bundle).out.rstrip().endswith("ok")


def test_bench_reports_every_figure(tiny_bundle):
    (found,) = run_json("bench", "--runs", "10", "--bundle", tiny_bundle)
    assert set(found["stages_ms"]) == {"decode", "preprocess", "vision", "text", "fusion"}
    for quantiles in [*found["stages_ms"].values(), found["first_answer_ms"]]:
        assert 0 <= quantiles["p50"] <= quantiles["p95"] <= quantiles["p99"]
    assert found["size_bytes"] == tiny_bundle.stat().st_size
    assert found["peak_memory_bytes"] > 1_000_000
    for part in ("first_answer", "further_answer", "repeated_question"):
        ratio = found["overhead"][part]
        assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
    assert "SDK over bare" in run("bench", "--runs", "10", "--bundle", tiny_bundle).out


def test_overhead_is_the_ratio_of_medians():
    bare = np.full(50, 0.010)
    assert Overhead.of(bare, bare) == Overhead(1.0, 1.0, 1.0)
    slower = Overhead.of(bare * 1.2, bare)
    assert slower.ratio == pytest.approx(1.2)
    late = np.r_[np.full(49, 0.010), 9.0]  # one hiccup is no overhead
    assert Overhead.of(late, bare).ratio == 1.0


def test_doctor_names_what_is_there_and_what_to_do(tiny_bundle):
    (found,) = run_json("doctor", "--bundle", tiny_bundle)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["umd-edge"]["detail"] == __version__
    assert checks["bundle"]["state"] == "ok"
    assert "cpu" in checks["providers"]["detail"]
    absent = [check for check in found["checks"] if check["state"] == "absent"]
    # of a package what to install; of a GPU's driver the reason says what to do
    assert all("install" in check["advice"] + check["detail"] for check in absent)


def test_doctor_of_a_missing_bundle_says_so_and_is_exit_3(tmp_path):
    done = run("doctor", "--json", "--bundle", tmp_path / "none.umd")
    assert done.code == 3
    assert json.loads(done.out)["problems"] == ["bundle"]


def test_demo_on_own_images_writes_a_picture_and_lines(tiny_bundle, tmp_path):
    image, out = png(tmp_path / "mine.png"), tmp_path / "out"
    missing = tmp_path / "missing.png"
    done = run("demo", image, missing, "--out", out, "--bundle", tiny_bundle)
    assert done.code == 4
    assert sorted(path.name for path in out.iterdir()) == ["demo.jsonl", "demo.png"]
    lines = [json.loads(line) for line in (out / "demo.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [str(image), str(missing)]
    assert len(lines[0]["answers"]) == 3
    tasks = [result["task"] for result in lines[0]["classifications"]]
    assert tasks == ["chest-xray", "breast-ultrasound", "skin-lesion"]
    assert lines[0]["header"] is None
    assert lines[1]["error"]["type"] == "ImageInputError"
    with Image.open(out / "demo.png") as picture:
        assert picture.width == 1600
        assert len(picture.getcolors(1 << 24)) > 100
    assert "mine.png" in done.out
    assert "modality" in done.out


def test_demo_without_images_looks_at_those_of_pydicom(tiny_bundle, tmp_path):
    pytest.importorskip("pydicom")
    out = tmp_path / "out"
    done = run("demo", "--out", out, "--bundle", tiny_bundle)
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (out / "demo.jsonl").read_text().splitlines()]
    assert [line["header"]["Modality"] for line in lines] == ["MR", "CT", "US", "NM"]
    assert lines[1]["header"]["BodyPartExamined"] == "HEAD"
    chest = [result for line in lines for result in line["classifications"]]
    states = {(r["task"], r["status"]) for r in chest if r["task"] == "chest-xray"}
    assert states == {("chest-xray", "outside_intended_use")}
    assert "BodyPartExamined: ABDOMEN" in done.out
    assert "outside_intended_use" in done.out


def test_demo_leaves_no_temporary_file_behind_when_it_cannot_write(tiny_bundle, tmp_path):
    out = tmp_path / "out"
    (out / "demo.jsonl").mkdir(parents=True)
    done = run("demo", png(tmp_path / "a.png"), "--out", out, "--bundle", tiny_bundle)
    assert done.code == 2
    assert not list(out.glob("*.tmp"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    done = run(command, "--help")
    assert done.code == 0
    assert done.out.startswith("Usage: umd-edge")
    assert len(done.out.splitlines()) > 8


def test_python_m_umd_edge_is_the_command():
    given = [sys.executable, "-m", "umd_edge", "--version"]
    done = subprocess.run(given, capture_output=True, text=True, check=True)
    assert __version__ in done.stdout
    assert run("--version").out == done.stdout


def test_the_command_loads_no_heavy_package_before_it_needs_one():
    code = (
        "import sys, umd_edge._cli; "
        "print({'torch', 'transformers', 'onnx', 'onnxruntime', 'pydicom'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
