"""`umd-edge info`, `verify` and `doctor`."""

from __future__ import annotations

from typing import Any

import click

from .._bundle import Bundle
from .._describe import describe_bundle, describe_signature, model_card
from .._doctor import describe, examine
from .._predictor import Predictor
from .._task import TaskSpec
from ._options import BundleChoice, as_json, bundle_option, open_bundle, with_predictor
from ._output import emit, table

__all__ = ["doctor", "info", "verify"]


@click.command()
@bundle_option
@as_json
def info(bundle: BundleChoice, as_json: bool) -> None:
    """Show what a bundle says about itself.

    Its tasks, intended use, variants and, from its model card, sources, licences and accuracy.
    """
    opened = open_bundle(bundle)
    if as_json:
        emit({"path": str(opened.path), **describe_bundle(opened)})
        return
    click.echo(_summary(opened))
    card = model_card(opened)
    if card is not None:
        click.echo("\n" + card.rstrip())


def _summary(bundle: Bundle) -> str:
    manifest = bundle.manifest
    size = f"{bundle.size_bytes / 1e6:.1f} MB"
    variants = ", ".join(
        f"{name} (default)" if name == manifest.default_variant else name
        for name in manifest.variants
    )
    facts = [
        ("bundle", f"{manifest.name} {manifest.version}, made {manifest.created}, {size}"),
        ("path", str(bundle.path)),
        ("sha256", bundle.sha256),
        ("variants", variants),
        ("signed", _signature_words(bundle)),
        ("intended use", manifest.intended_use.statement),
        ("", "Not a medical device."),
    ]
    lines = [table(facts), "", "tasks"]
    for task in manifest.tasks:
        outputs: tuple[str, ...] = task.outputs
        shown = f"{len(outputs)} answers" if task.kind == "vqa" else ", ".join(outputs)
        lines.append(f"  {task.name} ({task.kind}): {shown}")
        if task.structured_paths:
            lines.append(f"    reads, where given: {', '.join(task.structured_paths)}")
        if fitted := _fitted_words(task):
            lines.append(f"    fitted: {fitted}")
    return "\n".join(lines)


def _fitted_words(task: TaskSpec) -> str:
    """What the task can say of its own certainty."""
    words = []
    if task.scale or task.other is not None:
        words.append("scaling")
    elif task.temperature != 1.0:
        words.append(f"temperature {task.temperature:g}")
    if task.operating_curves:
        words.append("--sensitivity and --specificity")
    if task.conformal is not None:
        words.append("--coverage")
    if "abstain" in task.thresholds:
        words.append(f"abstains below {task.thresholds['abstain']:g}")
    return ", ".join(words)


def _signature_words(bundle: Bundle) -> str:
    if bundle.signed_by is not None:
        return f"yes, checked with the key {bundle.signed_by.fingerprint}"
    return "yes, but not checked (give --key)" if bundle.is_signed else "no"


@click.command()
@with_predictor
@as_json
def verify(predictor: Predictor, as_json: bool) -> None:
    """Check a bundle and this machine.

    Compares every file with its hash, with --key the signature with the key, and runs the bundle's
    known-answer test here.

    Exit code 3 when one of them fails: do not use the bundle here then.
    """
    report = predictor.verify()
    bundle = predictor.bundle
    if as_json:
        signature = {"signature": describe_signature(bundle)}
        emit({"status": "ok", "bundle": predictor.info.to_dict(), **signature, **report.to_dict()})
        return
    click.echo(f"{describe(predictor)} on {report.provider}: {report.files} files as described")
    rows = [(c.name, f"{c.difference:.2e}", f"at most {c.tolerance:.2e}") for c in report.checks]
    click.echo(table([("known answer", "difference", "allowed"), *rows], indent=2))
    click.echo(f"signed: {_signature_words(bundle)}")
    click.echo("ok")


@click.command()
@bundle_option
@as_json
def doctor(bundle: BundleChoice, as_json: bool) -> int:
    """Show what is installed, and what to do.

    Versions, providers, processor, extras and the state of the bundle.
    """
    checks = list(examine(bundle.load))
    code = next((check.exit_code for check in checks if check.state == "problem"), 0)
    if as_json:
        problems = [check.name for check in checks if check.state == "problem"]
        emit({"checks": [check.to_dict() for check in checks], "problems": problems})
        return code
    rows: list[tuple[Any, ...]] = [
        (check.name, check.state, check.detail + (f"  -> {check.advice}" if check.advice else ""))
        for check in checks
    ]
    click.echo(table(rows))
    return code
