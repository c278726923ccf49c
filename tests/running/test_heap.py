from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from umd_edge import Predictor, SessionOptions
from umd_edge import _heap as heaps
from umd_edge._heap import Heap


class Process:
    """Grows by `growth` between two looks; trimming brings it back to `floor`."""

    def __init__(self, growth: int, floor: int = 1000) -> None:
        self.size, self.growth, self.floor, self.trims = floor, growth, floor, 0

    def resident(self) -> int:
        self.size += self.growth
        return self.size

    def trim(self) -> None:
        self.trims += 1
        self.size = self.floor - self.growth


def run(process: Process, looks: int) -> None:
    heap = Heap(process.resident, process.trim)
    for _ in range(256 * looks):
        heap.after_run()


def test_a_process_that_does_not_grow_is_left_alone():
    process = Process(growth=0)
    run(process, 50)
    assert process.trims == 1  # the first look, which knows no size yet


def test_a_process_that_grows_is_trimmed_and_stays_small():
    process = Process(growth=30)
    run(process, 50)
    assert process.trims > 20
    assert process.size < 1.05 * process.floor


def test_nothing_is_looked_at_before_the_256th_run():
    process = Process(growth=1000)
    heap = Heap(process.resident, process.trim)
    for _ in range(255):
        heap.after_run()
    assert (process.trims, process.size) == (0, 1000)
    heap.after_run()
    assert process.trims == 1


def test_one_thread_trims_and_the_others_do_not_wait_for_it():
    inside = []

    class Slow(Process):
        def trim(self) -> None:
            inside.append(1)
            assert len(inside) == 1
            super().trim()
            inside.pop()

    process = Slow(growth=100)
    heap = Heap(process.resident, process.trim)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [heap.after_run() for _ in range(500)], range(8)))
    assert process.trims > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is meant")
def test_memory_that_was_freed_in_pieces_is_given_back():
    heap = heaps.heap
    if heap is None:
        pytest.skip("this C library has no malloc_trim")
    held = [bytearray(3000) for _ in range(40_000)]
    kept = held[::8]  # holes between pieces that stay
    full = heaps._resident()
    del held
    for _ in range(512):
        heap.after_run()
    assert heaps._resident() < full - 40_000 * 3000 // 4
    assert len(kept) == 5000


@pytest.mark.parametrize(
    ("options", "expected"), [({}, True), ({"trim": False}, False), ({"arena": True}, False)]
)
def test_trimming_is_for_sessions_without_an_arena(tiny_bundle, options, expected):
    predictor = Predictor.load(tiny_bundle, SessionOptions(**options))
    assert (predictor._engine.graphs.vision._heap is not None) is (
        expected and heaps.heap is not None
    )
