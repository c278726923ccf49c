"""From a checkpoint to a `.umd` file, through every gate.

The bundle is packed in a temporary folder and measured there as a device would run it. Nothing is
written to its place before every gate has passed, and the file appears whole or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch

from umd_edge._bundle import Bundle, write_bundle
from umd_edge._claims import claim_folder
from umd_edge._manifest import VariantSpec
from umd_edge_train.checkpoint import load_checkpoint

from .bundle_work import OnGate, Progress, Work, created_of, described
from .candidate import (
    REFERENCE,
    Candidate,
    check_gate_data,
    check_size_only,
    choose_variants,
)
from .card import Metrics
from .drift import measure_drift
from .errors import ExportError
from .gates import GateOptions, invariance_gate, parity_gate, require_passed
from .golden import golden_inputs, golden_outputs, golden_tolerance
from .graphs import OPSET, PARTS, export_graphs, graph_io
from .invariance import measure_invariance
from .ood import fit_ood_of
from .parity import measure_parity
from .places import check_place, full_disk_told
from .quantize import QuantiseOptions, quantise_variant
from .report import describe_predictions, show_pictures
from .report_html import ReportContent, write_report
from .samples import SampleSource, choose_samples, read_free_records
from .targets import Target
from .trust import fit_bundle, write_fitted
from .weights import check_weights

__all__ = ["VARIANTS", "build_bundle"]

VARIANTS = ("fp32", "int8")
"""What is built where nothing else is asked for."""
RANGE_SAMPLES = 256
GATE_SAMPLES = 24
_OPERATOR = re.compile(r"target=torch\.ops\.([a-z0-9_.]+?)(?:\.default)?\]", re.IGNORECASE)


def _serialise(graphs: Mapping[str, onnx.ModelProto]) -> dict[str, bytes]:
    return {part: graphs[part].SerializeToString(deterministic=True) for part in PARTS}


def _trace(work: Work) -> dict[str, onnx.ModelProto]:
    try:
        return export_graphs(work.checkpoint, (item.pixel_values for item in work.source))
    except torch.onnx.OnnxExporterError as error:
        found = _OPERATOR.search(f"{error} {error.__cause__}")
        what = (
            f"operator {found[1]!r} has no form in ONNX opset {OPSET}"
            if found
            else "its computation cannot be written as a fixed graph of operators"
        )
        raise ExportError(
            f"the model cannot be exported: {what}; build it of layers that have one "
            "(--traceback shows where)"
        ) from error


def _export_float(work: Work) -> dict[str, onnx.ModelProto]:
    work.progress("tracing the three graphs")
    graphs = _trace(work)
    work.graphs[REFERENCE] = _serialise(graphs)
    work.notes[REFERENCE] = {"method": "float32, the reference"}
    work.progress("comparing them with the torch model on real records")
    report = measure_parity(
        work.checkpoint,
        work.trio(REFERENCE),
        list(work.source.head(GATE_SAMPLES)),
        work.source.tokenizer.pad_id,
    )
    work.add(parity_gate(report))
    require_passed(work.results)  # the rest compares with these graphs
    work.report["parity"] = report.to_dict()
    return graphs


def _quantise(work: Work, graphs: Mapping[str, onnx.ModelProto], target: Target) -> None:
    variant = target.variant
    work.progress(f"making {variant}: ranges from {len(work.source)} records")
    reference = work.trio(REFERENCE)
    made = quantise_variant(graphs, work.source, reference, target, work.quantise)
    work.graphs[variant] = _serialise(made.graphs)
    notes = dict(made.notes)
    if work.checkpoint.model.vision_encoder.stem is not None:
        notes["equalisation"] = "channels between the convolutions of the stem, by their ranges"
    if variant in work.gates.size_only:
        notes["size_only"] = True
    work.notes[variant] = notes
    if made.sensitivity:
        work.report.setdefault("sensitivity", {})[variant] = made.sensitivity
    work.progress(f"comparing {variant} with float32")
    drift = measure_drift(reference, work.trio(variant), work.source)
    tasks = {name: value.to_dict() for name, value in sorted(drift.items())}
    work.report.setdefault("against_fp32", {})[variant] = tasks


def _gate_variant(work: Work, variant: str) -> None:
    work.progress(f"checking that company and padding change nothing: {variant}")
    graphs = work.graphs[variant]
    report = measure_invariance(
        graphs,
        work.parts,
        list(work.source.head(GATE_SAMPLES)),
        max_length=work.checkpoint.max_length,
        pad_id=work.source.tokenizer.pad_id,
    )
    target = work.targets.get(variant)
    work.add(invariance_gate(report, variant, alone_only=target is not None and target.dynamic))
    work.report.setdefault("invariance", {})[variant] = report.to_dict()
    work.report.setdefault("sizes", {})[variant] = {part: len(graphs[part]) for part in PARTS}
    inputs = {key: value for key, value in work.golden.items() if "/" not in key}
    outputs = golden_outputs(work.trio(variant), inputs)
    broken = sorted(name for name, value in outputs.items() if not np.isfinite(value).all())
    if broken:
        raise ExportError(
            f"variant {variant!r} gives values that are not finite in {broken[0]!r}; give range "
            "data of the right kind, or another checkpoint"
        )
    work.golden |= {f"{variant}/{name}": value for name, value in outputs.items()}
    work.variants[variant] = VariantSpec(
        graphs={part: f"graphs/{part}.{variant}.onnx" for part in PARTS},
        golden_tolerance=golden_tolerance(variant, graphs, inputs, outputs),
        notes=work.notes[variant],
    )


def _gate_packed(work: Work, files: Mapping[str, bytes], folder: Path) -> ReportContent:
    """The gates that need the runtime, accuracy and speed, and what they measured."""
    packed = write_bundle(files, folder / "candidate.umd")
    candidate = Candidate.open(packed.path, work.targets)
    manifest = packed.manifest
    content = ReportContent(
        name=f"{manifest.name} {manifest.version}",
        data=tuple(item["name"] for item in described(work.gates.data)),
        max_drop=work.gates.max_drop,
        sizes=dict(work.report["sizes"]),
        sensitivity=work.report.get("sensitivity", {}),
    )
    predictions = None
    if work.gates.data and work.targets:
        work.progress("measuring accuracy against float32")
        predictions = candidate.predict(work.gates.data, work.progress)
        content = describe_predictions(content, predictions)
    work.add(*candidate.gate_linter())
    work.add(*candidate.gate_accuracy(predictions, work.gates))
    if work.targets:
        work.progress("timing against float32")
    speed = candidate.measure_speed()
    work.add(*candidate.gate_speed(work.gates, speed))
    return replace(content, speed=speed, gates=tuple(work.results))


def _write_report(content: ReportContent, page: Path | None, pictures: Path | None) -> None:
    if pictures is not None:
        content = show_pictures(content, pictures)
    if page is not None:
        write_report(page, content)


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
    gates: GateOptions | None = None,
    quantise: QuantiseOptions | None = None,
    fit_data: Sequence[Path] = (),
    report: Path | None = None,
    pictures: Path | None = None,
    on_gate: OnGate = lambda result: None,
    progress: Progress = lambda message: None,
) -> Bundle:
    """Export, quantise, check and pack a checkpoint.

    Args:
        checkpoint_path: Directory of the checkpoint.
        range_data: JSONL manifests whose records set the INT8 ranges and pass the gates of parity
            and invariance; images are relative to them.
        out: The `.umd` file; replaced in one step at the very end.
        variants: Some of `fp32` and the variants or targets of `targets.TARGETS`; `int8` becomes
            the default one where it is present, else the first.
        name: Of the bundle.
        version: Of the model, `major.minor.patch`.
        metrics: Measured accuracy for the model card: task -> metric -> {value, low, high, n}.
        allow_non_commercial: Also take records that are not marked `non_commercial: false`.
        range_samples: How many records set the ranges, about.
        gates: Labelled records and budgets.
        quantise: How, beside the target: `QuantiseOptions()` where None.
        fit_data: JSONL manifests of labelled records on which probabilities and thresholds are
            fitted, see `trust`.
        report: HTML page to write, also where accuracy or speed fail. It names records.
        pictures: Folder for pictures of the records that disagree most.
        on_gate: Called with each gate's result, failed ones too, as soon as it is known.
        progress: Called with a line for each step.

    Returns:
        The bundle, opened from `out`.

    Raises:
        UsageError: Unknown variants, a place that cannot be written, or a file that is range data
            and gate data.
        DataError: The range data or gate data is unreadable, restricted, or fits no task.
        CheckpointError: The checkpoint is incomplete or damaged.
        ExportError: A weight is implausible, a layer has no form in ONNX, or the disk is full.
        GateError: A gate failed; its subclass where only one kind of gate did.
    """
    keep_float, targets = choose_variants(variants)
    options = gates or GateOptions()
    check_size_only(options.size_only, tuple(targets))
    for place in (out, *([report] if report else [])):
        check_place(place)
    check_gate_data((*options.data, *fit_data), range_data)
    checkpoint = load_checkpoint(checkpoint_path)
    check_weights(checkpoint)
    created = created_of(checkpoint.provenance)
    records = read_free_records(range_data, allow_non_commercial=allow_non_commercial)
    chosen = choose_samples(records, checkpoint, range_samples)
    work = Work(
        checkpoint=checkpoint,
        parts=graph_io(checkpoint),
        source=SampleSource(checkpoint, chosen),
        targets=targets,
        gates=options,
        quantise=quantise or QuantiseOptions(),
        on_gate=on_gate,
        progress=progress,
    )
    with full_disk_told(out), claim_folder(out.name, out.resolve().parent) as folder:
        graphs = _export_float(work)
        for target in targets.values():
            _quantise(work, graphs, target)
        work.golden.update(golden_inputs(checkpoint))
        for variant in (REFERENCE, *targets):
            _gate_variant(work, variant)
        _report_data(work, range_data, len(chosen))
        content = _gate_packed(work, work.files(name, version, created, {}), folder)
        if any(result.status == "failed" for result in work.results):
            _write_report(content, report, pictures)
        require_passed(work.results)
        work.report["gates"] = [result.to_dict() for result in work.results]
        if not keep_float:
            work.leave_out_float()
        progress(f"writing {out}")
        files = work.files(name, version, created, metrics or {})
        if fit_data:
            packed = write_bundle(files, folder / "unfitted.umd")
            fitted = fit_bundle(
                packed.path,
                fit_data,
                allow_non_commercial=allow_non_commercial,
                progress=progress,
            )
            ood = fit_ood_of(
                packed.path,
                fit_data,
                range_data,
                allow_non_commercial=allow_non_commercial,
                progress=progress,
            )
            built = write_fitted(*fitted, fit_data, out, ood=ood)
        else:
            built = write_bundle(files, out)
    _write_report(replace(content, sha256=built.sha256), report, pictures)
    return built


def _report_data(work: Work, range_data: Sequence[Path], count: int) -> None:
    work.report["range_data"] = {"records": count, "files": described(range_data)}
    if work.gates.data:
        work.report["gate_data"] = {"files": described(work.gates.data)}
