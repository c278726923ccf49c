"""A bounded queue in front of a few worker threads.

A request takes a ticket before its body is read and gives it back when its answer is out *and* its
job has ended, so tickets bound memory as well as waiting. All but the jobs runs in the event loop's
thread; no lock is needed.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Generic, TypeVar

from .._deadline import CancelToken, limited
from ..errors import DeadlineExceededError
from ._errors import QueueFullError

__all__ = ["Ticket", "WorkQueue"]

Result = TypeVar("Result")


class Ticket:
    """A place in the queue, with a share of the memory for bodies."""

    def __init__(self, owner: WorkQueue) -> None:
        self._owner = owner
        self._holders = 1
        self._bytes = 0

    def reserve(self, count: int) -> None:
        """Take memory for so many more bytes of the body.

        Raises:
            QueueFullError: The bodies that are held already leave no room.
        """
        self._owner.take_bytes(count)
        self._bytes += count

    def hold(self) -> None:
        """Keep the place until one more `release`."""
        self._holders += 1

    def release(self) -> None:
        """Give the place and the memory back, if nobody else holds them."""
        self._holders -= 1
        if self._holders == 0:
            self._owner.give_back(self._bytes)


class _Job(Generic[Result]):
    def __init__(self, work: Callable[[], Result], ticket: Ticket) -> None:
        self.work = work
        self.ticket = ticket
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Result] = self.loop.create_future()
        self.token = CancelToken()
        self.seconds = 0.0

    def run(self) -> None:
        """Work, in a worker thread, unless nobody waits any more; then tell the loop."""
        result: Result | None = None
        error: BaseException | None = None
        started = perf_counter()
        try:
            if not self.token.cancelled:
                with limited(cancel=self.token):
                    result = self.work()
        except BaseException as raised:
            error = raised
        self.seconds = perf_counter() - started
        try:
            self.loop.call_soon_threadsafe(self._end, result, error)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            return

    def _end(self, result: Result | None, error: BaseException | None) -> None:
        self.ticket.release()
        if self.future.done():  # its deadline has passed
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)  # type: ignore[arg-type]


class WorkQueue:
    """Workers, and the requests that wait for them."""

    def __init__(self, *, workers: int, waiting: int, most_bytes: int) -> None:
        """Start nothing yet; see `start`.

        Args:
            workers: Threads.
            waiting: Requests beyond those that run.
            most_bytes: Bodies of all requests together.
        """
        self.workers = workers
        self.capacity = workers + waiting
        self.admitted = 0
        """Requests that hold a ticket."""
        self.buffered = 0
        """Bytes of their bodies."""
        self._most_bytes = most_bytes
        self._jobs: queue.SimpleQueue[_Job[object] | None] = queue.SimpleQueue()
        self._running: set[_Job[object]] = set()
        self._unanswered: set[_Job[object]] = set()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads, once; they end with the process if a job never does."""
        for number in range(len(self._threads), self.workers):
            name = f"umd-edge worker {number}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout_s: float) -> bool:
        """Let the threads end when what is queued is done; whether all did in time."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def running(self) -> int:
        """Jobs in the workers' hands."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs that no worker has taken yet."""
        return self._jobs.qsize()

    @property
    def stuck(self) -> int:
        """Jobs that run on although nobody waits for them any more."""
        return sum(job.token.cancelled for job in list(self._running))

    @contextmanager
    def admit(self) -> Iterator[Ticket]:
        """A ticket for the time of one request.

        Raises:
            QueueFullError: All are taken.
        """
        if self.admitted >= self.capacity:
            raise QueueFullError(
                f"all {self.workers} workers are busy and {self.capacity - self.workers} requests "
                "wait; try again in a second, or start the service with a larger --queue"
            )
        self.admitted += 1
        ticket = Ticket(self)
        try:
            yield ticket
        finally:
            ticket.release()

    def take_bytes(self, count: int) -> None:
        """Count bytes of a body in; see `Ticket.reserve`."""
        if self.buffered + count > self._most_bytes:
            raise QueueFullError(
                f"the bodies of the requests that wait take up the {self._most_bytes} bytes that "
                "the service holds; try again in a second"
            )
        self.buffered += count

    def give_back(self, count: int) -> None:
        """Return a ticket with its bytes."""
        self.admitted -= 1
        self.buffered -= count

    async def run(self, ticket: Ticket, work: Callable[[], Result], deadline: float) -> Result:
        """Run a job in a worker.

        Args:
            ticket: Of the request; held until the job has ended, however late.
            work: Ends early, as in a `limited` block, once the deadline has passed or the client
                has gone.
            deadline: In the event loop's time.

        Raises:
            DeadlineExceededError: It was not done in time.
        """
        job: _Job[Any] = _Job(work, ticket)
        ticket.hold()
        self._unanswered.add(job)
        self.start()
        self._jobs.put(job)
        try:
            done, _ = await asyncio.wait([job.future], timeout=deadline - job.loop.time())
        finally:
            self._unanswered.discard(job)
            if not job.future.done():
                job.token.cancel()
                job.future.cancel()
        if not done:
            raise DeadlineExceededError(
                "the answer was not there in time; try again later, or start the service with a "
                "longer --timeout or more --workers"
            )
        result: Result = job.future.result()
        return result

    def abandon(self, error: Exception) -> None:
        """Answer all that wait with an error; what runs is told to end."""
        for job in list(self._unanswered):
            job.token.cancel()
            if not job.future.done():
                job.future.set_exception(error)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            self._running.add(job)
            job.run()
            self._running.discard(job)
            del job  # with it the image, which would stay until the next one comes
