"""Kill a program at random moments, again and again, and let it go on.

The program runs in forks of a process that has imported everything, so that each start is quick and
the kills fall into its work. No session of onnxruntime exists before the fork.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_HARNESS = """
import json, os, random, signal, sys, time, traceback
job = json.loads(sys.argv[1])
sys.path[:0] = job["path"]
import importlib
import numpy, onnxruntime, tokenizers, PIL.Image, PIL.PngImagePlugin
work = getattr(importlib.import_module(job["module"]), job["function"])
check = getattr(importlib.import_module(job["module"]), job["check"])
rng = random.Random(0)
killed = ended = 0
while killed < job["kills"]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        devnull = os.open(os.devnull, os.O_RDWR)
        os.dup2(devnull, 1)
        code = 70
        try:
            code = work(*job["arguments"], lambda: os.write(writing, b"!")) or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    if killed % 5:
        for _ in range(rng.randint(1, job["steps"])):
            if not os.read(reading, 1):
                break
        time.sleep(rng.uniform(0, job["span_s"]))
    else:  # every fifth is killed on its way to the work
        time.sleep(rng.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reading)
    if os.WIFSIGNALED(status):
        killed += 1
    else:
        ended += 1
        assert os.WEXITSTATUS(status) == 0, ("the program failed", os.WEXITSTATUS(status))
        assert ended <= 4 * job["kills"], "the program ends before it can be killed"
    # In a fork too: the next program must not start behind a session of this process.
    child = os.fork()
    if child == 0:
        code = 71
        try:
            check(*job["arguments"])
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, ("the state after kill", killed, status)
print(json.dumps({"killed": killed, "ended": ended}))
"""


def kill_again_and_again(
    module: str,
    function: str,
    check: str,
    arguments: list[Any],
    *,
    kills: int,
    steps: int,
    span_s: float,
) -> dict[str, int]:
    """Start `function`, kill -9 it after a random time, `check` what it left; until killed enough.

    Args:
        module: Where both functions are.
        function: The program; is given the arguments and a function to call before each step of its
            work, and gives back its exit code.
        check: Raises when what was left cannot be gone on with.
        arguments: JSON values, for both.
        kills: How many times it must have been running when it was killed.
        steps: It is killed behind one of so many first steps; every fifth time, a moment behind
            its start.
        span_s: Longest time between that step and the kill, in seconds.

    Returns:
        `killed` and `ended`: how often the program was killed, and how often it had ended before.
    """
    job = {
        "path": [path for path in sys.path if path],
        "module": module,
        "function": function,
        "check": check,
        "arguments": arguments,
        "kills": kills,
        "steps": steps,
        "span_s": span_s,
    }
    done = subprocess.run(
        [sys.executable, "-c", _HARNESS, json.dumps(job)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    counts: dict[str, int] = json.loads(done.stdout)
    return counts
