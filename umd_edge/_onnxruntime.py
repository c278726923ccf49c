"""The one place where onnxruntime is imported: with its telemetry off."""

from __future__ import annotations

import os
from typing import Any

from .errors import MissingDependencyError

__all__ = ["load_onnxruntime", "refuse_telemetry"]

_SWITCH = "ORT_DISABLE_TELEMETRY"


def refuse_telemetry() -> None:
    """Keep onnxruntime from reporting anything to anybody; before its first import.

    From version 1.29 on, the official builds send facts about the process, its models and its
    sessions to Microsoft, and keep an identifier of the machine and a database in the user's
    cache folder. They read this variable of the environment once, when the module is imported;
    child processes inherit it.
    """
    os.environ[_SWITCH] = "1"


def load_onnxruntime() -> Any:
    """The module `onnxruntime`.

    Where a program has imported it before, without the variable, its uploader runs already;
    events of sessions are then suppressed from here on.

    Raises:
        MissingDependencyError: It was taken out, to be replaced by another build, say.
    """
    refuse_telemetry()
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "onnxruntime is not installed: pip install onnxruntime, or onnxruntime-gpu or "
            "onnxruntime-openvino in its place"
        ) from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime
