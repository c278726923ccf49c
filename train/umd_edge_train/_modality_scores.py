"""Scores of the two halves of a joint vector, by which modalities are coordinated.

Each half is given logits of its own, by one of three rules, and its score is the probability of
what is right, summed over the examples. Nothing here reaches the model: no graph is kept, no
dropout is drawn, and probes learn from detached vectors.

Source: UMD (arXiv 2404.06057), its released code by way of its description, after OGM-GE (CVPR
2022).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from umd_edge.errors import UsageError

if TYPE_CHECKING:
    from .models import UMDModel

__all__ = ["Probes", "split_last_linear", "sum_over_processes", "true_probabilities", "zero_out"]

_IGNORED = -100


def sum_over_processes(tensor: Tensor) -> None:
    """Sum a tensor in place over the processes of a distributed run, if it is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)


@contextmanager
def _evaluating(head: nn.Module) -> Iterator[None]:
    """Without dropout, which would also draw from the generator that training uses."""
    modes = [(module, module.training) for module in head.modules()]
    head.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def zero_out(head: nn.Module, joint: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the whole head for [text ; 0] and for [0 ; image]."""
    text, image = joint.chunk(2, dim=-1)
    nothing = torch.zeros_like(text)
    halves = torch.stack([torch.cat([text, nothing], dim=-1), torch.cat([nothing, image], dim=-1)])
    with _evaluating(head):
        text_logits, image_logits = head(halves)
    return text_logits, image_logits


def split_last_linear(head: nn.Module, joint: Tensor) -> tuple[Tensor, Tensor]:
    """W_t z_t + b / 2 and W_v z_v + b / 2 of the head's last linear layer."""
    layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    if not layers or layers[-1].in_features != joint.shape[-1]:
        raise UsageError(
            "coordination: this score needs a head whose last linear layer has the inputs of the "
            f"joint vector, {joint.shape[-1]} of them; use score = 'zero_out'"
        )
    last = layers[-1]
    text, image = joint.chunk(2, dim=-1)
    text_weight, image_weight = last.weight.chunk(2, dim=1)
    half = None if last.bias is None else last.bias / 2
    return functional.linear(text, text_weight, half), functional.linear(image, image_weight, half)


def true_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Probability of what is right for each labelled example, float64.

    Softmax for one right answer, also where the loss is a sigmoid's (as released); for multi-label
    targets (ours) the mean over the known labels of the sigmoid's probability of their value.
    """
    logits = logits.double()
    if targets.ndim == 2:
        known = ~torch.isnan(targets)
        given = torch.nan_to_num(targets).double()
        positive = torch.sigmoid(logits)
        right = (given * positive + (1.0 - given) * (1.0 - positive)) * known
        some = known.any(dim=1)
        return right[some].sum(dim=1) / known[some].sum(dim=1)
    inside = targets != _IGNORED
    chosen = torch.softmax(logits[inside], dim=1).gather(1, targets[inside][:, None])
    return chosen[:, 0]


def _cross_entropy_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """(E, K) derivative of the summed cross-entropy by the logits; 0 where nothing is known."""
    if targets.ndim == 2:
        error = torch.sigmoid(logits) - torch.nan_to_num(targets)
        return error.masked_fill(torch.isnan(targets), 0.0)
    inside = targets != _IGNORED
    right = functional.one_hot(targets.clamp(min=0), logits.shape[1])
    return (torch.softmax(logits, dim=1) - right) * inside[:, None]


class Probes:
    """One linear classifier of the detached joint vector for each head that is not linear."""

    def __init__(self, model: UMDModel, learning_rate: float) -> None:
        self._names = {head: name for name, head in model.task_heads.items()}
        self.linear = nn.ModuleDict()
        for head, name in self._names.items():
            widths = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
            # draws no random numbers, which would shift those of the run
            probe = nn.utils.skip_init(  # type: ignore[no-untyped-call]
                nn.Linear,
                model.match_head.in_features,
                widths[-1].out_features,
                device=model.match_head.weight.device,
            )
            nn.init.zeros_(probe.weight)
            nn.init.zeros_(probe.bias)
            self.linear[name] = probe
        self._optimizer = (
            torch.optim.Adam(self.linear.parameters(), lr=learning_rate) if self._names else None
        )

    def of(self, head: nn.Module) -> nn.Linear:
        """The probe of a head; a linear head is its own."""
        if isinstance(head, nn.Linear):
            return head
        if head not in self._names:
            raise UsageError(
                "coordination: score = 'linear_head' has probes of the model's task heads only, "
                f"and another {type(head).__name__} was given"
            )
        return cast(nn.Linear, self.linear[self._names[head]])

    def learn(self, head: nn.Module, joint: Tensor, targets: Tensor) -> None:
        """Add the gradient of the examples' summed cross-entropy to the head's probe."""
        if isinstance(head, nn.Linear):
            return
        probe = self.of(head)
        # written out, so that no backward pass runs inside the model's forward pass
        error = _cross_entropy_gradient(probe(joint), targets)
        for parameter, gradient in ((probe.weight, error.T @ joint), (probe.bias, error.sum(0))):
            gradient = gradient.to(parameter.dtype)
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def step(self) -> None:
        """Update the probes; all processes make the same step."""
        if self._optimizer is None:
            return
        for parameter in self.linear.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            sum_over_processes(parameter.grad)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and the optimiser's moments, by name."""
        tensors = {f"probes.{name}": tensor for name, tensor in self.linear.state_dict().items()}
        if self._optimizer is not None:
            for index, entry in self._optimizer.state_dict()["state"].items():
                tensors.update({f"moments.{index}.{key}": t for key, t in entry.items()})
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict`.

        Raises:
            UsageError: It has other probes.
        """
        weights: dict[str, Tensor] = {}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "probes":
                weights[rest] = tensor
            else:
                index, _, name = rest.partition(".")
                moments.setdefault(int(index), {})[name] = tensor
        own = self.linear.state_dict()
        if {k: t.shape for k, t in own.items()} != {k: t.shape for k, t in weights.items()}:
            raise UsageError(
                f"coordination: the saved state has probes {sorted(weights)}, and this run's are "
                f"{sorted(own)}; resume with the same tasks and the same [coordination]"
            )
        self.linear.load_state_dict(weights)
        if self._optimizer is not None:
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
