"""Things that a test may need and a machine may lack."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(item: str, reason: str) -> NoReturn:
    """Skip the test, or fail it when `UMD_REQUIRE` (comma-separated) names the item."""
    if item in os.environ.get("UMD_REQUIRE", "").split(","):
        pytest.fail(f"UMD_REQUIRE names {item!r}, but {reason}")
    pytest.skip(reason)
