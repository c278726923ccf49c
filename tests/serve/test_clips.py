"""Clips over HTTP: one answer each, by the rule of the command, within the same limits."""

from __future__ import annotations

import time

import jsonschema
import pytest

from support.clips import make_clip, moving_bar
from umd_edge._video import sampled_frames

pytest.importorskip("av")

TASK = "skin-lesion"
FRAMES = 12


@pytest.fixture(scope="module")
def video() -> bytes:
    """An MP4 of twelve frames."""
    return make_clip(moving_bar(FRAMES))


def untimed(line: dict) -> dict:
    left_out = ("timing_ms", "image", "index")
    return {key: value for key, value in line.items() if key not in left_out}


def error_of(answer) -> tuple[int, str, int | None]:
    error = answer.json()["error"]
    return answer.status_code, error["type"], error.get("frames")


@pytest.mark.parametrize("kind", ["video/mp4", "application/octet-stream", "multipart", "named"])
def test_a_video_gets_the_one_answer_of_the_command(client, predictor, video, kind):
    expected = untimed(predictor.classify(video, TASK).to_dict())
    if kind == "multipart":
        answer = client.post("/v1/classify", files={"image": ("a", video)}, data={"task": TASK})
    elif kind == "named":
        answer = client.post(f"/v1/classify?task={TASK}&frames=8", content=video)
    else:
        headers = {"content-type": kind}
        answer = client.post(f"/v1/classify?task={TASK}", content=video, headers=headers)
    assert answer.status_code == 200, answer.text
    assert untimed(answer.json()) == expected
    frames = {"numbers": list(sampled_frames(FRAMES, 8)), "total": FRAMES}
    assert answer.json()["frames"] == frames


@pytest.mark.parametrize("kind", ["avi", "mpeg"])
def test_other_containers_and_other_numbers_of_frames(client, predictor, kind):
    data = make_clip(moving_bar(9), kind, "mpeg4" if kind == "avi" else "mpeg2video")
    answer = client.post("/v1/ask?question=what+is+shown&frames=3", content=data)
    clip = predictor.encode_clip(data, 3)
    assert answer.json()["frames"]["numbers"] == list(sampled_frames(9, 3))
    expected = clip.ask("what is shown").to_dict()
    assert answer.json()["answers"] == [expected]


def test_a_dicom_object_is_a_clip_where_the_number_is_given(client, predictor, clip):
    pytest.importorskip("pydicom")
    line = client.post(f"/v1/classify?task={TASK}&frames=2", content=clip).json()
    assert untimed(line) == untimed(predictor.encode_clip(clip, 2).classify(TASK).to_dict())
    refused = client.post(f"/v1/classify?task={TASK}", content=clip)
    assert error_of(refused) == (422, "DicomInputError", 3)


def test_a_plain_image_is_one_whatever_the_number(client, predictor, png):
    line = client.post(f"/v1/classify?task={TASK}&frames=4", content=png).json()
    assert untimed(line) == untimed(predictor.classify(png, TASK).to_dict())


def test_a_frame_of_a_video_is_an_image(client, predictor, video):
    line = client.post(f"/v1/classify?task={TASK}&frame=5", content=video).json()
    assert untimed(line) == untimed(predictor.classify(video, TASK, frame=5).to_dict())
    assert "frames" not in line


def test_a_clip_is_encoded_once_and_asked_often(client, predictor, video):
    kept = client.post("/v1/images", content=video).json()
    assert (kept["frames"], kept["numbers"]) == (FRAMES, list(sampled_frames(FRAMES, 8)))
    images = client.service.images
    assert images.stored_bytes > len(video) + 8 * 100  # what the frames hold is counted too
    clip = predictor.encode_clip(video)
    asked = {"image_id": kept["image_id"], "question": "what is shown"}
    line = client.post("/v1/ask", json=asked).json()
    assert line["answers"] == [clip.ask("what is shown").to_dict()]
    line = client.post("/v1/classify", json={"image_id": kept["image_id"], "task": TASK}).json()
    assert untimed(line) == untimed(clip.classify(TASK).to_dict())
    client.delete(f"/v1/images/{kept['image_id']}")
    assert images.stored_bytes == 0


def test_results_about_clips_are_as_described(client, video):
    described = client.get("/openapi.json").json()
    kept = client.post("/v1/images", content=video)
    answers = {
        "/v1/classify": client.post(f"/v1/classify?task={TASK}", content=video),
        "/v1/ask": client.post("/v1/ask?question=what", content=video),
        "/v1/images": kept,
    }
    for path, answer in answers.items():
        operation = described["paths"][path]["post"]
        content = operation["responses"][str(answer.status_code)]["content"]["application/json"]
        schema = {**content["schema"], "components": described["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())
        assert "video/mp4" in operation["requestBody"]["content"]
        assert "frames" in {parameter["name"] for parameter in operation["parameters"]}
        told = set(schema["components"]["schemas"]["ClassifyLine"]["properties"])
        assert path != "/v1/classify" or set(answer.json()) <= told


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["frames=0", "frames=257", "frames=x", "frame=1&frames=2"])
def test_numbers_that_mean_nothing_are_refused(client, video, query):
    answer = client.post(f"/v1/classify?task={TASK}&{query}", content=video)
    assert error_of(answer)[:2] == (400, "BadRequestError")


def test_what_is_shown_on_one_image_asks_for_a_frame(client, explained, video):
    assert error_of(client.post("/v1/preview", content=video)) == (422, "ImageInputError", FRAMES)
    drawn = client.post("/v1/preview?frame=2", content=video)
    assert (drawn.status_code, drawn.headers["x-image-frames"]) == (200, str(FRAMES))
    answer = client.post("/v1/explain?question=what&unproven=true", content=video)
    assert error_of(answer) == (422, "ImageInputError", FRAMES)
    kept = client.post("/v1/images", content=video).json()["image_id"]
    answer = client.post("/v1/explain", json={"image_id": kept, "question": "what"})
    assert error_of(answer)[:2] == (400, "BadRequestError")
    assert "'frame'" in answer.json()["error"]["message"]
    assert not explained


def test_the_number_of_frames_of_a_kept_clip_stays(client, video):
    kept = client.post("/v1/images", content=video).json()["image_id"]
    answer = client.post("/v1/ask", json={"image_id": kept, "question": "what", "frames": 2})
    assert error_of(answer)[:2] == (400, "BadRequestError")


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_clip_is_422(client, video, damage):
    data = video[: len(video) // 2] if damage == "cut" else video[:40] + bytes(500)
    answer = client.post(f"/v1/classify?task={TASK}", content=data)
    assert error_of(answer)[:2] == (422, "ImageInputError")


def test_too_many_frames_are_422(client, video, monkeypatch):
    monkeypatch.setattr("umd_edge._video.MAX_FRAMES", FRAMES - 1)
    answer = client.post(f"/v1/classify?task={TASK}", content=video)
    assert error_of(answer)[:2] == (422, "ImageInputError")
    assert "more than 11 frames" in answer.json()["error"]["message"]


def test_a_clip_that_is_larger_than_a_body_may_be_is_413(make_client, video):
    client = make_client(max_request_bytes=2048)
    assert len(video) > 2048
    answer = client.post(f"/v1/classify?task={TASK}", content=video)
    assert error_of(answer)[:2] == (413, "RequestTooLargeError")


def test_a_clip_past_its_deadline_is_504_and_its_decoding_ends(make_client, video, monkeypatch):
    from umd_edge import _video

    pixels, taken = _video._pixels, []

    def slow(frame):
        taken.append(frame)
        time.sleep(0.15)
        return pixels(frame)

    monkeypatch.setattr(_video, "_pixels", slow)
    client = make_client(workers=1, timeout_s=0.4)
    answer = client.post(f"/v1/classify?task={TASK}", content=video)
    assert error_of(answer)[:2] == (504, "DeadlineExceededError")
    until = time.monotonic() + 5
    while client.service.queue.stuck and time.monotonic() < until:
        time.sleep(0.01)
    assert len(taken) < 8
