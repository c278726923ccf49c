"""One graph on TensorRT: the experimental provider `tensorrt`.

Engines are built by `umd-edge build-engine` alone, never while an image waits. Inputs and outputs
have buffers of their own on the device, as large as the engine's profile, and one stream a graph.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ._bundle import Bundle
from ._deadline import check_limits
from ._options import SessionOptions
from ._session import GraphSession, GraphSpec
from ._tensorrt_bundle import default_profile, engine_cache, engine_key
from ._tensorrt_cuda import Cuda
from ._tensorrt_probe import import_library, require_device
from .errors import BundleIntegrityError, InferenceError, ProviderUnavailableError

__all__ = ["TensorrtSession", "open_session"]

_DTYPES = {"FLOAT": np.float32, "INT64": np.int64, "INT32": np.int32, "HALF": np.float16}
_ONNX_DTYPES = {"float": np.float32, "int64": np.int64}

Array = npt.NDArray[Any]


@functools.lru_cache(maxsize=1)
def _cuda() -> Cuda:
    return Cuda()


def open_session(
    bundle: Bundle, variant: str, part: str, spec: GraphSpec, options: SessionOptions
) -> TensorrtSession:
    """Open the engine of one graph that was built for this device.

    Raises:
        ProviderUnavailableError: TensorRT does not work here, or there is no such engine.
        BundleIntegrityError: The engine has other inputs or outputs than the format asks for.
    """
    facts, device = require_device()
    trt = import_library(facts)
    name = bundle.manifest.variants[variant].graphs[part]
    cache = engine_cache(bundle, options.engines)
    key = engine_key(bundle, variant, part, default_profile(bundle.manifest), facts, device)
    plan = cache.read(cache.newest_profile(key), name)
    return TensorrtSession(trt, _cuda(), plan, name, spec)


class TensorrtSession(GraphSession):
    """A loaded engine, with the calls of `GraphSession`; threads take turns."""

    def __init__(self, trt: Any, cuda: Cuda, plan: bytes, name: str, spec: GraphSpec) -> None:
        """Load an engine and allocate its buffers.

        Args:
            trt: The module that built it.
            cuda: The device.
            plan: Bytes of the engine.
            name: Of the graph, for messages.
            spec: What the graph must look like.

        Raises:
            ProviderUnavailableError: TensorRT does not take the engine.
            BundleIntegrityError: It has other inputs or outputs.
        """
        self.name = name
        self.output_names = spec.outputs
        self._session = _Execution(trt, cuda, plan, name)
        self._check(spec)
        self._names = list(spec.outputs)

    def _check(self, spec: GraphSpec) -> None:
        inputs, outputs = self._session.inputs, self._session.outputs
        # TensorRT drops an input that no output depends on.
        if not set(inputs) <= set(spec.inputs) or set(outputs) != set(spec.outputs):
            raise BundleIntegrityError(
                f"the engine of {self.name!r} has inputs {sorted(inputs)} and outputs "
                f"{sorted(outputs)}; the format asks for {sorted(spec.inputs)} and "
                f"{sorted(spec.outputs)}"
            )
        wanted = {name: (_ONNX_DTYPES[kind], rank) for name, (kind, rank) in spec.inputs.items()}
        for name, tensor in inputs.items():
            if (tensor.dtype, len(tensor.largest)) != wanted[name]:
                raise BundleIntegrityError(
                    f"the engine of {self.name!r}: input {name!r} is {tensor.dtype.__name__} of "
                    f"rank {len(tensor.largest)}; {wanted[name][0].__name__} of rank "
                    f"{wanted[name][1]} is needed"
                )

    def run(
        self, feeds: Mapping[str, Array], names: list[str] | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Outputs of those names, or all in the order of `output_names`.

        Raises:
            InferenceError: An input is outside the engine's profile, or the run failed.
            StoppedError: As of a `GraphSession`, but a running engine is not interrupted.
        """
        check_limits()
        execution: _Execution = self._session
        try:
            return execution.run(names or self._names, feeds)
        except InferenceError:
            raise
        except Exception as error:
            raise InferenceError(
                f"{self.name!r} failed in TensorRT ({type(error).__name__}); run `umd-edge verify "
                "--provider tensorrt`, and report it with the output of `umd-edge doctor`"
            ) from error


class _Tensor:
    """An input or output: its type, the shapes that it may have, and its device buffer."""

    def __init__(self, dtype: Any, smallest: Sequence[int], largest: Sequence[int]) -> None:
        self.dtype = dtype
        self.smallest, self.largest = tuple(smallest), tuple(largest)
        self.address = 0

    @property
    def size(self) -> int:
        return int(np.prod(self.largest, dtype=np.int64)) * int(np.dtype(self.dtype).itemsize)


class _Execution:
    """Engine, context, stream and buffers; `run` has the order of onnxruntime's arguments."""

    def __init__(self, trt: Any, cuda: Cuda, plan: bytes, name: str) -> None:
        self._name = name
        self._cuda = cuda
        self._lock = threading.Lock()
        cuda.enter()
        # TensorRT wants the logger and the runtime to outlive the engine.
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        self._context: Any = None
        if self._engine is not None:
            self._context = self._engine.create_execution_context()
        if self._context is None:
            raise ProviderUnavailableError(
                f"{trt.__name__} {trt.__version__} does not load the engine of {name!r}: there may "
                "be too little device memory; close other programs, or run `umd-edge build-engine "
                "--rebuild`"
            )
        self.inputs: dict[str, _Tensor] = {}
        self.outputs: dict[str, _Tensor] = {}
        self._describe(trt)
        self._allocate()

    def _describe(self, trt: Any) -> None:
        engine, context = self._engine, self._context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for name in names:
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                smallest, _, largest = engine.get_tensor_profile_shape(name, 0)
                self.inputs[name] = _Tensor(self._dtype(name), smallest, largest)
                context.set_input_shape(name, tuple(largest))
        for name in names:
            if name not in self.inputs:
                largest = context.get_tensor_shape(name)
                self.outputs[name] = _Tensor(self._dtype(name), largest, largest)

    def _dtype(self, name: str) -> Any:
        given = self._engine.get_tensor_dtype(name).name
        if given not in _DTYPES:
            raise BundleIntegrityError(
                f"the engine of {self._name!r}: {name!r} is {given}; one of {list(_DTYPES)} is "
                "needed"
            )
        return _DTYPES[given]

    def _allocate(self) -> None:
        self._stream = self._cuda.create_stream()
        addresses: list[int] = []
        weakref.finalize(self, _release, self._cuda, self._stream, addresses)
        for name, tensor in {**self.inputs, **self.outputs}.items():
            tensor.address = self._cuda.allocate(tensor.size)
            addresses.append(tensor.address)
            self._context.set_tensor_address(name, tensor.address)

    def run(
        self, names: Sequence[str], feeds: Mapping[str, Array]
    ) -> list[npt.NDArray[np.float32]]:
        """Outputs of those names, in their order."""
        # Contiguous copies are held here until the stream was waited for.
        given = {name: self._checked(name, feeds[name]) for name in self.inputs}
        with self._lock:
            self._cuda.enter()  # in whichever thread this is
            started = True
            for name, array in given.items():
                started &= bool(self._context.set_input_shape(name, array.shape))
                self._cuda.upload(self.inputs[name].address, array, self._stream)
            if not started or not self._context.execute_async_v3(self._stream):
                raise InferenceError(
                    f"{self._name!r} failed in TensorRT; run `umd-edge verify --provider tensorrt`"
                )
            results = []
            for name in names:
                tensor = self.outputs[name]
                result = np.empty(tuple(self._context.get_tensor_shape(name)), tensor.dtype)
                self._cuda.download(result, tensor.address, self._stream)
                results.append(result)
            self._cuda.wait(self._stream)
        return [result.astype(np.float32, copy=False) for result in results]

    def _checked(self, name: str, array: Array) -> Array:
        tensor = self.inputs[name]
        inside = len(array.shape) == len(tensor.largest) and all(
            low <= size <= high
            for low, size, high in zip(tensor.smallest, array.shape, tensor.largest, strict=True)
        )
        if not inside or array.dtype != tensor.dtype:
            raise InferenceError(
                f"{self._name!r}: input {name!r} is {array.dtype} of shape {array.shape}; the "
                f"engine takes {np.dtype(tensor.dtype)} from {tensor.smallest} to {tensor.largest}"
            )
        return np.ascontiguousarray(array)


def _release(cuda: Cuda, stream: int, addresses: list[int]) -> None:
    try:
        cuda.enter()
        cuda.destroy_stream(stream)
        for address in addresses:
            cuda.free(address)
    except InferenceError:
        pass  # the process ends, or the device is lost: nobody is left to tell
