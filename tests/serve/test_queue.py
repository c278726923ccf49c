from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from umd_edge import DeadlineExceededError
from umd_edge._deadline import check_limits
from umd_edge.serve._errors import NotFoundError, QueueFullError, StoppingError
from umd_edge.serve._queue import WorkQueue
from umd_edge.serve._store import ImageStore, StoredImage


def make_queue(**given) -> WorkQueue:
    return WorkQueue(**{"workers": 2, "waiting": 3, "most_bytes": 100, **given})


async def run(queue: WorkQueue, work, seconds: float = 10.0):
    with queue.admit() as ticket:
        return await queue.run(ticket, work, asyncio.get_running_loop().time() + seconds)


def test_results_and_errors_come_back():
    async def main():
        queue = make_queue()
        assert await run(queue, lambda: 42) == 42
        with pytest.raises(ZeroDivisionError):
            await run(queue, lambda: 1 // 0)
        assert queue.admitted == 0
        assert queue.stop(5)

    asyncio.run(main())


def test_so_many_run_at_once_and_so_many_wait():
    gate, most = threading.Event(), []

    async def main():
        queue = make_queue()

        def work():
            most.append(queue.running)
            gate.wait(10)

        jobs = [asyncio.ensure_future(run(queue, work)) for _ in range(5)]
        await asyncio.sleep(0.1)
        assert (queue.running, queue.waiting, queue.admitted) == (2, 3, 5)
        with pytest.raises(QueueFullError):
            await run(queue, work)
        gate.set()
        await asyncio.gather(*jobs)
        assert queue.admitted == 0

    asyncio.run(main())
    assert max(most) <= 2


def test_a_late_job_is_told_to_end_and_keeps_its_place_until_it_does():
    ended = threading.Event()

    async def main():
        queue = make_queue()

        def work():
            try:
                while True:
                    check_limits()
            finally:
                ended.set()

        with pytest.raises(DeadlineExceededError):
            await run(queue, work, 0.1)
        assert await asyncio.to_thread(ended.wait, 5)
        for _ in range(200):
            await asyncio.sleep(0.01)
            if queue.admitted == 0:
                return
        raise AssertionError("the place was never given back")

    asyncio.run(main())


def test_a_cancelled_request_cancels_its_job():
    began, ended = threading.Event(), threading.Event()

    async def main():
        queue = make_queue()

        def work():
            began.set()
            try:
                while True:
                    check_limits()
            finally:
                ended.set()

        request = asyncio.ensure_future(run(queue, work))
        await asyncio.to_thread(began.wait, 5)
        request.cancel()
        assert await asyncio.to_thread(ended.wait, 5)

    asyncio.run(main())


def test_abandoning_answers_all_that_wait():
    gate = threading.Event()

    async def main():
        queue = make_queue(workers=1)
        jobs = [asyncio.ensure_future(run(queue, lambda: gate.wait(10))) for _ in range(3)]
        await asyncio.sleep(0.1)
        queue.abandon(StoppingError("over"))
        found = await asyncio.gather(*jobs, return_exceptions=True)
        assert [type(item) for item in found] == [StoppingError] * 3
        assert not queue.stop(0.1)  # one hangs on
        gate.set()
        assert queue.stop(5)

    asyncio.run(main())


def test_bytes_are_counted_and_given_back():
    queue = make_queue()
    with queue.admit() as ticket:
        ticket.reserve(60)
        with queue.admit() as other:
            with pytest.raises(QueueFullError):
                other.reserve(41)
            other.reserve(40)
        assert queue.buffered == 60
    assert (queue.buffered, queue.admitted) == (0, 0)


def test_a_worker_keeps_nothing_of_its_last_job():
    class Big:
        pass

    async def main():
        queue = make_queue(workers=1)
        big = Big()
        gone = weakref.ref(big)
        await run(queue, lambda big=big: None)
        del big
        for _ in range(100):
            await asyncio.sleep(0.01)
            gc.collect()
            if gone() is None:
                return
        raise AssertionError("the job's data stayed")

    asyncio.run(main())


def make_store(**given):
    now = [0.0]
    store = ImageStore(
        **{"most": 3, "most_bytes": 100, "ttl_s": 10.0, "clock": lambda: now[0], **given}
    )
    return store, now


def stored(size: int = 1) -> StoredImage:
    return StoredImage(None, bytes(size), None)


def test_images_expire_after_their_last_use():
    store, now = make_store()
    first, second = store.add(stored()), store.add(stored())
    now[0] = 8.0
    store.get(first)
    now[0] = 12.0
    assert store.get(first)
    with pytest.raises(NotFoundError, match="10 s"):
        store.get(second)
    now[0] = 30.0
    store.sweep()
    assert (len(store), store.stored_bytes) == (0, 0)


def test_the_least_recently_used_image_makes_room():
    store, _ = make_store()
    names = [store.add(stored()) for _ in range(3)]
    store.get(names[0])
    names.append(store.add(stored()))
    with pytest.raises(NotFoundError):
        store.get(names[1])
    assert all(store.get(name) for name in (names[0], names[2], names[3]))


def test_images_share_their_bytes():
    store, _ = make_store()
    names = [store.add(stored(60)) for _ in range(2)]
    assert (len(store), store.stored_bytes) == (1, 60)
    assert store.get(names[1])
    large = store.add(stored(500))  # one alone is kept, however large a body may be
    assert (len(store), store.stored_bytes) == (1, 500)
    store.remove(large)
    assert store.stored_bytes == 0


def test_identifiers_cannot_be_guessed():
    store, _ = make_store(most=1000)
    names = {store.add(stored()) for _ in range(500)}
    assert len(names) == 500
    assert all(len(name) == 24 for name in names)
