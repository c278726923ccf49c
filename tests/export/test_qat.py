"""Fake quantisation against the INT8 graph, and fine-tuning on its grids."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from support.training import write_recipe
from umd_edge.errors import UsageError
from umd_edge_export.errors import ExportError
from umd_edge_export.graphs import PARTS, export_graphs, graph_io
from umd_edge_export.qat import RangeData, quantisation_aware, quantised_layers
from umd_edge_export.qat_layers import (
    Grid,
    LayerGrids,
    attach_grids,
    fake_quantise,
    fake_quantise_weight,
    fold_stem,
    read_grids,
)
from umd_edge_export.quantize import QuantiseOptions, quantise_variant
from umd_edge_export.runner import GraphTrio
from umd_edge_export.targets import find_target
from umd_edge_train.checkpoint import CheckpointError, load_checkpoint, load_weights
from umd_edge_train.finetuning import finetune
from umd_edge_train.recipe import load_recipe

QUICK = settings(max_examples=25, deadline=None)
QUIET = ("run.evaluate_every_epochs=1000", "run.checkpoint_every_steps=1", "optim.epochs=1")
GRIDS = st.builds(
    lambda scale, zero, signed: Grid(
        float(np.float32(scale)), zero - 128 * signed, -128 * signed, 255 - 128 * signed
    ),
    st.floats(1e-4, 10.0),
    st.integers(0, 255),
    st.integers(0, 1),
)

# --- rounding -----------------------------------------------------


@QUICK
@given(GRIDS, st.integers(0, 2**32 - 1))
def test_values_are_rounded_as_onnx_says(grid: Grid, seed: int):
    x = np.random.default_rng(seed).normal(0, 60 * grid.scale, 50).astype(np.float32)
    # QuantizeLinear: saturate(round_half_to_even(x / scale) + zero), then back
    levels = np.rint(x / np.float32(grid.scale)) + grid.zero
    wanted = (np.clip(levels, grid.lowest, grid.highest) - grid.zero) * np.float32(grid.scale)
    np.testing.assert_array_equal(fake_quantise(torch.from_numpy(x), grid).numpy(), wanted)


@QUICK
@given(st.integers(0, 2**32 - 1), st.sampled_from([(3, 4), (2, 3, 3, 3)]))
def test_weights_have_a_scale_for_each_channel(seed: int, shape: tuple[int, ...]):
    weight = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    weight[0] = 0.0
    wanted = np.zeros_like(weight)
    for channel, row in enumerate(weight):
        scale = np.abs(row).max() / np.float32(127)
        if scale:
            wanted[channel] = np.rint(row / scale) * scale
    found = fake_quantise_weight(torch.from_numpy(weight)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_gradients_pass_within_the_grid_alone():
    grid = Grid(scale=0.5, zero=10, lowest=0, highest=255)
    x = torch.tensor([-100.0, -5.0, 0.3, 50.0, 122.5, 1000.0], requires_grad=True)
    (3.0 * fake_quantise(x, grid)).sum().backward()
    assert x.grad.tolist() == [0.0, 3.0, 3.0, 3.0, 3.0, 0.0]
    weight = torch.randn(4, 3, requires_grad=True)
    (fake_quantise_weight(weight) * 2.0).sum().backward()
    assert bool((weight.grad == 2.0).all())


# --- the model and its graph --------------------------------------


@pytest.fixture(scope="module")
def folded(checkpoint_dir, records):
    """A checkpoint whose stem is folded, and its quantised layers."""
    checkpoint = load_checkpoint(checkpoint_dir)
    return checkpoint, quantised_layers(checkpoint, RangeData((records,), 18))


@pytest.fixture(scope="module")
def quantised(folded, source):
    """The INT8 graphs of that checkpoint, exported as for a bundle."""
    checkpoint, _ = folded
    graphs = export_graphs(checkpoint, (sample.pixel_values for sample in source))
    bytes_ = {part: graphs[part].SerializeToString() for part in PARTS}
    reference = GraphTrio(bytes_, graph_io(checkpoint))
    made = quantise_variant(graphs, source, reference, find_target("cpu"), QuantiseOptions())
    return made.graphs


def _outputs(model, sample) -> dict[str, np.ndarray]:
    mask = torch.from_numpy(sample.attention_mask)
    with torch.no_grad():
        image, _ = model.encode_image(torch.from_numpy(sample.pixel_values))
        text, _ = model.encode_text(torch.from_numpy(sample.input_ids), mask)
        values = torch.from_numpy(sample.structured_values)
        given = model.fuse(image, text, mask, values, torch.from_numpy(sample.structured_mask))
    return {"image_tokens": image.numpy()} | {name: x.numpy() for name, x in given.items()}


def test_folding_the_stem_changes_no_output(checkpoint_dir, samples):
    before, after = load_checkpoint(checkpoint_dir).model, load_checkpoint(checkpoint_dir).model
    fold_stem(after, [sample.pixel_values for sample in samples])
    for sample in samples[:4]:
        a, b = _outputs(before, sample), _outputs(after, sample)
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-4)
    assert before.state_dict().keys() == after.state_dict().keys()
    after.train()
    assert not any(module.training for module in after.vision_encoder.stem.modules())


def test_folding_again_at_export_changes_nothing(folded, samples):
    """The grids of the training are those of the export, channel by channel."""
    checkpoint, _ = folded
    again = copy.deepcopy(checkpoint.model)
    fold_stem(again, [sample.pixel_values for sample in samples])
    before = dict(checkpoint.model.vision_encoder.stem.named_parameters())
    for name, parameter in again.vision_encoder.stem.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=2e-2, atol=1e-4)


def test_every_quantised_layer_of_the_graph_is_found(folded, quantised):
    checkpoint, layers = folded
    names = {layer.module for layer in layers}
    assert len(names) == len(layers)
    linear = {
        name
        for name, module in checkpoint.model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }
    assert names < linear
    assert any(name.startswith("vision_encoder.backbone.") for name in names)
    assert any(name.startswith("fusion.") for name in names)
    # what the export leaves in float
    assert not any(
        name.startswith(("text_encoder.", "task_heads.", "match_head")) for name in names
    )
    count = 0
    for graph in quantised.values():
        constants = {item.name for item in graph.graph.initializer}
        makers = {name: node for node in graph.graph.node for name in node.output}
        for node in graph.graph.node:
            if node.op_type in ("Conv", "MatMul", "Gemm"):
                weight = makers.get(node.input[1])
                count += weight is not None and weight.input[0] in constants
    # one layer of the graph may hold several of the model
    assert 0 < count <= len(layers)


def test_the_grids_are_those_of_the_graph(folded, quantised):
    _, layers = folded
    found = {
        (grid.scale, grid.zero)
        for layer in layers
        for grid in (layer.activation, layer.output)
        if grid is not None
    }
    stored = set()
    for graph in quantised.values():
        constants = {item.name: item for item in graph.graph.initializer}
        for node in graph.graph.node:
            if node.op_type == "QuantizeLinear":
                scale, zero = (numpy_helper.to_array(constants[n]) for n in node.input[1:])
                stored.add((float(scale), int(zero)))
    assert found <= stored


def test_the_rounded_model_agrees_with_the_graph_better_than_float_does(folded, quantised, samples):
    checkpoint, layers = folded
    rounded = copy.deepcopy(checkpoint.model)
    attach_grids(rounded, layers)
    bytes_ = {part: quantised[part].SerializeToString() for part in PARTS}
    graphs = GraphTrio(bytes_, graph_io(checkpoint))
    distance: dict[str, list[float]] = {"float": [], "rounded": []}
    for sample in samples:
        wanted = graphs.run(sample.inputs())
        for name, model in (("float", checkpoint.model), ("rounded", rounded)):
            for key, found in _outputs(model.eval(), sample).items():
                distance[name].append(float(np.abs(found - wanted[key]).mean()))
    assert np.mean(distance["rounded"]) < 0.25 * np.mean(distance["float"])


def test_attaching_changes_no_name_and_no_weight(folded):
    checkpoint, layers = folded
    rounded = copy.deepcopy(checkpoint.model)
    attach_grids(rounded, layers)
    given, kept = checkpoint.model.state_dict(), rounded.state_dict()
    assert given.keys() == kept.keys()
    assert all(torch.equal(given[name], kept[name]) for name in given)
    # and a copy of it computes with its own weights
    other = copy.deepcopy(rounded)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert rounded.match_head.weight.abs().sum() > 0


def test_a_graph_of_another_model_is_refused(folded, quantised):
    checkpoint, _ = folded
    other = copy.deepcopy(checkpoint.model)
    with torch.no_grad():
        other.fusion.image_projection.weight.add_(1.0)
    with pytest.raises(ExportError, match="no layer of the model"):
        read_grids(quantised["fusion"], other)


def test_a_graph_in_float_has_no_grids(models, checkpoint):
    assert read_grids(models["fusion"], checkpoint.model) == []
    assert read_grids(onnx.ModelProto(), checkpoint.model) == []


def test_a_layer_that_cannot_be_quantised_is_refused(folded):
    model = copy.deepcopy(folded[0].model)
    with pytest.raises(ExportError, match="text_encoder"):
        attach_grids(model, [LayerGrids("text_encoder", Grid(1.0, 0, 0, 255), None)])


# --- runs ---------------------------------------------------------


@pytest.fixture(scope="module")
def synth(tmp_path_factory) -> Path:
    from umd_edge_train.synth import synthesise

    folder = tmp_path_factory.mktemp("synth")
    synthesise(folder, images=40, size=32)
    return folder


@pytest.fixture(scope="module")
def trained(synth: Path, tmp_path_factory):
    """A recipe and the checkpoint that it made in float."""
    folder = tmp_path_factory.mktemp("float")
    recipe = load_recipe(write_recipe(folder, "shapes"), QUIET)
    finetune(recipe, synth, folder / "run")
    return recipe, folder / "run" / "final"


@pytest.fixture(scope="module")
def tuned(trained, synth: Path, tmp_path_factory) -> Path:
    recipe, init = trained
    out = tmp_path_factory.mktemp("qat") / "run"
    ranges = RangeData((synth / "shapes" / "train.jsonl",), 8)
    quantisation_aware(recipe, synth, out, init=init, ranges=ranges, teachers=[init])
    return out


def test_the_result_is_a_checkpoint_like_any_other(trained, tuned: Path):
    _, init = trained
    given, found = load_checkpoint(init), load_checkpoint(tuned / "final")
    assert given.model.state_dict().keys() == found.model.state_dict().keys()
    assert type(found.model.vision_encoder.stem).__name__ == "ConvStem"
    note = found.provenance["quantisation_aware"]
    assert note["target"] == "cpu"
    assert "fusion.image_projection" in note["layers"]
    assert found.provenance["recipe"]["optim"]["precision"] == "float32"
    assert found.provenance["data"]["teacher 1"]["train_records"] > 0
    names = json.loads((tuned / "history.jsonl").read_text().splitlines()[0])["losses"]
    assert {"shapes_loss", "shapes_soft_loss"} <= names.keys()


def test_tuning_stays_near_where_it_started(trained, tuned: Path):
    """Folding apart, a short run at a low rate moves the weights a little, and not at all none."""
    before, after = load_weights(trained[1]), load_weights(tuned / "final")
    name = "fusion.image_projection.weight"
    moved = (before[name] - after[name]).abs()
    assert 0.0 < float(moved.max()) < 0.5


@pytest.mark.slow
def test_a_resumed_tuning_is_the_one_that_was_never_stopped(
    trained, tuned: Path, synth: Path, tmp_path: Path
):
    recipe, init = trained
    ranges = RangeData((synth / "shapes" / "train.jsonl",), 8)
    given = {"init": init, "ranges": ranges, "teachers": [init]}

    def stop(step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantisation_aware(recipe, synth, tmp_path / "run", **given, on_step=stop)
    quantisation_aware(recipe, synth, tmp_path / "run", **given, resume=True)
    a, b = load_weights(tuned / "final"), load_weights(tmp_path / "run" / "final")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_ranges_taken_at_run_time_cannot_be_trained_with(trained, synth: Path, tmp_path: Path):
    recipe, init = trained
    ranges = RangeData((synth / "shapes" / "train.jsonl",), 8, "dynamic")
    with pytest.raises(UsageError, match="run time"):
        quantisation_aware(recipe, synth, tmp_path / "run", init=init, ranges=ranges)


def test_a_checkpoint_of_other_tasks_is_refused(trained, synth: Path, tmp_path: Path):
    recipe = load_recipe(write_recipe(tmp_path, "values"), QUIET)
    ranges = RangeData((synth / "values" / "train.jsonl",), 8)
    with pytest.raises(CheckpointError, match="other tasks"):
        quantisation_aware(recipe, synth, tmp_path / "run", init=trained[1], ranges=ranges)
