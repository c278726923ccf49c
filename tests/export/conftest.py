from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from support.export_fixtures import make_checkpoint, make_records

# Found, not imported: half of the tests here need none of them.
collect_ignore_glob = [] if all(map(find_spec, ("torch", "onnx", "optimum"))) else ["test_*"]


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "final")


@pytest.fixture(scope="session")
def records(tmp_path_factory) -> Path:
    return make_records(tmp_path_factory.mktemp("records") / "data")


@pytest.fixture(scope="session")
def checkpoint(checkpoint_dir):
    from umd_edge_train.checkpoint import load_checkpoint

    return load_checkpoint(checkpoint_dir)


@pytest.fixture(scope="session")
def parts(checkpoint):
    from umd_edge_export.graphs import graph_io

    return graph_io(checkpoint)


@pytest.fixture(scope="session")
def models(checkpoint):
    """Part -> float32 ONNX model."""
    from umd_edge_export.graphs import export_graphs

    return export_graphs(checkpoint)


@pytest.fixture(scope="session")
def graphs(models) -> dict[str, bytes]:
    from umd_edge_export.graphs import PARTS

    return {part: models[part].SerializeToString(deterministic=True) for part in PARTS}


@pytest.fixture(scope="session")
def source(checkpoint, records):
    from umd_edge_export.samples import SampleSource, choose_samples, read_free_records

    files = read_free_records([records], allow_non_commercial=False)
    return SampleSource(checkpoint, choose_samples(files, checkpoint, 18))


@pytest.fixture(scope="session")
def samples(source):
    return list(source)


@pytest.fixture(scope="session")
def bundle(checkpoint_dir, records, tmp_path_factory):
    """The whole export, once. Graphs this small are no faster in INT8."""
    from umd_edge_export.bundle import build_bundle
    from umd_edge_export.gates import GateOptions

    return build_bundle(
        checkpoint_dir,
        [records],
        tmp_path_factory.mktemp("bundle") / "model.umd",
        name="tiny-test",
        version="1.2.3",
        gates=GateOptions(size_only=("int8",)),
    )
