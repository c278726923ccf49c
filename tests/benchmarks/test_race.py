from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import contender as contender_module
from benchmarks import prepare
from benchmarks.contender import Contender, input_arrays, serve
from benchmarks.floor import multiply_adds
from benchmarks.prepare import make_inputs, prepare_folder
from benchmarks.race import ContenderError, _pythons, interpreter, run_rounds, start
from benchmarks.race_report import OURS, Races, markdown, ratio
from umd_edge._bundle import Bundle
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import UsageError

FEEDS = {
    "pixel_values": np.ones((2, 3, 4, 4), np.float32),
    "input_ids": np.full((2, 5), 7),
    "attention_mask": np.ones((2, 5), np.int64),
    "structured_values": np.zeros((2, 1), np.float32),
    "structured_mask": np.zeros((2, 1), np.float32),
}


class _Echo(Contender):
    """Keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def vision(self, pixel_values: Any) -> Any:
        self.calls.append("vision")
        return pixel_values.mean(axis=(1, 2, 3))

    def text(self, input_ids: Any, attention_mask: Any) -> Any:
        self.calls.append("text")
        return (input_ids * attention_mask).sum(axis=1)

    def fusion(self, image: Any, text: Any, mask: Any, values: Any, present: Any) -> Any:
        self.calls.append("fusion")
        assert mask.shape == (2, 5)
        assert values.shape == present.shape == (2, 1)
        return np.stack([image, text], axis=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "inputs-2.npz", **FEEDS)
    return tmp_path


def _serve(folder: Path, monkeypatch: pytest.MonkeyPatch, *orders: dict[str, Any]) -> Any:
    echo, out = _Echo(), io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(o) + "\n" for o in orders)))
    monkeypatch.setattr(sys, "__stdout__", out)
    serve(echo, folder)
    monkeypatch.undo()
    return echo, [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize(
    "part, calls",
    [
        ("vision", ["vision"]),
        ("further", ["text", "fusion"]),
        ("first", ["vision", "text", "fusion"]),
    ],
)
def test_each_part_runs_its_graphs_as_often_as_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, part: str, calls: list[str]
):
    order = {"do": "run", "part": part, "batch": 2, "repeats": 3, "warm_up": 1}
    echo, replies = _serve(folder, monkeypatch, order)
    assert len(replies[0]["seconds"]) == 3
    assert min(replies[0]["seconds"]) > 0
    assert echo.calls == ["vision", *calls * 4]


def test_logits_and_memory_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    _, replies = _serve(folder, monkeypatch, {"do": "logits", "batch": 2}, {"do": "memory"})
    assert replies[0]["logits"] == [[1.0, 35.0], [1.0, 35.0]]
    assert replies[1]["bytes"] is None or replies[1]["bytes"] > 2**20


@pytest.mark.parametrize(
    "problem, told",
    [
        (ImportError("no", name="openvino"), "openvino is not installed in"),
        (RuntimeError("no compiler"), "it failed with RuntimeError: no compiler"),
    ],
)
def test_a_contender_says_why_it_cannot_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, told: str
):
    def fail(*_: Any) -> Contender:
        raise problem

    (folder / "settings.json").write_text("{}", encoding="utf-8")
    out = io.StringIO()
    monkeypatch.setitem(contender_module.CONTENDERS, "ort-fp32", fail)
    monkeypatch.setattr(sys, "argv", ["contender.py", "ort-fp32", str(folder)])
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # `main` replaces it
    monkeypatch.setattr(sys, "__stdout__", out)
    contender_module.main()
    assert told in json.loads(out.getvalue())["missing"]


def test_inputs_come_back_as_written(folder: Path):
    arrays = input_arrays(folder, "2")
    assert {name: item.tolist() for name, item in arrays.items()} == {
        name: item.tolist() for name, item in FEEDS.items()
    }


def test_made_inputs_have_the_forms_of_the_graphs(tiny_bundle: Path):
    bundle = Bundle.open(tiny_bundle)
    spec = bundle.manifest.tokenizer
    tokenizer = TextTokenizer.from_bytes(bundle.read(spec.file), spec.max_length)
    inputs, again, others = (make_inputs(bundle.manifest, tokenizer, 3, s) for s in (1, 1, 2))
    side, fields = bundle.manifest.preprocessing.height, len(bundle.manifest.structured_fields)
    assert inputs["pixel_values"].shape[0] == 3
    assert inputs["pixel_values"].shape[2] == side
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    assert inputs["structured_mask"].shape == (3, fields)
    assert {name: array.dtype.name for name, array in inputs.items()} == {
        **{"pixel_values": "float32", "input_ids": "int64", "attention_mask": "int64"},
        **{"structured_values": "float32", "structured_mask": "float32"},
    }
    for name, array in inputs.items():
        assert np.array_equal(array, again[name])
    assert not np.array_equal(inputs["pixel_values"], others["pixel_values"])
    assert len({picture.tobytes() for picture in inputs["pixel_values"]}) == 3


def test_a_bundle_without_questions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    empty = SimpleNamespace(manifest=SimpleNamespace(tasks=()))
    monkeypatch.setattr(prepare.Bundle, "open", lambda path: empty)
    with pytest.raises(UsageError, match="has no question-answering task"):
        prepare_folder(tmp_path, tmp_path / "b.umd", tmp_path / "race")
    assert list(tmp_path.iterdir()) == []


# --- rounds -------------------------------------------------------


class _FakeRacer:
    threads = 1

    def __init__(self, name: str, seconds: list[float], log: list[str]) -> None:
        self.name, self._seconds, self._log = name, seconds, log

    def ask(self, **order: Any) -> dict[str, Any]:
        self._log.append(self.name)
        return {"seconds": self._seconds[: order["repeats"]]}


def test_all_take_their_turn_in_every_round():
    log: list[str] = []
    racers: Any = [_FakeRacer(name, [3.0, 1.0, 2.0, 9.0], log) for name in "abc"]
    medians = run_rounds(racers, "first", 1, 6, 3, random.Random(0))
    assert medians == {name: [2.0] * 6 for name in "abc"}
    rounds = [tuple(log[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len(set(rounds)) > 1


def _interpreter(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_a_library_that_is_missing_is_left_out_with_its_reason(tmp_path: Path):
    python = _interpreter(tmp_path, """echo '{"missing": "openvino is not installed"}'""")
    racer, reason = start("openvino-int8", tmp_path, 1, {"openvino": python})
    assert racer is None
    assert reason == "openvino is not installed"


def test_a_contender_that_does_not_start_is_left_out(tmp_path: Path):
    racer, reason = start("umd-edge", tmp_path, 1, {"umd": _interpreter(tmp_path, "exit 3")})
    assert racer is None
    assert reason == "it did not start"


def test_a_contender_that_stops_is_an_error_with_its_name(tmp_path: Path):
    hello = """echo '{"ready": true, "versions": {"x": "1"}, "disk": 5}'; read line; exit 7"""
    racer, _ = start("umd-edge", tmp_path, 1, {"umd": _interpreter(tmp_path, hello)})
    assert racer is not None
    assert (racer.versions, racer.disk) == ({"x": "1"}, 5)
    with pytest.raises(ContenderError, match=r"umd-edge stopped \(exit code 7\)"):
        racer.ask(do="memory")


def test_an_interpreter_is_found_by_contender_or_library():
    pythons = {"openvino": "/a", "openvino-int8": "/b"}
    assert interpreter("openvino-int8", pythons) == "/b"
    assert interpreter("openvino-fp32", pythons) == "/a"
    assert interpreter("umd-edge", pythons) == sys.executable


@pytest.mark.parametrize("given_", ["openvino", "openvino=", "openvino=/no/such/python"])
def test_an_interpreter_that_is_not_there_is_refused(given_: str):
    with pytest.raises(UsageError, match="--python openvino: write NAME=PATH"):
        _pythons((given_,))


def test_every_contender_has_a_name_of_its_library():
    libraries = {name.split("-")[0] for name in contender_module.CONTENDERS}
    assert libraries == {"torch", "ort", "openvino", "umd"}


# --- report -------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.001, 10.0), min_size=3, max_size=30), st.floats(0.1, 10.0))
def test_a_ratio_knows_no_unit_and_is_formed_round_by_round(ours: list[float], factor: float):
    middle, low, high = ratio([value * factor for value in ours], ours)
    assert middle == pytest.approx(factor)
    assert low == pytest.approx(high)
    assert ratio(ours, ours) == (1.0, 1.0, 1.0)


def _races() -> Races:
    races = Races(rounds=3, repeats=2)
    for part, slow in (("first", 3.0), ("further", 0.5), ("vision", 2.0)):
        races.add(part, 1, 1, {"ort-fp32": [slow * 2e-3] * 3, OURS: [slow * 1e-3] * 3})
    races.cold = {"ort-fp32": [0.5, 0.7, 0.6], OURS: [0.2] * 3}
    races.memory = {"ort-fp32": None, OURS: 100_000_000}
    races.disk = {"ort-fp32": 10_000_000, OURS: 2_500_000}
    races.skipped = {"openvino-int8": "openvino is not installed"}
    return races


def test_tables_hold_what_was_measured():
    text = markdown(_races())
    rows = [line for line in text.splitlines() if line.startswith("| ort-fp32")]
    assert rows[0] == (
        "| ort-fp32 | 6.00 | 2.00 (2.00-2.00) | 1.00 | 2.00 (2.00-2.00) | 0.17 | 250 |"
    )
    assert rows[1] == "| ort-fp32 | 0.60 (0.50-0.70) |  | 10.0 |  |"
    assert "Left out: openvino-int8 (openvino is not installed)." in text


def test_the_report_can_be_read_again():
    data = json.loads(json.dumps(_races().to_dict()))
    assert data["seconds"][0] == {
        **{"part": "first", "batch": 1, "threads": 1},
        "rounds": {"ort-fp32": [6e-3] * 3, OURS: [3e-3] * 3},
    }
    assert data["skipped"] == {"openvino-int8": "openvino is not installed"}


# --- floor --------------------------------------------------------


def test_multiply_adds_are_those_of_the_textbook():
    from onnx import TensorProto, helper

    def weight(name: str, *shape: int) -> Any:
        return helper.make_tensor(name, TensorProto.FLOAT, shape, [0.5] * int(np.prod(shape)))

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight("w", 2, 3, 3, 3), weight("g", 6, 40)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    counts = multiply_adds(model, {"x": np.zeros((1, 3, 4, 5), np.float32)})
    assert counts == {"int8": 0, "float": 2 * 4 * 5 * 27 + 40 * 6}
