"""Muon for the inner matrices, AdamW for the rest, as one optimiser.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the
scale that lets both parts share one learning rate: Liu et al., arXiv 2502.16982, section 2.2.
`torch.optim.Muon` does the same for tensors of two axes only; here a convolution is the matrix
(outputs, inputs x height x width).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalised"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
# A random orthogonal matrix (m, n) has entries of 1 / sqrt(max(m, n)); AdamW's updates are of 0.2.
_ADAMW_RMS = 0.2


def orthogonalised(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, about: singular values end between 0.7 and 1.2.

    Five Newton-Schulz iterations in bfloat16.

    Args:
        matrix: (M, N), floating point.

    Returns:
        (M, N), in the dtype of `matrix`.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = (matrix.T if tall else matrix).to(torch.bfloat16)
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.AdamW):
    """AdamW, but groups with `"orthogonalise": True` follow Muon with Nesterov momentum 0.95.

    Their parameters have two axes or more. Rates and decay mean the same in both kinds of groups.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            if not group.get("orthogonalise", False):
                continue
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
                    gradients[parameter], parameter.grad = parameter.grad, None
        super().step()  # passes over parameters without a gradient
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            # AdamW expects the count of steps in every state that it loads.
            state["step"] = torch.zeros(())
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        momentum = state["momentum"].lerp_(parameter.grad, 1.0 - _MOMENTUM)
        ahead = parameter.grad.lerp(momentum, _MOMENTUM)
        matrix = ahead.reshape(len(ahead), -1)
        scale = _ADAMW_RMS * max(matrix.shape) ** 0.5
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonalised(matrix).view_as(parameter), alpha=-group["lr"] * scale)
