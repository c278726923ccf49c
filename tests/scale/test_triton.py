from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

from support.requirements import lacking
from umd_edge import (
    Bundle,
    BundleError,
    BundleSignatureError,
    Predictor,
    UsageError,
)
from umd_edge._postprocess import probabilities
from umd_edge._preprocess import preprocess
from umd_edge._task import output_name
from umd_edge_export.cli import run as export
from umd_edge_export.triton import TritonOptions, saturates_without_vnni, write_triton

TYPES = {"TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)"}


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """Triton's own messages, generated from its `model_config.proto`."""
    try:
        files = importlib.metadata.files("tritonclient") or []
    except importlib.metadata.PackageNotFoundError:
        lacking("tritonclient", "tritonclient, which carries model_config.proto, is not installed")
    (found,) = (f for f in files if str(f) == "tritonclient/grpc/model_config_pb2.py")
    # Not `import tritonclient.grpc`, which wants grpcio for its client.
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(found.locate()))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "models"
    tiny = Path(__file__).resolve().parent.parent / "data" / "tiny.umd"
    assert write_triton(tiny, out) == (
        *("tiny-test-vision", "tiny-test-text", "tiny-test-fusion"),
        "tiny-test",
    )
    return out


def _config(schema: ModuleType, path: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse((path / "config.pbtxt").read_text(), schema.ModelConfig())


def _type_name(schema: ModuleType, number: int) -> str:
    return str(schema.DataType.Name(number))


@pytest.mark.slow
def test_every_configuration_is_one_by_tritons_schema(schema: ModuleType, repository: Path):
    for folder in repository.iterdir():
        config = _config(schema, folder)
        assert config.name == folder.name
        assert config.max_batch_size == 8
        assert [place for place in folder.iterdir() if place.name.isdigit()]
    assert len(list(repository.iterdir())) == 4


@pytest.mark.slow
def test_schema_notices_an_unknown_field(schema: ModuleType, repository: Path):
    from google.protobuf import text_format

    text = (repository / "tiny-test" / "config.pbtxt").read_text()
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text + "\nmax_batches: 3\n", schema.ModelConfig())


@pytest.mark.slow
@pytest.mark.parametrize("part", ["vision", "text", "fusion"])
def test_tensors_are_those_of_the_graph(schema: ModuleType, repository: Path, part: str):
    folder = repository / f"tiny-test-{part}"
    config = _config(schema, folder)
    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"))
    for said, real in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        assert [item.name for item in said] == [item.name for item in real]
        for item, tensor in zip(said, real, strict=True):
            assert TYPES[_type_name(schema, item.data_type)] == tensor.type
            shape = item.reshape.shape if item.HasField("reshape") else item.dims
            wanted = [side if isinstance(side, int) else -1 for side in tensor.shape[1:]]
            assert list(shape) == wanted


@pytest.mark.slow
def test_ensemble_run_step_by_step_gives_the_answers_of_the_predictor(
    schema: ModuleType, repository: Path, tiny_bundle: Path
):
    predictor = Predictor.load(tiny_bundle)
    engine, manifest = predictor._engine, predictor.manifest
    image = np.arange(900, dtype=np.uint8).reshape(30, 30, 1)
    question = "is there a pleural effusion ?"
    ids, mask = engine.tokenizer.encode([question])
    width = len(manifest.structured_fields)
    pool = {
        "pixel_values": preprocess(image, manifest.preprocessing)[None],
        "input_ids": ids,
        "attention_mask": mask,
        "structured_values": np.zeros((1, width), np.float32),
        "structured_mask": np.zeros((1, width), np.float32),
    }
    config = _config(schema, repository / "tiny-test")
    assert {item.name for item in config.input} == set(pool)
    for step in config.ensemble_scheduling.step:
        path = repository / step.model_name / "1" / "model.onnx"
        session = onnxruntime.InferenceSession(str(path))
        feeds = {name: pool[tensor] for name, tensor in step.input_map.items()}
        names = list(step.output_map)
        found = session.run(names, feeds)
        pool.update({step.output_map[n]: v for n, v in zip(names, found, strict=True)})
    assert {item.name for item in config.output} <= set(pool)
    task = manifest.task("vqa")
    assert task is not None
    values = probabilities(pool[output_name("vqa")][0], task)
    answer = predictor.ask(image, question)
    best = int(values.argmax())
    assert task.outputs[best] == answer.text
    assert float(values[best]) == pytest.approx(answer.probability, abs=1e-6)


def test_labels_stand_in_the_order_of_the_logits(repository: Path, tiny_bundle: Path):
    for task in Bundle.open(tiny_bundle).manifest.tasks:
        lines = (repository / "tiny-test-fusion" / f"labels-{task.name}.txt").read_text()
        assert tuple(lines.splitlines()) == task.outputs


@pytest.mark.slow
def test_bundle_is_named_by_its_hash(schema: ModuleType, repository: Path, tiny_bundle: Path):
    for folder in repository.iterdir():
        parameters = _config(schema, folder).parameters
        assert parameters["umd_edge_bundle_sha256"].string_value == Bundle.open(tiny_bundle).sha256


@pytest.mark.slow
def test_options_reach_the_configuration(schema: ModuleType, tiny_bundle: Path, tmp_path: Path):
    options = TritonOptions(
        variant="fp32", name="chest", max_batch=3, max_delay_us=7, instances=2, gpu=True, threads=4
    )
    write_triton(tiny_bundle, tmp_path / "m", options)
    config = _config(schema, tmp_path / "m" / "chest-vision")
    (group,) = config.instance_group
    assert (config.max_batch_size, group.count) == (3, 2)
    assert schema.ModelInstanceGroup.Kind.Name(group.kind) == "KIND_GPU"
    assert config.dynamic_batching.max_queue_delay_microseconds == 7
    assert config.parameters["intra_op_thread_count"].string_value == "4"
    data = (tmp_path / "m" / "chest-vision" / "1" / "model.onnx").read_bytes()
    assert data == Bundle.open(tiny_bundle).read("graphs/vision.fp32.onnx")


def test_variants_that_triton_would_saturate_are_known(tiny_bundle: Path):
    manifest = Bundle.open(tiny_bundle).manifest
    assert not saturates_without_vnni(manifest, None)
    assert not saturates_without_vnni(manifest, "fp32")
    manifest.variants["int8"].notes["weight_bits"] = 8  # type: ignore[index]
    assert saturates_without_vnni(manifest, "int8")


@pytest.mark.parametrize(
    "options",
    [{"max_batch": 0}, {"instances": 257}, {"threads": True}, {"name": "../x"}, {"name": ""}],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]):
    with pytest.raises(UsageError):
        TritonOptions(**options)


def test_nothing_is_replaced_and_nothing_is_left_behind(tiny_bundle: Path, tmp_path: Path):
    (tmp_path / "m").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        write_triton(tiny_bundle, tmp_path / "m")
    with pytest.raises(UsageError, match="no variant"):
        write_triton(tiny_bundle, tmp_path / "n", TritonOptions(variant="int4"))
    with pytest.raises(BundleSignatureError):
        write_triton(tiny_bundle, tmp_path / "n", public_key=bytes(32))
    with pytest.raises(BundleError):
        write_triton(tmp_path / "none.umd", tmp_path / "n")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_command_writes_the_repository(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "m"
    assert export(["triton", str(tiny_bundle), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(found["models"]) == sorted(path.name for path in out.iterdir())
    assert export(["triton", str(tiny_bundle), "--out", str(out)]) == 2
