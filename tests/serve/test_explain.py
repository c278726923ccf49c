"""Heat maps through the service; what they show is tested where they are made."""

from __future__ import annotations

import io

import jsonschema
import numpy as np
import pytest
from PIL import Image

from umd_edge._explain import proven_methods

QUESTION = "which organ is shown?"


def test_numbers_come_as_the_command_gives_them(client, png, explained):
    form = {"question": QUESTION, "unproven": "true", "label": "lung"}
    answer = client.post("/v1/explain", files={"image": ("a.png", png)}, data=form)
    assert answer.status_code == 200
    line = answer.json()
    assert (line["image"], line["index"], line["target"]) == ("a.png", 0, "lung")
    assert line["map"] == np.eye(4).tolist()
    assert explained[0]["label"] == "lung"
    described = client.get("/openapi.json").json()
    schema = {**described["components"]["schemas"]["ExplainLine"]}
    jsonschema.validate(line, {**schema, "components": described["components"]})


def test_a_picture_is_drawn_over_the_image(client, png, explained):
    identifier = client.post("/v1/images", content=png).json()["image_id"]
    given = {"image_id": identifier, "question": QUESTION, "unproven": True, "format": "png"}
    answer = client.post("/v1/explain", json=given)
    assert answer.headers["content-type"] == "image/png"
    drawn = Image.open(io.BytesIO(answer.content))
    assert drawn.mode == "RGB"
    pixels = np.asarray(drawn).astype(int)
    assert (abs(pixels[..., 0] - pixels[..., 2]) > 30).any()  # the image itself is grey
    smaller = client.post("/v1/explain", json={**given, "side": 32})
    assert max(Image.open(io.BytesIO(smaller.content)).size) == 32


def test_an_unproven_map_is_shown_on_request_alone(client, png, explained):
    refused = client.post(f"/v1/explain?question={QUESTION}", content=png)
    assert refused.status_code == 400
    assert "centre prior" in refused.json()["error"]["message"]
    assert client.post(f"/v1/explain?question={QUESTION}&unproven=1", content=png).is_success


@pytest.mark.parametrize("wrong", ["format=gif", "unproven=perhaps", "side=0", "methd=ablation"])
def test_wrong_fields_are_refused(client, png, explained, wrong):
    answer = client.post(f"/v1/explain?question={QUESTION}&{wrong}", content=png)
    assert answer.status_code == 400
    assert explained == []


def test_neither_question_nor_task_is_refused(client, png):
    answer = client.post("/v1/explain", content=png)
    assert answer.status_code == 400


def test_tasks_name_their_proven_maps(client, predictor):
    for task in client.get("/v1/tasks").json()["tasks"]:
        wanted = proven_methods(predictor.manifest.extensions, task["name"])
        assert task["proven_maps"] == wanted
