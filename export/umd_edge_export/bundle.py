"""From a checkpoint to a `.umd` file, through every gate.

Nothing is written before every gate has passed, and the file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import onnx

from umd_edge._bundle import Bundle, file_entries, write_bundle
from umd_edge._manifest import Manifest, TokenizerSpec, VariantSpec
from umd_edge._selftest import write_golden
from umd_edge.errors import UsageError
from umd_edge_train.checkpoint import Checkpoint, load_checkpoint

from .card import Metrics, intended_use, model_card
from .drift import measure_drift
from .errors import ExportError
from .golden import golden_inputs, golden_outputs, golden_tolerance
from .graphs import OPSET, PARTS, GraphIO, export_graphs, graph_io
from .invariance import check_invariance, measure_invariance
from .parity import check_parity, measure_parity
from .quantize import WEIGHT_BITS, quantize_graphs
from .runner import GraphTrio
from .samples import SampleSource, choose_samples, read_free_records

__all__ = ["VARIANTS", "build_bundle"]

VARIANTS = ("fp32", "int8")
RANGE_SAMPLES = 256
GATE_SAMPLES = 24
_TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "optimum")

Progress = Callable[[str], None]


@dataclass(slots=True)
class _Work:
    """What is known so far about the bundle being built."""

    checkpoint: Checkpoint
    parts: dict[str, GraphIO]
    source: SampleSource
    graphs: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Variant -> part -> serialised ONNX."""
    report: dict[str, Any] = field(default_factory=dict)
    golden: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, VariantSpec] = field(default_factory=dict)

    def trio(self, variant: str) -> GraphTrio:
        return GraphTrio(self.graphs[variant], self.parts)


def _check_variants(variants: Sequence[str]) -> tuple[str, ...]:
    unknown = sorted(set(variants) - set(VARIANTS))
    if unknown or not variants:
        raise UsageError(f"variants {list(variants)} given; some of {list(VARIANTS)} are allowed")
    return tuple(name for name in VARIANTS if name in variants)


def _created(provenance: Mapping[str, Any]) -> str:
    """The checkpoint's own date, so that building again gives the same bytes."""
    try:
        when = datetime.fromisoformat(str(provenance["created"]).replace("Z", "+00:00"))
    except (KeyError, ValueError) as error:
        raise ExportError(
            "the checkpoint's provenance.json has no `created` date in ISO 8601; add when it was "
            "trained"
        ) from error
    return when.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _serialise(graphs: Mapping[str, onnx.ModelProto]) -> dict[str, bytes]:
    return {part: graphs[part].SerializeToString(deterministic=True) for part in PARTS}


def _export_float(work: _Work, progress: Progress) -> dict[str, onnx.ModelProto]:
    progress("tracing the three graphs")
    graphs = export_graphs(work.checkpoint, (item.pixel_values for item in work.source))
    work.graphs["fp32"] = _serialise(graphs)
    progress("comparing them with the torch model on real records")
    report = measure_parity(
        work.checkpoint,
        work.trio("fp32"),
        list(work.source.head(GATE_SAMPLES)),
        work.source.tokenizer.pad_id,
    )
    check_parity(report)
    work.report["parity"] = report.to_dict()
    return graphs


def _quantise(work: _Work, graphs: Mapping[str, onnx.ModelProto], progress: Progress) -> None:
    progress(f"taking INT8 ranges from {len(work.source)} records")
    reference = work.trio("fp32")
    work.graphs["int8"] = _serialise(quantize_graphs(graphs, work.source, reference))
    progress("comparing INT8 with float32")
    drift = measure_drift(reference, work.trio("int8"), work.source)
    tasks = {name: value.to_dict() for name, value in sorted(drift.items())}
    work.report["against_fp32"] = {"int8": tasks}


def _gate_variant(work: _Work, variant: str, progress: Progress) -> None:
    progress(f"checking that company and padding change nothing: {variant}")
    graphs = work.graphs[variant]
    report = measure_invariance(
        graphs,
        work.parts,
        list(work.source.head(GATE_SAMPLES)),
        max_length=work.checkpoint.max_length,
        pad_id=work.source.tokenizer.pad_id,
    )
    check_invariance(report, variant)
    work.report.setdefault("invariance", {})[variant] = report.to_dict()
    work.report.setdefault("sizes", {})[variant] = {part: len(graphs[part]) for part in PARTS}
    inputs = {key: value for key, value in work.golden.items() if "/" not in key}
    outputs = golden_outputs(work.trio(variant), inputs)
    work.golden |= {f"{variant}/{name}": value for name, value in outputs.items()}
    work.variants[variant] = VariantSpec(
        graphs={part: f"graphs/{part}.{variant}.onnx" for part in PARTS},
        golden_tolerance=golden_tolerance(variant, graphs, inputs, outputs),
        notes=_notes(variant),
    )


def _notes(variant: str) -> dict[str, Any]:
    if variant == "fp32":
        return {"method": "float32, the reference"}
    return {
        "method": "static QuantizeLinear/DequantizeLinear, ranges by minimum and maximum",
        "activations": "uint8, asymmetric, one range a tensor",
        "weights": "int8, symmetric, one scale a channel",
        "equalisation": "channels between the convolutions of the stem, by their ranges",
        "weight_bits": WEIGHT_BITS,
        "without_vnni": "the runtime uses products that cannot overflow and reports them as u8u8",
        "float": "text graph, first convolutions, normalisation, softmax, products of two "
        "activations, task heads",
    }


def _tool_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _TOOLS}


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _json(value: Any) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


def build_bundle(
    checkpoint_path: Path,
    range_data: Sequence[Path],
    out: Path,
    *,
    variants: Sequence[str] = VARIANTS,
    name: str = "umd-edge",
    version: str = "0.1.0",
    metrics: Metrics | None = None,
    allow_non_commercial: bool = False,
    range_samples: int = RANGE_SAMPLES,
    progress: Progress = lambda message: None,
) -> Bundle:
    """Export, quantise, check and pack a checkpoint.

    Args:
        checkpoint_path: Directory of the checkpoint.
        range_data: JSONL manifests whose records set the INT8 ranges and pass the gates; images are
            relative to them.
        out: The `.umd` file; replaced in one step at the very end.
        variants: Some of `fp32` and `int8`; `int8` becomes the default one where it is present.
        name: Of the bundle.
        version: Of the model, `major.minor.patch`.
        metrics: Measured accuracy for the model card: task -> metric -> {value, low, high, n}.
        allow_non_commercial: Also take records that are not marked `non_commercial: false`.
        range_samples: How many records set the ranges, about.
        progress: Called with a line for each step.

    Returns:
        The bundle, opened from `out`.

    Raises:
        UsageError: Unknown variants.
        DataError: The range data is unreadable, restricted, or fits no task.
        CheckpointError: The checkpoint is incomplete or damaged.
        ExportError: A weight is not finite, or a gate failed (`ParityError`, `InvarianceError`).
    """
    chosen_variants = _check_variants(variants)
    checkpoint = load_checkpoint(checkpoint_path)
    created = _created(checkpoint.provenance)
    records = read_free_records(range_data, allow_non_commercial=allow_non_commercial)
    chosen = choose_samples(records, checkpoint, range_samples)
    work = _Work(checkpoint, graph_io(checkpoint), SampleSource(checkpoint, chosen))
    graphs = _export_float(work, progress)
    if "int8" in chosen_variants:
        _quantise(work, graphs, progress)
    work.golden.update(golden_inputs(checkpoint))
    for variant in chosen_variants:
        _gate_variant(work, variant, progress)
    work.report["range_data"] = {
        "records": len(chosen),
        "files": [
            {"name": f"{path.resolve().parent.name}/{path.name}", "sha256": _file_hash(path)}
            for path in range_data
        ],
    }
    progress(f"writing {out}")
    return write_bundle(_files(work, name, version, created, metrics or {}), out)


def _files(
    work: _Work, name: str, version: str, created: str, metrics: Metrics
) -> dict[str, bytes]:
    checkpoint = work.checkpoint
    report = {"metrics": metrics, **work.report}
    card = model_card(name, version, checkpoint.tasks, checkpoint.provenance, report, metrics)
    files = {
        "tokenizer.json": checkpoint.tokenizer_json,
        "golden.npz": write_golden(work.golden),
        "report.json": _json(report),
        "MODEL_CARD.md": card.encode("utf-8"),
    }
    for variant, spec in work.variants.items():
        files |= {spec.graphs[part]: work.graphs[variant][part] for part in PARTS}
    manifest = Manifest(
        name=name,
        version=version,
        created=created,
        intended_use=intended_use(checkpoint.tasks),
        preprocessing=checkpoint.preprocess,
        tokenizer=TokenizerSpec(file="tokenizer.json", max_length=checkpoint.max_length),
        structured_fields=checkpoint.structured_fields,
        tasks=checkpoint.tasks,
        variants=work.variants,
        default_variant="int8" if "int8" in work.variants else "fp32",
        opset=OPSET,
        golden="golden.npz",
        files=file_entries(files),
        provenance={"training": checkpoint.provenance, "export_tools": _tool_versions()},
    )
    # Read back: what the runtime would refuse is not written.
    data = Manifest.from_bytes(manifest.to_bytes()).to_bytes()
    return {**files, "manifest.json": data}
