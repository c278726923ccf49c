"""kill -9 at 50 random moments: a run over a folder, and a swap of bundles."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.bundles import repack
from support.command import run
from support.killing import kill_again_and_again

IMAGES = 2500
KILLS = 50


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """Small pictures in two folders, each another one, and two files that are none."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(5)
    for index in range(IMAGES):
        place = folder / f"part {index // 1000}"
        place.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index:05d}.png", compress_level=0)
    return folder


def rows(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, strict=True))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()


def without_times(row: dict) -> dict:
    return {key: value for key, value in row.items() if not key.endswith("_ms")}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("csv", KILLS), ("jsonl", 15), ("parquet", 15)])
def test_a_folder_run_that_is_killed_50_times_has_the_rows_of_one_that_is_not(
    films: Path, tiny_bundle: Path, tmp_path: Path, kind: str, kills: int
):
    whole, killed = tmp_path / f"whole.{kind}", tmp_path / f"killed.{kind}"
    command = ("classify", films, "--task", "skin-lesion", "--bundle", tiny_bundle, "--out")
    assert run(*command, whole).code == 0
    log = tmp_path / "log"
    kill_again_and_again(
        *("running.killed", "classify", "whole_rows"),
        [str(films), str(killed), str(tiny_bundle), str(log)],
        kills=kills,
        steps=60,
        span_s=0.005,
    )
    found = [int(count) for count in log.read_text().split()]
    assert len(set(found)) > kills // 3, "the kills did not fall into the work"
    assert found == sorted(found)
    assert run(*command, killed).code == 0
    assert [without_times(row) for row in rows(killed)] == [
        without_times(row) for row in rows(whole)
    ]
    assert len(rows(killed)) == IMAGES
    assert {path.name for path in tmp_path.iterdir()} == {whole.name, killed.name, log.name}


@pytest.mark.slow
def test_a_swap_that_is_killed_50_times_leaves_the_old_or_the_new_bundle(tmp_path: Path):
    paths = [tmp_path / "one.umd", tmp_path / "two.umd"]
    for path in paths:
        repack(path, edit=lambda manifest, _name=path.stem: manifest.update(name=_name))
    counts = kill_again_and_again(
        *("running.killed", "swap", "old_or_new"),
        [*map(str, paths), str(tmp_path / "slot.json")],
        kills=KILLS,
        steps=4,
        span_s=0.05,
    )
    assert counts == {"killed": KILLS, "ended": 0}
