"""How to run a bundle on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .errors import ProviderUnavailableError, UsageError

__all__ = ["SessionOptions"]

PROVIDERS = ("cpu", "cuda", "tensorrt", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """Provider, variant and threads of a `Predictor`."""

    provider: str = "cpu"
    """`cpu`, `cuda`, `tensorrt` or `openvino`; never replaced by another one."""
    variant: str | None = None
    """Name of a variant of the bundle; None means the bundle's default."""
    threads: int = 1
    """Threads inside one operator (onnxruntime's intra-op threads), 1..256. Several calls may run
    at the same time on top of that."""
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
