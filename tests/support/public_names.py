"""What the modules of a package take from each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def unnamed_imports(package: Path) -> Iterator[str]:
    """Every import of a name from a sibling module that is not in the module's `__all__`."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in package.rglob("*.py")}
    public = {
        path: ast.literal_eval(node.value)
        for path, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    }
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not node.level or not node.module:
                continue
            home = path.parents[node.level - 1] / f"{node.module.replace('.', '/')}.py"
            names = {alias.name for alias in node.names}
            yield from (f"{path.name}: {home.stem}.{n}" for n in names - {*public.get(home, names)})
