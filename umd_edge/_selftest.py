"""The power-on self-test: golden inputs must give the stored outputs on this machine.

Preprocessing, tokenisation and sums of 8-bit products must agree to the bit, the graphs within the
variant's tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arrays import read_arrays, write_arrays
from ._engine import Engine
from ._graphs import Graphs
from ._json import load_strict
from ._preprocess import preprocess
from ._saturation import saturation_error
from .errors import BundleIntegrityError, InputError, SelfTestError

__all__ = [
    "GoldenCheck",
    "VerificationReport",
    "compute_golden_outputs",
    "read_golden",
    "run_self_test",
    "write_golden",
]

_INPUTS = ("image", "pixel_values", "texts", "input_ids", "attention_mask")
_STRUCTURED = ("structured_values", "structured_mask")

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """One compared array."""

    name: str
    difference: float
    """Largest absolute difference."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is a number and within the tolerance."""
        return self.difference <= self.tolerance


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What `Predictor.verify` found; every check has passed."""

    variant: str
    provider: str
    files: int
    """Number of files whose hash was compared."""
    checks: tuple[GoldenCheck, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "variant": self.variant,
            "provider": self.provider,
            "files": self.files,
            "checks": [
                {"name": c.name, "difference": c.difference, "tolerance": c.tolerance}
                for c in self.checks
            ],
        }


def _bad(problem: str) -> BundleIntegrityError:
    return BundleIntegrityError(f"the bundle's golden file {problem}; fetch the bundle again")


def read_golden(data: bytes) -> dict[str, Array]:
    """Arrays of the golden file; see `read_arrays` for what is raised."""
    return read_arrays(data, "golden file")


def write_golden(arrays: Mapping[str, Array]) -> bytes:
    """Bytes of a `.npz`: the same arrays give the same bytes.

    Args:
        arrays: Key -> numbers of any shape. `texts` is the UTF-8 JSON list as (N,) uint8.
    """
    return write_arrays(arrays)


def compute_golden_outputs(graphs: Graphs, golden: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of one variant for golden inputs; export stores what this returns.

    Args:
        graphs: The opened graphs of the variant.
        golden: `pixel_values` (1, C, H, W) float32, `input_ids` and `attention_mask` (B, L) int64,
            `structured_values` and `structured_mask` (B, F) float32.

    Returns:
        Output name -> array, of all three graphs; the fusion runs with the image repeated.
    """
    batch = golden["input_ids"].shape[0]
    vision = graphs.vision.run({"pixel_values": golden["pixel_values"]})
    text = graphs.text.run({key: golden[key] for key in ("input_ids", "attention_mask")})
    fusion = graphs.fusion.run(
        {
            "image_tokens": np.repeat(vision[0], batch, axis=0),
            "text_tokens": text[0],
            "attention_mask": golden["attention_mask"],
            "structured_values": golden["structured_values"],
            "structured_mask": golden["structured_mask"],
        }
    )
    outputs: dict[str, Array] = {}
    for graph, values in ((graphs.vision, vision), (graphs.text, text), (graphs.fusion, fusion)):
        outputs.update(zip(graph.output_names, values, strict=True))
    return outputs


def _compare(name: str, given: Array, wanted: Array, tolerance: float) -> GoldenCheck:
    if given.shape != wanted.shape or given.dtype != wanted.dtype:
        return GoldenCheck(name, float("inf"), tolerance)
    if given.size == 0:
        return GoldenCheck(name, 0.0, tolerance)
    # NaN on either side makes the difference NaN, and that does not pass.
    difference = np.abs(given.astype(np.float64) - wanted.astype(np.float64)).max()
    return GoldenCheck(name, float(difference), tolerance)


def run_self_test(engine: Engine) -> VerificationReport:
    """Run the golden vectors.

    Raises:
        BundleIntegrityError: The golden file cannot be read or lacks an array.
        SelfTestError: An output differs by more than the tolerance.
    """
    manifest = engine.manifest
    golden = read_golden(engine.bundle.read(manifest.golden))
    missing = [key for key in (*_INPUTS, *_STRUCTURED) if key not in golden]
    if missing:
        raise _bad(f"lacks {missing}")
    try:
        checks = _input_checks(engine, golden)
    except InputError as error:
        raise _bad("holds inputs of a wrong form") from error
    checks.extend(_sum_checks(engine))
    tolerance = manifest.variants[engine.variant].golden_tolerance
    for name, value in compute_golden_outputs(engine.graphs, golden).items():
        stored = golden.get(f"{engine.variant}/{name}")
        if stored is None:
            raise _bad(f"lacks '{engine.variant}/{name}'")
        checks.append(_compare(name, value, stored, tolerance))
    failed = [check for check in checks if not check.passed]
    if failed:
        worst = ", ".join(
            f"{c.name} by {c.difference:.3g} (at most {c.tolerance:.3g})" for c in failed
        )
        raise SelfTestError(
            f"the self-test failed on this machine: {worst}. Do not use the bundle here; report it "
            "with the output of `umd-edge doctor`"
        )
    return VerificationReport(
        engine.variant, engine.options.provider, len(manifest.files), tuple(checks)
    )


def _sum_checks(engine: Engine) -> list[GoldenCheck]:
    """One exact check of 8-bit sums, where the processor computes such."""
    path = engine.graphs.int8_path
    if not path or engine.options.provider != "cpu":
        return []
    chosen = engine.manifest.variants[engine.variant]
    error = saturation_error(chosen, engine.options, u8u8=path == "u8u8")
    return [GoldenCheck("8-bit sums", error, 0.0)]


def _input_checks(engine: Engine, golden: Mapping[str, Array]) -> list[GoldenCheck]:
    pixels = preprocess(golden["image"], engine.manifest.preprocessing)[None]
    try:
        texts = load_strict(golden["texts"].tobytes())
    except ValueError as error:
        raise _bad("holds texts that are no JSON list") from error
    if not isinstance(texts, list):
        raise _bad("holds texts that are no JSON list")
    input_ids, attention_mask = engine.tokenizer.encode(texts)
    return [
        _compare("pixel_values", pixels, golden["pixel_values"], 0.0),
        _compare("input_ids", input_ids, golden["input_ids"], 0.0),
        _compare("attention_mask", attention_mask, golden["attention_mask"], 0.0),
    ]
