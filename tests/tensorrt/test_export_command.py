from __future__ import annotations

import json

import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")

from support.bundles import tiny_files
from umd_edge_export.cli import run


def test_float_graphs_have_nothing_to_refuse(bundle_path, capsys):
    assert run(["tensorrt", str(bundle_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"] == [] and found["built"] == []
    assert sorted(found["graphs"]) == [
        f"graphs/{p}.fp32.onnx" for p in ("fusion", "text", "vision")
    ]


def test_variant_for_processors_is_refused_with_the_reasons(bundle_path, capsys):
    assert run(["tensorrt", str(bundle_path), "--variant", "int8", "--json"]) == 3
    shown = capsys.readouterr()
    rules = {item["rule"] for item in json.loads(shown.out)["findings"]}
    assert rules == {"zero-point"}
    assert "TensorRT would refuse" in shown.err


def test_single_graph_is_looked_at(tmp_path, capsys):
    path = tmp_path / "fusion.onnx"
    path.write_bytes(tiny_files()["graphs/fusion.fp32.onnx"])
    assert run(["tensorrt", str(path)]) == 3
    assert "fusion.onnx: dynamic-axis: image_tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["none.umd"], 3, "none.umd"),
        (["none.onnx"], 2, "cannot be read"),
        (["none.onnx", "--variant", "fp32"], 2, "--variant"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(tmp_path, monkeypatch, capsys, arguments, code, told):
    monkeypatch.chdir(tmp_path)
    assert run(["tensorrt", *arguments]) == code
    assert told in capsys.readouterr().err


def test_file_that_is_no_graph_is_refused(tmp_path, capsys):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"\xff" * 40)
    assert run(["tensorrt", str(path)]) == 3
    assert "no ONNX graph" in capsys.readouterr().err


def test_build_uses_the_library_that_is_there(bundle_path, fake_tensorrt, fake_driver, capsys):
    """The full TensorRT builds for its own GPU alone, and says so."""
    assert run(["tensorrt", str(bundle_path), "--build", "8.6"]) == 5
    assert "tensorrt-rtx" in capsys.readouterr().err
    assert run(["tensorrt", str(bundle_path), "--build", "ampere"]) == 2
