"""The description against its own standard, and the real answers against the description."""

from __future__ import annotations

import jsonschema
import pytest

from support.requirements import lacking


@pytest.fixture
def described(client):
    return client.get("/openapi.json").json()


def schema_of(described, path, status="200", method="post"):
    operation = described["paths"][path][method]
    content = operation["responses"][status]["content"]["application/json"]
    return {**content["schema"], "components": described["components"]}


def check(answer, described, path, method="post"):
    schema = schema_of(described, path, str(answer.status_code), method)
    jsonschema.Draft202012Validator(schema).validate(answer.json())


def test_it_is_openapi_3_1(described):
    try:
        from openapi_spec_validator import OpenAPIV31SpecValidator
    except ImportError:
        lacking("openapi", "openapi-spec-validator is not installed")
    OpenAPIV31SpecValidator(described).validate()
    described["paths"]["/v1/ask"]["post"]["responses"] = []
    assert list(OpenAPIV31SpecValidator(described).iter_errors())


def test_it_lists_every_route_and_no_other(client, described):
    from umd_edge.serve._routes import OPEN_PATHS, handlers

    found = {
        (method.upper(), path)
        for path, operations in described["paths"].items()
        for method in operations
    }
    page = OPEN_PATHS - {"/healthz", "/readyz"} | {"/openapi.json"}
    assert found == {
        (method, path) for method, path in handlers(client.service) if path not in page
    }


def test_results_are_as_described(client, png, clip, described):
    check(client.post("/v1/classify?task=skin-lesion", content=png), described, "/v1/classify")
    check(client.post("/v1/ask?question=what+organ", content=png), described, "/v1/ask")
    kept = client.post("/v1/images?frame=1", content=clip)
    check(kept, described, "/v1/images")
    asked = {"image_id": kept.json()["image_id"], "questions": ["what organ", "what plane"]}
    check(client.post("/v1/ask", json=asked), described, "/v1/ask")
    for path in ("/v1/info", "/v1/tasks", "/healthz", "/readyz"):
        check(client.get(path), described, path, "get")


def test_a_result_that_lacks_a_key_is_not_as_described(client, png, described):
    line = client.post("/v1/ask?question=what+organ", content=png).json()
    del line["answers"][0]["status"]
    with pytest.raises(jsonschema.ValidationError, match="status"):
        jsonschema.validate(line, schema_of(described, "/v1/ask"))


@pytest.mark.parametrize("request_", ["nothing", "bad image", "unknown task", "bad kind"])
def test_errors_are_as_described(client, png, described, request_):
    answer = {
        "nothing": lambda: client.post("/v1/classify"),
        "bad image": lambda: client.post("/v1/classify?task=chest-xray", content=b"x"),
        "unknown task": lambda: client.post("/v1/classify?task=x", content=png),
        "bad kind": lambda: client.post(
            "/v1/classify", content=png, headers={"content-type": "text/html"}
        ),
    }[request_]()
    assert answer.status_code >= 400
    check(answer, described, "/v1/classify")


def test_a_token_is_described(make_client):
    token = "0123456789abcdef"
    client = make_client(token=token)
    answer = client.get("/openapi.json", headers={"authorization": f"Bearer {token}"})
    assert answer.json()["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
