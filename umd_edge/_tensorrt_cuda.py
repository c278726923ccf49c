"""The few calls of NVIDIA's driver library (`libcuda.so.1`) that running an engine takes.

The driver's own library is there exactly where a driver is, under one name on every JetPack and
every CUDA release; libcudart changes its name with each, and JetPack brings no Python binding of
either.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy.typing as npt

from .errors import InferenceError, ProviderUnavailableError

__all__ = ["Cuda", "driver_version"]

_NAMES = {"win32": "nvcuda.dll"}
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_KERNEL_DRIVER = Path("/proc/driver/nvidia/version")

_Handle = ctypes.c_void_p
_Address = ctypes.c_uint64  # CUdeviceptr
_Int = ctypes.c_int
_Size = ctypes.c_size_t
# Names as in cuda.h after its own renaming to the second version of a call.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDriverGetVersion": (ctypes.POINTER(_Int),),
    "cuDeviceGetCount": (ctypes.POINTER(_Int),),
    "cuDeviceGet": (ctypes.POINTER(_Int), _Int),
    "cuDeviceGetName": (ctypes.c_char_p, _Int, _Int),
    "cuDeviceGetAttribute": (ctypes.POINTER(_Int), _Int, _Int),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_Handle), _Int),
    "cuCtxSetCurrent": (_Handle,),
    "cuMemAlloc_v2": (ctypes.POINTER(_Address), _Size),
    "cuMemFree_v2": (_Address,),
    "cuMemcpyHtoDAsync_v2": (_Address, ctypes.c_void_p, _Size, _Handle),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, _Address, _Size, _Handle),
    "cuStreamCreate": (ctypes.POINTER(_Handle), ctypes.c_uint),
    "cuStreamSynchronize": (_Handle,),
    "cuStreamDestroy_v2": (_Handle,),
    "cuGetErrorName": (_Int, ctypes.POINTER(ctypes.c_char_p)),
}


class Cuda:
    """The first GPU: its name, its memory, and streams of work on it.

    Attributes:
        name: Of the GPU, as the driver gives it.
        compute_capability: Major and minor, (8, 7) on an Orin.
        cuda_version: The highest CUDA version that the driver runs, such as `12.6`.
    """

    def __init__(self) -> None:
        """Load the driver and look at its first device.

        Raises:
            ProviderUnavailableError: No driver, a driver without its library, or no GPU.
        """
        library = _NAMES.get(sys.platform, "libcuda.so.1")
        try:
            self._library = ctypes.CDLL(library)
            for name, arguments in _SIGNATURES.items():
                function = getattr(self._library, name)
                function.argtypes, function.restype = arguments, _Int
        except (OSError, AttributeError) as error:
            raise ProviderUnavailableError(
                f"NVIDIA's driver library {library} cannot be loaded; install the driver, or on a "
                "Jetson run on the device itself and not in a container without --runtime nvidia"
            ) from error
        self._start()
        self.cuda_version = self._version()
        self._device = self._first_device()
        self.name = self._device_name()
        self.compute_capability = (self._attribute(_MAJOR), self._attribute(_MINOR))
        self._context: _Handle | None = None

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            raise InferenceError(
                f"{function} of NVIDIA's driver failed with {self._error_name(code)}; look into "
                "dmesg, free memory, or restart the device"
            )

    def _error_name(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(code, ctypes.byref(text))
        return f"{code} ({text.value.decode('ascii', 'replace') if text.value else 'unknown'})"

    def _start(self) -> None:
        code = self._library.cuInit(0)
        if code:
            raise ProviderUnavailableError(
                f"NVIDIA's driver does not start: cuInit gives {self._error_name(code)}; check it "
                "with nvidia-smi (Jetson: tegrastats), and restart after an update"
            )

    def _version(self) -> str:
        number = _Int()
        self._call("cuDriverGetVersion", ctypes.byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def _first_device(self) -> int:
        count, device = _Int(), _Int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if count.value < 1:
            raise ProviderUnavailableError(
                "NVIDIA's driver runs but shows no GPU; check CUDA_VISIBLE_DEVICES and the "
                "container's access to the device"
            )
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        return device.value

    def _device_name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode("ascii", "replace")

    def _attribute(self, number: int) -> int:
        value = _Int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    def enter(self) -> None:
        """Make the device's primary context that of the calling thread; TensorRT uses the same."""
        if self._context is None:
            context = _Handle()
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
            self._context = context
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of device memory; a context must have been entered.

        Raises:
            InferenceError: The device has not as much left.
        """
        address = _Address()
        self._call("cuMemAlloc_v2", ctypes.byref(address), max(size, 1))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", address)

    def create_stream(self) -> int:
        """Handle of a new stream that does not wait for the default one."""
        stream = _Handle()
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        return stream.value or 0

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._call("cuStreamDestroy_v2", stream)

    def upload(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """Copy a contiguous array to the device; it must live until the stream was waited for."""
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, stream)

    def download(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Copy device memory into a contiguous array, complete once the stream was waited for."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, stream)

    def wait(self, stream: int) -> None:
        """Wait for everything on the stream.

        Raises:
            InferenceError: Something on it failed.
        """
        self._call("cuStreamSynchronize", stream)


def driver_version(cuda_version: str) -> str:
    """The kernel driver's version where the system tells it, and the CUDA version it runs."""
    try:
        first = _KERNEL_DRIVER.read_text(encoding="ascii", errors="replace").splitlines()[0]
    except (OSError, IndexError):
        return f"CUDA {cuda_version}"
    # NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build ...
    number = next((word for word in first.split() if word[0].isdigit() and "." in word), "unknown")
    return f"{number} (CUDA {cuda_version})"
