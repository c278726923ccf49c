"""The OpenAPI 3.1 description of the service: for people, and for generators of client code."""

from __future__ import annotations

from typing import Any

from .. import __version__
from .._predictor import Predictor
from ._options import ServeOptions

__all__ = ["describe"]

_STATUSES = ["ok", "abstain", "out_of_distribution", "outside_intended_use"]
_STAGES = ["decode", "preprocess", "vision", "text", "fusion", "total"]
_ERRORS = {
    "400": "A field is missing, unknown or not readable",
    "401": "The token is missing or wrong",
    "403": "A page of another origin calls",
    "404": "No such task, or no such image any more",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": "A Content-Type that is not read",
    "421": "The Host header is no name of this service",
    "422": "The image, a text or a value cannot be used",
    "429": "The queue is full; Retry-After says when to try again",
    "500": "A defect of the service",
    "501": "An optional package is not installed",
    "503": "The service stops, or the bundle or its provider failed",
    "504": "Not answered in time",
}


def describe(options: ServeOptions, predictor: Predictor) -> dict[str, Any]:
    """The document, with this bundle's tasks and this service's limits."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "umd-edge",
            "version": __version__,
            "summary": "Classify medical images and ask questions about them, on this machine.",
            "description": "Not a medical device: for research and development only. A body may "
            f"have {options.max_request_bytes} bytes; a request is answered within "
            f"{options.timeout_s:g} s.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(predictor),
        "components": {"schemas": _schemas()},
    }
    if options.token is not None:
        schemes = {"token": {"type": "http", "scheme": "bearer"}}
        document["components"]["securitySchemes"] = schemes
        document["security"] = [{"token": []}]
    return document


def _paths(predictor: Predictor) -> dict[str, Any]:
    names = [task.name for task in predictor.tasks if task.kind == "classification"]
    vqa = [task.name for task in predictor.tasks if task.kind == "vqa"]
    image_id = _string("What /v1/images gave, instead of an image")
    frame = {
        "type": "integer",
        "minimum": 1,
        "description": "Frame of a DICOM object with several",
    }
    share = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    common = {"image_id": image_id, "frame": frame}
    classify = {
        "task": {"type": "string", "enum": names, "description": "Task of the bundle"},
        "text": _string("Free text, for a task that reads it"),
        "sensitivity": share,
        "specificity": share,
        "coverage": share,
        "structured": {"type": "object", "description": "Values that the task reads"},
    }
    ask = {
        "question": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "maxItems": 64,
            "description": "Questions; the field may be given several times",
        },
        "task": {"type": "string", "enum": vqa, "description": "Where the bundle has several"},
        "coverage": share,
    }
    explain = {
        "question": _string("Explain the answer to it"),
        "task": {"type": "string", "description": "Explain the classification by it"},
        "label": _string("What to explain; the most probable one where it is left out"),
        "text": classify["text"],
        "structured": classify["structured"],
        "method": {"type": "string", "enum": ["attention", "ablation"]},
        "unproven": {"type": "boolean", "description": "Allow a map that is not proven"},
        "format": {"type": "string", "enum": ["json", "png"], "default": "json"},
        "side": {"type": "integer", "minimum": 1, "description": "Longest side of the PNG"},
    }
    line = {"application/json": {"schema": _ref("ClassifyLine")}}
    answers = {"application/json": {"schema": _ref("AskLine")}}
    kept = {"application/json": {"schema": _ref("StoredImage")}}
    png = {"image/png": {"schema": {"type": "string", "contentMediaType": "image/png"}}}
    return {
        "/v1/classify": _post("classify", "Classify an image", {**classify, **common}, line),
        "/v1/ask": _post("ask", "Ask about an image", {**ask, **common}, answers),
        "/v1/images": _post(
            "addImage", "Encode an image once, for many requests", {"frame": frame}, kept, "201"
        ),
        "/v1/images/{id}": {
            "delete": {
                "operationId": "removeImage",
                "summary": "Forget an image before its time",
                "parameters": [
                    {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
                ],
                "responses": {"204": {"description": "Forgotten"}, **_errors("401", "404")},
            }
        },
        "/v1/explain": _post(
            "explain",
            "Where on the image a decision came from",
            {**explain, **common},
            {"application/json": {"schema": _ref("ExplainLine")}, **png},
        ),
        "/v1/preview": _post(
            "preview", "The image as 8-bit PNG", {"side": explain["side"], **common}, png
        ),
        "/v1/info": _get("info", "The bundle and the service", "Info"),
        "/v1/tasks": _get("tasks", "The bundle's tasks and what they read", "Tasks"),
        "/healthz": _get("health", "Whether the process runs", "State", token=False),
        "/readyz": _get("ready", "Whether requests should be sent here", "State", token=False),
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "Counters for Prometheus",
                "responses": {
                    "200": {
                        "description": "Text format of Prometheus",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    },
                    **_errors("401"),
                },
            }
        },
    }


def _post(
    operation: str,
    summary: str,
    fields: dict[str, Any],
    content: dict[str, Any],
    status: str = "200",
) -> dict[str, Any]:
    image = {"type": "string", "contentMediaType": "application/octet-stream"}
    form = {"type": "object", "properties": {"image": image, **fields}}
    body: dict[str, Any] = {"multipart/form-data": {"schema": form}}
    if "image_id" in fields:
        document = {"type": "object", "properties": fields, "additionalProperties": False}
        body["application/json"] = {"schema": document}
    for kind in ("image/png", "image/jpeg", "application/dicom", "application/octet-stream"):
        body[kind] = {"schema": {}}
    parameters = [
        {"name": name, "in": "query", "required": False, **_in_query(schema)}
        for name, schema in fields.items()
    ]
    return {
        "post": {
            "operationId": operation,
            "summary": summary,
            "parameters": parameters,
            "requestBody": {"required": False, "content": body},
            "responses": {
                status: {"description": "Done", "content": content},
                **_errors(*_ERRORS),
            },
        }
    }


def _in_query(schema: dict[str, Any]) -> dict[str, Any]:
    if schema["type"] == "object":
        return {"content": {"application/json": {"schema": schema}}}
    return {"schema": schema}


def _get(operation: str, summary: str, schema: str, *, token: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation,
        "summary": summary,
        "responses": {
            "200": {
                "description": "Found",
                "content": {"application/json": {"schema": _ref(schema)}},
            },
            **(_errors("401") if token else {}),
        },
    }
    if not token:
        found["security"] = []
    return {"get": found}


def _errors(*statuses: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref("Error")}}
    return {status: {"description": _ERRORS[status], "content": content} for status in statuses}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _string(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _object(needed: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = {**needed, **(optional or {})}
    return {"type": "object", "required": sorted(needed), "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _schemas() -> dict[str, Any]:
    text, flag, number = {"type": "string"}, {"type": "boolean"}, {"type": "number", "minimum": 0}
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    decided = {"status": {"type": "string", "enum": _STATUSES}, "reason": text}
    common = {
        "image": _string("The id, or the file name that came with the bytes"),
        "index": {"const": 0},
        "bundle": _object({"name": text, "version": text, "sha256": text}),
        "variant": text,
        "provider": text,
        "int8_path": {"type": "string", "enum": ["", "native", "u8u8"]},
        "timing_ms": _ref("Timing"),
    }
    error = _object({"type": text, "message": text}, {"frames": {"type": "integer"}})
    reads = _object({"name": text, "kind": text, "unit": text, "categories": _list(text)})
    task = {
        "name": text,
        "kind": {"type": "string", "enum": ["classification", "vqa", "retrieval"]},
        "outputs": _list(text),
        "multi_label": flag,
        "reads_text": flag,
        "reads": _list(reads),
        "proven_maps": _list(text),
        "applies_to": {"type": "object", "additionalProperties": _list(text)},
    }
    finding = _object({"label": text, "probability": probability, "positive": flag})
    return {
        "Error": _object({"error": error}),
        "Timing": _object(dict.fromkeys(_STAGES, number)),
        "Finding": finding,
        "ClassifyLine": _object(
            {**common, "task": text, **decided, "findings": _list(_ref("Finding"))}
        ),
        "Alternative": _object({"answer": text, "probability": probability}),
        "Answer": _object(
            {
                "question": text,
                "answer": text,
                "probability": probability,
                "alternatives": _list(_ref("Alternative")),
                **decided,
            }
        ),
        "ExplainLine": _object(
            {
                **common,
                "task": text,
                **decided,
                "target": text,
                "probability": probability,
                "method": {"type": "string", "enum": ["attention", "ablation"]},
                "proven": flag,
                "unit": text,
                "image_size": _object({"width": number, "height": number}),
                "map": {"type": ["array", "null"], "items": _list({"type": "number"})},
                "peak": {"type": ["object", "null"]},
            }
        ),
        "AskLine": _object({**common, "answers": _list(_ref("Answer"))}),
        "StoredImage": _object(
            {
                "image_id": text,
                "expires_s": number,
                "frames": {"type": "integer", "minimum": 1},
                "frame": {"type": ["integer", "null"]},
                "timing_ms": _ref("Timing"),
            }
        ),
        "Info": _object(
            {"name": text, "version": text, "sha256": text, "service": {"type": "object"}}
        ),
        "Tasks": _object({"tasks": _list(_object(task)), "suggestions": _list(text)}),
        "State": _object({"status": text}),
    }
