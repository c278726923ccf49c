"""`import umd_edge` loads next to nothing, and every public name comes with its first use."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import umd_edge

SOURCE = Path(umd_edge.__file__)


def _modules_after(code: str) -> set[str]:
    program = f"import sys; sys.path.insert(0, {str(SOURCE.parent.parent)!r}); {code}; "
    result = subprocess.run(
        [sys.executable, "-c", program + "print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.split())


def test_import_loads_neither_numpy_nor_a_part_of_the_package_but_its_errors():
    loaded = _modules_after("import umd_edge")
    own = {name for name in loaded if name.startswith("umd_edge")}
    assert own == {"umd_edge", "umd_edge.errors"}
    assert "numpy" not in loaded
    # Negative control: the first use of a name brings both
    used = _modules_after("import umd_edge; umd_edge.Predictor")
    assert {"numpy", "umd_edge._predictor"} <= used


def test_type_checkers_and_the_interpreter_see_the_same_names():
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == umd_edge._HOMES
    assert set(seen) < set(umd_edge.__all__)


@pytest.mark.parametrize("name", sorted(umd_edge._HOMES))
def test_every_name_is_found_and_then_kept(name: str):
    assert getattr(umd_edge, name) is getattr(umd_edge, name)
    assert name in vars(umd_edge)
    assert name in dir(umd_edge)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = umd_edge.nothing_of_ours
    assert not hasattr(umd_edge, "_nothing")


def test_star_import_gives_all_public_names():
    program = "from umd_edge import *; assert Predictor and limited and UsageError"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=SOURCE.parent.parent)
