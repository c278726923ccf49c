"""Checkpoints: weights, settings, tokenizer, tasks and provenance in one directory.

A checkpoint is written under a temporary name and renamed when it is whole, so a directory with its
final name is always complete. Nothing in it is a pickle.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from umd_edge._preprocess import PreprocessSpec
from umd_edge._structured import StructuredField
from umd_edge._task import TaskSpec
from umd_edge.errors import UmdEdgeError

from .config import ModelConfig, from_dict
from .models import UMDModel

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "load_checkpoint",
    "pack_checkpoint",
    "save_checkpoint",
]

_FORMAT = 1
_PART_BYTES = 15 * 2**20


class CheckpointError(UmdEdgeError):
    """A checkpoint is missing, incomplete, or does not fit the model it describes."""

    exit_code: ClassVar[int] = 3


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


def commit() -> str:
    """The source's version as git describes it, or `unknown` outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file under a temporary name, then give it its own."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def write_directory_atomically(path: Path, writer: Any) -> None:
    """Let `writer(folder)` fill a temporary folder, then give it its name.

    An older folder of that name is replaced only after the new one is whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        writer(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            retired = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, retired)
            os.replace(temporary, path)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def save_weights(folder: Path, tensors: Mapping[str, Tensor], name: str = "model") -> None:
    """Write safetensors, in numbered parts where they would exceed 15 MiB."""
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
        CheckpointError: A file is missing or damaged.
    """
    files = sorted(folder.glob(f"{name}.safetensors")) or sorted(
        folder.glob(f"{name}-*-of-*.safetensors")
    )
    if not files:
        raise CheckpointError(f"checkpoint {str(folder)!r} holds no {name}.safetensors")
    if len(files) > 1 and len(files) != int(files[0].stem.rsplit("-", 1)[1]):
        raise CheckpointError(f"checkpoint {str(folder)!r}: parts of {name} are missing")
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


def _without_pretrained(model: dict[str, Any]) -> dict[str, Any]:
    """The weights are in the checkpoint: nothing is fetched from where they once came."""
    return {
        key: {**part, "pretrained": ""} if isinstance(part, dict) and "pretrained" in part else part
        for key, part in model.items()
    }


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load a checkpoint; weights must fit the model exactly.

    Args:
        path: The checkpoint's directory.

    Returns:
        The checkpoint with its model in evaluation mode.

    Raises:
        CheckpointError: The directory is missing, incomplete, damaged, or of another format.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{str(path)!r} is no checkpoint directory")
    config = _read_json(folder, "config.json")
    if config.get("format_version") != _FORMAT:
        raise CheckpointError(
            f"checkpoint {str(path)!r} has format {config.get('format_version')!r}; "
            f"this version reads {_FORMAT}"
        )
    tasks = tuple(
        TaskSpec.from_dict(task, f"tasks[{i}]")
        for i, task in enumerate(_read_json(folder, "tasks.json"))
    )
    fields = tuple(StructuredField.from_dict(item) for item in config["structured_fields"])
    model_config = from_dict(ModelConfig, _without_pretrained(config["model"]), "model")
    with torch.random.fork_rng(devices=[]):
        model = UMDModel(model_config, tasks, fields)
    try:
        model.load_state_dict(load_weights(folder), strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r}: weights do not fit its config.json: {error}"
        ) from error
    model.eval()
    try:
        tokenizer_json = (folder / "tokenizer.json").read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} holds no tokenizer.json") from error
    return Checkpoint(
        model=model,
        tokenizer_json=tokenizer_json,
        tasks=tasks,
        structured_fields=fields,
        preprocess=PreprocessSpec.from_dict(config["preprocessing"]),
        max_length=int(config["tokenizer"]["max_length"]),
        provenance=_read_json(folder, "provenance.json"),
    )
