"""The momentum teacher: a model whose weights follow another one's.

Source: UMD (arXiv 2404.06057), momentum encoder; released decay 0.995. The released code averages
integer buffers too; here they are copied.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn

from .models import UMDModel

__all__ = ["MomentumTeacher"]


class MomentumTeacher(nn.Module):
    """Exponential moving average of a student; always in evaluation mode, never with gradients.

    Args:
        student: The model to follow.
        decay: Part of its own weights that the teacher keeps in one update, in [0, 1).
        init: `student` starts as a copy; `random` as a newly built model, as released. The latter
            draws from torch's global generator.
    """

    def __init__(self, student: UMDModel, decay: float, init: Literal["student", "random"]) -> None:
        super().__init__()
        self.decay = decay
        if init == "student":
            self.model = copy.deepcopy(student)
        else:
            device = next(student.parameters()).device
            self.model = UMDModel(student.config, student.tasks, student.fields).to(device)
        self.model.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> MomentumTeacher:
        """Stay in evaluation mode, whatever is asked of the module around it."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: UMDModel) -> None:
        """Move parameters and floating-point buffers towards the student's; copy integers."""
        own = self.model.state_dict()
        for name, tensor in student.state_dict().items():
            if tensor.is_floating_point():
                own[name].lerp_(tensor, 1.0 - self.decay)
            else:
                own[name].copy_(tensor)

    @torch.no_grad()
    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fused text (B, L, D) and image (B, 1 + N, D) of clean pairs, after the last layer."""
        # in this layout a convolutional stem takes half the time on a CPU
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        image_tokens, _ = self.model.encode_image(pixel_values)
        text_tokens, _ = self.model.encode_text(input_ids, attention_mask)
        return self.model.fusion_states(image_tokens, text_tokens, attention_mask)[-1]
