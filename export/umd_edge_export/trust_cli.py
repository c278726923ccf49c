"""The command `umd-edge-export trust`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from umd_edge.errors import UsageError
from umd_edge_train.options import PATH, json_option

from .options import data_sets_option, restricted_option
from .output import bundle_facts, note, show_bundle

if TYPE_CHECKING:
    from umd_edge._bundle import Bundle

    from .trust import FittedTask

__all__ = ["trust"]


@click.command()
@click.argument("bundle", type=PATH)
@data_sets_option(
    "--data",
    required=True,
    help="JSONL of labelled records of patients that the model was not trained on; repeatable.",
)
@data_sets_option(
    "--reference-data",
    help="JSONL of records that it was trained on: where each task's images lie, for the "
    "out-of-distribution score; repeatable. [those of --data, held out by patient]",
)
@click.option("--out", type=PATH, help="The .umd file to write; may be BUNDLE itself.")
@click.option(
    "--report",
    type=PATH,
    metavar="DIR",
    help="Folder for trust.json, trust.md and trust.png: does it hold on patients left out?",
)
@click.option(
    "--max-risk",
    type=click.FloatRange(0, 1),
    help="Share of wrong answers allowed among those given. [abstain from the often wrong ones]",
)
@click.option(
    "--max-abstain",
    type=click.FloatRange(0, 1),
    default=0.2,
    show_default=True,
    help="Share of the records that may be abstained from.",
)
@restricted_option
@json_option
def trust(
    bundle: Path,
    data: tuple[Path, ...],
    reference_data: tuple[Path, ...],
    out: Path | None,
    report: Path | None,
    max_risk: float | None,
    max_abstain: float,
    allow_non_commercial: bool,
    as_json: bool,
) -> None:
    """Fit probabilities, operating points, abstention and out-of-distribution of BUNDLE.

    For a new bundle, or for one site: the graphs stay as they are, byte for byte. Tasks without
    records stay as they are too.
    """
    from .ood import fit_ood_of
    from .places import check_folder, check_place
    from .trust import fit_bundle, write_fitted
    from .trust_decisions import AbstainRule

    if out is None and report is None:
        raise UsageError("give --out for a fitted bundle, --report for a proof, or both")
    if out is not None:
        check_place(out)
    if report is not None:
        check_folder(report)
    rule = AbstainRule(max_risk=max_risk, max_share=max_abstain)
    opened, fitted = fit_bundle(
        bundle, data, rule=rule, allow_non_commercial=allow_non_commercial, progress=note
    )
    result: dict[str, object] = {
        "tasks": {name: item.to_dict() for name, item in fitted.items()},
        "fitted": {name: item.task.to_dict()["probability"] for name, item in fitted.items()},
    }
    if report is not None:
        result["proof"] = _prove(opened, fitted, report)
    if out is not None:
        ood = fit_ood_of(
            bundle,
            data,
            reference_data,
            allow_non_commercial=allow_non_commercial,
            progress=note,
        )
        result["out_of_distribution"] = dict(ood.report)
        built = write_fitted(opened, fitted, data, out, rule=rule, ood=ood)
        result["bundle"] = bundle_facts(built)
        result["path"] = str(out)
    if as_json:
        click.echo(json.dumps(result))
        return
    _show(fitted)
    if out is not None:
        show_bundle(out, built)
    if report is not None:
        click.echo(f"{report}: trust.md, trust.png, trust.json")


def _show(fitted: Mapping[str, FittedTask]) -> None:
    for name, item in fitted.items():
        found = item.to_dict()
        kind = found["scaling"]
        nll = found["cross_fitted_nll"]
        click.echo(
            f"{name}: {found['records']} records of {found['groups']} patients; {kind} scaling, "
            f"NLL {nll['identity']:.3f} to {nll[kind]:.3f}; abstains from "
            f"{100 * found['abstained_share']:.0f} %"
        )
        if found["changed_decisions"]:
            click.echo(f"  {100 * found['changed_decisions']:.1f} % of the decisions change")


def _prove(opened: Bundle, fitted: Mapping[str, FittedTask], folder: Path) -> dict[str, object]:
    """Write the proof's three files and give its figures back."""
    from umd_edge._files import write_whole
    from umd_edge._json import dump_canonical

    from .trust_pictures import draw_proofs, proof_table
    from .trust_proof import prove_task

    folder.mkdir(parents=True, exist_ok=True)
    proofs = {}
    for name, item in fitted.items():
        note(f"splitting the patients of {name} again and again")

        def tell(done: int, total: int, name: str = name) -> None:
            if done % 50 == 0:
                note(f"  {name}: {done} of {total} splits")

        proofs[name] = prove_task(item.records, item, tell)
    manifest = opened.manifest
    title = f"{manifest.name} {manifest.version}, {manifest.default_variant}"
    figures: dict[str, object] = {name: proof.figures for name, proof in proofs.items()}
    for name, content in (
        ("trust.json", dump_canonical({"bundle": opened.sha256, "tasks": figures})),
        ("trust.md", proof_table(proofs).encode("utf-8")),
        ("trust.png", draw_proofs(proofs, title)),
    ):
        write_whole(folder / name, content)
    return figures
