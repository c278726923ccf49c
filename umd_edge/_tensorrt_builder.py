"""From an ONNX graph to a TensorRT engine, with one builder for every TensorRT from 10.3 on.

Networks are strongly typed: an engine computes in the types that the graph states, and 8-bit
products are those between its QuantizeLinear and DequantizeLinear nodes. TensorRT 11 knows no other
way, 10.x has to be told. What a version lacks is left out; nothing is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ._tensorrt_progress import BuildProgress, make_monitor
from .errors import BundleIntegrityError, ProviderUnavailableError, UsageError

__all__ = ["BuiltEngine", "Profile", "build_engine", "parse_capability"]

OLDEST = (10, 3)
"""JetPack 6 stays there."""
_WORDS = ("input_ids", "attention_mask", "text_tokens")
_USUAL_LENGTH = 16

Shape = tuple[int, ...]
OnChange = Callable[[str, int, int, float | None], None]


@dataclass(frozen=True, slots=True)
class Profile:
    """The shapes that an engine takes: batch 1..`max_batch`, texts of 1..`max_length` tokens.

    An engine is fastest for one sample and 16 tokens, and refuses what lies outside.
    """

    max_batch: int = 16
    max_length: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= 1024 or not 1 <= self.max_length <= 4096:
            raise UsageError(
                f"a profile of batch {self.max_batch} and length {self.max_length} given; batches "
                "in 1..1024 and lengths in 1..4096 are allowed"
            )

    def __str__(self) -> str:
        return f"batch 1..{self.max_batch}, length 1..{self.max_length}"

    def shapes(self, name: str, shape: Sequence[int]) -> tuple[Shape, Shape, Shape]:
        """Smallest, usual and largest shape of an input whose dynamic axes are -1.

        Raises:
            BundleIntegrityError: An axis that is neither batch nor text length is dynamic.
        """
        ranges: list[tuple[int, int, int]] = []
        for axis, size in enumerate(shape):
            if size >= 0:
                ranges.append((size, size, size))
            elif axis == 0:
                ranges.append((1, 1, self.max_batch))
            elif axis == 1 and name in _WORDS:
                ranges.append((1, min(_USUAL_LENGTH, self.max_length), self.max_length))
            else:
                raise BundleIntegrityError(
                    f"axis {axis} of the graph's input {name!r} has no fixed size; TensorRT needs "
                    "one for every axis but batch and text length: export the bundle anew"
                )
        low, usual, high = (tuple(item[index] for item in ranges) for index in range(3))
        return low, usual, high


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """What a build gives."""

    plan: bytes
    timing_cache: bytes
    """Measured kernels, for the next build on the same GPU; empty where TensorRT keeps none."""


def build_engine(
    trt: Any,
    onnx: bytes,
    profile: Profile,
    *,
    name: str,
    compute_capability: tuple[int, int] | None = None,
    timing_cache: bytes = b"",
    workspace_bytes: int | None = None,
    on_change: OnChange = lambda phase, done, steps, left: None,
) -> BuiltEngine:
    """Build one engine in this process.

    Args:
        trt: The module `tensorrt` (10.3 or newer) or `tensorrt_rtx`.
        onnx: Bytes of the graph; weights included.
        profile: Shapes to build for.
        name: Of the graph, for messages.
        compute_capability: GPU to build for, (8, 6) for example. `tensorrt_rtx` needs no GPU to
            build for one; `tensorrt` always builds for the GPU that is there.
        timing_cache: Of an earlier build on the same GPU with the same TensorRT.
        workspace_bytes: Device memory that a kernel may use; TensorRT's own limit where None.
        on_change: As in `BuildProgress`.

    Raises:
        BundleIntegrityError: TensorRT refuses the graph.
        ProviderUnavailableError: TensorRT is too old, or cannot build for that GPU.
    """
    _require_version(trt)
    build = _Build(trt, name)
    network = build.parse(onnx)
    config = build.configure(network, profile, compute_capability, workspace_bytes)
    build.watch(config, BuildProgress(on_change))
    cache = build.use_timing_cache(config, timing_cache)
    plan = build.serialise(network, config)
    return BuiltEngine(plan, b"" if cache is None else bytes(cache.serialize()))


def parse_capability(given: str) -> tuple[int, int]:
    """(8, 6) of `8.6`.

    Raises:
        UsageError: It is something else.
    """
    found = re.fullmatch(r"([1-9]\d?)\.(\d)", given)
    if found is None:
        raise UsageError(f"compute capability {given!r} given; write it like 8.6 or 12.0")
    return int(found[1]), int(found[2])


def _is_rtx(trt: Any) -> bool:
    """Whether it is TensorRT for RTX, whose versions are counted anew."""
    return str(trt.__name__).startswith("tensorrt_rtx")


def _require_version(trt: Any) -> None:
    major, minor = (int(part) for part in str(trt.__version__).split(".")[:2])
    if not _is_rtx(trt) and (major, minor) < OLDEST:
        raise ProviderUnavailableError(
            f"TensorRT {trt.__version__} given; {OLDEST[0]}.{OLDEST[1]} (JetPack 6.1) or newer is "
            "needed"
        )


def _told(error: Any) -> str:
    """A parser's error with operator and node; for some operators it says `false` and no more."""
    where = [
        getattr(error, name)() for name in ("node_operator", "node_name") if hasattr(error, name)
    ]
    return " ".join([*(str(item) for item in where if item), str(error.desc())])


def _make_logger(trt: Any, errors: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(str(message))

    return Logger()


class _Build:
    """The objects of one build; TensorRT wants the builder and the logger to outlive the rest."""

    def __init__(self, trt: Any, name: str) -> None:
        self._trt = trt
        self._name = name
        self._errors: list[str] = []
        self._logger = _make_logger(trt, self._errors)
        self._builder = trt.Builder(self._logger)

    def parse(self, onnx: bytes) -> Any:
        kinds = getattr(self._trt, "NetworkDefinitionCreationFlag", None)
        strongly = getattr(kinds, "STRONGLY_TYPED", None)
        flags = 0 if strongly is None else 1 << int(strongly)
        network = self._builder.create_network(flags)
        self._parser = self._trt.OnnxParser(network, self._logger)
        if not self._parser.parse(onnx):
            found = [self._parser.get_error(i) for i in range(self._parser.num_errors)]
            raise self._refusal([_told(error) for error in found])
        return network

    def configure(
        self,
        network: Any,
        profile: Profile,
        compute_capability: tuple[int, int] | None,
        workspace_bytes: int | None,
    ) -> Any:
        trt = self._trt
        config = self._builder.create_builder_config()
        # 19-bit products in place of float32 ones would not be what the graph states.
        if hasattr(trt.BuilderFlag, "TF32"):
            config.clear_flag(trt.BuilderFlag.TF32)
        if workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
        if compute_capability is not None:
            self._choose_gpu(config, compute_capability)
        shapes = self._builder.create_optimization_profile()
        for index in range(network.num_inputs):
            item = network.get_input(index)
            shapes.set_shape(item.name, *profile.shapes(item.name, tuple(item.shape)))
        config.add_optimization_profile(shapes)
        return config

    def _choose_gpu(self, config: Any, compute_capability: tuple[int, int]) -> None:
        known = getattr(self._trt, "ComputeCapability", None)
        wanted = "SM{}{}".format(*compute_capability)
        if known is None or not hasattr(config, "set_compute_capability"):
            raise ProviderUnavailableError(
                f"{self._trt.__name__} builds for the GPU that is there alone; leave the compute "
                "capability out, or install tensorrt-rtx"
            )
        if not hasattr(known, wanted):
            names = [name for name in known.__members__ if name.startswith("SM")]
            raise ProviderUnavailableError(
                f"{self._trt.__name__} {self._trt.__version__} cannot build for {wanted}; it can "
                f"for {names}"
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(known, wanted), 0)

    def watch(self, config: Any, progress: BuildProgress) -> None:
        self._monitor = make_monitor(self._trt, progress)
        if self._monitor is not None:
            config.progress_monitor = self._monitor

    def use_timing_cache(self, config: Any, data: bytes) -> Any:
        if _is_rtx(self._trt):
            return None  # it has none, and warns when it is asked
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, False):
            # Of another GPU or TensorRT: measured anew.
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        return cache

    def serialise(self, network: Any, config: Any) -> bytes:
        self._errors.clear()  # what a timing cache of another GPU left there is no reason
        plan = self._builder.build_serialized_network(network, config)
        if plan is None:
            raise self._refusal(self._errors)
        return bytes(plan)

    def _refusal(self, reasons: list[str]) -> BundleIntegrityError:
        shown = " | ".join(" ".join(reason.split())[:300] for reason in reasons[:3])
        return BundleIntegrityError(
            f"{self._trt.__name__} {self._trt.__version__} refuses {self._name!r}: "
            f"{shown or 'without a reason'}. Build a variant made for TensorRT (fp32, int8-trt); "
            "`umd-edge-export tensorrt` names what else it refuses"
        )
