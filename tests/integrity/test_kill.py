"""Writers killed with SIGKILL at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.bundles import repack, tiny_files, unpack
from support.killing import kill_again_and_again
from umd_edge import Bundle
from umd_edge._audit_chain import read_log, verify_log
from umd_edge._bundle import write_bundle
from umd_edge_export.sign import make_key, sign_bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system"),
]

MOMENTS = 50

# Says each number after its record is on the disk, and never before.
_AUDIT = """
import itertools, os, sys
from umd_edge._audit import AuditLog

os.write(1, b"ready\\n")
log = AuditLog(sys.argv[1], max_bytes=8192)
for number in itertools.count(int(sys.argv[2])):
    log._append("result", {"number": number, "padding": "x" * (number % 300)})
    os.write(1, b"%d\\n" % number)
"""

_SIGN = """
import itertools, os, sys
from umd_edge._bundle import write_bundle
from umd_edge_export.sign import sign_bundle

os.write(1, b"ready\\n")
for number in itertools.count():
    sign_bundle(sys.argv[1], [sys.argv[2 + number % 2]])
"""


def _killed(code: str, arguments: list[str], seconds: float) -> list[bytes]:
    """Lines that a program wrote until it was killed, so long after its first one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        process.kill()
        lines = process.stdout.read().split(b"\n")
    assert process.returncode == -signal.SIGKILL
    return lines[:-1]  # what follows the last line feed was cut off


def test_audit_log_loses_and_doubles_nothing_at_50_random_moments(tmp_path: Path):
    rng = random.Random(0)
    log, said, head = tmp_path / "log", [], []
    for _ in range(MOMENTS):
        written = _numbers(log) if log.exists() else []
        start = max([-1, *written, *said]) + 1
        said += [int(line) for line in _killed(_AUDIT, [str(log), str(start)], rng.random() * 0.1)]
        if rng.random() < 0.5 and log.exists():
            # What a power cut leaves, and a kill hardly ever: a part of the next line.
            with log.open("ab") as file:
                file.write(b'{"audit":1,"bundle":{"name":'[: rng.randint(1, 28)])
        if log.exists() and log.stat().st_size > 200:
            report = verify_log(log, anchors=head[-1:])
            head.append(report.head)
    report = verify_log(log, anchors=head)
    numbers = _numbers(log)
    assert len(said) > 200 and report.recovered > 5 and len(report.files) > 2
    assert numbers == sorted(set(numbers))
    assert set(said) <= set(numbers)
    # At most the one record that was on the disk and not yet told, for each kill.
    assert len(numbers) - len(said) <= MOMENTS


def _numbers(log: Path) -> list[int]:
    return [link.record["number"] for link in read_log(log) if link.record["event"] == "result"]


@pytest.mark.parametrize("form", ["file", "directory"])
def test_bundle_is_whole_at_every_moment_of_being_signed(
    form: str, tiny_bundle: Path, tmp_path: Path
):
    bundle = tmp_path / "b.umd"
    if form == "file":
        bundle.write_bytes(tiny_bundle.read_bytes())
    else:
        unpack(bundle)
    keys = [tmp_path / "a.pem", tmp_path / "b.pem"]
    for key in keys:
        make_key(key)
    public = [key.with_suffix(".pub.pem") for key in keys]
    sign_bundle(bundle, keys[:1])
    rng = random.Random(1)
    for _ in range(10):
        _killed(_SIGN, [str(bundle), *map(str, keys)], 0.02 + rng.random() * 0.15)
        Bundle.open(bundle, public_key=public).check_files()


def test_bundle_is_whole_at_50_random_moments_of_being_replaced(tmp_path: Path):
    bundle = tmp_path / "place" / "b.umd"
    bundle.parent.mkdir()
    repack(bundle, edit=lambda manifest: manifest.update(name="before"))
    counts = kill_again_and_again(
        *("integrity.killed", "write", "whole"),
        [str(bundle)],
        kills=MOMENTS,
        steps=3,
        span_s=0.03,
    )
    assert counts == {"killed": MOMENTS, "ended": 0}
    assert json.loads(Bundle.open(bundle).manifest_bytes)["name"] in ("one", "two")
    write_bundle(tiny_files(), bundle)  # which clears what the last kill left
    assert [path.name for path in bundle.parent.iterdir() if path.suffix == ".tmp"] == []
