"""Sharded training: each process holds its part of weights, gradients and moments.

`torch.distributed.fsdp.fully_shard` (FSDP2) cuts each parameter along its first axis over all
processes of the run. Modules that every process calls equally often in each part of a batch are put
together when they run and cut again behind that: the blocks of the encoders, the layers of the
fusion, the teacher. Everything else is one group, together from the start of a part to the end of
its backward pass, since what is called there depends on the data: heads of tasks that a part has no
example of, wrong pairs of a retrieval task, clean pictures of a pre-training.

Everything that is saved is put together on process 0, so that no file tells how many processes
wrote it. Docs: docs/training.md.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, distributed, nn

from umd_edge.errors import UsageError

from .losses import SupervisedStep
from .models import UMDModel
from .momentum_teacher import MomentumTeacher

if TYPE_CHECKING:
    from .optim import WeightAverage
    from .recipe import Recipe

__all__ = ["Sharding", "gathered", "scattered"]


def _is_sharded(tensor: Tensor) -> bool:
    # only a `DTensor` has it; its module is loaded where one exists, and costs time to load
    return hasattr(tensor, "placements")


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, on the CPU of process 0; all processes call this together.

    Returns:
        By name, what was cut put together; nothing in other processes. Where nothing is cut, the
        tensors as they are, in every process.
    """
    if not any(_is_sharded(tensor) for tensor in tensors.values()):
        return dict(tensors)
    keep = distributed.get_rank() == 0
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        # one after the other, so that no other process holds more than one
        together = cast(Any, tensor).full_tensor() if _is_sharded(tensor) else tensor
        if keep:
            whole[name] = together.detach().cpu()
    return whole


def scattered(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This process's parts of whole tensors, cut as those of the same name and shape in `like`.

    All processes call this together with equal tensors. A tensor that `like` has not, or has
    whole or in another shape, stays as it is.
    """
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        cut: Any = like.get(name)
        if cut is not None and _is_sharded(cut) and cut.shape == tensor.shape:
            from torch.distributed.tensor import distribute_tensor

            own = tensor.to(cut.device_mesh.device_type)
            parts[name] = distribute_tensor(own, cut.device_mesh, cut.placements)
        else:
            parts[name] = tensor
    return parts


def _blocks(encoder: nn.Module) -> list[nn.Module]:
    """The members of the outermost module lists of an encoder, in their order."""
    blocks: list[nn.Module] = []
    for child in encoder.children():
        blocks += list(child) if isinstance(child, nn.ModuleList) else _blocks(child)
    return blocks


def _layers(model: UMDModel, *, fusion: bool) -> list[nn.Module]:
    layers = _blocks(model.vision_encoder.backbone) + _blocks(model.text_encoder)
    return layers + (_blocks(model.fusion) if fusion else [])


def _groups(module: nn.Module) -> list[nn.Module]:
    """Modules that every process calls equally often in a part; inner ones before outer ones."""
    groups: list[nn.Module] = []
    for part in module.modules():
        if isinstance(part, MomentumTeacher):
            groups += [*_layers(part.model, fusion=True), part]
    if isinstance(module, SupervisedStep) and isinstance(module.model, UMDModel):
        # wrong pairs are fused in a second call, where a part has any
        ranks = any(task.kind == "retrieval" for task in module.model.tasks)
        groups += _layers(module.model, fusion=not ranks)
    return groups


def _require_possible(recipe: Recipe, module: nn.Module) -> None:
    application = recipe.coordination.application
    if isinstance(module, SupervisedStep) and application in ("released", "scale_only"):
        raise UsageError(
            f"coordination.application: {application!r} given, which needs whole gradients; with "
            "optim.sharded, 'none', 'measure' or 'post_update' is allowed"
        )
    teaches = any(isinstance(part, MomentumTeacher) for part in module.modules())
    if teaches and recipe.reconstruction.teacher_update == "micro_batch":
        raise UsageError(
            "reconstruction.teacher_update: 'micro_batch' given, which needs whole weights between "
            "two backward passes; with optim.sharded, 'step' is allowed"
        )


def _reached(loss: Tensor) -> set[int]:
    """Ids of the parameters that a loss depends on."""
    waiting, seen, found = [loss.grad_fn], set(), set()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return found


class Sharding:
    """A module that is cut over the processes of a run.

    Its parameters are this process's parts from here on: an optimiser and a weight average that are
    built afterwards hold parts as well.

    Args:
        recipe: Asked for what does not work with parts of tensors.
        module: What is trained; moved to the device and cut in place.
        model: The model in it.
        device: Of this process.

    Raises:
        UsageError: A setting needs whole weights or gradients, or torch is too old.
    """

    def __init__(
        self, recipe: Recipe, module: nn.Module, model: nn.Module, device: torch.device
    ) -> None:
        from torch.distributed import fsdp
        from torch.distributed.device_mesh import init_device_mesh

        if not hasattr(getattr(fsdp, "FSDPModule", None), "reset_iter_state"):
            raise UsageError(
                f"optim.sharded needs torch 2.13 or newer; {torch.__version__} is installed: "
                "update it, or train without"
            )
        _require_possible(recipe, module)
        # a sharded module cannot be copied; only process 0 is asked for a whole one
        self._whole = copy.deepcopy(model).cpu() if distributed.get_rank() == 0 else None
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        self._groups: list[Any] = _groups(module)
        for group in self._groups:
            fsdp.fully_shard(group, mesh=mesh)
        self._root: Any = fsdp.fully_shard(module, mesh=mesh, reshard_after_forward=False)
        self._buffers = list(module.buffers())

    def share_buffers(self) -> None:
        """Take over process 0's running statistics, which no optimiser keeps equal."""
        for buffer in self._buffers:
            distributed.broadcast(buffer, 0)

    def joined(self, loss: Tensor) -> Tensor:
        """The loss, with a zero gradient for what it misses and another process's loss reaches.

        Processes add up their gradients one with the other, so all must have the same ones. What
        no process reaches has none, and the optimiser passes over it, as in a single process.
        """
        own = [p for p in self._root.parameters() if p.requires_grad and not _is_sharded(p)]
        reached = _reached(loss)
        flags = [float(id(parameter) in reached) for parameter in own]
        anywhere = torch.tensor(flags, device=loss.device)
        distributed.all_reduce(anywhere, distributed.ReduceOp.MAX)
        for parameter, here, there in zip(own, flags, anywhere.tolist(), strict=True):
            if there and not here:
                loss = loss + 0.0 * parameter.flatten()[0]
        return loss

    @contextlib.contextmanager
    def whole(self, average: WeightAverage) -> Iterator[None]:
        """Put the module together in each process, and the average in process 0.

        All processes enter and leave together; in between each may call the module or a part of it
        for itself, without gradients.
        """
        parts = average.tensors
        average.tensors = gathered(parts)
        for group in (*self._groups, self._root):
            group.set_reshard_after_forward(False, recurse=False)
            group.unshard()
        try:
            yield
        finally:
            average.tensors = parts
            if self._whole is not None:  # wherever it has validated
                self._whole.cpu()
            self._root.reset_iter_state()
            for group in (*self._groups, self._root):
                group.reshard()
                group.set_reshard_after_forward(group is not self._root, recurse=False)

    def model_with(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The whole model with these weights, on the CPU; in process 0 only.

        One and the same model each time, so the next call changes it.
        """
        assert self._whole is not None, "only process 0 has a whole model"
        self._whole.load_state_dict(dict(tensors), strict=True)
        return self._whole
