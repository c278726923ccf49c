"""What the modules of training and export take from each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.public_names import unnamed_imports

_ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("package", ["train/umd_edge_train", "export/umd_edge_export"])
def test_modules_take_from_each_other_only_what_is_in_all(package: str):
    assert (_ROOT / package / "__init__.py").exists()
    assert not list(unnamed_imports(_ROOT / package))
