from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("optimum")

from support.export_fixtures import make_checkpoint, make_records
from umd_edge_export.bundle import build_bundle
from umd_edge_export.gates import GateOptions
from umd_edge_export.graphs import PARTS, export_graphs, graph_io
from umd_edge_export.samples import SampleSource, choose_samples, read_free_records
from umd_edge_train.checkpoint import load_checkpoint


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "final")


@pytest.fixture(scope="session")
def records(tmp_path_factory) -> Path:
    return make_records(tmp_path_factory.mktemp("records") / "data")


@pytest.fixture(scope="session")
def checkpoint(checkpoint_dir):
    return load_checkpoint(checkpoint_dir)


@pytest.fixture(scope="session")
def parts(checkpoint):
    return graph_io(checkpoint)


@pytest.fixture(scope="session")
def models(checkpoint):
    """Part -> float32 ONNX model."""
    return export_graphs(checkpoint)


@pytest.fixture(scope="session")
def graphs(models) -> dict[str, bytes]:
    return {part: models[part].SerializeToString(deterministic=True) for part in PARTS}


@pytest.fixture(scope="session")
def source(checkpoint, records) -> SampleSource:
    files = read_free_records([records], allow_non_commercial=False)
    return SampleSource(checkpoint, choose_samples(files, checkpoint, 18))


@pytest.fixture(scope="session")
def samples(source):
    return list(source)


@pytest.fixture(scope="session")
def bundle(checkpoint_dir, records, tmp_path_factory):
    """The whole export, once. Graphs this small are no faster in INT8."""
    return build_bundle(
        checkpoint_dir,
        [records],
        tmp_path_factory.mktemp("bundle") / "model.umd",
        name="tiny-test",
        version="1.2.3",
        gates=GateOptions(size_only=("int8",)),
    )
