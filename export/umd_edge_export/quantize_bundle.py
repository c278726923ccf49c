"""Adds INT8 variants to a bundle that holds `fp32`: measured, gated, and written whole or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import onnx

from umd_edge._bundle import Bundle, file_entries, write_bundle
from umd_edge._claims import claim_folder
from umd_edge._graphs import graph_specs
from umd_edge._json import dump_canonical
from umd_edge._manifest import Manifest, VariantSpec
from umd_edge._selftest import read_golden, write_golden
from umd_edge.errors import UsageError
from umd_edge_train.checkpoint import Checkpoint

from .candidate import REFERENCE, Candidate, check_size_only
from .card import model_card
from .drift import measure_drift
from .gates import GateOptions, GateResult, invariance_gate, require_passed
from .golden import golden_outputs, golden_tolerance
from .graphs import PARTS, GraphIO
from .invariance import measure_invariance
from .places import check_place, full_disk_told
from .quantize import QuantiseOptions, quantise_variant
from .runner import GraphTrio
from .samples import SampleSource, choose_samples, read_free_records
from .targets import Target, find_target

__all__ = ["QuantiseData", "quantise_bundle"]

GATE_SAMPLES = 24
_ALL = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantiseData:
    """Records for a quantisation: JSONL manifests, pictures relative to them."""

    ranges: tuple[Path, ...]
    """Set the ranges and order the layers: training records, for every task."""
    budget: tuple[Path, ...] = ()
    """Labelled; decide how many layers stay in float."""
    range_samples: int = 256
    """How many records set the ranges, about."""
    allow_non_commercial: bool = False

    def source(self, model: Checkpoint) -> SampleSource:
        """Records for ranges, spread over tasks."""
        return self._source(model, self.ranges, self.range_samples, "range")

    def budget_source(self, model: Checkpoint) -> SampleSource | None:
        """All labelled records, those of one picture after each other; None where none is given."""
        if not self.budget:
            return None
        found = self._source(model, self.budget, _ALL, "budget")
        return SampleSource(model, sorted(found.chosen, key=lambda x: str(x.example.image_path)))

    def describe(self) -> dict[str, list[dict[str, str]]]:
        """Names and hashes of the files, for the report."""
        return {
            use: [
                {
                    "name": f"{path.resolve().parent.name}/{path.name}",
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
                for path in paths
            ]
            for use, paths in (("ranges", self.ranges), ("budget", self.budget))
        }

    def _source(
        self,
        model: Checkpoint,
        paths: tuple[Path, ...],
        count: int,
        use: Literal["range", "budget"],
    ) -> SampleSource:
        records = read_free_records(paths, allow_non_commercial=self.allow_non_commercial)
        return SampleSource(model, choose_samples(records, model, count, use=use))


@dataclass(frozen=True, slots=True)
class _BundleModel:
    """What sample sources and graphs need of a checkpoint, from a bundle's manifest."""

    tasks: Any
    structured_fields: Any
    preprocess: Any
    tokenizer_json: bytes
    max_length: int


def _model(bundle: Bundle) -> Checkpoint:
    manifest = bundle.manifest
    model = _BundleModel(
        tasks=manifest.tasks,
        structured_fields=manifest.structured_fields,
        preprocess=manifest.preprocessing,
        tokenizer_json=bundle.read(manifest.tokenizer.file),
        max_length=manifest.tokenizer.max_length,
    )
    return cast(Checkpoint, model)  # no reader of samples looks at the weights


@dataclass(slots=True)
class _Work:
    """A bundle while variants are added to it."""

    bundle: Bundle
    model: Checkpoint
    source: SampleSource
    targets: Mapping[str, Target]
    on_gate: Callable[[GateResult], None]
    progress: Callable[[str], None]
    files: dict[str, bytes]
    report: dict[str, Any]
    golden: dict[str, Any]
    variants: dict[str, VariantSpec]
    results: list[GateResult] = field(default_factory=list)

    @property
    def parts(self) -> dict[str, GraphIO]:
        return {
            part: GraphIO({name: {} for name in spec.inputs}, {name: {} for name in spec.outputs})
            for part, spec in graph_specs(self.bundle.manifest).items()
        }

    def graphs(self, variant: str) -> dict[str, bytes]:
        return {part: self.files[self.variants[variant].graphs[part]] for part in PARTS}

    def add(self, *results: GateResult) -> None:
        for result in results:
            self.results.append(result)
            self.on_gate(result)


def _open(path: Path) -> Bundle:
    bundle = Bundle.open(path)
    if REFERENCE not in bundle.manifest.variants:
        raise UsageError(
            f"{path.name!r} holds the variants {sorted(bundle.manifest.variants)} and no float32 "
            "graphs; quantise the checkpoint, or a bundle built with --variants fp32"
        )
    bundle.check_files()
    return bundle


def _read_report(bundle: Bundle) -> dict[str, Any]:
    """The export's report with the sizes of all variants; a bundle need not have one."""
    manifest = bundle.manifest
    has_report = "report.json" in manifest.files
    report: dict[str, Any] = json.loads(bundle.read("report.json")) if has_report else {}
    report["sizes"] = {
        name: {part: manifest.files[path].size for part, path in spec.graphs.items()}
        for name, spec in manifest.variants.items()
    }
    return report


def _add_variant(work: _Work, target: Target, options: QuantiseOptions, *, size_only: bool) -> None:
    variant = target.variant
    work.progress(f"making {variant}")
    reference = GraphTrio(work.graphs(REFERENCE), work.parts)
    models = {part: onnx.load_from_string(data) for part, data in work.graphs(REFERENCE).items()}
    made = quantise_variant(models, work.source, reference, target, options)
    graphs = {part: made.graphs[part].SerializeToString(deterministic=True) for part in PARTS}
    trio = GraphTrio(graphs, work.parts)
    inputs = {key: value for key, value in work.golden.items() if "/" not in key}
    outputs = golden_outputs(trio, inputs)
    work.golden = {
        key: value for key, value in work.golden.items() if not key.startswith(f"{variant}/")
    } | {f"{variant}/{name}": value for name, value in outputs.items()}
    names = {part: f"graphs/{part}.{variant}.onnx" for part in PARTS}
    work.variants[variant] = VariantSpec(
        graphs=names,
        golden_tolerance=golden_tolerance(variant, graphs, inputs, outputs),
        notes={**made.notes, **({"size_only": True} if size_only else {})},
    )
    work.files |= {names[part]: graphs[part] for part in PARTS}
    drift = measure_drift(reference, trio, work.source)
    sections = {
        "against_fp32": {name: value.to_dict() for name, value in sorted(drift.items())},
        "sizes": {part: len(graphs[part]) for part in PARTS},
        "sensitivity": made.sensitivity,
    }
    for name, section in sections.items():
        work.report.setdefault(name, {}).pop(variant, None)
        if section:
            work.report[name][variant] = section


def _gate_invariance(work: _Work, target: Target) -> None:
    work.progress(f"checking that company and padding change nothing: {target.variant}")
    measured = measure_invariance(
        work.graphs(target.variant),
        work.parts,
        list(work.source.head(GATE_SAMPLES)),
        max_length=work.model.max_length,
        pad_id=work.source.tokenizer.pad_id,
    )
    work.add(invariance_gate(measured, target.variant, alone_only=target.dynamic))
    work.report.setdefault("invariance", {})[target.variant] = measured.to_dict()


def _gate_packed(work: _Work, gates: GateOptions, folder: Path) -> None:
    packed = write_bundle(_pack(work, "fp32"), folder / "candidate.umd")
    candidate = Candidate.open(packed.path, work.targets)
    work.add(*candidate.gate_linter())
    predictions = None
    if gates.data:
        work.progress("measuring accuracy against float32")
        predictions = candidate.predict(gates.data, work.progress)
    work.add(*candidate.gate_accuracy(predictions, gates))
    work.progress("timing against float32")
    work.add(*candidate.gate_speed(gates))


def _pack(work: _Work, default: str) -> dict[str, bytes]:
    """The files of the bundle with the variants that are there now."""
    manifest = work.bundle.manifest
    used = {name for spec in work.variants.values() for name in spec.graphs.values()}
    files = {
        name: data
        for name, data in work.files.items()
        if not name.startswith("graphs/") or name in used
    }
    files[manifest.golden] = write_golden(work.golden)
    files["report.json"] = dump_canonical(work.report)
    training = manifest.provenance.get("training", {})
    metrics = work.report.get("metrics", {})
    card = model_card(
        manifest.name, manifest.version, manifest.tasks, training, work.report, metrics
    )
    files["MODEL_CARD.md"] = card.encode("utf-8")
    changed = replace(
        manifest,
        variants=work.variants,
        default_variant=default,
        files=file_entries(files),
    )
    # Read back: what the runtime would refuse is not written.
    return {**files, "manifest.json": Manifest.from_bytes(changed.to_bytes()).to_bytes()}


def _leave_out_float(work: _Work) -> None:
    work.variants.pop(REFERENCE)
    for table in ("sizes", "invariance"):
        work.report.get(table, {}).pop(REFERENCE, None)
    work.golden = {
        key: value for key, value in work.golden.items() if not key.startswith(f"{REFERENCE}/")
    }


def quantise_bundle(
    path: Path,
    targets: Sequence[str],
    data: QuantiseData,
    out: Path,
    *,
    options: QuantiseOptions,
    gates: GateOptions,
    keep_fp32: bool = True,
    on_gate: Callable[[GateResult], None] = lambda result: None,
    progress: Callable[[str], None] = lambda message: None,
) -> Bundle:
    """Quantise the float32 graphs of a bundle for some targets.

    Args:
        path: A bundle that holds `fp32`; left as it is.
        targets: Names of `targets.TARGETS`; two that share a variant make it once.
        data: Records.
        out: The `.umd` file; replaced in one step at the very end.
        options: How; `budget_source` and `progress` are set from the other arguments.
        gates: Labelled records and budgets of the gates.
        keep_fp32: Whether the float32 graphs stay in the bundle.
        on_gate: Called with each gate's result as soon as it is known.
        progress: Called with a line for each step.

    Raises:
        UsageError: An unknown target, one that was not accepted, a bundle without `fp32`, or a
            place that cannot be written.
        DataError: The records are unreadable, restricted, or do not fit every task.
        BundleError: The bundle is damaged.
        ExportError: A layer cannot be quantised, a value is not finite, or the disk is full.
        GateError: A gate failed; its subclass where only one kind of gate did.
    """
    chosen = {target.variant: target for target in map(find_target, targets)}
    if not chosen:
        raise UsageError("no target given; name at least one with --target")
    check_size_only(gates.size_only, tuple(chosen))
    check_place(out)
    bundle = _open(path)
    model = _model(bundle)
    work = _Work(
        bundle=bundle,
        model=model,
        source=data.source(model),
        targets=chosen,
        on_gate=on_gate,
        progress=progress,
        files={name: bundle.read(name) for name in bundle.manifest.files},
        report=_read_report(bundle),
        golden=dict(read_golden(bundle.read(bundle.manifest.golden))),
        variants=dict(bundle.manifest.variants),
    )
    asked = replace(options, budget_source=data.budget_source(model), progress=progress)
    with full_disk_told(out), claim_folder(out.name, out.resolve().parent) as folder:
        for target in chosen.values():
            _add_variant(work, target, asked, size_only=target.variant in gates.size_only)
            _gate_invariance(work, target)
        _gate_packed(work, gates, folder)
        require_passed(work.results)
        work.report["quantisation_data"] = data.describe()
        work.report["gates"] = [
            *(x for x in work.report.get("gates", []) if x.get("variant") not in chosen),
            *(result.to_dict() for result in work.results),
        ]
        if not keep_fp32:
            _leave_out_float(work)
        default = "int8" if "int8" in work.variants else next(iter(work.variants))
        progress(f"writing {out}")
        return write_bundle(_pack(work, default), out)
