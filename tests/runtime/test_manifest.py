from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

import umd_edge
from support.bundles import tiny_files, tiny_manifest
from umd_edge import BundleVersionError, Manifest, ManifestError
from umd_edge._json import dump_canonical

SCHEMA = Path(umd_edge.__file__).parent / "manifest.schema.json"


def _edited(path: str, value) -> dict:
    """The tiny manifest with one value replaced; a value of `...` removes the key."""
    document = tiny_manifest()
    target, *_ = [document]
    *parents, last = path.split("/")
    for part in parents:
        target = target[int(part) if isinstance(target, list) else part]
    key = int(last) if isinstance(target, list) else last
    if value is ...:
        del target[key]
    else:
        target[key] = value
    return document


def test_manifest_bytes_round_trip():
    data = tiny_files()["manifest.json"]
    assert Manifest.from_bytes(data).to_bytes() == data


def test_manifest_is_sorted_and_ends_with_a_newline():
    data = tiny_files()["manifest.json"]
    document = json.loads(data)
    assert list(document) == sorted(document)
    assert data.endswith(b"}\n")


def test_extensions_may_hold_anything():
    manifest = Manifest.from_dict(_edited("extensions", {"vendor": {"deep": [1, None]}}))
    assert manifest.extensions == {"vendor": {"deep": [1, None]}}


def test_task_is_found_by_name_or_not_at_all():
    manifest = Manifest.from_dict(tiny_manifest())
    assert manifest.task("vqa") == manifest.tasks[0]
    assert manifest.task("nothing") is None


WRONG = [
    ("surplus", 1, "unknown keys ['surplus']"),
    ("name", ..., "missing keys ['name']"),
    ("name", "", "name"),
    ("name", "../x", "name"),
    ("version", "1", "version"),
    ("created", "yesterday", "created"),
    ("created", 5, "created"),
    ("intended_use/not_a_medical_device", False, "not_a_medical_device"),
    ("intended_use/statement", " ", "statement"),
    ("intended_use/surplus", 1, "intended_use"),
    ("intended_use/users", "all", "intended_use.users"),
    ("preprocessing/height", 0, "preprocessing"),
    ("preprocessing/surplus", 0, "preprocessing"),
    ("preprocessing/std", [0, 1, 1], "preprocessing"),
    ("tokenizer/file", "../tokenizer.json", "tokenizer.file"),
    ("tokenizer/file", "/etc/passwd", "tokenizer.file"),
    ("tokenizer/max_length", True, "tokenizer.max_length"),
    ("structured_fields", [], "structured_fields"),
    ("structured_fields", {}, "structured_fields"),
    ("structured_fields/0/kind", "text", "structured.itch"),
    ("structured_fields/1/name", "structured.itch", "names must differ"),
    ("tasks", [], "tasks"),
    ("tasks/0/kind", "segmentation", "tasks[0]"),
    ("tasks/0/surplus", 1, "tasks[0]"),
    ("tasks/1/prompt", "", "chest-xray"),
    ("tasks/1/name", "vqa", "names must differ"),
    ("tasks/3/reads", ["structured.unheard"], "structured.unheard"),
    ("tasks/2/thresholds", {"guess": 0.5}, "guess"),
    ("tasks/1/thresholds", {"abstian": 0.5}, "abstian"),
    ("variants/int8/graphs/vision", "graphs\\vision.onnx", "variants.int8.graphs.vision"),
    ("variants/int8/graphs/vision", "graphs/absent.onnx", "not listed but used"),
    ("variants/int8/graphs/text", ..., "variants.int8.graphs"),
    ("variants/int8/golden_tolerance", -1, "golden_tolerance"),
    ("variants/int8/golden_tolerance", True, "golden_tolerance"),
    ("default_variant", "int4", "default_variant"),
    ("opset", 23, "opset"),
    ("opset", "20", "opset"),
    ("golden/file", "CON", "golden.file"),
    ("files/golden.npz/sha256", "AB", "sha256"),
    ("files/golden.npz/size", -1, "size"),
    ("files", [], "files"),
    ("requires", "all", "requires"),
    ("requires", [["nested"]], "requires"),
    ("requires", [1], "requires"),
    ("provenance", [], "provenance"),
]


@pytest.mark.parametrize(("path", "value", "told"), WRONG)
def test_wrong_value_is_refused_with_its_place(path: str, value, told: str):
    with pytest.raises(ManifestError) as caught:
        Manifest.from_dict(_edited(path, value))
    assert told in str(caught.value)


def test_paths_that_differ_in_case_only_are_refused():
    document = tiny_manifest()
    document["files"]["Golden.npz"] = document["files"]["golden.npz"]
    with pytest.raises(ManifestError, match="upper and lower case"):
        Manifest.from_dict(document)


def test_manifest_may_not_list_itself():
    document = tiny_manifest()
    document["files"]["Manifest.json"] = document["files"]["golden.npz"]
    with pytest.raises(ManifestError, match="not listed"):
        Manifest.from_dict(document)


@pytest.mark.parametrize("version", [2, 99])
def test_other_format_version_is_refused_before_unknown_keys(version: int):
    document = {"format_version": version, "something": "new"}
    with pytest.raises(BundleVersionError, match=f"reads format version {version}"):
        Manifest.from_dict(document)


@pytest.mark.parametrize("version", [0, True, "1", None, 1.0])
def test_format_version_of_a_wrong_type_is_refused(version):
    with pytest.raises(ManifestError, match="format_version"):
        Manifest.from_dict(_edited("format_version", version))


def test_unknown_requirement_is_refused_with_its_name():
    with pytest.raises(BundleVersionError, match="time-travel"):
        Manifest.from_dict(_edited("requires", ["time-travel"]))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"not json", b"\xff\xfe"])
def test_bytes_that_are_no_manifest_are_refused(data: bytes):
    with pytest.raises(ManifestError):
        Manifest.from_bytes(data)


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_schema_accepts_the_tiny_manifest(validator):
    validator.validate(tiny_manifest())


# What needs a comparison of two places is beyond a schema.
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (path, value)
        for path, value, told in WRONG
        if told not in ("names must differ", "not listed but used", "structured.unheard")
        and (path, value) not in (("default_variant", "int4"),)
        and path != "tasks/1/thresholds"
    ],
)
def test_schema_refuses_what_the_reader_refuses(validator, path: str, value):
    assert not validator.is_valid(_edited(path, value))


def test_schema_names_the_keys_that_the_reader_writes(validator):
    assert set(validator.schema["properties"]) == set(tiny_manifest())


def test_canonical_json_refuses_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_canonical({"x": float("nan")})


def test_reading_does_not_change_what_was_given():
    document = tiny_manifest()
    before = copy.deepcopy(document)
    Manifest.from_dict(document).to_dict()["tasks"].clear()
    assert document == before
