"""`umd-edge-train facets`."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from ..options import PATH, json_option, require_log, threads_option

__all__ = ["facets"]


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--data", type=PATH, required=True, help="JSONL of pictures with `facets`.")
@click.option("--task", default="retrieval", show_default=True, help="The task that ranks.")
@click.option("--vqa-task", default="vqa", show_default=True, help="The task that names facets.")
@threads_option
@click.option("--log", type=PATH, help="Append the figures here; needed for a test split.")
@json_option
def facets(
    bundle: Path,
    data: Path,
    task: str,
    vqa_task: str,
    threads: int,
    log: Path | None,
    as_json: bool,
) -> None:
    """Compare BUNDLE's retrieval with a search by its predicted modality, plane and organ."""
    from tqdm import tqdm

    from umd_edge._predictor import Predictor

    from ..split_scheme import split_scheme
    from .facets import compare_with_facets

    if data.stem.endswith("test"):
        require_log(log)
    if log is not None:  # before the work: no look goes unlogged for want of permission
        log.open("a", encoding="utf-8").close()
    predictor = Predictor.load(bundle, threads=threads)
    with tqdm(unit="item", desc="ranking") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = compare_with_facets(
            predictor,
            data,
            retrieval_task=task,
            vqa_task=vqa_task,
            progress=show,
        ).to_dict()
    found["split"] = split_scheme(data.resolve().parent)
    table = _table(found)
    if log is not None:
        _append(log, f"{data.resolve().parent.name}/{data.name}", table)
    click.echo(json.dumps(found) if as_json else table)


def _table(found: dict[str, Any]) -> str:
    lines = [
        f"{found['images']} pictures, {found['texts']} texts, splits: {found['split']}; "
        "difference: model less facets.\n",
        "| metric | model | facets | difference | 95 % interval | n |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, sides in found["metrics"].items():
        gain = sides["difference"]
        interval = "-" if gain["low"] is None else f"{gain['low']:+.3f} to {gain['high']:+.3f}"
        lines.append(
            f"| {name} | {sides['model']['value']:.3f} | {sides['facets']['value']:.3f} | "
            f"{gain['value']:+.3f} | {interval} | {gain['n']} |"
        )
    return "\n".join(lines)


def _append(log: Path, name: str, table: str) -> None:
    from ..source import commit

    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    title = f"\n## {now} UTC: {name}, retrieval beside a search by predicted facets\n"
    with log.open("a", encoding="utf-8") as handle:
        handle.write(f"{title}\nCommit `{commit()}`.\n\n{table}\n")
