"""Generated and damaged inputs for every target of the fuzzer, and what it once found."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.fuzz_targets import TARGETS, findings
from umd_edge._audit_chain import verify_log
from umd_edge.errors import InputError

pytest.importorskip("pydicom")
for needed in ("starlette", "prometheus_client", "python_multipart", "cryptography"):
    pytest.importorskip(needed)

_EXAMPLES = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
FINDINGS = [(name, path) for name in TARGETS for path in findings(name)]


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_any_bytes_are_accepted_or_refused(name: str):
    @_EXAMPLES
    @given(st.binary(max_size=400))
    def run(data: bytes) -> None:
        TARGETS[name].run(data)

    run()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_damaged_seeds_are_accepted_or_refused_within_the_memory(name: str):
    target, rng = TARGETS[name], random.Random(name)
    seeds = target.seeds()
    for seed in seeds:
        target.run(seed)
    tracemalloc.start()
    try:
        for _ in range(60 if name != "http" else 25):
            data = bytearray(rng.choice(seeds))
            for _ in range(rng.randint(1, 6)):
                _damage(data, rng)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            target.run(bytes(data))
            assert tracemalloc.get_traced_memory()[1] - before < target.memory_bytes
    finally:
        tracemalloc.stop()


def _damage(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data) + 1)
    kind = rng.randrange(4)
    if kind == 0 and data:
        data[place % len(data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif kind == 1:
        del data[place : place + rng.randint(1, 40)]
    elif kind == 2:
        data[place:place] = data[place : place + rng.randint(1, 40)] * rng.randint(1, 4)
    else:
        data[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))


@pytest.mark.parametrize(("name", "path"), FINDINGS, ids=[path.name for _, path in FINDINGS])
def test_what_the_fuzzer_found_is_mended(name: str, path: Path):
    TARGETS[name].run(path.read_bytes())


def test_an_error_of_another_tree_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    def broken(data: bytes) -> None:
        raise IndexError("an unforeseen error")

    monkeypatch.setattr("support.fuzz_targets.load_image", broken)
    with pytest.raises(IndexError):
        TARGETS["image"].run(b"xyz")

    def silent(data: bytes) -> None:
        raise InputError

    monkeypatch.setattr("support.fuzz_targets.load_image", silent)
    with pytest.raises(AssertionError, match="without a message"):
        TARGETS["image"].run(b"xyz")


def test_an_answer_that_breaks_a_rule_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    def wrong(path: str):
        report = verify_log(path)
        object.__setattr__(report, "records", 0)
        return report

    monkeypatch.setattr("support.fuzz_targets.verify_log", wrong)
    with pytest.raises(AssertionError):
        TARGETS["audit"].run(TARGETS["audit"].seeds()[0])
