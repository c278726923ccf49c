"""Whether TensorRT works here: a child process tries it first, stage by stage."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from ._tensorrt_child import leave, run_child, say
from .errors import ProviderUnavailableError, UmdEdgeError

__all__ = [
    "LIBRARIES",
    "Device",
    "TensorrtFacts",
    "import_library",
    "is_installed",
    "probe",
    "require_device",
    "require_library",
]

LIBRARIES = ("tensorrt", "tensorrt_rtx")
"""Import names; the first that is installed is used, and no other one in its place."""
_TIMEOUT_S = 120.0
_NO_LIBRARY = (
    "TensorRT is not installed for this Python; on a Jetson `sudo apt install nvidia-jetpack` and "
    "make the environment with `python3 -m venv --system-site-packages`, elsewhere "
    '`pip install "umd-edge[tensorrt]"`'
)
_FITTING = (
    "TensorRT, CUDA and the driver must be of one JetPack, or of releases that fit each other"
)


@dataclass(frozen=True, slots=True)
class Device:
    """The GPU and its driver."""

    name: str
    compute_capability: tuple[int, int]
    driver: str

    @property
    def sm(self) -> str:
        """`sm_87` and the like."""
        return "sm_{}{}".format(*self.compute_capability)


@dataclass(frozen=True, slots=True)
class TensorrtFacts:
    """What the child found."""

    library: str = ""
    """`tensorrt` or `tensorrt_rtx`; empty where neither can be imported."""
    version: str = ""
    device: Device | None = None
    library_problem: str = ""
    """Why there is no TensorRT, and what to do."""
    device_problem: str = ""
    """Why it cannot use a GPU here, and what to do."""

    @property
    def usable(self) -> bool:
        """Whether engines can be built and run here."""
        return not self.library_problem and not self.device_problem


def report() -> None:
    """Tell what is here. Runs in the child."""
    say(stage="looking for NVIDIA's driver")
    has_device = _report_device()
    library = _report_library()
    if library is not None and has_device:  # without a driver this may end the interpreter
        say(stage=f"starting {library.__name__}")
        if library.Runtime(library.Logger(library.Logger.ERROR)) is None:
            say(device_problem=f"{library.__name__} does not start; {_FITTING}")
    say(stage="")
    leave()


def _report_device() -> bool:
    from ._tensorrt_cuda import Cuda, driver_version

    try:
        cuda = Cuda()
    except UmdEdgeError as error:
        say(device_problem=str(error))
        return False
    driver = driver_version(cuda.cuda_version)
    say(device=[cuda.name, list(cuda.compute_capability), driver])
    return True


def _report_library() -> Any:
    name = _installed()
    if name is None:
        say(library_problem=_NO_LIBRARY)
        return None
    say(stage=f"importing {name}")
    try:
        library = importlib.import_module(name)
        say(library=name, version=str(library.__version__))
    except Exception as error:  # a missing libnvinfer is an ImportError, a damaged one anything
        say(
            library_problem=f"{name} is installed and cannot be imported ({type(error).__name__}): "
            f"a library that it needs is missing, or of another release. {_NO_LIBRARY}"
        )
        return None
    return library


def _installed() -> str | None:
    for name in LIBRARIES:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:  # no mere folder of that name
            return name
    return None


def is_installed() -> bool:
    """Whether a TensorRT package is there at all; loads nothing."""
    return _installed() is not None


@functools.lru_cache(maxsize=1)
def probe() -> TensorrtFacts:
    """Try TensorRT in a child process, once for this process; takes a second or a few."""
    facts: dict[str, Any] = {}
    try:
        ending = run_child(__name__, "report", on_line=facts.update, timeout_s=_TIMEOUT_S)
    except ProviderUnavailableError as error:
        return TensorrtFacts(library_problem=str(error))
    stage = facts.pop("stage", "") or "starting Python"
    if not ending.ok:
        key = "device_problem" if "library" in facts else "library_problem"
        facts[key] = f"a trial of TensorRT ended with {ending} while {stage}; {_FITTING}"
    if "device" in facts:
        name, (major, minor), driver = facts["device"]
        facts["device"] = Device(name, (major, minor), driver)
    return TensorrtFacts(**facts)


def _unavailable(problem: str) -> ProviderUnavailableError:
    from ._session import available_providers

    return ProviderUnavailableError(
        f"provider 'tensorrt' is not available here; available: {available_providers()}. {problem}"
    )


def require_library() -> TensorrtFacts:
    """What `probe` found, where at least a TensorRT can be imported.

    Raises:
        ProviderUnavailableError: None can.
    """
    facts = probe()
    if facts.library_problem:
        raise _unavailable(facts.library_problem)
    return facts


def require_device() -> tuple[TensorrtFacts, Device]:
    """What `probe` found, where engines can be built and run.

    Raises:
        ProviderUnavailableError: No TensorRT, no driver, no GPU, or they do not fit each other.
    """
    facts = require_library()
    if facts.device is None or facts.device_problem:
        raise _unavailable(facts.device_problem)
    return facts, facts.device


def import_library(facts: TensorrtFacts) -> Any:
    """The module that the child could import.

    Raises:
        ProviderUnavailableError: It cannot be imported here after all.
    """
    try:
        return importlib.import_module(facts.library)
    except Exception as error:
        raise ProviderUnavailableError(
            f"{facts.library} could be imported in a trial but not here ({type(error).__name__}); "
            "import umd_edge before other packages that load CUDA libraries"
        ) from error
