"""The load generator's figures, and the service under it for a few seconds."""

from __future__ import annotations

import sys

import pytest

from benchmarks.serve_load import Load, measure


def test_a_report_counts_what_was_lost_or_late():
    load = Load(
        seconds=[0.1] * 8 + [3.0, 0.2],
        late=[0.0] * 10,
        statuses=[200] * 6 + [429, 429, 200, 0],
        kilobytes=[1000] * 10 + [2000] * 10 + [2100] * 80,
        lasted=5.0,
    )
    report = load.report(2.0)
    assert (report["requests"], report["lost"], report["beyond_limit"]) == (10, 1, 1)
    assert report["by_status"] == {"0": 1, "200": 7, "429": 2}
    assert report["answered_per_second"] == 1.4
    assert report["ok_ms"]["max"] == 3000
    assert report["rss_mb"]["ratio"] == 1.05


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_at_twice_its_capacity_every_request_is_answered_in_time(loopback, tiny_bundle, png):
    arguments = ["--bundle", str(tiny_bundle), "--workers", "1", "--queue", "16"]
    arguments += ["--timeout", "5"]
    report = measure(arguments, png, workers=1, factor=2.0, seconds=12.0, limit_s=5.0)
    assert report["lost"] == 0
    assert report["beyond_limit"] == 0
    assert set(report["by_status"]) <= {"200", "429", "504"}
    assert report["by_status"]["200"] > 0
    assert report["rss_mb"]["ratio"] < 1.1
