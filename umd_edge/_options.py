"""How to run a bundle on this machine."""

from __future__ import annotations

import os

from ._record import dataclass
from .errors import ProviderUnavailableError, UsageError

__all__ = ["PROVIDERS", "SessionOptions"]

PROVIDERS = ("cpu", "cuda", "tensorrt", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How a `Predictor` runs its bundle; the defaults are made for a device that does other work.

    None of threads, overlap, spinning, arena and memory pattern changes a bit of a result on `cpu`.
    """

    provider: str = "cpu"
    """`cpu`, `cuda`, `tensorrt` or `openvino`; never replaced by another one."""
    variant: str | None = None
    """Name of a variant of the bundle; None means the bundle's default."""
    threads: int = 1
    """Threads inside one operator (onnxruntime's intra-op threads), 1..256. Several calls may run
    at the same time on top of that."""
    overlap: bool = True
    """Read the question and look at the picture's grey levels on a second thread while the vision
    graph runs, where the process may use a second core. On two idle cores the first answer of the
    default bundle comes 8 % earlier; on busy ones there is no gain."""
    spinning: bool = False
    """Waiting threads stay awake: a little faster with several `threads`, and a core is busy all
    the time. The default lets them sleep."""
    arena: bool = False
    """Keep memory that a run has freed for the next one. The default gives it back, so that a burst
    of calls does not stay resident."""
    trim: bool = True
    """Without an arena: look at the process's size after every 256th run, and hand free memory that
    glibc keeps back to the system where it has grown. Nothing happens with other C libraries."""
    memory_pattern: bool = True
    """Plan a run's buffers from an earlier run of the same shapes, in one piece."""
    deterministic: bool = False
    """Allow no kernel whose sums may come in another order from run to run. On `cpu` there is none
    anyway: the same bundle on the same kind of processor gives the same bits, whatever the threads.
    On `cuda` it also switches TF32 and the search for convolutions off; `tensorrt` and `openvino`
    choose kernels themselves and are refused."""
    engines: str | os.PathLike[str] | None = None
    """Folder of the engines that `umd-edge build-engine` made, for `tensorrt`; None means
    `<bundle>.engines` beside the bundle."""

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise ProviderUnavailableError(
                f"provider {self.provider!r} is unknown; one of {list(PROVIDERS)} is allowed"
            )
        if self.engines is not None and not isinstance(self.engines, (str, os.PathLike)):
            raise UsageError("engines must be the path of a folder")
        if self.variant is not None and not isinstance(self.variant, str):
            raise UsageError("variant must be the name of one of the bundle's variants")
        if type(self.threads) is not int or not 1 <= self.threads <= 256:
            raise UsageError(f"threads {self.threads!r} given; a whole number in 1..256 is allowed")
        for name in ("overlap", "spinning", "arena", "trim", "memory_pattern", "deterministic"):
            if type(getattr(self, name)) is not bool:
                raise UsageError(f"{name} {getattr(self, name)!r} given; True or False is allowed")
        if self.deterministic and self.provider in ("tensorrt", "openvino"):
            raise UsageError(
                f"provider {self.provider!r} chooses its kernels itself and cannot promise the "
                "same bits from build to build; use 'cpu' or 'cuda', or leave deterministic out"
            )
