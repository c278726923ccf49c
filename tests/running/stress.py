"""10,000 mixed inferences from 8 threads in a process of its own; prints what it saw as JSON."""

from __future__ import annotations

import gc
import io
import json
import os
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from umd_edge import Predictor, UmdEdgeError

CALLS = 10_000
THREADS = 8
PAUSE = 40
_WORDS = "is there a mass in the lung liver brain or heart which plane organ image shown".split()


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def handles() -> int:
    """Open files, pipes and sockets of this process."""
    return len(os.listdir("/proc/self/fd"))


def jobs(predictor: Predictor) -> list[Callable[[], Any]]:
    """Calls of every kind, of many sizes, and some that are refused."""
    rng = random.Random(1)
    numbers = np.random.default_rng(1)
    made: list[Callable[[], Any]] = []
    tasks = [task for task in predictor.tasks if task.kind == "classification"]
    for index in range(48):
        shape = (rng.randint(8, 200), rng.randint(8, 200), rng.choice([1, 3]))
        pixels = numbers.integers(0, 256, shape, dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if shape[2] == 1 else pixels).save(
            file, "PNG" if index % 2 else "JPEG"
        )
        image: Any = file.getvalue() if index % 3 else pixels
        question = " ".join(rng.choices(_WORDS, k=rng.randint(1, 24)))
        task = tasks[index % len(tasks)].name
        encoded = predictor.encode(image)
        kinds: tuple[Callable[[], Any], ...] = (
            lambda image=image, question=question: predictor.ask(image, question),
            lambda image=image, task=task: predictor.classify(image, task),
            lambda encoded=encoded, question=question: encoded.ask(question),
            lambda image=image: predictor.encode(image).embedding.tobytes(),
            lambda image=image: (
                predictor.ask(image[: len(image) // 2], "cut")
                if isinstance(image, bytes)
                else predictor.ask(image, "")
            ),
        )
        made.append(kinds[index % len(kinds)])
    return made


def outcome(job: Callable[[], Any]) -> Any:
    """What must be the same each time: all of a result but its times, or the error."""
    try:
        result = job()
    except UmdEdgeError as error:
        return type(error).__name__, str(error)
    if isinstance(result, bytes):
        return result
    return {key: value for key, value in result.to_dict().items() if key != "timing_ms"}


def main() -> None:
    """Run, and print the report."""
    predictor = Predictor.load(sys.argv[1]) if len(sys.argv) > 1 else Predictor.default()
    work = jobs(predictor)
    serial = [outcome(job) for job in work]
    order = [random.Random(2).randrange(len(work)) for _ in range(CALLS)]
    sizes: list[int] = []
    wrong: list[int] = []

    def one(index: int) -> None:
        if outcome(work[index]) != serial[index]:
            wrong.append(index)

    threads = threading.active_count()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, range(len(work))))
        gc.collect()
        before = handles()
        for start in range(0, CALLS, PAUSE):
            done = len(list(pool.map(one, order[start : start + PAUSE]))) + start
            sizes.append(resident())  # between calls: what is kept, not what is in use
        after = handles()
    tenths = np.asarray(sizes).reshape(10, -1).mean(axis=1)
    failures = sum(isinstance(item, tuple) for item in serial)
    report = {
        "calls": done,
        "different": len(wrong),
        "kinds": len({json.dumps(item, default=repr) for item in serial}),
        "refused": failures,
        "resident_bytes_by_tenth": [int(value) for value in tenths],
        "handles": [before, after],
        "threads_left": threading.active_count() - threads,
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
