"""The gates of an export: each takes what was measured and says passed or failed, and what to do.

A gate measures nothing and writes nothing. All results of a build go into its report, and a bundle
is written only where none has failed. Times differ from run to run: they stay out of the bundle, so
that building again gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import (
    AccuracyError,
    GateError,
    InvarianceError,
    LinterError,
    ParityError,
    SpeedError,
)

if TYPE_CHECKING:
    from .compare import Comparison, PairedDifference
    from .invariance import InvarianceReport
    from .parity import ParityReport
    from .speed import SpeedReport

__all__ = [
    "GateOptions",
    "GateResult",
    "accuracy_gate",
    "invariance_gate",
    "linter_gate",
    "parity_gate",
    "require_passed",
    "speed_gate",
]

Status = Literal["passed", "failed", "waived", "not_run"]

_ERRORS: dict[str, type[GateError]] = {
    "parity": ParityError,
    "invariance": InvarianceError,
    "accuracy": AccuracyError,
    "speed": SpeedError,
    "linter": LinterError,
}
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOptions:
    """What the user asks of the gates."""

    data: tuple[Path, ...] = ()
    """JSONL of labelled records for the accuracy gate; nothing may have been tuned on them."""
    max_drop: float = 0.5
    """Points of accuracy that a variant may lose against float32, over all tasks together."""
    proven: bool = False
    """The whole interval of the loss must lie within `max_drop`."""
    size_only: tuple[str, ...] = ()
    """Variants that may be slower than float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """What one gate says of one variant."""

    gate: str
    """`parity`, `invariance`, `accuracy`, `speed` or `linter`."""
    variant: str
    status: Status
    """`waived`: it would have failed, and the user said that it may. `not_run`: it could not be
    measured, and `message` says why."""
    message: str
    """What was found, and what to do where that is not enough."""
    figures: dict[str, Any] = field(default_factory=dict)
    """The same in every run."""
    timings: dict[str, Any] = field(default_factory=dict)
    """Different in every run; not in the bundle."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `report.json`: without what differs from run to run."""
        return {
            "gate": self.gate,
            "variant": self.variant,
            "status": self.status,
            "message": self.message,
            "figures": self.figures,
        }

    def to_line(self) -> str:
        """One line for people, timings included."""
        measured = ""
        if self.timings:
            measured = " ({ratio:.2f} of float32's time, {low:.2f} to {high:.2f})".format(
                **self.timings
            )
        return f"{self.status.replace('_', ' ')}: {self.gate} {self.variant}: " + (
            f"{self.message}{measured}"
        )


def parity_gate(report: ParityReport) -> GateResult:
    """Whether the float32 graphs compute what the torch model computes."""
    largest = max(report.differences.values(), default=float("nan"))
    return GateResult(
        gate="parity",
        variant="fp32",
        status="failed" if report.problem else "passed",
        message=report.problem
        or f"at most {largest:.2g} from the torch model, {report.tolerance:g} allowed",
        # JSON has no NaN, and only a failed gate can have one.
        figures={} if report.problem else report.to_dict(),
    )


def invariance_gate(
    report: InvarianceReport, variant: str, *, alone_only: bool = False
) -> GateResult:
    """Whether a sample's outputs depend on the others of its batch or on padding.

    Args:
        report: What was measured.
        variant: Name.
        alone_only: The variant's ranges are taken at run time: whoever asked for it knows that it
            is for samples that run alone and unpadded, as the runtime runs them.
    """
    if not report.problem:
        message = f"no bit differs in {report.comparisons} comparisons"
    elif alone_only:
        message = f"{report.problem}. Run each sample alone and without padding, as umd-edge does"
    else:
        message = f"{report.problem}. Report it with the checkpoint's config.json"
    failed: Status = "waived" if alone_only else "failed"
    return GateResult(
        gate="invariance",
        variant=variant,
        status=failed if report.problem else "passed",
        message=message,
        figures=report.to_dict(),
    )


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _interval(value: PairedDifference) -> str:
    if value.low is None or value.high is None:
        return "no interval from a single patient"
    return f"{_points(value.low)} to {_points(value.high)}"


def _lost(value: PairedDifference) -> str:
    return (
        f"{_points(value.difference)} points ({_interval(value)}; {value.n} records of "
        f"{value.groups} patients, {100 * value.changed_decisions:.2f} % of decisions changed)"
    )


def _too_few(value: PairedDifference, budget: float) -> str:
    return (
        f"One of {value.n} records weighs {100 / value.n:.2f} points, more than the budget: give "
        "more records with --gate-data"
        if 1 / value.n > budget
        else "Give more records with --gate-data to narrow the interval"
    )


def accuracy_gate(
    comparison: Comparison | None, variant: str, *, max_drop: float, proven: bool = False
) -> GateResult:
    """Whether a variant keeps the accuracy of float32 on labelled records.

    The pooled difference decides, whatever its interval: a drop beyond the budget fails. Where the
    interval reaches beyond the budget although the drop does not, the gate passes and says that
    these records do not show it (with `proven` it fails). One task alone fails the gate only when
    its whole interval lies beyond the budget: a small test part must prove the loss, not suggest
    it.

    Args:
        comparison: Float32 against the variant; None where no labelled records were given.
        variant: Name.
        max_drop: Budget in points of accuracy.
        proven: The whole interval must lie within the budget.
    """
    if comparison is None:
        return GateResult(
            gate="accuracy",
            variant=variant,
            status="not_run",
            message="accuracy against float32 was not measured; give labelled records that nothing "
            "was tuned on with --gate-data",
        )
    budget, pooled = max_drop / 100, comparison.pooled
    shown = pooled.low is not None and pooled.low >= -budget
    collapsed = [
        name
        for name, value in comparison.tasks.items()
        if value.high is not None and value.high < -budget
    ]
    # 0.5 points must hold 0.5 points, whatever the last bit of the mean.
    exceeded = pooled.difference < -budget - 1e-12
    if exceeded:
        certain = pooled.high is not None and pooled.high < -budget
        advice = (
            "Keep more layers in float32, or give range data of the right kind"
            if certain
            else f"The interval does not settle it. {_too_few(pooled, budget)}"
        )
        message = f"{_lost(pooled)} against float32, at most {max_drop:g} may be lost. {advice}"
    elif collapsed:
        worst = "; ".join(f"task {name!r} {_lost(comparison.tasks[name])}" for name in collapsed)
        message = (
            f"{worst}: beyond {max_drop:g} points with its whole interval, though all tasks "
            "together stay within. Give range data for that task, or keep more layers in float32"
        )
    elif shown:
        message = f"{_lost(pooled)} against float32, within {max_drop:g} with the whole interval"
    else:
        message = (
            f"{_lost(pooled)} against float32; not shown to stay within {max_drop:g} points: the "
            f"interval reaches beyond. {_too_few(pooled, budget)}"
        )
    failed = exceeded or bool(collapsed) or (proven and not shown)
    return GateResult(
        gate="accuracy",
        variant=variant,
        status="failed" if failed else "passed",
        message=message,
        figures={"max_drop_points": max_drop, "shown": shown, **comparison.to_dict()},
    )


def speed_gate(
    report: SpeedReport | None, variant: str, *, size_only: bool = False, reason: str = ""
) -> GateResult:
    """Whether a variant is slower than float32 on its own target.

    It fails where the whole interval of the ratio says so: a variant that cannot be told from
    float32 is not slower.

    Args:
        report: What was measured; None where this machine is not the target.
        variant: Name.
        size_only: The user wants the variant for its size.
        reason: Why nothing was measured.
    """
    if report is None:
        return GateResult(
            gate="speed",
            variant=variant,
            status="not_run",
            message=f"{reason}; run `umd-edge bench` on the device",
            figures={"size_only": size_only},
        )
    status: Status = "passed"
    message = "not slower than float32 here"
    if size_only:  # whatever was measured, so that building again gives the same report
        status, message = "waived", "made for its size: it may be slower than float32"
    elif report.verdict == "slower":
        status = "failed"
        message = (
            f"{report.ratio:.2f} times the time of float32 ({report.low:.2f} to {report.high:.2f} "
            f"over {report.rounds} rounds). Leave the variant out, or mark it with --size-only "
            f"{variant}"
        )
    return GateResult(
        gate="speed",
        variant=variant,
        status=status,
        message=message,
        figures={"size_only": size_only},
        timings=report.to_dict(),
    )


def linter_gate(findings: Sequence[object], variant: str) -> GateResult:
    """Whether TensorRT takes the graphs.

    Args:
        findings: Of all three graphs.
        variant: Name.
    """
    shown = "; ".join(str(item) for item in findings[:_SHOWN])
    more = f"; and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else ""
    return GateResult(
        gate="linter",
        variant=variant,
        status="failed" if findings else "passed",
        message=f"TensorRT refuses {shown}{more}" if findings else "nothing that TensorRT refuses",
        figures={"errors": len(findings)},
    )


def require_passed(results: Sequence[GateResult]) -> None:
    """Refuse a build with a failed gate.

    Raises:
        GateError: With every failed gate's message; of the gate's own class where only one kind has
            failed.
    """
    failed = [result for result in results if result.status == "failed"]
    if not failed:
        return
    kinds = {result.gate for result in failed}
    error = _ERRORS[failed[0].gate] if len(kinds) == 1 else GateError
    text = " | ".join(f"{item.gate} of {item.variant}: {item.message}" for item in failed)
    raise error(f"not written, {len(failed)} gate(s) failed: {text}", tuple(results))
