"""A stand-in for TensorRT that runs graphs with onnxruntime on the fake device. For tests alone.

`FAKE_TENSORRT` is its version. As the real ones: 10.x needs the flag for strong typing and still
has flags of precision, 11 has neither; `FAKE_TENSORRT_TROUBLE` names a misfortune.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import signal
import time

__version__ = os.environ.get("FAKE_TENSORRT", "10.3.0")
_OLD = __version__.startswith("10.")
_TROUBLE = os.environ.get("FAKE_TENSORRT_TROUBLE", "")
CALLS: list[tuple[str, object]] = []

if _TROUBLE == "import":
    raise ImportError("libnvinfer.so.10: cannot open shared object file")


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3

    def __init__(self) -> None:
        pass


class Logger(ILogger):
    ERROR = ILogger.Severity.ERROR

    def __init__(self, severity=ERROR) -> None:
        self.severity = severity


class IProgressMonitor:
    def __init__(self) -> None:
        pass


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.IntEnum):
    TF32 = 7
    if _OLD:
        FP16 = 0
        INT8 = 1


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.IntEnum):
    FLOAT = 0
    INT64 = 8
    UINT8 = 5


def _session(onnx: bytes):
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(onnx, settings, providers=["CPUExecutionProvider"])


class _Input:
    def __init__(self, item) -> None:
        self.name = item.name
        self.shape = tuple(size if isinstance(size, int) else -1 for size in item.shape)


class _Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.onnx = b""

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> _Input:
        return self.inputs[index]


class _ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class OnnxParser:
    def __init__(self, network: _Network, logger: ILogger) -> None:
        self._network = network
        self._errors: list[_ParserError] = []

    def parse(self, onnx: bytes) -> bool:
        try:
            session = _session(onnx)
        except Exception:
            self._errors.append(_ParserError("Assertion failed: shiftIsAllZeros(zeroPoint)"))
            return False
        self._network.onnx = onnx
        self._network.inputs = [_Input(item) for item in session.get_inputs()]
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> _ParserError:
        return self._errors[index]


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name, smallest, usual, largest) -> None:
        self.shapes[name] = [list(smallest), list(usual), list(largest)]


class _TimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"timed;"


class _Config:
    def __init__(self) -> None:
        self.progress_monitor = None
        self.profile = None
        self.cleared: list[int] = []
        self.cache = None

    def clear_flag(self, flag) -> None:
        CALLS.append(("clear_flag", flag.name))

    def set_memory_pool_limit(self, pool, size) -> None:
        CALLS.append(("set_memory_pool_limit", size))

    def add_optimization_profile(self, profile) -> int:
        self.profile = profile
        return 0

    def create_timing_cache(self, data: bytes) -> _TimingCache:
        return _TimingCache(data)

    def set_timing_cache(self, cache, ignore_mismatch) -> bool:
        self.cache = cache
        return not cache.data.startswith(b"of another GPU")


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> _Network:
        CALLS.append(("create_network", flags))
        return _Network(flags)

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        if _OLD and not network.flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED):
            raise AssertionError("a weakly typed network")
        if _TROUBLE == "other calls":
            raise AttributeError("no such call")
        if _TROUBLE == "memory":
            os.kill(os.getpid(), signal.SIGKILL)
        if _TROUBLE == "refusal":
            self._logger.log(ILogger.Severity.WARNING, "not the reason")
            self._logger.log(ILogger.Severity.ERROR, "Could not find any implementation")
            return None
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Timing graph nodes", "Building engine", 4)
        for step in range(4):
            time.sleep(float(os.environ.get("FAKE_TENSORRT_STEP_S", "0")))
            if monitor.step_complete("Timing graph nodes", step) is not True:
                return None
        monitor.phase_finish("Timing graph nodes")
        monitor.step_complete("Building engine", 1)
        monitor.phase_finish("Building engine")
        header = json.dumps({"version": __version__, "shapes": config.profile.shapes}).encode()
        return len(header).to_bytes(4, "little") + header + network.onnx


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        if _TROUBLE == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes):
        size = int.from_bytes(plan[:4], "little")
        header = json.loads(plan[4 : 4 + size])
        if header["version"] != __version__:
            return None
        return _Engine(_session(plan[4 + size :]), header["shapes"])


class _Engine:
    def __init__(self, session, shapes) -> None:
        self.session = session
        self._shapes = shapes
        self._inputs = {item.name: item for item in session.get_inputs()}
        self._outputs = {item.name: item for item in session.get_outputs()}
        self._names = [*self._inputs, *self._outputs]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_profile_shape(self, name: str, index: int):
        return tuple(tuple(shape) for shape in self._shapes[name])

    def get_tensor_dtype(self, name: str) -> DataType:
        item = self._inputs.get(name) or self._outputs[name]
        return {"tensor(float)": DataType.FLOAT, "tensor(int64)": DataType.INT64}[item.type]

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._outputs: dict[str, object] = {}

    def set_input_shape(self, name: str, shape) -> bool:
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str):
        if len(self._shapes) < len(self._engine.session.get_inputs()):
            return ()
        import numpy

        types = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}
        feeds = {
            item.name: numpy.zeros(self._shapes[item.name], types[item.type])
            for item in self._engine.session.get_inputs()
        }
        return self._engine.session.run([name], feeds)[0].shape

    def execute_async_v3(self, stream: int) -> bool:
        import numpy

        if not stream or _TROUBLE == "execution":
            return False
        types = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}
        feeds = {}
        for item in self._engine.session.get_inputs():
            array = numpy.empty(self._shapes[item.name], types[item.type])
            ctypes.memmove(array.ctypes.data, self._addresses[item.name], array.nbytes)
            feeds[item.name] = array
        names = [item.name for item in self._engine.session.get_outputs()]
        for name, value in zip(names, self._engine.session.run(names, feeds), strict=True):
            ctypes.memmove(self._addresses[name], value.ctypes.data, value.nbytes)
        return True
