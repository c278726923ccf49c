from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch starts its threads: two test workers on two cores would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def synth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated data sets: 48 pictures of 32 pixels each."""
    from umd_edge_train.synth import synthesise

    folder = tmp_path_factory.mktemp("synth")
    synthesise(folder, images=48, size=32)
    return folder
