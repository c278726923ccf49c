"""The programs that `test_kills.py` kills, and what must be true after each kill."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from umd_edge import PredictorSlot
from umd_edge._cli._app import run
from umd_edge._table import ResultTable


def classify(
    folder: str, out: str, bundle: str, log: str, step: Callable[[], object] = lambda: None
) -> int:
    """One run over the folder, that goes on where the last one was killed."""
    add = ResultTable.add

    def told(self: ResultTable, line: Mapping[str, Any]) -> None:
        step()
        add(self, line)

    ResultTable.add = told  # type: ignore[method-assign]
    return run(["classify", folder, "--task", "skin-lesion", "--out", out, "--bundle", bundle])


def whole_rows(folder: str, out: str, bundle: str, log: str) -> None:
    """Every row but a last one that was cut off stands for one image of the folder."""
    part = Path(out + ".part")
    path = part if part.exists() else Path(out)
    if not path.exists() or path.suffix == ".parquet":
        return
    lines = path.read_bytes().split(b"\n")[:-1]
    if path.suffix == ".csv":
        names = [line.split(b",")[0].decode() for line in lines[1:]]
    else:
        names = [line.split(b'"')[3].decode() for line in lines]
    assert len(set(names)) == len(names), "a row stands twice"
    assert names == sorted(names), "rows have changed places"
    with open(log, "a", encoding="ascii") as file:
        file.write(f"{len(names)}\n")


def swap(one: str, two: str, state: str, step: Callable[[], object] = lambda: None) -> int:
    """Swap the two bundles for ever."""
    with PredictorSlot.open(one, state=state) as slot:
        for turn in itertools.count():
            step()
            slot.swap((two, one)[turn % 2])
            if turn % 3 == 2:
                slot.rollback()
    return 1


def old_or_new(one: str, two: str, state: str) -> None:
    """The slot opens with one of the bundles, tested, and it answers."""
    left = [path.name for path in Path(state).parent.glob(".*.tmp")]
    assert left in ([], [f".{Path(state).name}.0.tmp"]), "what killed writers left piles up"
    if not Path(state).exists():  # killed before the first bundle was in use
        return
    with PredictorSlot.open("/nowhere.umd", state=state) as slot:
        assert slot.info.name in ("one", "two")
        assert slot.previous in (None, one, two)
        slot.predictor.warm_up()
