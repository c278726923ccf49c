"""How far a build is and how long it may still take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["BuildProgress", "BuildStatus", "make_monitor"]


@dataclass(frozen=True, slots=True)
class BuildStatus:
    """One look at a running build."""

    phase: str
    """What TensorRT is at, in its own words; empty before it begins."""
    done: int
    steps: int
    """Of the phase."""
    elapsed_s: float
    remaining_s: float | None
    """Estimate from an earlier build of the same graph, else from the steps; None at first."""


class _Phase:
    def __init__(self, parent: str | None, steps: int, start: float) -> None:
        self.parent = parent
        self.steps = max(steps, 1)
        self.start = start
        self.done = 0


class BuildProgress:
    """Adds up what TensorRT's progress monitor tells: phases of steps, in which phases run.

    Args:
        on_change: Told the innermost phase, its steps done, all of its steps, and the estimate of
            the seconds left or None.
        clock: Gives seconds.
    """

    def __init__(
        self,
        on_change: Callable[[str, int, int, float | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_change = on_change
        self._clock = clock
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins, inside a step of its parent."""
        with self._lock:
            self._phases.pop(name, None)
            self._phases[name] = _Phase(parent, steps, self._clock())
        self._tell()

    def step_complete(self, name: str, step: int) -> None:
        """Step number `step`, counted from 0, is done."""
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = min(max(phase.done, step + 1), phase.steps)
        self._tell()

    def phase_finish(self, name: str) -> None:
        """A phase is over, whether or not all of its steps were told."""
        with self._lock:
            self._phases.pop(name, None)

    def _tell(self) -> None:
        with self._lock:
            name = next(reversed(self._phases), "")
            if not name:
                return
            root = next(iter(self._phases))
            phase, left = self._phases[name], self._left(root, self._clock())
        self._on_change(name, phase.done, phase.steps, left)

    def _left(self, name: str, now: float) -> float | None:
        """Seconds until a phase ends: its steps to come take as long as those done, on average.

        The step at hand is judged by the phase inside it, as a single one can outlast all others.
        """
        phase = self._phases[name]
        inside = [child for child, other in self._phases.items() if other.parent == name]
        if not inside:
            spent = now - phase.start
            return spent / phase.done * (phase.steps - phase.done) if phase.done else None
        child = inside[-1]
        left = self._left(child, now)
        to_come = max(phase.steps - phase.done - 1, 0)
        if left is None or not phase.done:
            return left
        return left + (self._phases[child].start - phase.start) / phase.done * to_come


def make_monitor(trt: Any, progress: BuildProgress) -> Any:
    """A progress monitor of that TensorRT, or None where it has none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.phase_start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step_complete(phase_name, step)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            progress.phase_finish(phase_name)

    return Monitor()
