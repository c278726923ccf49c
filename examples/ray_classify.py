"""Classify an archive that outgrows one machine, with Ray Data: see docs/scale-out.md.

    pip install "umd-edge[dicom]" "ray[data]"
    python examples/ray_classify.py /archive/films --task chest-xray --out results/

Each actor opens the bundle once and keeps it. An actor or a machine that dies is replaced by Ray,
and what it had in hand is done again; as a result depends on its image alone, nothing is lost and
nothing differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use over the network

import ray

SUFFIXES = {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ""}


class Classifier:
    """A predictor as a stateful actor: opened once, called with batches of paths."""

    def __init__(self, task: str, bundle: str | None, sha256: str, keys: list[str]) -> None:
        import umd_edge  # on the worker

        checks: dict[str, Any] = {"self_test": True, "public_key": keys or None}
        load = umd_edge.Predictor.load
        self.predictor = load(bundle, **checks) if bundle else umd_edge.Predictor.default(**checks)
        # Every machine must answer with the very same model.
        if self.predictor.info.sha256 != sha256:
            found = self.predictor.info.sha256
            raise RuntimeError(f"this machine has the bundle {found}; {sha256} is needed")
        self.task = task

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One line of `umd-edge classify --json` for each path."""
        pairs = zip(batch["index"], batch["path"], strict=True)
        results = [self._result(str(path), int(index)) for index, path in pairs]
        lines = [json.dumps(result, ensure_ascii=False) for result in results]
        failed = ["error" in result for result in results]
        return {"line": np.array(lines, dtype=object), "failed": np.array(failed)}

    def _result(self, path: str, index: int) -> dict[str, Any]:
        from umd_edge import InputError, MissingDependencyError

        head = {"image": path, "index": index}
        try:
            return {**head, **self.predictor.classify(path, self.task).to_dict()}
        except (InputError, MissingDependencyError) as error:
            return {**head, "error": {"type": type(error).__name__, "message": str(error)}}


def classify(
    paths: list[str],
    task: str,
    out: Path,
    *,
    bundle: str | None = None,
    keys: list[str] | None = None,
    actors: int = 1,
    batch: int = 16,
) -> int:
    """Classify the images of a shared file system, and write JSON Lines into a folder.

    Args:
        paths: As every machine of the cluster sees them.
        task: Name of a classification task of the bundle.
        out: Folder for `part-*.jsonl`, on the driver's machine.
        bundle: Path of the bundle, as every machine sees it; the one in the package where None.
        keys: Files of public keys; the bundle must be signed with one of them.
        actors: Predictors at the same time; each takes one core.
        batch: Images that an actor takes at once, and does again after a failure.

    Returns:
        Number of images that could not be used.
    """
    import umd_edge

    opened = umd_edge.Predictor.load(bundle) if bundle else umd_edge.Predictor.default()
    rows = [{"index": index, "path": path} for index, path in enumerate(paths)]
    blocks = -(-len(rows) // batch)
    lines = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        Classifier,
        fn_constructor_args=(task, bundle, opened.info.sha256, keys or []),
        batch_size=batch,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
    )
    out.mkdir(parents=True)
    failed = done = 0
    for number, block in enumerate(lines.iter_batches(batch_size=4096)):
        temporary = out / f".part-{number:06d}.tmp"
        temporary.write_text("\n".join(block["line"]) + "\n", encoding="utf-8")
        temporary.rename(out / f"part-{number:06d}.jsonl")
        done += len(block["line"])
        failed += int(block["failed"].sum())
        click.echo(f"{done} of {len(paths)} images", err=True)
    return failed


def main() -> int:
    """Read the command line, classify, and say what came out."""
    parser = argparse.ArgumentParser(description="Classify an archive with Ray Data.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--bundle")
    parser.add_argument("--key", action="append", default=[])
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--address", help="of a running cluster; a local one where left out")
    given = parser.parse_args()
    paths = sorted(
        str(path)
        for path in given.folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not paths or given.out.exists():
        parser.error("the folder holds no images, or --out is there already")
    ray.init(address=given.address, include_dashboard=False, log_to_driver=False)
    failed = classify(
        paths,
        given.task,
        given.out,
        bundle=given.bundle,
        keys=given.key,
        actors=given.actors,
        batch=given.batch,
    )
    click.echo(f"{len(paths)} images, {failed} could not be used; results in {given.out}")
    return 4 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
