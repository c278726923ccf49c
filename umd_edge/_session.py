"""One graph on one provider. onnxruntime is imported when the first graph is opened.

The rule to remember: what runs is what was asked for. A provider that is not there is an error, and
so is a graph whose inputs or outputs are not those of the format.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._deadline import active_limits
from ._heap import heap
from ._onnxruntime import load_onnxruntime
from ._options import PROVIDERS, SessionOptions
from .errors import (
    BundleIntegrityError,
    InferenceError,
    ProviderError,
    ProviderUnavailableError,
    StoppedError,
)

__all__ = ["GraphSession", "GraphSpec", "available_providers", "needs_u8u8"]

_ORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
_INSTALL = {
    "cuda": "install onnxruntime-gpu in place of onnxruntime",
    "tensorrt": "install TensorRT and a driver; `umd-edge doctor` says what is missing",
    "openvino": "install onnxruntime-openvino in place of onnxruntime",
}
# Protobuf bytes of the key `location`, by which a tensor names a file to read: any file.
_EXTERNAL_DATA = b"\x0a\x08location"


class GraphSpec:
    """Names, element types and ranks that a graph must have."""

    def __init__(self, inputs: Mapping[str, tuple[str, int]], outputs: Sequence[str]) -> None:
        self.inputs = dict(inputs)
        self.outputs = tuple(outputs)


def available_providers() -> list[str]:
    """Short names of the providers that work here, `cpu` first.

    Those of the installed onnxruntime, and `tensorrt` where a trial of it succeeds.
    """
    present = set(load_onnxruntime().get_available_providers())
    return [
        name
        for name in PROVIDERS
        if (_tensorrt_works() if name == "tensorrt" else _ORT_NAMES[name] in present)
    ]


def _tensorrt_works() -> bool:
    from ._tensorrt_probe import is_installed, probe

    return is_installed() and probe().usable


def _provider_error(provider: str) -> ProviderUnavailableError:
    return ProviderUnavailableError(
        f"provider {provider!r} is not available here; available: {available_providers()}. "
        f"Choose one of them, or {_INSTALL.get(provider, 'reinstall onnxruntime')}"
    )


def needs_u8u8() -> bool:
    """Whether products of unsigned and signed bytes can saturate on this processor.

    So it is on x86-64 without VNNI instructions. Where that cannot be found out, the safe answer is
    yes: the sums are then right, and slower.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "x86", "i386", "i686"):
        return False
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    flags = next((line for line in facts.splitlines() if line.startswith("flags")), "")
    return not {"avx512_vnni", "avx_vnni"} & set(flags.split())


class GraphSession:
    """A loaded graph. `run` may be called from many threads at once."""

    def __init__(
        self, data: bytes, name: str, spec: GraphSpec, options: SessionOptions, *, u8u8: bool
    ) -> None:
        """Open the graph.

        Args:
            data: Bytes of the ONNX file; the caller has checked their hash.
            name: Path in the bundle, for messages.
            spec: What the graph must look like.
            options: Provider and threads.
            u8u8: Use the 8-bit products that cannot saturate (CPU only).

        Raises:
            ProviderUnavailableError: The provider is not in the installed onnxruntime, or does not
                start.
            BundleIntegrityError: onnxruntime cannot read the graph, or it has other inputs or
                outputs.
        """
        ort = load_onnxruntime()
        wanted = _ORT_NAMES.get(options.provider)  # TensorRT has sessions of its own
        if wanted not in ort.get_available_providers():
            raise _provider_error(options.provider)
        settings = _settings(ort, options)
        if u8u8 and options.provider == "cpu":
            settings.add_session_config_entry("session.x64quantprecision", "1")
        self.name = name
        if _EXTERNAL_DATA in data:
            raise BundleIntegrityError(
                f"{name!r} keeps weights outside itself; a bundle's graph holds all of them"
            )
        try:
            self._session = ort.InferenceSession(
                data,
                settings,
                providers=[(wanted, _provider_options(options))],
                enable_fallback=False,
            )
        except Exception as error:  # onnxruntime has a dozen unrelated classes
            raise _load_error(error, name, options.provider) from error
        self._session.disable_fallback()
        if wanted not in self._session.get_providers():
            raise _provider_error(options.provider)
        self._check(spec)
        self.input_names = tuple(spec.inputs)
        self.output_names = spec.outputs
        self._names = list(spec.outputs)
        # Names, types and ranks have been compared, and inputs are made here: what the outer class
        # does in Python before each run takes a tenth of a short one.
        self._run = getattr(self._session, "_sess", self._session).run
        trimmed = options.trim and not options.arena and options.provider == "cpu"
        self._heap = heap if trimmed else None

    def _check(self, spec: GraphSpec) -> None:
        inputs = {item.name: item for item in self._session.get_inputs()}
        outputs = {item.name for item in self._session.get_outputs()}
        if set(inputs) != set(spec.inputs) or outputs != set(spec.outputs):
            raise BundleIntegrityError(
                f"{self.name!r} has inputs {sorted(inputs)} and outputs {sorted(outputs)}; the "
                f"format asks for {sorted(spec.inputs)} and {sorted(spec.outputs)}"
            )
        for name, (element, rank) in spec.inputs.items():
            given = inputs[name]
            if given.type != f"tensor({element})" or len(given.shape) != rank:
                raise BundleIntegrityError(
                    f"{self.name!r}: input {name!r} is {given.type} of rank {len(given.shape)}; "
                    f"tensor({element}) of rank {rank} is needed"
                )

    def run(
        self, feeds: Mapping[str, npt.NDArray[Any]], names: list[str] | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Outputs of those names, or all in the order of `output_names`.

        Args:
            feeds: Input name -> array, of shape and type as the graph says.
            names: Outputs to compute; all where None.

        Raises:
            InferenceError: The run failed; onnxruntime's error is chained.
            StoppedError: The `limited` block around was cancelled or is out of time.
        """
        limits = active_limits.get()
        result: list[npt.NDArray[np.float32]]
        try:
            if limits is None:
                result = self._run(names or self._names, feeds, None)
            else:
                limits.check()
                result = self._run(names or self._names, feeds, limits.run_options())
            if self._heap is not None:
                self._heap.after_run()
        except StoppedError:
            raise
        except Exception as error:
            if limits is not None:
                limits.check()  # a run that was stopped is no failure
            raise InferenceError(
                f"{self.name!r} failed in onnxruntime ({type(error).__name__}); run "
                "`umd-edge verify`, and report it with the output of `umd-edge doctor`"
            ) from error
        return result


def _settings(ort: Any, options: SessionOptions) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3  # errors come back as exceptions
    settings.enable_cpu_mem_arena = options.arena
    settings.enable_mem_pattern = options.memory_pattern
    settings.use_deterministic_compute = options.deterministic
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    spinning = "1" if options.spinning else "0"
    settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    return settings


def _provider_options(options: SessionOptions) -> dict[str, str]:
    if options.provider == "cuda" and options.deterministic:
        return {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}
    return {}


def _load_error(error: Exception, name: str, provider: str) -> Exception:
    unreadable = ("InvalidGraph", "InvalidProtobuf", "InvalidArgument", "NotImplemented", "NoModel")
    if provider == "cpu" or type(error).__name__ in unreadable:
        return BundleIntegrityError(
            f"{name!r} cannot be opened by onnxruntime {load_onnxruntime().__version__} "
            f"({type(error).__name__}); use a newer onnxruntime or another bundle"
        )
    if isinstance(error, (ValueError, ProviderError)):
        return _provider_error(provider)
    return ProviderUnavailableError(
        f"provider {provider!r} did not start ({type(error).__name__}); check its driver and "
        f"libraries, or choose one of {available_providers()}"
    )
