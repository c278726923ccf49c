"""Runs one target of `support.fuzz_targets` under Atheris; `script/fuzz` starts it.

    python -m support.fuzzer TARGET SECONDS CORPUS FAULTS

The corpus folder gets the inputs that reached something new, the other one the inputs at fault. The
exit code is that of libFuzzer: 0, or another one after a fault, a hang or too much memory.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import atheris

_HANG_S = 10
_MEMORY_MB = 3072
_MOST_BYTES = 1 << 16

_INSTRUMENTED = ["umd_edge", "pydicom", "starlette", "python_multipart", "zipfile", "json"]


def main() -> None:
    """Fuzz until the time is up; does not return."""
    name, seconds, corpus, faults = sys.argv[1:]
    with atheris.instrument_imports(include=_INSTRUMENTED):
        from support.fuzz_targets import TARGETS

        target = TARGETS[name]
        for index, seed in enumerate(target.seeds()):
            (Path(corpus) / f"seed-{index}").write_bytes(seed)
            target.run(seed)  # much is imported with its first use
    # Beside libFuzzer's own limit on what is resident: an allocation that is never touched fails.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + (_MEMORY_MB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={_HANG_S}",
        f"-rss_limit_mb={_MEMORY_MB}",
        f"-max_len={_MOST_BYTES}",
        f"-artifact_prefix={faults}/{name}-",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    atheris.Setup([sys.argv[0], *options, corpus], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
