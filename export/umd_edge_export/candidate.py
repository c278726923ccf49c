"""A packed bundle before it gets its place: measured as a device would run it.

Accuracy and speed are those of the runtime on the very files that would be shipped, not of the
graphs they were made from.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from umd_edge._predictor import Predictor
from umd_edge._records import read_records
from umd_edge.errors import UsageError

from .compare import Predictions, compare_predictions, predict
from .gates import GateOptions, GateResult, accuracy_gate, linter_gate, speed_gate
from .sides import PredictorSide
from .speed import SpeedReport, measure_speed
from .targets import TARGETS, Target

__all__ = ["REFERENCE", "Candidate", "check_gate_data", "check_size_only", "choose_variants"]

REFERENCE = "fp32"
_TENSORRT = TARGETS["tensorrt"].variant
_ARM = ("aarch64", "arm64")

Progress = Callable[[str], None]


def _elsewhere(target: Target) -> str:
    """Why this machine says nothing about the target's speed; empty where it does."""
    if target.name in ("cpu", "dynamic"):
        return ""
    machine = platform.machine()
    if target.name == "arm64":
        return "" if machine.lower() in _ARM else f"this machine is {machine}, not arm64"
    return f"the processor here says nothing about {target.name}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A bundle at a temporary place, opened once for each variant.

    Attributes:
        predictors: Variant -> predictor on one thread, `fp32` among them.
        targets: Variant -> what it was made for; without `fp32`.
    """

    predictors: Mapping[str, Predictor]
    targets: Mapping[str, Target]

    @classmethod
    def open(cls, path: Path, targets: Mapping[str, Target]) -> Candidate:
        """Open every variant of a bundle that holds `fp32` and those of `targets`."""
        names = (REFERENCE, *targets)
        return cls({name: Predictor.load(path, variant=name, threads=1) for name in names}, targets)

    def predict(
        self, data: Sequence[Path], progress: Progress, tasks: Sequence[str] = ()
    ) -> Predictions:
        """Run every variant on labelled records.

        Raises:
            DataError: The records are unreadable or fit no task.
        """

        def count(task: str, done: int, total: int) -> None:
            if done == total:
                progress(f"measured {task}: {total} runs")

        sides = {name: PredictorSide(item) for name, item in self.predictors.items()}
        return predict(sides, data, tasks=tasks, progress=count)

    def gate_accuracy(
        self, predictions: Predictions | None, options: GateOptions
    ) -> list[GateResult]:
        """The accuracy gate of every variant but `fp32`."""
        return [
            accuracy_gate(
                None
                if predictions is None
                else compare_predictions(predictions, REFERENCE, variant),
                variant,
                max_drop=options.max_drop,
                proven=options.proven,
            )
            for variant in self.targets
        ]

    def measure_speed(self) -> dict[str, SpeedReport | None]:
        """Variant -> its time against float32; None where this machine is not its target."""
        return {
            variant: None
            if _elsewhere(target)
            else measure_speed(self.predictors[REFERENCE], self.predictors[variant])
            for variant, target in self.targets.items()
        }

    def gate_speed(
        self, options: GateOptions, speed: Mapping[str, SpeedReport | None] | None = None
    ) -> list[GateResult]:
        """The speed gate of every variant but `fp32`, from what `measure_speed` gives."""
        measured = self.measure_speed() if speed is None else speed
        return [
            speed_gate(
                report,
                variant,
                size_only=variant in options.size_only,
                reason=_elsewhere(self.targets[variant]),
            )
            for variant, report in measured.items()
        ]

    def gate_linter(self) -> list[GateResult]:
        """The linter gate of every variant that TensorRT is to run."""
        import onnx

        from .tensorrt_linter import lint_graph

        results = []
        for variant, target in self.targets.items():
            if target.variant != _TENSORRT:
                continue
            bundle = self.predictors[variant].bundle
            findings = [
                f"{part}: {finding}"
                for part, path in bundle.manifest.variants[variant].graphs.items()
                for finding in lint_graph(onnx.load_from_string(bundle.read(path)))
            ]
            results.append(linter_gate(findings, variant))
        return results


def check_size_only(size_only: Sequence[str], variants: Sequence[str]) -> None:
    """Refuse `--size-only` of a variant that is not built.

    Raises:
        UsageError: With those that are.
    """
    unknown = sorted(set(size_only) - set(variants))
    if unknown:
        raise UsageError(f"--size-only {unknown} given; this build makes {list(variants)}")


def choose_variants(names: Sequence[str]) -> tuple[bool, dict[str, Target]]:
    """Whether `fp32` stays in the bundle, and variant -> target of the others.

    A variant may be named by itself or by one of its targets.

    Raises:
        UsageError: An unknown name, or none.
    """
    by_variant = {target.variant: target for target in reversed(list(TARGETS.values()))}
    known = {**by_variant, **TARGETS}
    unknown = sorted(set(names) - set(known) - {REFERENCE})
    if unknown or not names:
        raise UsageError(
            f"variants {list(names)} given; some of {[REFERENCE, *by_variant]}, or of the targets "
            f"{list(TARGETS)}, are allowed"
        )
    chosen = {known[name].variant: known[name] for name in names if name != REFERENCE}
    ordered = {target.variant: None for target in TARGETS.values()}
    return REFERENCE in names, {name: chosen[name] for name in ordered if name in chosen}


def check_gate_data(gate_data: Sequence[Path], range_data: Sequence[Path]) -> None:
    """Tell at once what is wrong with the labelled records.

    Raises:
        UsageError: A file sets the ranges which it is to judge.
        DataError: A file cannot be read.
    """
    shared = {path.resolve() for path in gate_data} & {path.resolve() for path in range_data}
    if shared:
        raise UsageError(
            f"{sorted(path.name for path in shared)} given as --gate-data or --fit-data and as "
            "--range-data; both need records on which nothing was tuned"
        )
    for path in gate_data:
        read_records(path)
