"""Runs the stages of a grid as subprocesses, several at once, and goes on after a kill.

The folder of a grid holds `grid.json` (the plan), `runs/<run>/` (as its command left it),
`logs/<run>.log`, and `done/<run>.json` for each finished run (seconds, commit, command).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from umd_edge.errors import UmdEdgeError, UsageError

from .grid import Cell, Job, Plan

__all__ = [
    "GridFailedError",
    "GridRun",
    "is_done",
    "load_plan",
    "save_plan",
]

State = Literal["waiting", "running", "done", "failed", "blocked"]

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 30.0
PROGRAM = (sys.executable, "-m", "umd_edge_train.cli")


class GridFailedError(UmdEdgeError):
    """A stage failed; the arms that need it are incomplete, the others are not affected."""

    exit_code: ClassVar[int] = 1


def _write_json(path: Path, value: object) -> None:
    # not checkpoint.write_json: the runner itself has no need of torch
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def save_plan(plan: Plan, data: Path, out: Path) -> None:
    """Keep the plan with its runs.

    Raises:
        UsageError: The runs in `out` used another data folder.
    """
    path = out / "grid.json"
    where = str(data.resolve())
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8")).get("data")
        if before != where:
            raise UsageError(
                f"{str(out)!r} holds runs on the data in {before!r}, {where!r} given; give the "
                "same data or another --out"
            )
    _write_json(path, {"data": where, "plan": plan.to_dict()})


def load_plan(out: Path) -> Plan:
    """The plan of a grid's folder.

    Raises:
        UsageError: The folder holds none.
    """
    try:
        table = json.loads((out / "grid.json").read_text(encoding="utf-8"))["plan"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{str(out)!r} holds no grid.json; give the --out of `umd-edge-train grid`"
        ) from error
    return Plan.from_dict(table)


def is_done(out: Path, name: str) -> bool:
    """Whether a run has finished and its checkpoint is there."""
    return (out / "done" / f"{name}.json").exists() and (out / "runs" / name / "final").is_dir()


@contextmanager
def _only_one(out: Path) -> Iterator[int]:
    """Hold the folder's lock; its descriptor is handed on, so that an orphaned stage holds it too.

    Raises:
        UsageError: Somebody else holds it.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise UsageError("`grid` needs a system with file locks, such as Linux or macOS") from error
    handle = os.open(out / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another grid, or a stage that one left behind, works in {str(out)!r}; wait for "
                "it, or stop it"
            ) from error
        yield handle
    finally:
        os.close(handle)


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    started: float


class GridRun:
    """The runs behind some cells of a plan.

    Args:
        plan: All runs.
        cells: Those wanted.
        data: Folder of the data sets.
        out: Folder of the grid.
        jobs: How many run at once.
        program: The command line in front of a stage's arguments.
        commit: Version of the source, kept with each run.
    """

    def __init__(
        self,
        plan: Plan,
        cells: Sequence[Cell],
        data: Path,
        out: Path,
        *,
        jobs: int = 1,
        program: Sequence[str] = PROGRAM,
        commit: str = "unknown",
    ) -> None:
        if jobs < 1:
            raise UsageError(f"jobs {jobs} given; 1 or more is allowed")
        if not cells:
            raise UsageError("nothing of the grid is chosen; ask for other arms, seeds or data")
        self.cells, self.data, self.out = tuple(cells), data.resolve(), out.resolve()
        self.slots, self.program, self.commit = jobs, tuple(program), commit
        wanted = {name for cell in cells for name in cell.jobs}
        self.jobs = {job.name: job for job in plan.jobs if job.name in wanted}
        self.states: dict[str, State] = {
            name: "done" if is_done(self.out, name) else "waiting" for name in self.jobs
        }
        self.seconds = {name: self._taken(name) for name in self.jobs if self._done(name)}
        self._children: dict[str, _Child] = {}
        # Cost from here to the end of the longest chain: what decides when everything is over.
        self._ahead: dict[str, float] = dict.fromkeys(self.jobs, 0.0)
        for job in reversed(list(self.jobs.values())):
            self._ahead[job.name] += job.cost
            if job.parent:
                self._ahead[job.parent] = max(self._ahead[job.parent], self._ahead[job.name])

    def _done(self, name: str) -> bool:
        return self.states[name] == "done"

    def _taken(self, name: str) -> float:
        text = (self.out / "done" / f"{name}.json").read_text(encoding="utf-8")
        return float(json.loads(text)["seconds"])

    # --- running --------------------------------------------------------------------------------

    def run(self, on_change: Callable[[GridRun], None] = lambda _: None) -> None:
        """Run everything that is not finished.

        Args:
            on_change: Called when a run starts or ends.

        Raises:
            GridFailedError: At the end, when a stage has failed.
            UsageError: Another grid works in the same folder.
            KeyboardInterrupt: After the stages were told to stop and have ended.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with _only_one(self.out) as lock:
            try:
                on_change(self)
                while self._start(lock) or self._children:
                    if self._collect():
                        on_change(self)
                        continue
                    time.sleep(_POLL_SECONDS)
            finally:
                self._stop()
        failed = [name for name, state in self.states.items() if state == "failed"]
        if failed:
            logs = ", ".join(str(self.out / "logs" / f"{name}.log") for name in failed)
            raise GridFailedError(
                f"{len(failed)} of {len(self.jobs)} runs failed: {', '.join(failed)}; see {logs}; "
                "the same command tries them again"
            )

    def _ready(self) -> Job | None:
        ready = [
            job
            for job in self.jobs.values()
            if self.states[job.name] == "waiting" and (not job.parent or self._done(job.parent))
        ]
        return max(ready, key=lambda job: self._ahead[job.name], default=None)

    def _start(self, lock: int) -> bool:
        """Fill the free places; whether any run was started."""
        started = False
        while len(self._children) < self.slots and (job := self._ready()):
            self._children[job.name] = self._launch(job, lock)
            self.states[job.name] = "running"
            started = True
        return started

    def _launch(self, job: Job, lock: int) -> _Child:
        folder = self.out / "runs" / job.name
        command = [*self.program, *job.arguments, "--data", str(self.data), "--out", str(folder)]
        if job.parent:
            command += ["--init", str(self.out / "runs" / job.parent / "final")]
        if folder.exists():  # stopped before its end
            command.append("--resume")
        log = self.out / "logs" / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        with log.open("ab") as handle:
            handle.write(f"$ {' '.join(command)}\n".encode())
            handle.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads, "TQDM_MININTERVAL": "30"},
                # Ctrl-C reaches us alone; we pass it on and wait.
                start_new_session=True,
                pass_fds=(lock,),
            )
        return _Child(process, time.monotonic())

    def _collect(self) -> bool:
        """Take note of the runs that have ended; whether there were any."""
        ended = [name for name, c in self._children.items() if c.process.poll() is not None]
        for name in ended:
            child = self._children.pop(name)
            took = time.monotonic() - child.started
            complete = (self.out / "runs" / name / "final").is_dir()
            if child.process.returncode == 0 and complete:
                self._finish(name, took)
            else:
                self.states[name] = "failed"
                self._block(name)
        return bool(ended)

    def _finish(self, name: str, took: float) -> None:
        self.states[name] = "done"
        self.seconds[name] = took
        record = {"seconds": round(took, 1), "commit": self.commit, "stage": self.jobs[name].stage}
        _write_json(self.out / "done" / f"{name}.json", record)

    def _block(self, name: str) -> None:
        for job in self.jobs.values():
            if job.parent == name:
                self.states[job.name] = "blocked"
                self._block(job.name)

    def _stop(self) -> None:
        """Interrupt what still runs; whoever does not listen is ended."""
        for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for child in self._children.values():
                if child.process.poll() is None:
                    child.process.send_signal(stop)
            deadline = time.monotonic() + _GRACE_SECONDS
            for child in self._children.values():
                try:
                    child.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    continue
        for name in self._children:
            self.states[name] = "waiting"
        self._children.clear()

    # --- what the table shows -------------------------------------------------------------------

    def _estimate(self, job: Job) -> float | None:
        """Seconds that a run takes: those of its stage so far, else in proportion to the cost."""
        same = [s for name, s in self.seconds.items() if self.jobs[name].stage == job.stage]
        if same:
            return sum(same) / len(same)
        cost = sum(self.jobs[name].cost for name in self.seconds)
        return job.cost * sum(self.seconds.values()) / cost if cost else None

    def seconds_left(self) -> float | None:
        """Estimated time to the end; None until the first run has finished.

        It is the larger of the work left shared by all places, and the longest chain left.
        """
        left: dict[str, float] = {}
        chain: dict[str, float] = {}
        for job in self.jobs.values():
            rest = 0.0
            if self.states[job.name] in ("waiting", "running"):
                estimate = self._estimate(job)
                if estimate is None:
                    return None
                child = self._children.get(job.name)
                spent = time.monotonic() - child.started if child else 0.0
                rest = max(0.0, estimate - spent)
            left[job.name] = rest
            chain[job.name] = rest + chain.get(job.parent, 0.0)
        return max(sum(left.values()) / self.slots, max(chain.values()))

    def table(self) -> str:
        """One line for each arm and data set, with the state of each stage over the seeds."""
        rows: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            name = cell.arm if cell.fraction == 1.0 else f"{cell.arm} ({cell.fraction:.0%})"
            rows.setdefault((cell.dataset, name), []).append(cell)
        wide = max(len(" ".join(key)) for key in rows) + 2
        lines = [f"{' '.join(key):<{wide}}{self._row(cells)}" for key, cells in rows.items()]
        count = sum(state == "done" for state in self.states.values())
        left = self.seconds_left()
        lines.append(f"{count} of {len(self.jobs)} runs done, {_duration(left)} left")
        return "\n".join(lines)

    def _row(self, cells: Sequence[Cell]) -> str:
        parts = []
        for position in range(len(cells[0].jobs)):
            names = [cell.jobs[position] for cell in cells]
            stage = self.jobs[names[0]].stage
            parts.append(f"{stage} {_count(self.states[name] for name in names)}")
        return " > ".join(parts)


def _count(states: Iterable[State]) -> str:
    listed = list(states)
    text = f"{listed.count('done')}/{len(listed)}"
    shown: tuple[State, ...] = ("running", "failed", "blocked")
    return " ".join([text, *(f"{n} {s}" for s in shown if (n := listed.count(s)))])


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
