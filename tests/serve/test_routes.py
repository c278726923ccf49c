from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from support.command import run_json
from umd_edge import Predictor

QUESTION = "which organ is shown?"


def without_times(line: dict) -> dict:
    return {key: value for key, value in line.items() if key not in ("timing_ms", "image")}


def error_of(answer) -> tuple[int, str]:
    document = answer.json()
    assert set(document) == {"error"}
    assert document["error"]["message"]
    return answer.status_code, document["error"]["type"]


def test_classify_says_what_the_command_says(client, png, image_file, tiny_bundle):
    values = {"itch": True, "age": 61}
    (line,) = run_json(
        *("classify", image_file, "--task", "skin-lesion", "--bundle", tiny_bundle),
        *("--structured", json.dumps(values)),
    )
    form = {"task": "skin-lesion", "structured": json.dumps(values)}
    answer = client.post("/v1/classify", files={"image": ("a.png", png)}, data=form)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert without_times(answer.json()) == without_times(line)
    assert set(answer.json()) == set(line)
    assert set(answer.json()["timing_ms"]) == set(line["timing_ms"])
    # Negative control: without the values other probabilities come out
    bare = client.post("/v1/classify", files={"image": png}, data={"task": "skin-lesion"})
    assert bare.json()["findings"] != line["findings"]


def test_ask_says_what_the_command_says(client, png, image_file, tiny_bundle):
    questions = [QUESTION, "what modality?"]
    (line,) = run_json("ask", image_file, *questions, "--bundle", tiny_bundle)
    answer = client.post(
        "/v1/ask",
        params={"question": questions},
        content=png,
        headers={"content-type": "image/png"},
    )
    assert answer.status_code == 200
    assert without_times(answer.json()) == without_times(line)
    assert answer.json()["timing_ms"]["vision"] > 0


def test_dicom_goes_through_with_its_instance(client, clip, tmp_path, tiny_bundle):
    path = tmp_path / "clip.dcm"
    path.write_bytes(clip)
    (line,) = run_json("ask", path, QUESTION, "--frame", 2, "--bundle", tiny_bundle)
    answer = client.post("/v1/ask", params={"question": QUESTION, "frame": 2}, content=clip)
    assert without_times(answer.json()) == without_times(line)
    assert answer.json()["dicom"]["frame"] == 2


def test_an_image_is_encoded_once_and_asked_often(client, png, monkeypatch):
    calls = []
    encode = Predictor.encode
    monkeypatch.setattr(
        Predictor, "encode", lambda *args, **more: calls.append(1) or encode(*args, **more)
    )
    kept = client.post("/v1/images", content=png)
    assert kept.status_code == 201
    identifier = kept.json()["image_id"]
    direct = client.post("/v1/ask", params={"question": QUESTION}, content=png).json()
    for _ in range(3):
        given = {"image_id": identifier, "question": QUESTION}
        line = client.post("/v1/ask", json=given).json()
        assert line["image"] == identifier
        assert line["timing_ms"]["vision"] == 0
        assert without_times(line) == without_times(direct)
    assert len(calls) == 2
    task = {"image_id": identifier, "task": "breast-ultrasound"}
    stored = client.post("/v1/classify", json=task).json()
    posted = client.post("/v1/classify?task=breast-ultrasound", content=png).json()
    assert stored["findings"] == posted["findings"]


def test_a_deleted_image_is_gone(client, png):
    identifier = client.post("/v1/images", content=png).json()["image_id"]
    assert client.delete(f"/v1/images/{identifier}").status_code == 204
    answer = client.post("/v1/ask", json={"image_id": identifier, "question": QUESTION})
    assert error_of(answer) == (404, "NotFoundError")
    assert error_of(client.delete(f"/v1/images/{identifier}")) == (404, "NotFoundError")


def test_several_frames_need_a_number_and_are_counted(client, clip):
    for path in ("/v1/preview", "/v1/images", f"/v1/ask?question={QUESTION}"):
        answer = client.post(path, content=clip)
        assert error_of(answer) == (422, "DicomInputError")
        assert answer.json()["error"]["frames"] == 3
    kept = client.post("/v1/images?frame=3", content=clip).json()
    assert (kept["frames"], kept["frame"]) == (3, 3)
    beyond = client.post("/v1/preview?frame=4", content=clip)
    assert error_of(beyond) == (422, "DicomInputError")
    again = client.post("/v1/preview", json={"image_id": kept["image_id"], "frame": 1})
    assert error_of(again) == (400, "BadRequestError")


def test_preview_shows_the_pixels_that_the_model_reads(client, clip):
    from umd_edge._image import load_image

    answer = client.post("/v1/preview?frame=2", content=clip)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-image-frames"] == "3"
    shown = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert (shown == load_image(clip, frame=2).pixels[..., 0]).all()


def test_a_large_preview_is_made_smaller(client):
    out = io.BytesIO()
    Image.fromarray(np.zeros((400, 2048), np.uint8)).save(out, "PNG")
    answer = client.post("/v1/preview", content=out.getvalue())
    assert Image.open(io.BytesIO(answer.content)).size == (1024, 200)


def test_info_names_bundle_and_limits_but_no_path(client, tiny_bundle):
    (line,) = run_json("info", "--bundle", tiny_bundle)
    info = client.get("/v1/info").json()
    assert set(line) - set(info) == {"path"}
    assert {key: info[key] for key in line if key in info} == {
        key: value for key, value in line.items() if key in info
    }
    assert info["service"]["queue"] == 32
    assert str(tiny_bundle) not in json.dumps(info)


def test_tasks_say_what_they_read(client, predictor):
    tasks = {task["name"]: task for task in client.get("/v1/tasks").json()["tasks"]}
    assert set(tasks) == {task.name for task in predictor.tasks}
    reads = {item["name"]: item for item in tasks["skin-lesion"]["reads"]}
    assert reads["age"]["kind"] == "numeric"
    assert reads["structured.itch"]["kind"] == "binary"


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/results.js", "/service.js"])
def test_the_page_comes_with_a_policy_that_loads_nothing_from_elsewhere(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert b"http://" not in answer.content.replace(b"http://www.w3.org", b"")
    assert b"https://" not in answer.content


@pytest.mark.parametrize(
    ("kind", "says"),
    [("text", "no image by its content"), ("empty", "empty"), ("cut", "truncated or damaged")],
)
def test_a_bad_image_is_422_with_the_message_of_the_command(client, png, kind, says):
    data = {"text": b"not an image", "empty": b"", "cut": png[:200]}[kind]
    for path in ("/v1/classify?task=chest-xray", "/v1/images", "/v1/preview"):
        answer = client.post(path, files={"image": ("a.png", data)})
        assert error_of(answer) == (422, "ImageInputError")
        assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({}, 400, "BadRequestError"),
        ({"task": "dental"}, 404, "UnknownTaskError"),
        ({"task": "vqa"}, 404, "UnknownTaskError"),
        ({"task": "chest-xray", "tsak": "x"}, 400, "BadRequestError"),
        ({"task": "chest-xray", "frame": "0"}, 400, "BadRequestError"),
        ({"task": "chest-xray", "frame": "1"}, 422, "ImageInputError"),
        ({"task": "skin-lesion", "structured": "{age: 61}"}, 400, "BadRequestError"),
        ({"task": "skin-lesion", "structured": "[1]"}, 400, "BadRequestError"),
        ({"task": "skin-lesion", "structured": '{"age": "old"}'}, 422, "StructuredInputError"),
        ({"task": "breast-ultrasound", "text": "65 y"}, 422, "TextInputError"),
        ({"task": "chest-xray", "image_id": "x"}, 400, "BadRequestError"),
        ({"task": "chest-xray", "coverage": "many"}, 400, "BadRequestError"),
        ({"task": "chest-xray", "coverage": "7"}, 400, "UsageError"),
    ],
)
def test_wrong_fields_have_their_status(client, png, fields, status, kind):
    answer = client.post("/v1/classify", files={"image": png}, data=fields)
    assert error_of(answer) == (status, kind)


@pytest.mark.parametrize(
    ("document", "status"),
    [
        ({"question": QUESTION}, 400),
        ({"image_id": 7, "question": QUESTION}, 400),
        ({"image_id": "unknown", "question": QUESTION}, 404),
        ({"image_id": "unknown", "questions": []}, 400),
        ({"image_id": "unknown", "questions": [1]}, 400),
        ({"image_id": "unknown", "question": " "}, 422),
        ({"image_id": "unknown", "questions": ["a"] * 65}, 400),
        ([], 400),
        ("text", 400),
    ],
)
def test_wrong_json_has_its_status(client, document, status):
    assert error_of(client.post("/v1/ask", json=document))[0] == status


def test_a_missing_extra_is_501_and_named(client, clip, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    answer = client.post("/v1/images?frame=1", content=clip)
    assert error_of(answer) == (501, "MissingDependencyError")
    assert "umd-edge[dicom]" in answer.json()["error"]["message"]


def test_an_unforeseen_error_tells_nothing_of_the_patient(client, png, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("Jane Doe, born 1950")

    monkeypatch.setattr(Predictor, "encode", fail)
    answer = client.post("/v1/images", content=png)
    assert error_of(answer) == (500, "InternalError")
    assert "Jane" not in answer.text + caplog.text
    assert "test_routes.py" in caplog.text  # the place is logged


def test_unknown_addresses_and_methods(client):
    assert error_of(client.get("/v2/ask")) == (404, "NotFoundError")
    refused = client.get("/v1/ask")
    assert error_of(refused) == (405, "MethodNotAllowedError")
    assert refused.headers["allow"] == "POST"
    assert client.options("/v1/ask").status_code == 405
    head = client.head("/v1/info")
    assert (head.status_code, head.content) == (200, b"")
