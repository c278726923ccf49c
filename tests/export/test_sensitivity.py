"""Noise, expected changes, the ranking and the search, against simulations and full searches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from support.small_graphs import make_graph
from umd_edge._task import TaskSpec
from umd_edge.errors import DataError
from umd_edge_export.drift import changed_decisions, decision_margins
from umd_edge_export.quantize_layers import Layer, find_layers
from umd_edge_export.quantize_pairs import write_pairs
from umd_edge_export.sensitivity import LayerNoise, NoiseBench, measure_layers
from umd_edge_export.sensitivity_map import draw_layers
from umd_edge_export.sensitivity_search import BudgetBench, choose_float, rank_layers
from umd_edge_export.targets import find_target

ORGAN = TaskSpec(name="organ", kind="classification", outputs=("a", "b", "c"), prompt="organ")
SIGNS = TaskSpec(
    name="signs",
    kind="classification",
    outputs=("x", "y"),
    multi_label=True,
    prompt="signs",
    probability_kind="sigmoid",
    temperature=2.0,
    operating_points={"x": 0.3},
)
WIDTH = 6


@dataclass
class StandIn:
    """A record's inputs, as `Sample` has them."""

    task: TaskSpec
    pixels: np.ndarray

    def inputs(self) -> dict[str, np.ndarray]:
        words = np.ones((1, 3), dtype=np.int64)
        return {"pixel_values": self.pixels, "input_ids": words, "attention_mask": words}


def _graphs() -> dict[str, onnx.ModelProto]:
    """Three graphs with the names of the format, of which only the picture matters."""
    rng = np.random.default_rng(3)
    weight = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (
            ("v.weight", (WIDTH, WIDTH)),
            ("organ.weight", (WIDTH, 3)),
            ("signs.weight", (WIDTH, 2)),
        )
    }
    vision = make_graph(
        [
            helper.make_node("MatMul", ["pixel_values", "v.weight"], ["image_tokens"], "v"),
            helper.make_node("Neg", ["image_tokens"], ["image_embedding"], "turn"),
        ],
        {"pixel_values": [1, WIDTH]},
        {"image_tokens": [1, WIDTH], "image_embedding": [1, WIDTH]},
        {"v.weight": weight["v.weight"]},
    )
    text = make_graph(
        [
            helper.make_node("Cast", ["input_ids"], ["text_tokens"], "cast", to=1),
            helper.make_node("Cast", ["attention_mask"], ["text_embedding"], "cast2", to=1),
        ],
        {"input_ids": [1, 3], "attention_mask": [1, 3]},
        {"text_tokens": [1, 3], "text_embedding": [1, 3]},
        {},
        ["input_ids", "attention_mask"],
    )
    products = [
        helper.make_node(
            "MatMul", ["image_tokens", f"{name}.weight"], [f"logits_{name}"], f"{name}_head"
        )
        for name in ("organ", "signs")
    ]
    fusion = make_graph(
        [
            *products,
            helper.make_node("ReduceSum", ["image_tokens"], ["all"], "sum", keepdims=0),
            helper.make_node("Unsqueeze", ["all", "zero"], ["match_logit"], "match"),
        ],
        {"image_tokens": [1, WIDTH]},
        {"logits_organ": [1, 3], "logits_signs": [1, 2], "match_logit": [1]},
        {
            "organ.weight": weight["organ.weight"],
            "signs.weight": weight["signs.weight"],
            "zero": np.zeros(1, dtype=np.int64),
        },
    )
    return {"vision": vision, "text": text, "fusion": fusion}


def _samples(count: int = 24) -> list[StandIn]:
    rng = np.random.default_rng(4)
    return [
        StandIn(ORGAN if index % 2 else SIGNS, rng.normal(size=(1, WIDTH)).astype(np.float32))
        for index in range(count)
    ]


def _scaled(graph: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    for item in changed.graph.initializer:
        if item.name == name:
            value = (numpy_helper.to_array(item) * factor).astype(np.float32)
            item.CopyFrom(numpy_helper.from_array(value, name))
    return changed


@pytest.fixture(scope="module")
def bench() -> NoiseBench:
    return NoiseBench(_graphs(), _samples())


def test_noise_of_the_same_graph_is_zero_and_of_another_is_its_energy(bench):
    graphs = _graphs()
    assert set(bench.measure("fusion", graphs["fusion"]).values()) == {0.0}
    noise = bench.measure("fusion", _scaled(graphs["fusion"], "organ.weight", 1.1))
    logits = np.concatenate(
        [
            item.pixels
            @ numpy_helper.to_array(graphs["vision"].graph.initializer[0])
            @ numpy_helper.to_array(graphs["fusion"].graph.initializer[0])
            for item in _samples()
            if item.task is ORGAN
        ]
    )
    wanted = (0.1 * logits) ** 2
    spread = (logits - logits.mean(axis=0)) ** 2
    assert noise["organ"] == pytest.approx(wanted.sum() / spread.sum(), rel=1e-3)
    assert noise["signs"] == 0.0


def test_noise_of_all_parts_is_that_of_the_one_that_changed(bench):
    graphs = _graphs()
    changed = {**graphs, "vision": _scaled(graphs["vision"], "v.weight", 0.9)}
    alone = bench.measure("vision", changed["vision"])
    assert bench.measure_all(changed) == pytest.approx(alone)
    assert min(alone["organ"], alone["signs"], alone["image_embedding"]) > 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([ORGAN, SIGNS]))
def test_margins_say_how_often_noise_changes_a_decision(seed, task):
    rng = np.random.default_rng(seed)
    count = 3 if task is ORGAN else 2
    logits = rng.normal(size=count).astype(np.float32)
    if task is ORGAN:
        logits[2] = -50.0  # only two are near: the margin is exact then
    from umd_edge._postprocess import probabilities

    before = probabilities(logits, task)
    noisy = logits + rng.normal(0, 0.7, (4000, count)).astype(np.float32)
    seen = np.mean([changed_decisions(task, before, probabilities(row, task)) for row in noisy])
    margins = decision_margins(task, logits)
    # Phi(-m / s) by its own simulation, so that no formula is shared
    wanted = np.mean(rng.normal(0, 0.7, (20_000, 1)) > margins)
    assert seen == pytest.approx(wanted, abs=0.04)


def test_a_decision_among_one_output_never_changes():
    single = TaskSpec(name="one", kind="classification", outputs=("a",), prompt="p")
    assert decision_margins(single, np.array([0.1], dtype=np.float32)).tolist() == [np.inf]


def test_expected_changes_grow_with_the_noise(bench):
    shares = [bench.expected_changes("organ", noise) for noise in (0.0, 1e-6, 1e-3, 1.0, 1e6)]
    assert shares[0] == 0.0 and shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.5, abs=0.01)


def test_each_layer_is_measured_alone(bench):
    graphs = _graphs()
    layers = find_layers("fusion", graphs["fusion"])
    assert [layer.label for layer in layers] == ["organ", "signs"]
    ranges = {"image_tokens": (-12.0, 12.0)}

    def write(part, some):
        return write_pairs(graphs[part], some, ranges, find_target("cpu"))

    found = measure_layers(layers, write, bench)
    for item, own, other in zip(found, ("organ", "signs"), ("signs", "organ"), strict=True):
        assert item.noise[own] > 0 == item.noise[other]


def _noise(name: str, weights: int, **noise: float) -> LayerNoise:
    layer = Layer(
        part="fusion",
        node=name,
        label=name,
        operator="MatMul",
        activation="x",
        weight="w",
        shape=(weights,),
        axis=0,
        bias="",
        output="y",
    )
    return LayerNoise(layer=layer, noise=noise)


def test_layers_are_ranked_by_the_changes_that_they_answer_for_per_work_saved():
    noises = [
        _noise("dear", 100, a=4e-4, b=0.0),
        _noise("cheap", 10, a=1e-4, b=0.0),
        _noise("harmless", 50, a=0.0, b=0.0),
        _noise("near", 100, a=0.0, b=1e-6),
    ]
    work = {"dear": 1000, "cheap": 100, "harmless": 500, "near": 1000}

    def changes(task: str, noise: float) -> float:
        return {"a": 10.0, "b": 1e5}[task] * noise  # b is decided by a hair

    ranked = rank_layers(noises, lambda layer: work[layer.node], changes, ["a", "b"])
    assert [item.layer.node for item in ranked] == ["near", "cheap", "dear", "harmless"]
    only_a = rank_layers(noises, lambda layer: work[layer.node], changes, ["a"])
    assert [item.layer.node for item in only_a][:2] == ["cheap", "dear"]


def _loss(points: float, changed: float = 0.0):
    return SimpleNamespace(worst=lambda: points, changed=lambda: changed)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.data())
def test_the_search_finds_the_fewest_layers(total, data):
    enough = data.draw(st.integers(0, total))
    ranked = [_noise(str(index), 1) for index in range(total)]
    asked = []

    def measure(layers):
        asked.append(len(layers))
        assert [layer.node for layer in layers] == [str(index) for index in range(len(layers))]
        return _loss(0.4 if len(layers) >= enough else 0.6)

    choice = choose_float(ranked, measure, budget=0.5, max_changed=None)
    assert len(choice.float_layers) == enough
    assert (choice.loss is None) == (enough == total)
    assert len(asked) == len(set(asked)) == len(choice.steps) <= 14
    assert total not in asked  # float32 needs no measuring


def test_changed_decisions_have_a_budget_of_their_own():
    ranked = [_noise(str(index), 1) for index in range(8)]

    def measure(layers):
        return _loss(-1.0, changed=2.0 - 0.25 * len(layers))

    strict = choose_float(ranked, measure, budget=0.5, max_changed=1.0)
    free = choose_float(ranked, measure, budget=0.5, max_changed=None)
    assert (len(strict.float_layers), len(free.float_layers)) == (4, 0)


class _Labelled:
    """A source of records with targets."""

    def __init__(self, targets: list[np.ndarray | None]) -> None:
        self.samples = _samples(len(targets))
        self.chosen = tuple(
            SimpleNamespace(
                task=sample.task,
                example=SimpleNamespace(
                    target=target,
                    reference=None,
                    group=f"p{index // 2}",
                    image_path=Path(f"{index}.png"),
                    where="data.jsonl:1",
                ),
            )
            for index, (sample, target) in enumerate(zip(self.samples, targets, strict=True))
        )

    def __iter__(self):
        return iter(self.samples)


def _decided() -> _Labelled:
    """Targets that the float32 graphs all get right."""
    rng = _samples(20)
    graphs = _graphs()
    vision = numpy_helper.to_array(graphs["vision"].graph.initializer[0])
    constants = {x.name: numpy_helper.to_array(x) for x in graphs["fusion"].graph.initializer}
    targets: list[np.ndarray | None] = []
    for item in rng:
        tokens = item.pixels @ vision
        if item.task is ORGAN:
            targets.append(np.eye(3)[int((tokens @ constants["organ.weight"])[0].argmax())])
        else:
            logits = (tokens @ constants["signs.weight"])[0] / 2.0
            targets.append((logits >= [np.log(0.3 / 0.7), 0.0]).astype(np.float64))
    return _Labelled(targets)


def test_loss_of_the_same_graphs_is_none_and_of_reversed_ones_is_all():
    graphs = _graphs()
    labelled = BudgetBench(graphs, _decided())
    same = labelled.measure(graphs)
    assert same.worst() == 0.0 and same.changed() == 0.0
    assert same.pooled.accuracy_a == 1.0 and set(same.tasks) == {"organ", "signs"}
    reversed_ = {**graphs, "fusion": _scaled(graphs["fusion"], "organ.weight", -1.0)}
    lost = labelled.measure(reversed_)
    assert lost.tasks["organ"].difference == -1.0 and lost.tasks["signs"].difference == 0.0
    assert lost.worst() == 100.0 and lost.changed() == pytest.approx(50.0)
    json.dumps(lost.to_dict())


def test_records_without_a_known_target_do_not_count():
    source = _decided()
    source.chosen[0].example.target = np.full(2, np.nan)
    assert BudgetBench(_graphs(), source).measure(_graphs()).pooled.n == 19


def test_budget_data_without_any_target_are_refused():
    source = _decided()
    for item in source.chosen:
        item.example.target = np.full(len(item.task.outputs), np.nan)
    with pytest.raises(DataError, match="--budget-data"):
        BudgetBench(_graphs(), source)


def test_the_map_is_a_picture_with_a_row_for_each_layer():
    def section(count: int) -> dict:
        return {
            "layers": [
                {
                    "part": "fusion",
                    "name": f"layer.{index}",
                    "float": index == 0,
                    "noise": {"organ": 1e-4 / (index + 1)},
                    "expected_changes": {"organ": 0.01},
                }
                for index in range(count)
            ]
        }

    few, many = (draw_layers(section(count), "model 1.0.0: int8") for count in (3, 40))
    assert few.startswith(b"\x89PNG") and many.startswith(b"\x89PNG")
    heights = [int.from_bytes(data[20:24], "big") for data in (few, many)]
    assert heights[1] > heights[0] + 300
    assert draw_layers(section(3), "model 1.0.0: int8") == few
