from __future__ import annotations

import os
import random
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from support.requirements import lacking
from umd_edge._onnxruntime import refuse_telemetry

refuse_telemetry()  # before a test module imports onnxruntime itself
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets: `UMD_EDGE_DATA`, else `../shared/data` beside the repository."""
    given = os.environ.get("UMD_EDGE_DATA")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if not (folder / "vqarad" / "train.jsonl").is_file():
        lacking("shared", f"no data sets at {folder}; set UMD_EDGE_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """A few-kB bundle with the real inputs and outputs and random weights."""
    return Path(__file__).resolve().parent / "data" / "tiny.umd"


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Neither the runtime nor a test reaches for the network."""
    patch = pytest.MonkeyPatch()
    for name in ("connect", "connect_ex"):
        original = getattr(socket.socket, name)

        def guarded(self, address, _original=original):
            if self.family in (socket.AF_INET, socket.AF_INET6):
                raise AssertionError("a test opened a network connection")
            return _original(self, address)

        patch.setattr(socket.socket, name, guarded)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
