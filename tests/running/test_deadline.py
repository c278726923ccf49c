from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.pictures import gradient
from umd_edge import (
    CancelledError,
    CancelToken,
    DeadlineExceededError,
    InferenceError,
    Predictor,
    SessionOptions,
    StoppedError,
    UsageError,
    limited,
)
from umd_edge._session import GraphSession, GraphSpec

IMAGE = gradient()
QUESTION = "Which organ is shown?"


def slow_graph(operators: int = 2000, side: int = 160) -> GraphSession:
    """A chain of products that takes seconds: each of its operators some milliseconds or less."""
    weight = np.eye(side, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", [f"x{step}", "w"], [f"x{step + 1}"]) for step in range(operators)
    ]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n", side])],
        [helper.make_tensor_value_info(f"x{operators}", TensorProto.FLOAT, ["n", side])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    spec = GraphSpec({"x0": ("float", 2)}, (f"x{operators}",))
    return GraphSession(model.SerializeToString(), "slow", spec, SessionOptions(), u8u8=False)


FEEDS = {"x0": np.ones((4000, 160), np.float32)}


@pytest.fixture(scope="module")
def slow() -> GraphSession:
    return slow_graph()


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(Path(__file__).resolve().parent.parent / "data" / "tiny.umd")


def test_a_running_graph_is_stopped_at_its_deadline(slow: GraphSession):
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"0\.1 s"), limited(timeout_s=0.1):
        slow.run(FEEDS)
    assert 0.1 <= time.monotonic() - start < 2.0  # the whole graph takes several seconds


def test_a_running_graph_is_stopped_by_its_token(slow: GraphSession):
    token = CancelToken()
    timer = threading.Timer(0.1, token.cancel)
    timer.start()
    with pytest.raises(CancelledError), limited(cancel=token):
        slow.run(FEEDS)
    timer.join()
    assert token.cancelled


def test_a_stopped_graph_can_be_run_again(slow: GraphSession):
    with pytest.raises(DeadlineExceededError), limited(timeout_s=0.02):
        slow.run(FEEDS)
    with limited(timeout_s=600):
        (result,) = slow.run({"x0": np.ones((1, 160), np.float32)})
    assert (result == 1).all()


def test_only_the_limited_thread_is_stopped(slow: GraphSession):
    small = {"x0": np.ones((20, 160), np.float32)}

    def work(timeout_s: float | None):
        try:
            with limited(timeout_s=timeout_s):
                return (slow.run(FEEDS if timeout_s else small)[0] == 1).all()
        except DeadlineExceededError:
            return "stopped"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, [0.05, None, 0.1, None])) == ["stopped", True, "stopped", True]


def test_enough_time_changes_no_bit(predictor: Predictor):
    plain = predictor.ask(IMAGE, QUESTION)
    with limited(timeout_s=600, cancel=CancelToken()):
        bounded = predictor.ask(IMAGE, QUESTION)
    assert (bounded.answer, bounded.probability) == (plain.answer, plain.probability)
    assert bounded.alternatives == plain.alternatives


def test_one_deadline_holds_for_all_calls_of_a_block(predictor: Predictor):
    with limited(timeout_s=0.05):
        encoded = predictor.encode(IMAGE)
        time.sleep(0.06)
        with pytest.raises(DeadlineExceededError):
            encoded.ask(QUESTION)
    assert encoded.ask(QUESTION).status == "ok"  # behind the block it can be used as before


def test_a_cancelled_token_ends_later_calls_until_it_is_reset(predictor: Predictor):
    token = CancelToken()
    token.cancel()
    with limited(cancel=token):
        with pytest.raises(CancelledError):
            predictor.encode(IMAGE)
        token.reset()
        assert predictor.classify(IMAGE, "skin-lesion").status == "ok"


@pytest.mark.parametrize("inner_s", [None, 60.0])
def test_an_inner_block_cannot_outlast_the_outer_one(predictor: Predictor, inner_s):
    token = CancelToken()
    with limited(timeout_s=0.03, cancel=token), limited(timeout_s=inner_s):
        time.sleep(0.04)
        with pytest.raises(DeadlineExceededError, match=r"0\.03 s"):
            predictor.encode(IMAGE)
        token.cancel()
        with pytest.raises(CancelledError):
            predictor.encode(IMAGE)


def test_an_inner_deadline_ends_before_the_outer_one(predictor: Predictor):
    with limited(timeout_s=60):
        with pytest.raises(DeadlineExceededError, match=r"0\.01 s"), limited(timeout_s=0.01):
            time.sleep(0.02)
            predictor.encode(IMAGE)
        assert predictor.encode(IMAGE).embedding.size


def test_a_failure_inside_a_block_stays_a_failure(predictor: Predictor):
    with limited(timeout_s=60), pytest.raises(InferenceError):
        predictor._engine.graphs.vision.run({"pixel_values": np.zeros((1, 3, 7, 7), np.float32)})


def test_deadline_is_also_the_timeout_error_of_python():
    assert issubclass(DeadlineExceededError, TimeoutError)
    assert issubclass(DeadlineExceededError, StoppedError)
    assert not issubclass(CancelledError, TimeoutError)


@pytest.mark.parametrize("given", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_what_is_no_time_limit_is_refused(given):
    with pytest.raises(UsageError, match="timeout_s"):
        limited(timeout_s=given)


def test_watching_deadlines_leaves_nothing_behind(predictor: Predictor):
    from umd_edge._deadline import _watch

    token = CancelToken()
    for _ in range(50):
        with limited(timeout_s=60, cancel=token):
            predictor.ask(IMAGE, QUESTION)
    assert not _watch._limits
    assert not token._running
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("umd-edge-deadlines") == 1
