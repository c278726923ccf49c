"""What is known about a bundle while it is built, and the files that it comes to."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from umd_edge._bundle import file_entries
from umd_edge._manifest import Manifest, TokenizerSpec, VariantSpec
from umd_edge._selftest import write_golden
from umd_edge_train.checkpoint import Checkpoint

from .candidate import REFERENCE
from .card import Metrics, intended_use, model_card
from .errors import ExportError
from .gates import GateOptions, GateResult
from .graphs import OPSET, PARTS, GraphIO
from .quantize import QuantiseOptions
from .runner import GraphTrio
from .samples import SampleSource
from .targets import Target

__all__ = ["OnGate", "Progress", "Work", "created_of", "described"]

_TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "optimum")

Progress = Callable[[str], None]
OnGate = Callable[[GateResult], None]


@dataclass(slots=True)
class Work:
    """What is known so far about the bundle being built."""

    checkpoint: Checkpoint
    parts: dict[str, GraphIO]
    source: SampleSource
    targets: dict[str, Target]
    """Variant -> what it is made for; without `fp32`."""
    gates: GateOptions
    quantise: QuantiseOptions
    on_gate: OnGate
    progress: Progress
    graphs: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Variant -> part -> serialised ONNX."""
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    golden: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, VariantSpec] = field(default_factory=dict)
    results: list[GateResult] = field(default_factory=list)

    def trio(self, variant: str) -> GraphTrio:
        """The three graphs of a variant, to run."""
        return GraphTrio(self.graphs[variant], self.parts)

    def add(self, *results: GateResult) -> None:
        """Keep the results of gates, and tell them."""
        for result in results:
            self.results.append(result)
            self.on_gate(result)

    def leave_out_float(self) -> None:
        """The reference was needed for measuring alone."""
        for table in (self.graphs, self.variants, self.report["sizes"]):
            table.pop(REFERENCE)
        self.golden = {
            key: value for key, value in self.golden.items() if not key.startswith(f"{REFERENCE}/")
        }

    def files(self, name: str, version: str, created: str, metrics: Metrics) -> dict[str, bytes]:
        """Path inside the bundle -> bytes, with what was measured so far."""
        checkpoint = self.checkpoint
        report = {"metrics": metrics, **self.report}
        card = model_card(name, version, checkpoint.tasks, checkpoint.provenance, report, metrics)
        files = {
            "tokenizer.json": checkpoint.tokenizer_json,
            "golden.npz": write_golden(self.golden),
            "report.json": _json(report),
            "MODEL_CARD.md": card.encode("utf-8"),
        }
        for variant, spec in self.variants.items():
            files |= {spec.graphs[part]: self.graphs[variant][part] for part in PARTS}
        manifest = Manifest(
            name=name,
            version=version,
            created=created,
            intended_use=intended_use(checkpoint.tasks),
            preprocessing=checkpoint.preprocess,
            tokenizer=TokenizerSpec(file="tokenizer.json", max_length=checkpoint.max_length),
            structured_fields=checkpoint.structured_fields,
            tasks=checkpoint.tasks,
            variants=self.variants,
            default_variant="int8" if "int8" in self.variants else next(iter(self.variants)),
            opset=OPSET,
            golden="golden.npz",
            files=file_entries(files),
            provenance={"training": checkpoint.provenance, "export_tools": _tool_versions()},
        )
        # Read back: what the runtime would refuse is not written.
        data = Manifest.from_bytes(manifest.to_bytes()).to_bytes()
        return {**files, "manifest.json": data}


def created_of(provenance: Mapping[str, Any]) -> str:
    """The checkpoint's own date, so that building again gives the same bytes."""
    try:
        when = datetime.fromisoformat(str(provenance["created"]).replace("Z", "+00:00"))
    except (KeyError, ValueError) as error:
        raise ExportError(
            "the checkpoint's provenance.json has no `created` date in ISO 8601; add when it was "
            "trained"
        ) from error
    return when.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def described(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Names and hashes of data files, for the report."""
    return [
        {
            "name": f"{path.resolve().parent.name}/{path.name}",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
    ]


def _tool_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _TOOLS}


def _json(value: Any) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")
