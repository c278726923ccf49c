"""What an export names in its graphs for explanations, and the proof that a bundle carries."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest

from support.bundles import TINY
from support.explainable import explainable_bundle, proof
from umd_edge import Predictor
from umd_edge._bundle import Bundle
from umd_edge._explain import proven_methods
from umd_edge._insides import ATTENTION, CELLS
from umd_edge._subgraph import extract
from umd_edge.errors import DataError, UsageError
from umd_edge_export.cli import run
from umd_edge_export.explanations import read_proof, write_explanations

TASK = "skin-lesion"


def _run(graph: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = {item.name for item in session.get_inputs()}
    return session.run(None, {name: value for name, value in feeds.items() if name in names})


def test_named_tensors_are_no_outputs(models):
    for part, name in (("vision", CELLS), ("fusion", ATTENTION)):
        graph = models[part].graph
        assert name in {output for node in graph.node for output in node.output}
        assert name not in {item.name for item in graph.output}


def test_attention_of_an_exported_graph_sums_to_one_over_the_image_tokens(graphs, parts):
    rng = np.random.default_rng(0)
    model = onnxruntime.InferenceSession(graphs["fusion"], providers=["CPUExecutionProvider"])
    shapes = {item.name: item.shape for item in model.get_inputs()}
    tokens, words, fields = (shapes[n] for n in ("image_tokens", "text_tokens", "structured_mask"))
    feeds = {
        "image_tokens": rng.normal(size=(2, *tokens[1:])).astype(np.float32),
        "text_tokens": rng.normal(size=(2, 5, words[2])).astype(np.float32),
        "attention_mask": np.ones((2, 5), np.int64),
        "structured_values": np.zeros((2, fields[1]), np.float32),
        "structured_mask": np.zeros((2, fields[1]), np.float32),
    }
    part, _ = extract(graphs["fusion"], {}, [ATTENTION])
    (found,) = _run(part, feeds)
    assert found.shape[0] == 2 and found.shape[2] == fields[1] + 5
    assert found.shape[3] in (tokens[1], tokens[1] - 1)  # a summary token takes no part
    np.testing.assert_allclose(found.sum(axis=3), 1.0, atol=1e-5)


def test_the_two_halves_of_an_exported_vision_graph_are_the_whole(graphs):
    session = onnxruntime.InferenceSession(graphs["vision"], providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    pixels = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    (cells,) = _run(extract(graphs["vision"], {}, [CELLS])[0], {"pixel_values": pixels})
    second, _ = extract(graphs["vision"], {CELLS: 4}, ["image_tokens"])
    blank = np.zeros_like(pixels)  # only the batch is read of them
    (tokens,) = _run(second, {CELLS: cells, "pixel_values": blank})
    np.testing.assert_array_equal(
        tokens, session.run(["image_tokens"], {"pixel_values": pixels})[0]
    )
    assert cells.shape[2] * cells.shape[3] <= tokens.shape[1]


@pytest.fixture
def proof_file(tmp_path):
    def write(value) -> object:
        path = tmp_path / "proof.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return write


def test_proof_changes_the_default_and_no_file(tmp_path, proof_file):
    source = explainable_bundle(tmp_path / "a.umd")
    path = proof_file({TASK: proof(attention=False, ablation=True)})
    written = write_explanations(source, path, tmp_path / "b.umd")
    assert proven_methods(written.manifest.extensions, TASK) == ["ablation"]
    before, after = Bundle.open(source).manifest, written.manifest
    assert before.files == after.files and before.tasks == after.tasks
    image = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    found = Predictor.load(tmp_path / "b.umd").encode(image).explain(task=TASK)
    assert (found.method, found.proven) == ("ablation", True)


def test_proof_of_maps_that_the_graphs_cannot_make_is_refused(tmp_path, proof_file):
    path = proof_file({TASK: proof(attention=False, ablation=True)})
    with pytest.raises(UsageError, match="name no tensor 'patch_cells'"):
        write_explanations(TINY, path, tmp_path / "b.umd")
    assert not (tmp_path / "b.umd").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "as JSON"),
        ({}, "an object of tasks"),
        ({"nothing": {}}, "names among"),
        ({TASK: {"magic": {}}}, "methods among"),
        ({TASK: {"attention": {"proven": True}}}, "exactly the keys"),
        ({TASK: {"attention": {**proof(a=True)["a"], "proven": 1}}}, "true or false"),
        ({TASK: {"attention": {**proof(a=True)["a"], "gain": "much"}}}, "must be numbers"),
        ({TASK: {"attention": {**proof(a=True)["a"], "low": -0.01}}}, "reaches down to -0.01"),
    ],
)
def test_proof_that_proves_nothing_is_refused(proof_file, value, words: str):
    with pytest.raises(DataError, match=words):
        read_proof(proof_file(value), Bundle.open(TINY).manifest)


def test_command_writes_the_bundle_in_place_and_lists_what_is_proven(tmp_path, proof_file, capsys):
    source = explainable_bundle(tmp_path / "a.umd")
    path = proof_file({TASK: proof(attention=True)})
    assert run(["explanations", str(source), "--proof", str(path), "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["proven"][TASK] == ["attention"] and line["proven"]["vqa"] == []
    assert Bundle.open(source).sha256 == line["sha256"]


def test_command_refuses_a_bad_proof_and_leaves_the_bundle(tmp_path, proof_file, capsys):
    source = explainable_bundle(tmp_path / "a.umd")
    before = source.read_bytes()
    assert run(["explanations", str(source), "--proof", str(proof_file("[]"))]) == 4
    assert "an object of tasks" in capsys.readouterr().err
    assert source.read_bytes() == before


@pytest.mark.parametrize("method", ["attention", "ablation"])
def test_exported_int8_bundle_can_be_explained(bundle, method: str):
    predictor = Predictor.load(bundle.path)
    task = next(item for item in predictor.tasks if item.kind == "classification")
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    found = predictor.encode(image).explain(task=task.name, method=method)
    assert predictor.variant == "int8" and np.isfinite(found.map).all()
    assert found.map.any() and found.proven is False
