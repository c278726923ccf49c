"""Write a bundle as a model repository of Triton Inference Server.

Three models, one for each graph, on Triton's onnxruntime backend, and an ensemble of them that goes
from pixels, tokens and structured values to the logits of every task. The configurations follow
`model_config.proto` of Triton's common repository. Decoding, preprocessing, tokenising and the
decisions stay with umd-edge on the client's side: they exist once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from umd_edge._bundle import Bundle
from umd_edge._claims import claim_folder, sync_folder
from umd_edge._graphs import weight_bits
from umd_edge._manifest import PARTS, Manifest
from umd_edge._signature import KeyInput
from umd_edge._task import output_name
from umd_edge.errors import UsageError

from .places import check_place, full_disk_told

__all__ = ["TritonOptions", "saturates_without_vnni", "write_triton"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}")
_TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT64: "TYPE_INT64",
}
_SHARED = {"image_tokens", "text_tokens"}
"""What goes from one graph to another inside the ensemble."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonOptions:
    """How Triton runs the models."""

    variant: str | None = None
    """Variant of the bundle; its default one where None."""
    name: str | None = None
    """Name of the ensemble; the bundle's where None."""
    max_batch: int = 8
    """Most samples in one run."""
    max_delay_us: int = 500
    """Longest that a request waits for others, in microseconds."""
    instances: int = 1
    """Copies of each model on each device."""
    gpu: bool = False
    """Run on GPUs, with onnxruntime's CUDA provider."""
    threads: int = 1
    """Threads inside one operator on the CPU."""

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise UsageError(f"name {self.name!r}: letters, digits, '_' and '-' are allowed")
        for key, least, most in (
            ("max_batch", 1, 4096),
            ("max_delay_us", 0, 1_000_000),
            ("instances", 1, 256),
            ("threads", 1, 256),
        ):
            value = getattr(self, key)
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"{key} {value!r} given; {least}..{most} is allowed")


def write_triton(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: TritonOptions | None = None,
    *,
    public_key: KeyInput | Sequence[KeyInput] | None = None,
) -> tuple[str, ...]:
    """Write the repository to `out`, whole or not at all.

    Args:
        source: The bundle.
        out: A folder that is not there yet.
        options: How Triton runs the models.
        public_key: With one of these keys the bundle must be signed.

    Returns:
        Names of the models, the ensemble last.

    Raises:
        BundleError: The bundle is damaged, or not signed as asked for.
        UsageError: `out` is there or cannot be written, or the variant or an option is unknown.
    """
    chosen = options or TritonOptions()
    bundle = Bundle.open(source, public_key=public_key)
    manifest = bundle.manifest
    variant = chosen.variant or manifest.default_variant
    if variant not in manifest.variants:
        raise UsageError(
            f"the bundle has no variant {variant!r}; it has {sorted(manifest.variants)}"
        )
    target = Path(out)
    if target.exists():
        raise UsageError(f"{str(target)!r} is there already; name a folder that is not")
    check_place(target)
    base = chosen.name or re.sub(r"[^A-Za-z0-9_-]", "-", manifest.name)
    files: dict[str, bytes] = {}
    graphs: dict[str, onnx.GraphProto] = {}
    for part in PARTS:
        data = bundle.read(manifest.variants[variant].graphs[part])
        graphs[part] = onnx.load_from_string(data).graph
        files[f"{base}-{part}/1/model.onnx"] = data
        files[f"{base}-{part}/config.pbtxt"] = _model(
            base, part, graphs[part], bundle, variant, chosen
        )
    files[f"{base}/config.pbtxt"] = _ensemble(base, graphs, bundle, variant, chosen)
    files[f"{base}/1/.keep"] = b""  # Triton wants a version's folder for an ensemble too
    for task in manifest.tasks:
        if task.kind != "retrieval":
            lines = "\n".join(task.outputs) + "\n"
            for model in (base, f"{base}-fusion"):
                files[f"{model}/{_label_file(task.name)}"] = lines.encode("utf-8")
    with full_disk_told(target):
        _write_folder(files, target)
    return (*(f"{base}-{part}" for part in PARTS), base)


def saturates_without_vnni(manifest: Manifest, variant: str | None) -> bool:
    """Whether a variant is right on x86-64 without VNNI only with a setting that Triton lacks."""
    name = variant or manifest.default_variant
    return name.startswith("int8") and weight_bits(manifest.variants[name]) >= 8


def _write_folder(files: Mapping[str, bytes], target: Path) -> None:
    with claim_folder(target.name, target.parent) as temporary:
        for name, data in files.items():
            place = temporary / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, target)
    sync_folder(target.parent)


def _model(
    base: str,
    part: str,
    graph: onnx.GraphProto,
    bundle: Bundle,
    variant: str,
    options: TritonOptions,
) -> bytes:
    message: dict[str, Any] = {
        "name": f"{base}-{part}",
        "backend": "onnxruntime",
        "max_batch_size": options.max_batch,
        "input": [_tensor(item) for item in graph.input],
        "output": [_output(item, bundle.manifest) for item in graph.output],
        "instance_group": [
            {"count": options.instances, "kind": _Word("KIND_GPU" if options.gpu else "KIND_CPU")}
        ],
        "dynamic_batching": {"max_queue_delay_microseconds": options.max_delay_us},
        "parameters": [
            *_provenance(bundle, variant),
            _parameter("intra_op_thread_count", str(options.threads)),
        ],
    }
    return _text(message)


def _ensemble(
    base: str,
    graphs: Mapping[str, onnx.GraphProto],
    bundle: Bundle,
    variant: str,
    options: TritonOptions,
) -> bytes:
    inputs = {
        item.name: _tensor(item)
        for graph in graphs.values()
        for item in graph.input
        if item.name not in _SHARED
    }
    outputs = {
        item.name: _output(item, bundle.manifest)
        for graph in graphs.values()
        for item in graph.output
        if item.name not in _SHARED
    }
    for tensor in outputs.values():
        tensor.pop("reshape", None)  # the model behind it has done that
    steps = [
        {
            "model_name": f"{base}-{part}",
            "model_version": -1,
            "input_map": [_mapping(item.name) for item in graph.input],
            "output_map": [_mapping(item.name) for item in graph.output],
        }
        for part, graph in graphs.items()
    ]
    message: dict[str, Any] = {
        "name": base,
        "platform": "ensemble",
        "max_batch_size": options.max_batch,
        "input": list(inputs.values()),
        "output": list(outputs.values()),
        "ensemble_scheduling": {"step": steps},
        "parameters": _provenance(bundle, variant),
    }
    return _text(message)


def _tensor(item: onnx.ValueInfoProto) -> dict[str, Any]:
    """Name, type and shape without the batch; -1 where the graph leaves a length open."""
    shape = item.type.tensor_type.shape.dim
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in list(shape)[1:]]
    kind = _TYPES[item.type.tensor_type.elem_type]
    if not dims:  # one number for each sample: Triton wants a shape, and takes it off again
        return {
            "name": item.name,
            "data_type": _Word(kind),
            "dims": [1],
            "reshape": {"shape": _EMPTY},
        }
    return {"name": item.name, "data_type": _Word(kind), "dims": dims}


def _output(item: onnx.ValueInfoProto, manifest: Manifest) -> dict[str, Any]:
    found = _tensor(item)
    for task in manifest.tasks:
        if task.kind != "retrieval" and output_name(task.name) == item.name:
            found["label_filename"] = _label_file(task.name)
    return found


def _label_file(task: str) -> str:
    return f"labels-{task}.txt"


def _mapping(name: str) -> dict[str, str]:
    return {"key": name, "value": name}


def _parameter(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"string_value": value}}


def _provenance(bundle: Bundle, variant: str) -> list[dict[str, Any]]:
    return [
        _parameter("umd_edge_bundle", f"{bundle.manifest.name} {bundle.manifest.version}"),
        _parameter("umd_edge_bundle_sha256", bundle.sha256),
        _parameter("umd_edge_variant", variant),
    ]


class _Word(str):
    """A name of an enumeration, which stands without quotes."""


_EMPTY: tuple[int, ...] = ()


def _text(message: Mapping[str, Any]) -> bytes:
    """A message in protobuf's text format."""
    return ("\n".join(_lines(message, "")) + "\n").encode("utf-8")


def _lines(message: Mapping[str, Any], indent: str) -> Iterable[str]:
    for key, value in message.items():
        if isinstance(value, (list, tuple)) and all(isinstance(item, int) for item in value):
            yield f"{indent}{key}: [{', '.join(map(str, value))}]"
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                yield f"{indent}{key} {{"
                yield from _lines(item, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{key}: {_scalar(item)}"


def _scalar(value: object) -> str:
    if isinstance(value, _Word) or not isinstance(value, str):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
