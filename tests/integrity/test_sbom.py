from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from support.command import run, run_json
from umd_edge import Bundle, MissingDependencyError
from umd_edge._distributions import Distribution, closure
from umd_edge._sbom import _licences, _supplier, make_sbom


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The bill of materials of this installation with the tiny bundle."""
    tiny = Path(__file__).resolve().parent.parent / "data" / "tiny.umd"
    made, _ = make_sbom(Bundle.open(tiny))
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(made.decode())
    assert problem is None, problem
    loaded: dict[str, Any] = json.loads(made)
    return loaded


def _install(folder: Path, name: str, needs: list[str], files: dict[str, bytes]) -> None:
    """A distribution of such files in a folder on the path, as pip leaves it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense-Expression: MIT"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    (info / "METADATA").write_text("\n".join(lines) + "\n\n")
    rows = []
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(data)}")
    (info / "RECORD").write_text("\n".join([*rows, f"{info.name}/RECORD,,"]) + "\n")


def test_base_runtime_is_named_with_version_supplier_and_identifier(document: dict[str, Any]):
    components = {item["name"].lower(): item for item in document["components"]}
    for name in ("numpy", "onnxruntime", "tokenizers", "pillow", "click"):
        found = components[name]
        assert found["version"] == importlib.metadata.version(name)
        assert found["purl"] == f"pkg:pypi/{name}@{found['version']}"
        assert found["supplier"]["name"] and found["licenses"]
    assert not {"torch", "transformers", "onnx", "pytest"} & set(components)


def test_every_dependency_is_a_component_and_leads_back_to_the_root(document: dict[str, Any]):
    root = document["metadata"]["component"]["bom-ref"]
    graph = {item["ref"]: item.get("dependsOn", []) for item in document["dependencies"]}
    named = {item["bom-ref"] for item in document["components"]} | {root}
    reached, waiting = set(), [root]
    while waiting:
        here = waiting.pop()
        if here not in reached:
            reached.add(here)
            waiting += graph[here]
    assert reached == named


def test_native_libraries_have_the_hash_of_the_file_on_the_disk(document: dict[str, Any]):
    (runtime,) = (item for item in document["components"] if item["name"] == "onnxruntime")
    assert runtime["components"]
    for item in runtime["components"]:
        path = Path(importlib.metadata.distribution("onnxruntime").locate_file(item["name"]))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert item["hashes"] == [{"alg": "SHA-256", "content": digest}]


def test_bundle_is_a_model_with_the_hashes_of_its_files(document: dict[str, Any], tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    (model,) = (item for item in document["components"] if item["type"] == "machine-learning-model")
    assert (model["name"], model["hashes"][0]["content"]) == ("tiny-test", bundle.sha256)
    assert {item["name"]: item["hashes"][0]["content"] for item in model["components"]} == {
        name: entry.sha256 for name, entry in bundle.manifest.files.items()
    }


def test_schema_notices_what_is_wrong(document: dict[str, Any]):
    wrong = {**document, "components": [{"name": "x", "type": "nonsense"}]}
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(json.dumps(wrong)) is not None


def test_closure_follows_markers_and_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _install(
        tmp_path,
        "umd_edge",
        [
            "Base_One>=1",
            "elsewhere; sys_platform == 'nowhere'",
            "Base.Two[Fast]; python_version >= '3'",
            "more; extra == 'dicom'",
        ],
        {},
    )
    _install(tmp_path, "base_one", ["base-two"], {})
    _install(tmp_path, "base_two", ["quick; extra == 'fast'", "slow; extra == 'other'"], {})
    _install(tmp_path, "quick", ["umd-edge"], {})
    _install(tmp_path, "more", [], {})
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = closure()
    assert set(found) == {"umd-edge", "base-one", "base-two", "quick"}
    assert found["base-two"].needs == ["quick"]
    assert set(closure(["dicom"])) == {*found, "more"}
    with pytest.raises(MissingDependencyError, match="slow, which base-two needs"):
        _install(tmp_path / "b", "umd_edge", ["base-two[other]"], {})
        monkeypatch.setattr(sys, "path", [str(tmp_path / "b"), *sys.path])
        closure()


def test_changed_and_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {"thing/a.py": b"a", "thing/b.so": b"b", "thing/c.py": b"c"}
    _install(tmp_path, "umd_edge", ["thing"], {})
    _install(tmp_path, "thing", [], files)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert make_sbom(extras=())[1] == ()
    (tmp_path / "thing" / "b.so").write_bytes(b"evil")
    (tmp_path / "thing" / "c.py").unlink()
    document, changed = make_sbom(extras=())
    assert changed == ("thing: thing/b.so", "thing: thing/c.py")
    (thing,) = (item for item in json.loads(document)["components"] if item["name"] == "thing")
    assert {"name": "umd-edge:files", "value": "1 of 3 as recorded"} in thing["properties"]


@pytest.mark.parametrize(
    ("lines", "licences", "supplier"),
    [
        ("License-Expression: MIT\nLicense: long text", ["MIT"], "not stated"),
        ("Classifier: License :: OSI Approved :: MIT License", ["MIT License"], "not stated"),
        ("License: BSD\n", ["BSD"], "not stated"),
        ("Author: A  B", [], "A B"),
        ('Author-email: "A, Inc" <a@b.c>', [], "A"),
        ("Maintainer-email: A B <a@b.c>, C <c@d.e>", [], "A B"),
    ],
)
def test_licence_and_supplier_are_read_from_any_metadata(
    lines: str, licences: list[str], supplier: str, tmp_path: Path
):
    info = tmp_path / "x-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: x\nVersion: 1\n{lines}\n\n")
    metadata = importlib.metadata.PathDistribution(info)
    assert _licences(metadata.metadata) == licences
    assert _supplier(metadata.metadata) == supplier
    assert Distribution(metadata).name == "x"


def test_command_writes_the_file(tiny_bundle: Path, tmp_path: Path):
    out = tmp_path / "sbom.json"
    (found,) = run_json("sbom", "--out", out, "--bundle", tiny_bundle, "--no-extras")
    assert len(json.loads(out.read_bytes())["components"]) == found["components"] > 5
    assert run("sbom", "--out", out, "--extra", "train").code == 2
    assert run("sbom", "--out", out, "--extra", "dicom", "--no-extras").code == 2
    assert run("sbom", "--out", tmp_path / "none" / "x", "--no-extras").code == 2


@pytest.mark.parametrize("module", ["cyclonedx.model.bom", "packaging.requirements"])
def test_missing_library_is_told_with_its_extra(module: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"umd-edge\[sbom\]"):
        make_sbom()
