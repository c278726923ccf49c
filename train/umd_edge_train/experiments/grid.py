"""A grid of experiments: what is compared, and the runs that this takes.

A grid is a TOML file. An arm is a chain of stages, each a call of our own command line; the last
stage's checkpoint is what is compared. Runs are named after everything that decides them (command,
recipe and its content, settings, seed, and the run before), so that arms share what they have in
common, and a changed recipe makes new runs instead of passing old ones off as its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from umd_edge.errors import UsageError

from ..config import from_dict
from .paired import COMPARED_METRICS

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - exercised on Python 3.10 only
    import tomli as tomllib

__all__ = [
    "Cell",
    "Experiment",
    "Grid",
    "GridDataset",
    "Job",
    "LeftOut",
    "Plan",
    "load_grid",
    "make_plan",
]

_DATASET = "{dataset}"
_COMPARED = re.compile(
    r"(balanced_|closed_|open_)?accuracy|accuracy_.+|macro_auroc|auroc_.+"
    r"|(image_to_text|text_to_image)_r[1-9]\d*"
)
_FRACTION, _REPEAT = "{fraction}", "{repeat}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GridDataset:
    """A data set on which arms are compared."""

    name: str
    """Stands for `{dataset}` in the stages."""
    recipe: str
    """Fine-tuning recipe, from the grid's folder: the baselines use its records and tasks."""
    task: str
    metrics: tuple[str, ...]
    """The primary one first; those that records are compared by (`COMPARED_METRICS`)."""

    def __post_init__(self) -> None:
        others = [name for name in self.metrics if not _COMPARED.fullmatch(name)]
        if others or not self.metrics:
            raise UsageError(
                f"grid: datasets {self.name!r}: metrics {others} given; arms are compared record "
                f"by record: {COMPARED_METRICS} are allowed"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One call of `umd-edge-train`."""

    name: str
    command: Literal["pretrain", "adapt", "finetune", "baseline"]
    recipe: str
    """From the grid's folder. With `{dataset}` a stage belongs to one data set; without it, it
    is shared by all."""
    set: tuple[str, ...] = ()
    """`{fraction}` and `{repeat}` stand for what `Grid.fraction_settings` says: a stage that
    learns from labels, or from texts made of them, is told of how many patients."""
    options: tuple[str, ...] = ()
    """Further options of the command."""
    cost: float = 1.0
    """Time it takes, relative to the other stages; decides the order and the first estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A chain of stages; each starts from the checkpoint of the one before."""

    name: str
    stages: tuple[str, ...]
    few_stages: tuple[str, ...] = ()
    """In place of `stages` where only a part of the patients is labelled; empty: the same."""
    set: tuple[str, ...] = ()
    """Settings of the last stage."""
    about: str = ""
    """What it is, for the page of results: what sets it apart from the others."""

    def chain(self, fraction: float) -> tuple[str, ...]:
        """The stages of a run with this part of the patients labelled."""
        return self.few_stages if fraction < 1.0 and self.few_stages else self.stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A question to the arms, and a section of the page of results."""

    name: str
    title: str
    kind: Literal["ladder", "few-label", "choice"]
    """`ladder`: each arm against the one before it and against the first. `few-label`: arms over
    fractions of the labelled patients. `choice`: each arm against the first."""
    datasets: tuple[str, ...]
    arms: tuple[str, ...]
    beside: tuple[str, ...] = ()
    """Arms that are baselines: shown too, and the last arm is compared with each."""
    fractions: tuple[float, ...] = (1.0,)
    trials: tuple[tuple[str, ...], ...] = ((),)
    """Settings of the last stage that every arm is tried with; the best on the validation split
    counts. All arms get the same trials, so that none is tuned more than another."""

    @property
    def compared(self) -> tuple[str, ...]:
        """All arms, those beside last."""
        return (*self.arms, *self.beside)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """What a reader of the results would look for, and why it is not there."""

    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Everything that decides a grid, apart from recipes and data."""

    name: str
    seeds: tuple[int, ...]
    datasets: tuple[GridDataset, ...]
    stages: tuple[Stage, ...]
    arms: tuple[Arm, ...]
    experiments: tuple[Experiment, ...]
    fraction_settings: tuple[str, ...] = (
        "datasets.0.fraction={fraction}",
        "datasets.0.repeat={repeat}",
    )
    """Settings of the last stage that keep a fraction of the training patients; not given for the
    whole. `{repeat}` is 1 / fraction, rounded: few pictures are drawn so often that the number of
    steps stays about the same."""

    left_out: tuple[LeftOut, ...] = ()
    """Listed on the page beside the arms that were not run."""

    def __post_init__(self) -> None:
        for kind in ("datasets", "stages", "arms", "experiments"):
            names = [part.name for part in getattr(self, kind)]
            if not names or len(set(names)) != len(names):
                raise UsageError(f"grid: [[{kind}]] needs one entry or more, each name once")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) != len(self.seeds):
            raise UsageError(f"grid.seeds: {list(self.seeds)} given; distinct, 0 or more, allowed")
        for arm in self.arms:
            _known(f"arm {arm.name!r}", "stages", arm.stages, self.stages)
            _known(f"arm {arm.name!r}", "few_stages", arm.chain(0.5), self.stages)
        for experiment in self.experiments:
            where = f"experiment {experiment.name!r}"
            _known(where, "datasets", experiment.datasets, self.datasets)
            _known(where, "arms", experiment.compared, self.arms)
            if not experiment.arms or not experiment.trials or not experiment.fractions:
                raise UsageError(f"grid: {where}: one arm, trial and fraction at least are needed")
            if not all(0.0 < fraction <= 1.0 for fraction in experiment.fractions):
                raise UsageError(f"grid: {where}: fractions must be above 0 and at most 1")
        if not all(dataset.metrics for dataset in self.datasets):
            raise UsageError("grid: every [[datasets]] entry needs one metric or more")

    def to_dict(self) -> dict[str, Any]:
        """JSON object; `load_plan` reads it back."""
        return dataclasses.asdict(self)


def _known(where: str, kind: str, names: Iterable[str], parts: Iterable[Any]) -> None:
    listed = list(names)
    allowed = [part.name for part in parts]
    strangers = sorted(set(listed) - set(allowed))
    if strangers or not listed or len(set(listed)) != len(listed):
        raise UsageError(f"grid: {where}: {kind} {listed} given; of {allowed}, each once, allowed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run: a stage with all that decides it."""

    name: str
    """Name of its folder."""
    stage: str
    arguments: tuple[str, ...]
    """Of `umd-edge-train`, without `--data`, `--out`, `--init` and `--resume`."""
    parent: str
    """Name of the run that it starts from; empty for none."""
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One arm on one data set with one seed."""

    dataset: str
    arm: str
    fraction: float
    trial: tuple[str, ...]
    seed: int
    jobs: tuple[str, ...]
    """Names of the runs, in order; the last one's checkpoint is compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A grid with its runs spelled out."""

    grid: Grid
    folder: str
    """Of the grid's file: recipes are found from here."""
    jobs: tuple[Job, ...]
    """Each after the one that it starts from."""
    cells: tuple[Cell, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON object."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(table: dict[str, Any]) -> Plan:
        """Read what `to_dict` gave.

        Raises:
            UsageError: Unknown or ill-typed entry.
        """
        return from_dict(Plan, table, "plan")

    def select(
        self,
        arms: Iterable[str] = (),
        seeds: Iterable[int] = (),
        datasets: Iterable[str] = (),
    ) -> tuple[Cell, ...]:
        """The cells of these arms, seeds and data sets; an empty choice stands for all.

        Raises:
            UsageError: The grid has no such arm, seed or data set.
        """
        chosen = []
        for kind, given, allowed in (
            ("arm", tuple(arms), tuple(arm.name for arm in self.grid.arms)),
            ("seed", tuple(seeds), self.grid.seeds),
            ("data set", tuple(datasets), tuple(d.name for d in self.grid.datasets)),
        ):
            strangers = [item for item in given if item not in allowed]
            if strangers:
                raise UsageError(f"{kind} {strangers[0]!r} given; the grid has {list(allowed)}")
            chosen.append(set(given or allowed))
        return tuple(
            cell
            for cell in self.cells
            if cell.arm in chosen[0] and cell.seed in chosen[1] and cell.dataset in chosen[2]
        )


def load_grid(path: str | Path) -> Grid:
    """Read a grid.

    Raises:
        UsageError: The file is missing or broken, or holds an unknown or ill-typed entry.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"grid {str(path)!r} cannot be read; give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"grid {str(path)!r} is not valid TOML: {error}") from error
    table.setdefault("name", Path(path).stem)
    return from_dict(Grid, table, "grid")


def _of(fraction: float, setting: str) -> str:
    return setting.replace(_FRACTION, f"{fraction:g}").replace(_REPEAT, f"{round(1 / fraction)}")


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(
            f"grid: recipe {str(path)!r} cannot be read; write it, or cut the stages that name it"
        ) from error


class _Planner:
    """Collects runs; one asked for twice is planned once."""

    def __init__(self, grid: Grid, folder: Path) -> None:
        self.grid, self.folder = grid, folder
        self.stages = {stage.name: stage for stage in grid.stages}
        self.arms = {arm.name: arm for arm in grid.arms}
        self.jobs: dict[str, Job] = {}

    def job(
        self,
        stage: Stage,
        dataset: str,
        fraction: float,
        seed: int,
        extra: tuple[str, ...],
        parent: str,
    ) -> str:
        recipe = self.folder / stage.recipe.replace(_DATASET, dataset)
        settings = [_of(fraction, text.replace(_DATASET, dataset)) for text in stage.set]
        settings += [*extra, f"seed={seed}"]
        arguments = [stage.command, "--recipe", str(recipe), *stage.options]
        for setting in settings:
            arguments += ["--set", setting]
        # without the folder: a grid that is moved keeps its runs
        identity = [stage.command, recipe.name, _digest(recipe), stage.options, settings, parent]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
        home = f"-{dataset}" if _DATASET in stage.recipe + "".join(stage.set) else ""
        name = f"{stage.name}{home}-s{seed}-{digest}"
        self.jobs.setdefault(
            name,
            Job(
                name=name,
                stage=stage.name,
                arguments=tuple(arguments),
                parent=parent,
                cost=stage.cost,
            ),
        )
        return name

    def cell(
        self, dataset: str, arm: Arm, fraction: float, trial: tuple[str, ...], seed: int
    ) -> Cell:
        extra = (*arm.set, *trial)
        if fraction < 1.0:
            extra += tuple(_of(fraction, text) for text in self.grid.fraction_settings)
        stages = arm.chain(fraction)
        chain: list[str] = []
        for position, name in enumerate(stages, start=1):
            own = extra if position == len(stages) else ()
            parent = chain[-1] if chain else ""
            chain.append(self.job(self.stages[name], dataset, fraction, seed, own, parent))
        return Cell(
            dataset=dataset,
            arm=arm.name,
            fraction=fraction,
            trial=trial,
            seed=seed,
            jobs=tuple(chain),
        )

    def cells(self) -> Iterator[Cell]:
        for experiment in self.grid.experiments:
            for dataset, name, fraction, trial, seed in product(
                experiment.datasets,
                experiment.compared,
                experiment.fractions,
                experiment.trials,
                self.grid.seeds,
            ):
                yield self.cell(dataset, self.arms[name], fraction, trial, seed)


def make_plan(grid: Grid, folder: Path) -> Plan:
    """Spell out the runs of a grid.

    Args:
        grid: The grid.
        folder: Folder of its file; recipes are found from here.

    Raises:
        UsageError: A recipe is missing.
    """
    planner = _Planner(grid, folder)
    cells = tuple(dict.fromkeys(planner.cells()))
    return Plan(grid=grid, folder=str(folder), jobs=tuple(planner.jobs.values()), cells=cells)
