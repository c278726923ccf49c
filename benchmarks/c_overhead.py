"""The overhead of the C library's calls over the same runs of ONNX Runtime made bare.

`python -m benchmarks.c_overhead [--bundle model.umd] [--runs 400]` compiles `c_overhead.c` with the
library and prints, for each call, the median ratio of neighbouring runs and its quartiles. Bare
means: pixels preprocessed and text tokenised by the library, then `Run` on the same session.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import click
import onnxruntime

from umd_edge import Predictor

__all__ = ["compile_with_library", "main"]

ROOT = Path(__file__).resolve().parent.parent
_FLAGS = ["-std=c11", "-O2", "-ffp-contract=off", "-w"]


def compile_with_library(source: Path, folder: Path) -> Path:
    """A program of one file and the library's own, optimised as a release is."""
    program = folder / source.stem
    sources = [source, *(ROOT / "bindings/c/src").glob("*.c")]
    include = f"-I{ROOT / 'bindings/c/include'}"
    command = [os.environ.get("CC", "cc"), *_FLAGS, include, *map(str, sources)]
    subprocess.run([*command, "-o", str(program), "-lm", "-ldl", "-lpthread"], check=True)
    return program


@click.command()
@click.option("--bundle", default=str(ROOT / "umd_edge/bundles/default.umd"), show_default=True)
@click.option("--runs", default=400, show_default=True, type=click.IntRange(min=4))
def main(bundle: str, runs: int) -> None:
    """Measure and print one JSON object for each call."""
    tasks = Predictor.load(bundle).tasks
    task = next(task.name for task in tasks if task.kind == "classification")
    folder = Path(onnxruntime.__file__).parent / "capi"
    runtime = next(folder.glob("libonnxruntime.so*"))
    with tempfile.TemporaryDirectory() as scratch:
        program = compile_with_library(ROOT / "benchmarks" / "c_overhead.c", Path(scratch))
        command = [str(program), bundle, str(runtime), task, str(runs)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        click.echo(json.dumps(json.loads(line)))


if __name__ == "__main__":
    main()
