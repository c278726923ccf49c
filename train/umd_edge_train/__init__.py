"""Training of UMD models: fine-tuning, evaluation, data checks.

Nothing here is imported by the runtime. A finished run leaves a checkpoint directory that
`umd_edge_export` turns into a bundle.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, CheckpointError, load_checkpoint
    from .finetuning import TrainingDivergedError, finetune
    from .models import UMDModel
    from .recipe import Recipe, load_recipe

# Loaded on first use, so that the data commands start without torch.
_HOMES = {
    "Checkpoint": "checkpoint",
    "CheckpointError": "checkpoint",
    "Recipe": "recipe",
    "TrainingDivergedError": "finetuning",
    "UMDModel": "models",
    "finetune": "finetuning",
    "load_checkpoint": "checkpoint",
    "load_recipe": "recipe",
}

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Recipe",
    "TrainingDivergedError",
    "UMDModel",
    "finetune",
    "load_checkpoint",
    "load_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f".{_HOMES[name]}", __name__)
    value = getattr(home, name)
    globals()[name] = value
    return value
