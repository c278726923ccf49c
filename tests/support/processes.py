"""Training in several processes that talk over gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_JOBS = """
import json, os, sys
from pathlib import Path
from umd_edge.errors import UmdEdgeError
from umd_edge_train.finetuning import finetune
from umd_edge_train.pretraining import adapt, pretrain
from umd_edge_train.recipe import load_recipe

kinds = {"finetune": finetune, "pretrain": pretrain, "adapt": adapt}
for job in json.loads(sys.argv[1]):
    recipe = load_recipe(job["recipe"], tuple(job["settings"]))
    out, stop = Path(job["out"]), job.get("stop", 0)
    init = Path(job["init"]) if "init" in job else None
    kinds[job["kind"]](
        recipe,
        Path(job["data"]),
        out,
        init=init,
        resume=job.get("resume", False),
        on_step=lambda step: os._exit(9) if step == stop else None,
    )
"""


def job(kind: str, recipe: Path, data: Path, out: Path, *settings: str, **more: Any) -> Any:
    """A run for `run_jobs`; `stop=N` kills every process behind step N, `resume=True` goes on."""
    paths = {"recipe": str(recipe), "data": str(data), "out": str(out)}
    return {"kind": kind, **paths, "settings": settings, **more}


def run_jobs(
    jobs: Sequence[Any], processes: int = 2, **environment: str
) -> tuple[list[int], list[str]]:
    """Train one job after the other in so many processes.

    Returns:
        Exit codes and what was written to standard error, of each process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            **environment,
        }
        command = [sys.executable, "-c", _JOBS, json.dumps(list(jobs))]
        started.append(
            subprocess.Popen(
                command, env=variables, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
        )
    errors = [process.communicate(timeout=900)[1].decode() for process in started]
    return [process.returncode for process in started], errors
