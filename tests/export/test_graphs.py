from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from umd_edge_export.errors import ExportError, ParityError
from umd_edge_export.graphs import OPSET, PARTS, export_graphs
from umd_edge_export.parity import check_parity, measure_parity, torch_outputs
from umd_edge_export.rewrite import prepare_model, stable_mean
from umd_edge_export.runner import GraphTrio, largest_difference


def test_names_opset_and_dynamic_axes(models, parts):
    for part in PARTS:
        graph = models[part].graph
        assert [item.name for item in graph.input] == list(parts[part].inputs)
        assert [item.name for item in graph.output] == list(parts[part].outputs)
        assert [(item.domain, item.version) for item in models[part].opset_import] == [("", OPSET)]
        for item in graph.input:
            for axis, name in parts[part].inputs[item.name].items():
                assert item.type.tensor_type.shape.dim[axis].dim_param == name
    assert list(parts["fusion"].outputs) == [
        "logits_vqa",
        "logits_chest_xray",
        "logits_skin_lesion",
        "match_logit",
    ]


def test_batch_normalisation_is_folded(models, checkpoint):
    assert not any(node.op_type == "BatchNormalization" for node in models["vision"].graph.node)
    assert any(isinstance(item, nn.BatchNorm2d) for item in checkpoint.model.modules())


def test_batch_normalisation_without_a_convolution_is_refused(checkpoint):
    model = copy.deepcopy(checkpoint.model)
    model.extra = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4))
    with pytest.raises(ExportError, match="follows no convolution"):
        prepare_model(model)


def test_graphs_hold_no_trace_of_the_machine(graphs):
    for data in graphs.values():
        for needle in (b"site-packages", b".py", b"umd_edge_train", b"stack_trace"):
            assert needle not in data


def test_same_checkpoint_gives_the_same_bytes_and_no_output(checkpoint, graphs, capfd):
    again = export_graphs(checkpoint)
    assert {p: again[p].SerializeToString(deterministic=True) for p in PARTS} == graphs
    assert capfd.readouterr().out == ""


def test_another_weight_gives_other_bytes(checkpoint, graphs, monkeypatch):
    monkeypatch.setattr("umd_edge_export.graphs.PARTS", ("fusion",))
    changed = copy.deepcopy(checkpoint)
    with torch.no_grad():
        changed.model.match_head.bias += 1.0
    fusion = export_graphs(changed)["fusion"]
    assert fusion.SerializeToString(deterministic=True) != graphs["fusion"]


def test_a_weight_that_is_not_finite_is_refused(checkpoint):
    broken = copy.deepcopy(checkpoint)
    with torch.no_grad():
        broken.model.match_head.weight[0, 3] = float("nan")
    with pytest.raises(ExportError, match=r"match_head\.weight"):
        export_graphs(broken)


def test_parity_on_several_batches_and_lengths(checkpoint, graphs, parts, samples, source):
    report = measure_parity(checkpoint, GraphTrio(graphs, parts), samples, source.tokenizer.pad_id)
    check_parity(report)
    assert 0 < max(report.differences.values()) <= 1e-5
    assert {1, 2, 3, 8} <= {batch for batch, _ in report.settings}
    assert checkpoint.max_length in {length for _, length in report.settings}
    assert len({length for _, length in report.settings}) >= 3


@pytest.mark.parametrize("part", PARTS)
def test_one_changed_weight_fails_parity(part, checkpoint, models, parts, samples):
    changed = copy.deepcopy(models)
    for tensor in changed[part].graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.ndim == 2 and value.size > 100:
            value = value.copy()
            value[2, 0] += 0.5  # of an embedding: the class token's
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
            break
    trio = GraphTrio({p: changed[p].SerializeToString() for p in PARTS}, parts)
    report = measure_parity(checkpoint, trio, samples[:3], 0)
    with pytest.raises(ParityError, match=r"at most 0\.0001") as raised:
        check_parity(report)
    assert raised.value.exit_code == 3


def test_one_changed_input_fails_parity(checkpoint, graphs, parts, samples):
    inputs = samples[0].inputs()
    wanted = torch_outputs(checkpoint, inputs)
    inputs["pixel_values"] = inputs["pixel_values"].copy()
    inputs["pixel_values"][0, 1, 7, 9] += 2.0
    given = GraphTrio(graphs, parts).run(inputs)
    assert largest_difference(given["image_tokens"], wanted["image_tokens"]) > 1e-4


def test_a_result_that_is_not_a_number_fails_parity(checkpoint, models, parts, samples):
    changed = copy.deepcopy(models)
    bias = next(
        t for t in changed["fusion"].graph.initializer if t.name.endswith("match_head.bias")
    )
    bias.CopyFrom(numpy_helper.from_array(np.array([np.nan], np.float32), bias.name))
    trio = GraphTrio({p: changed[p].SerializeToString() for p in PARTS}, parts)
    with pytest.raises(ParityError, match="match_logit"):
        check_parity(measure_parity(checkpoint, trio, samples[:2], 0))


@pytest.mark.parametrize("masked", [False, True])
def test_stable_mean_is_the_mean(masked):
    tokens = torch.randn(3, 7, 5)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1] * 7, [1, 0, 0, 0, 0, 0, 0]]).float()
    wanted = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    if not masked:
        mask, wanted = None, tokens.mean(1)
    torch.testing.assert_close(stable_mean(tokens, mask), wanted)


@pytest.mark.slow
def test_published_encoder_families_export(tmp_path):
    """CLIP and RoBERTa towers, as of the preset `base`, in small."""
    from support.export_fixtures import SIZES, make_checkpoint
    from umd_edge_export.graphs import graph_io
    from umd_edge_train.checkpoint import load_checkpoint

    vision = {**SIZES["vision"], "architecture": "clip", "stem": "patch"}
    text = {**SIZES["text"], "architecture": "roberta"}
    fusion = {**SIZES["fusion"], "pooling": "first"}
    folder = make_checkpoint(tmp_path / "c", vision=vision, text=text, fusion=fusion)
    checkpoint = load_checkpoint(folder)
    models = export_graphs(checkpoint)
    trio = GraphTrio({p: models[p].SerializeToString() for p in PARTS}, graph_io(checkpoint))
    rng = np.random.default_rng(0)
    inputs = {
        "pixel_values": rng.normal(size=(2, 3, 32, 32)).astype(np.float32),
        "input_ids": np.array([[2, 30, 31, 3], [2, 40, 3, 1]]),
        "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "structured_values": np.zeros((2, 3), np.float32),
        "structured_mask": np.ones((2, 3), np.float32),
    }
    given, wanted = trio.run(inputs), torch_outputs(checkpoint, inputs)
    for name in ("image_embedding", "text_embedding", "logits_vqa"):
        assert largest_difference(given[name], wanted[name]) <= 1e-4
    onnx.checker.check_model(models["vision"])
