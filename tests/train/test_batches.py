"""Values that are hidden while a model learns."""

from __future__ import annotations

import pytest
import torch

from umd_edge_train.batches import hide_structured
from umd_edge_train.recipe import OptimConfig


def _shown(present: torch.Tensor, **chances: float) -> torch.Tensor:
    settings = {"structured_dropout": 0.0, "structured_dropout_all": 0.0, **chances}
    return hide_structured(present, OptimConfig(**settings), torch.Generator().manual_seed(0))


@pytest.fixture
def present() -> torch.Tensor:
    """Two thousand examples with one to six of six values."""
    mask = (torch.rand(2000, 6, generator=torch.Generator().manual_seed(1)) < 0.7).float()
    mask[:, 0] = 1.0
    return mask


def test_without_chances_nothing_is_hidden(present: torch.Tensor):
    assert torch.equal(_shown(present), present)


def test_just_one_of_the_present_values_is_hidden_and_each_as_often(present: torch.Tensor):
    shown = _shown(present, structured_dropout_one=1.0)
    hidden = present - shown
    assert hidden.min() == 0
    assert torch.equal(hidden.sum(1), torch.ones(2000))
    full = present.sum(1) == 6
    shares = hidden[full].mean(0)
    assert shares.sub(1 / 6).abs().max() < 0.08


def test_the_three_chances_go_together(present: torch.Tensor):
    full = torch.ones_like(present)
    shown = _shown(
        full, structured_dropout=0.6, structured_dropout_one=0.4, structured_dropout_all=0.2
    )
    kept = shown.sum(1)
    none = 0.2 + 0.8 * 0.6 * 0.6**6
    one_hidden = 0.8 * (0.4 + 0.6 * 6 * 0.6 * 0.4**5)
    assert float((kept == 0).float().mean()) == pytest.approx(none, abs=0.03)
    assert float((kept == 5).float().mean()) == pytest.approx(one_hidden, abs=0.03)


def test_an_example_without_values_stays_so():
    empty = torch.zeros(3, 6)
    assert torch.equal(_shown(empty, structured_dropout_one=1.0), empty)
