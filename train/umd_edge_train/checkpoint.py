"""Checkpoints: weights, settings, tokenizer, tasks and provenance in one directory.

A checkpoint is written under a temporary name and renamed when it is whole, so a directory with its
final name is always complete. Nothing in it is a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from umd_edge._files import write_whole
from umd_edge._preprocess import PreprocessSpec
from umd_edge._structured import StructuredField
from umd_edge._task import TaskSpec
from umd_edge.errors import UmdEdgeError

from .config import ModelConfig, from_dict
from .errors import CheckpointError
from .folder import standing, write_folder
from .hashes import check_hashes, write_hashes
from .models import UMDModel
from .source import commit

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "commit",
    "load_checkpoint",
    "load_weights",
    "pack_checkpoint",
    "read_settings",
    "save_checkpoint",
    "save_weights",
    "settings_of",
    "write_directory_atomically",
    "write_json",
]

_FORMAT = 1
# A file of 15 MiB, less room for the header that names its tensors.
_PART_BYTES = 15 * 2**20 - 2**18


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with everything that it needs to be used or exported."""

    model: UMDModel = field(repr=False)
    tokenizer_json: bytes = field(repr=False)
    tasks: tuple[TaskSpec, ...]
    structured_fields: tuple[StructuredField, ...]
    preprocess: PreprocessSpec
    max_length: int
    provenance: dict[str, Any] = field(repr=False)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, in place of an older one.

    Raises:
        OSError: The folder is missing or may not be written, or the disk is full.
    """
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_whole(path, (text + "\n").encode("utf-8"))


def write_directory_atomically(path: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer(folder)` fill a temporary folder, then give it its name (see `folder`).

    Raises:
        CheckpointError: The disk is full or may not be written; the older folder is untouched.
    """
    try:
        write_folder(path, writer)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{str(path)!r} cannot be written ({reason}); free some space or "
            "name another folder; what was saved before is kept"
        ) from error


def save_weights(folder: Path, tensors: Mapping[str, Tensor], name: str = "model") -> None:
    """Write safetensors, in numbered parts of at most 15 MiB (a larger tensor has its own part)."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in sorted(tensors.items()):
        bytes_ = tensor.numel() * tensor.element_size()
        if parts[-1] and size + bytes_ > _PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][key] = tensor.detach().cpu().contiguous().clone()
        size += bytes_
    for index, part in enumerate(parts, start=1):
        suffix = "" if len(parts) == 1 else f"-{index:05d}-of-{len(parts):05d}"
        # not save_file: it makes files that only their owner may read
        (folder / f"{name}{suffix}.safetensors").write_bytes(save(part))


def load_weights(folder: Path, name: str = "model") -> dict[str, Tensor]:
    """Read what `save_weights` wrote.

    Raises:
        CheckpointError: A file is missing or damaged, or not the one that `SHA256SUMS` lists.
    """
    files = _parts(folder, name)
    check_hashes(folder, [file.name for file in files])
    return _read_weights(files)


def _parts(folder: Path, name: str) -> list[Path]:
    """The files of these weights, in order; all of them."""
    files = sorted(folder.glob(f"{name}.safetensors")) or sorted(
        folder.glob(f"{name}-*-of-*.safetensors")
    )
    if not files:
        raise CheckpointError(f"checkpoint {str(folder)!r} holds no {name}.safetensors")
    if files[0].stem != name:
        count = files[0].stem.rsplit("-", 1)[1]
        total = int(count) if count.isdecimal() else 0
        wanted = [f"{name}-{i:05d}-of-{count}" for i in range(1, total + 1)]
        if [file.stem for file in files] != wanted:
            raise CheckpointError(
                f"checkpoint {str(folder)!r}: {len(files)} of {len(wanted)} parts of {name} are "
                "there, or some are misnamed; copy the whole directory again"
            )
    return files


def _read_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(str(file)))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"checkpoint file {file.name} is damaged") from error
    return tensors


def save_checkpoint(folder: Path, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint into an existing folder (see `write_directory_atomically`).

    Args:
        folder: Empty.
        checkpoint: Settings; its model gives the config only.
        tensors: The weights to write, by the model's own names.
    """
    save_weights(folder, tensors)
    write_json(
        folder / "config.json",
        {
            "format_version": _FORMAT,
            "model": checkpoint.model.config.to_dict(),
            "preprocessing": checkpoint.preprocess.to_dict(),
            "tokenizer": {"max_length": checkpoint.max_length},
            "structured_fields": [field.to_dict() for field in checkpoint.structured_fields],
        },
    )
    write_json(folder / "tasks.json", [task.to_dict() for task in checkpoint.tasks])
    write_json(folder / "provenance.json", checkpoint.provenance)
    (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)
    write_hashes(folder)


def pack_checkpoint(checkpoint: Checkpoint, out: Path) -> None:
    """Write a checkpoint for keeping: matrices in float16, no optimiser state.

    Vectors (biases, norms, running statistics) stay float32. Half precision moves a weight by at
    most 1 part in 2,000, far less than the 7 bits that it is quantised to; loading gives float32.

    Args:
        checkpoint: A loaded checkpoint.
        out: The new checkpoint's folder.
    """
    tensors = {
        name: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in checkpoint.model.state_dict().items()
    }
    write_directory_atomically(out, lambda folder: save_checkpoint(folder, checkpoint, tensors))


def _read_json(folder: Path, name: str) -> Any:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r} holds no {name}") from error
    except ValueError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r}: {name} is no valid JSON") from error


class Settings(NamedTuple):
    """Everything in a checkpoint that must agree for weights to mean the same."""

    model: ModelConfig
    tasks: tuple[TaskSpec, ...]
    structured_fields: tuple[StructuredField, ...]
    preprocess: PreprocessSpec
    max_length: int
    tokenizer_json: bytes


def _model_config(table: dict[str, Any]) -> ModelConfig:
    """A model's config without `pretrained`: weights come from the checkpoint alone."""
    parts = {
        key: {**part, "pretrained": ""} if isinstance(part, dict) and "pretrained" in part else part
        for key, part in table.items()
    }
    return from_dict(ModelConfig, parts, "model")


def settings_of(checkpoint: Checkpoint) -> Settings:
    """The settings that `read_settings` finds once the checkpoint is saved."""
    return Settings(
        model=_model_config(checkpoint.model.config.to_dict()),
        tasks=checkpoint.tasks,
        structured_fields=checkpoint.structured_fields,
        preprocess=checkpoint.preprocess,
        max_length=checkpoint.max_length,
        tokenizer_json=checkpoint.tokenizer_json,
    )


def read_settings(folder: Path) -> Settings:
    """Read all of a checkpoint but its weights and provenance.

    Raises:
        CheckpointError: A file is missing or damaged, or of another format.
    """
    config, tasks = _read_json(folder, "config.json"), _read_json(folder, "tasks.json")
    found = config.get("format_version") if isinstance(config, dict) else None
    if found != _FORMAT:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} has format {found!r}; this version reads {_FORMAT}"
        )
    try:
        return Settings(
            model=_model_config(config["model"]),
            tasks=tuple(TaskSpec.from_dict(task, f"tasks[{i}]") for i, task in enumerate(tasks)),
            structured_fields=tuple(
                StructuredField.from_dict(item) for item in config["structured_fields"]
            ),
            preprocess=PreprocessSpec.from_dict(config["preprocessing"]),
            max_length=int(config["tokenizer"]["max_length"]),
            tokenizer_json=(folder / "tokenizer.json").read_bytes(),
        )
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r} holds no tokenizer.json") from error
    except (AttributeError, KeyError, TypeError, ValueError, UmdEdgeError) as error:
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: config.json or tasks.json describes no model ({error!s})"
        ) from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load a checkpoint; weights must fit the model exactly, and files their hashes.

    Args:
        path: The checkpoint's directory.

    Returns:
        The checkpoint with its model in evaluation mode.

    Raises:
        CheckpointError: The directory is missing, incomplete, damaged, or of another format, or a
            file is not the one that `SHA256SUMS` lists, where there is such a list.
    """
    folder = standing(Path(path))
    if not folder.is_dir():
        raise CheckpointError(f"{str(path)!r} is no checkpoint directory")
    settings = read_settings(folder)
    files = _parts(folder, "model")
    check_hashes(folder)
    with torch.random.fork_rng(devices=[]):
        model = UMDModel(settings.model, settings.tasks, settings.structured_fields)
    own, given = model.state_dict(), _read_weights(files)
    bad = sorted(
        name
        for name in own.keys() | given.keys()
        if name not in own or name not in given or own[name].shape != given[name].shape
    )
    if bad:
        raise CheckpointError(
            f"checkpoint {str(path)!r}: weights do not fit its config.json: {len(bad)} tensors "
            f"differ, such as {bad[0]!r}; copy the whole directory again"
        )
    model.load_state_dict(given, strict=True)
    model.eval()
    return Checkpoint(
        model=model,
        tokenizer_json=settings.tokenizer_json,
        tasks=settings.tasks,
        structured_fields=settings.structured_fields,
        preprocess=settings.preprocess,
        max_length=settings.max_length,
        provenance=_read_json(folder, "provenance.json"),
    )
