"""The OpenAPI 3.1 description of the service: for people, and for generators of client code."""

from __future__ import annotations

from typing import Any

from .. import __version__
from .._defaults import FRAMES
from .._frames import MOST_FRAMES
from .._predictor import Predictor
from ._options import ServeOptions
from ._schemas import reference, schemas

__all__ = ["describe"]

_FILE_KINDS = (
    "image/png",
    "image/jpeg",
    "application/dicom",
    "video/mp4",
    "video/mpeg",
    "video/x-msvideo",
    "application/octet-stream",
)
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


def _string(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _errors(*statuses: str) -> dict[str, Any]:
    return {
        status: {"description": _ERRORS[status], "content": _json("Error")} for status in statuses
    }


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": reference(schema)}}


_WHOLE = {"type": "integer", "minimum": 1}
_SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_SIDE = {**_WHOLE, "description": "Longest side of the PNG"}
_TEXT = _string("Free text, for a task that reads it")
_VALUES = {"type": "object", "description": "Values that the task reads"}
_EXPLAIN_FIELDS = {
    "question": _string("Explain the answer to it"),
    "task": _string("Explain the classification by it"),
    "label": _string("What to explain; the most probable one where it is left out"),
    "text": _TEXT,
    "structured": _VALUES,
    "method": {"type": "string", "enum": ["attention", "ablation"]},
    "unproven": {"type": "boolean", "description": "Allow a map that is not proven"},
    "format": {"type": "string", "enum": ["json", "png"], "default": "json"},
    "side": _SIDE,
}
_REMOVE = {
    "operationId": "removeImage",
    "summary": "Forget an image before its time",
    "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
    "responses": {"204": {"description": "Forgotten"}, **_errors("401", "404")},
}
_METRICS = {
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
        "components": {"schemas": schemas()},
    }
    if options.token is not None:
        schemes = {"token": {"type": "http", "scheme": "bearer"}}
        document["components"]["securitySchemes"] = schemes
        document["security"] = [{"token": []}]
    return document


def _paths(predictor: Predictor) -> dict[str, Any]:
    image = {
        "image_id": _string("What /v1/images gave, instead of an image"),
        "frame": {**_WHOLE, "description": "Frame of a DICOM object or clip with several"},
    }
    clip = {
        **image,
        "frames": {
            **_WHOLE,
            "maximum": MOST_FRAMES,
            "description": f"One answer from so many frames, spread evenly; {FRAMES} for MP4, AVI "
            "and MPEG, DICOM needs the number",
        },
    }
    png = {"image/png": {"schema": {"type": "string", "contentMediaType": "image/png"}}}
    return {
        "/v1/classify": _post(
            "classify",
            "Classify an image",
            {**_classify_fields(predictor), **clip},
            _json("ClassifyLine"),
        ),
        "/v1/ask": _post(
            "ask", "Ask about an image", {**_ask_fields(predictor), **clip}, _json("AskLine")
        ),
        "/v1/explain": _post(
            "explain",
            "Where on the image a decision came from",
            {**_EXPLAIN_FIELDS, **image},
            {**_json("ExplainLine"), **png},
        ),
        "/v1/images": _post(
            "addImage",
            "Encode an image once, for many requests",
            {"frame": clip["frame"], "frames": clip["frames"]},
            _json("StoredImage"),
            "201",
        ),
        "/v1/images/{id}": {"delete": _REMOVE},
        "/v1/preview": _post("preview", "The image as 8-bit PNG", {"side": _SIDE, **image}, png),
        "/v1/info": _get("info", "The bundle and the service", "Info"),
        "/v1/tasks": _get("tasks", "The bundle's tasks and what they read", "Tasks"),
        "/healthz": _get("health", "Whether the process runs", "State", token=False),
        "/readyz": _get("ready", "Whether requests should be sent here", "State", token=False),
        "/metrics": {"get": _METRICS},
    }


def _classify_fields(predictor: Predictor) -> dict[str, Any]:
    names = [task.name for task in predictor.tasks if task.kind == "classification"]
    return {
        "task": {"type": "string", "enum": names, "description": "Task of the bundle"},
        "text": _TEXT,
        "structured": _VALUES,
        "sensitivity": _SHARE,
        "specificity": _SHARE,
        "coverage": _SHARE,
    }


def _ask_fields(predictor: Predictor) -> dict[str, Any]:
    names = [task.name for task in predictor.tasks if task.kind == "vqa"]
    return {
        "question": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "maxItems": 64,
            "description": "Questions; the field may be given several times",
        },
        "task": {"type": "string", "enum": names, "description": "Where the bundle has several"},
        "coverage": _SHARE,
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
    for kind in _FILE_KINDS:
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
                "content": _json(schema),
            },
            **(_errors("401") if token else {}),
        },
    }
    if not token:
        found["security"] = []
    return {"get": found}
