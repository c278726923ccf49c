"""What umd-edge costs on top of ONNX Runtime: `python -m benchmarks.overhead`.

Everything is a ratio inside one run: the SDK and a bare script do the same work one right after the
other, in alternating order, so that both see the same machine. The report gives the median of the
rounds' ratios and their 10 and 90 % quantiles.

* warm ask: `predictor.ask` of pixels in the model's own size with a question that has not been
  asked before, against the three `session.run` calls on arrays made beforehand.
* further question: `encoded.ask` of such a question, against the text and the fusion graph.
* cold process: `python -m umd_edge classify` of one PNG, from start to end, against a script that
  imports the same packages (numpy, onnxruntime, tokenizers, Pillow, click), opens the same graphs
  from files with the same settings, and runs them once. Processor time and the time that passes.
* peak memory: largest resident size of those two processes.
* import: `import umd_edge` against `import numpy`, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from umd_edge import Bundle, Predictor
from umd_edge._bench import SdkAndBare, generated_png

__all__ = ["main"]

_BARE = """
import json, sys
import click, numpy as np, onnxruntime, tokenizers
from PIL import Image
job = json.loads(sys.argv[1])
def session(path):
    settings = onnxruntime.SessionOptions()
    settings.enable_cpu_mem_arena = False
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    with open(path, "rb") as file:
        return onnxruntime.InferenceSession(
            file.read(), settings, providers=["CPUExecutionProvider"]
        )
vision, text, fusion = (session(path) for path in job["graphs"])
tokenizer = tokenizers.Tokenizer.from_file(job["tokenizer"])
height, width, channels = job["shape"]
with Image.open(job["image"]) as image:
    image = image.convert("RGB" if channels == 3 else "L").resize((width, height))
    pixels = np.asarray(image, np.float32).reshape(height, width, channels)
values = np.ascontiguousarray((pixels / 255 - 0.5).transpose(2, 0, 1)[None] / 0.25, np.float32)
tokens, _ = vision.run(None, {"pixel_values": values})
ids = np.array([tokenizer.encode(job["prompt"]).ids], np.int64)
mask = np.ones_like(ids)
words = text.run(["text_tokens"], {"input_ids": ids, "attention_mask": mask})[0]
none = np.zeros((1, job["fields"]), np.float32)
logits = fusion.run([job["logits"]], {
    "image_tokens": tokens, "text_tokens": words, "attention_mask": mask,
    "structured_values": none, "structured_mask": none,
})[0]
click.echo(json.dumps(logits.tolist()))
"""


def _ratio(ours: Sequence[float], bare: Sequence[float]) -> dict[str, float]:
    """Median of the rounds' ratios, with their 10 and 90 % quantiles."""
    ratios = np.asarray(ours) / np.asarray(bare)
    low, middle, high = (float(value) for value in np.quantile(ratios, [0.1, 0.5, 0.9]))
    return {
        "ratio": round(middle, 3),
        "p10": round(low, 3),
        "p90": round(high, 3),
        "of_medians": round(statistics.median(ours) / statistics.median(bare), 3),
        "sdk": round(statistics.median(ours), 3),
        "bare": round(statistics.median(bare), 3),
    }


# A small process starts the one that is measured: the largest size of a process counts from before
# it became another program, and would be that of the benchmark itself.
_LAUNCH = """
import json, os, sys, time
start = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - start
facts = [os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime]
sys.stdout.write("\\n" + json.dumps([*facts, usage.ru_maxrss]))
"""


class _Process:
    """What a process took: seconds that passed, seconds of processor, bytes at its largest."""

    def __init__(self, command: Sequence[str], folder: str) -> None:
        done = subprocess.run(
            [sys.executable, "-S", "-c", _LAUNCH, *command],
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        code, self.seconds, self.processor_s, peak = json.loads(done.stdout.splitlines()[-1])
        if code:
            raise click.ClickException(f"{command[:4]} failed: {done.stderr[-2000:]}")
        self.peak_bytes = peak * (1 if sys.platform == "darwin" else 1024)


def _pairs(
    ours: Sequence[str], bare: Sequence[str], rounds: int, folder: str, tick: Callable[[], None]
) -> list[tuple[_Process, _Process]]:
    pairs = []
    for number in range(-1, rounds):  # the first warms the file cache and writes bytecode
        if number % 2:
            second, first = _Process(bare, folder), _Process(ours, folder)
        else:
            first, second = _Process(ours, folder), _Process(bare, folder)
        if number >= 0:
            pairs.append((first, second))
            tick()
    return pairs


def _cold(bundle: Bundle, task: str, rounds: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Ratios of a cold `umd-edge classify` over the bare script."""
    manifest = bundle.manifest
    spec = next(item for item in manifest.tasks if item.name == task)
    variant = manifest.variants[manifest.default_variant]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        image = place / "image.png"
        image.write_bytes(generated_png())
        graphs = []
        for part in ("vision", "text", "fusion"):
            graphs.append(str(place / f"{part}.onnx"))
            Path(graphs[-1]).write_bytes(bundle.read(variant.graphs[part]))
        (place / "tokenizer.json").write_bytes(bundle.read(manifest.tokenizer.file))
        shape = manifest.preprocessing
        job = {
            "graphs": graphs,
            "tokenizer": str(place / "tokenizer.json"),
            "image": str(image),
            "shape": [shape.height, shape.width, shape.channels],
            "prompt": spec.prompt,
            "fields": len(manifest.structured_fields),
            "logits": f"logits_{task.replace('-', '_')}",
        }
        ours = [sys.executable, "-m", "umd_edge", "classify", str(image), "--task", task, "--json"]
        ours += ["--bundle", str(bundle.path)]
        bare = [sys.executable, "-c", _BARE, json.dumps(job)]
        pairs = _pairs(ours, bare, rounds, folder, tick)
    first, second = zip(*pairs, strict=True)
    return {
        "cold_process_s": _ratio([p.seconds for p in first], [p.seconds for p in second]),
        "cold_process_cpu_s": _ratio(
            [p.processor_s for p in first], [p.processor_s for p in second]
        ),
        "peak_memory_mb": _ratio(
            [p.peak_bytes / 1e6 for p in first], [p.peak_bytes / 1e6 for p in second]
        ),
    }


def _imports(rounds: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Ratio of `import umd_edge` over `import numpy`."""
    root = str(Path(__file__).resolve().parent.parent)
    ours, bare = ([sys.executable, "-c", f"import {name}"] for name in ("umd_edge", "numpy"))
    first, second = zip(*_pairs(ours, bare, rounds, root, tick), strict=True)
    return {
        "import_s": _ratio([p.seconds for p in first], [p.seconds for p in second]),
    }


def _warm(predictor: Predictor, rounds: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Ratios of warm calls over the same `session.run` calls."""
    pair = SdkAndBare(predictor)
    times = []
    for number in range(-10, rounds):
        measured = pair.round(sdk_first=number % 2 == 0)
        if number >= 0:
            times.append(measured * 1e3)
            tick()
    columns = np.asarray(times).T
    names = ("warm_ask_ms", "further_question_ms", "repeated_question_ms")
    return {
        name: _ratio(columns[2 * place].tolist(), columns[2 * place + 1].tolist())
        for place, name in enumerate(names)
    }


@click.command()
@click.option("--bundle", metavar="PATH", help="Bundle to measure. [the one in the package]")
@click.option("--task", default="chest-xray", help="Task of the cold process. [chest-xray]")
@click.option("--rounds", type=click.IntRange(min=10), default=300, help="Of warm calls. [300]")
@click.option("--processes", type=click.IntRange(min=3), default=15, help="Of each kind. [15]")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def main(bundle: str | None, task: str, rounds: int, processes: int, as_json: bool) -> None:
    """Measure what umd-edge costs on top of ONNX Runtime."""
    predictor = Predictor.load(bundle) if bundle else Predictor.default()
    steps = rounds + 2 * processes
    with (
        tempfile.TemporaryDirectory() as cache,
        click.progressbar(length=steps, label="measuring", file=sys.stderr) as bar,
    ):
        # An installed package has its bytecode; the round that does not count writes it.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = cache

        def tick() -> None:
            bar.update(1)

        report = {
            **_warm(predictor, rounds, tick),
            **_cold(predictor.bundle, task, processes, tick),
            **_imports(processes, tick),
        }
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    click.echo(f"{'':24}{'ratio':>8}{'10 %':>8}{'90 %':>8}{'umd-edge':>12}{'bare':>12}")
    for name, value in report.items():
        click.echo(
            f"{name:24}{value['ratio']:8.3f}{value['p10']:8.3f}{value['p90']:8.3f}"
            f"{value['sdk']:12.3f}{value['bare']:12.3f}"
        )


if __name__ == "__main__":
    main()
