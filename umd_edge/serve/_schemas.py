"""JSON Schemas of what the service answers: the lines of the command line, and a few of its own."""

from __future__ import annotations

from typing import Any

__all__ = ["reference", "schemas"]

_STATUSES = ["ok", "abstain", "out_of_distribution", "outside_intended_use"]
_STAGES = ["decode", "preprocess", "vision", "text", "fusion", "total"]

_TEXT = {"type": "string"}
_FLAG = {"type": "boolean"}
_NUMBER = {"type": "number", "minimum": 0}
_WHOLE = {"type": "integer", "minimum": 0}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_METHOD = {"type": "string", "enum": ["attention", "ablation"]}


def reference(name: str) -> dict[str, str]:
    """A `$ref` to one of the schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def schemas() -> dict[str, Any]:
    """Name -> schema, for `components`."""
    return {**_lines(), **_parts(), **_own()}


def _object(needed: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = {**needed, **(optional or {})}
    return {"type": "object", "required": sorted(needed), "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _lines() -> dict[str, Any]:
    """What the commands print with `--json`."""
    common = {
        "image": {**_TEXT, "description": "The id, or the file name that came with the bytes"},
        "index": {"const": 0},
        "bundle": _object({"name": _TEXT, "version": _TEXT, "sha256": _TEXT}),
        "variant": _TEXT,
        "provider": _TEXT,
        "int8_path": {"type": "string", "enum": ["", "native", "u8u8"]},
        "timing_ms": reference("Timing"),
    }
    decided = {"status": {"type": "string", "enum": _STATUSES}, "reason": _TEXT}
    more = {"ood_score": {"type": "number"}, "prediction_set": reference("PredictionSet")}
    dicom = {"dicom": reference("Dicom")}
    clip = {"frames": reference("ClipFrames"), "images": reference("UsedImages")}
    return {
        "ClassifyLine": _object(
            {**common, "task": _TEXT, **decided, "findings": _list(reference("Finding"))},
            {**dicom, **clip, **more},
        ),
        "AskLine": _object(
            {**common, "answers": _list(reference("Answer"))}, {**dicom, "frames": clip["frames"]}
        ),
        "Answer": _object(
            {
                "question": _TEXT,
                "answer": _TEXT,
                "probability": _SHARE,
                "alternatives": _list(reference("Alternative")),
                **decided,
            },
            {**more, "images": clip["images"]},
        ),
        "ExplainLine": _object(
            {
                **common,
                "task": _TEXT,
                **decided,
                "target": _TEXT,
                "probability": _SHARE,
                "method": _METHOD,
                "proven": _FLAG,
                "unit": _TEXT,
                "image_size": _object({"width": _WHOLE, "height": _WHOLE}),
                "map": {"type": ["array", "null"], "items": _list({"type": "number"})},
                "peak": {"type": ["object", "null"], "properties": {"x": _SHARE, "y": _SHARE}},
            },
            {**dicom, "question": _TEXT},
        ),
    }


def _parts() -> dict[str, Any]:
    """What the lines are made of."""
    uid = {"type": ["string", "null"]}
    spacing = {"type": ["array", "null"], "items": {"type": "number"}}
    point = {"threshold": _NUMBER, "sensitivity": _SHARE, "specificity": _SHARE, "reached": _FLAG}
    return {
        "Timing": _object(dict.fromkeys(_STAGES, _NUMBER)),
        "Alternative": _object({"answer": _TEXT, "probability": _SHARE}),
        "Finding": _object(
            {"label": _TEXT, "probability": _SHARE, "positive": _FLAG},
            {"operating_point": _object({**point, "n_positive": _WHOLE, "n_negative": _WHOLE})},
        ),
        "PredictionSet": _object(
            {
                "coverage": _SHARE,
                "outputs": _list(_TEXT),
                "n": _WHOLE,
                "complete": _FLAG,
                "reason": _TEXT,
            },
            {"states": {"type": "object"}},
        ),
        "ClipFrames": _object({"numbers": _list(_WHOLE), "total": _WHOLE}),
        "UsedImages": _object(
            {
                "given": _WHOLE,
                "used": _WHOLE,
                "left_out": _list(_object({"index": _WHOLE, "status": _TEXT, "reason": _TEXT})),
            }
        ),
        "Dicom": _object(
            {
                "study_instance_uid": uid,
                "series_instance_uid": uid,
                "sop_instance_uid": uid,
                "frame": _WHOLE,
                "pixel_spacing_mm": spacing,
                "imager_pixel_spacing_mm": spacing,
            }
        ),
    }


def _own() -> dict[str, Any]:
    """What no command prints."""
    named = dict.fromkeys(("name", "kind", "unit", "unit_name"), _TEXT)
    reads = _object({**named, "categories": _list(_TEXT)})
    task = {
        "name": _TEXT,
        "kind": {"type": "string", "enum": ["classification", "vqa", "retrieval"]},
        "outputs": _list(_TEXT),
        "multi_label": _FLAG,
        "reads_text": _FLAG,
        "reads": _list(reads),
        "proven_maps": _list(_METHOD),
        "applies_to": {"type": "object", "additionalProperties": _list(_TEXT)},
    }
    stored = {
        "image_id": _TEXT,
        "expires_s": _NUMBER,
        "frames": _WHOLE,
        "frame": {"type": ["integer", "null"]},
        "timing_ms": reference("Timing"),
    }
    facts = {"name": _TEXT, "version": _TEXT, "sha256": _TEXT, "service": {"type": "object"}}
    error = _object({"type": _TEXT, "message": _TEXT}, {"frames": _WHOLE})
    return {
        "StoredImage": _object(stored, {"numbers": _list(_WHOLE)}),
        "Info": _object(facts),
        "Tasks": _object({"tasks": _list(_object(task)), "suggestions": _list(_TEXT)}),
        "State": _object({"status": _TEXT}),
        "Error": _object({"error": error}),
    }
