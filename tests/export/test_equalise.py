"""Equalisation changes what 8 bits can hold of a stem, and not what the stem computes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from support.training import minute_config, minute_model
from umd_edge_export.equalise import equalise_stem
from umd_edge_export.rewrite import prepare_model
from umd_edge_train.models.vision_encoder import ConvStem


@pytest.fixture
def stem() -> ConvStem:
    """A folded stem whose channels differ a hundredfold, and one that is never above zero."""
    model = minute_model(minute_config())
    for layer in model.vision_encoder.stem.layers:
        norm = layer.norm
        norm.weight.data = torch.logspace(-1, 1, len(norm.weight))
        norm.bias.data.uniform_(0.0, 0.1)
    model.vision_encoder.stem.layers[0].norm.bias.data[0] = -1e4
    return prepare_model(model).vision_encoder.stem


def _pictures(count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(1, 3, 32, 32)).astype(np.float32) for _ in range(count)]


def _spread(stem: ConvStem) -> float:
    """Largest range of a channel behind the first layer over the median one."""
    with torch.no_grad():
        ranges = stem.layers[0](torch.from_numpy(np.concatenate(_pictures()))).amax(dim=(0, 2, 3))
    ranges = ranges[ranges > 0]
    return float(ranges.max() / ranges.median())


def test_the_function_stays_the_same(stem: ConvStem):
    equalised = copy.deepcopy(stem)
    equalise_stem(equalised, _pictures())
    unseen = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 3, 32, 32))).float()
    with torch.no_grad():
        assert torch.allclose(stem(unseen), equalised(unseen), rtol=1e-4, atol=1e-5)
    changed = equalised.layers[0].convolution.weight
    assert not torch.allclose(stem.layers[0].convolution.weight, changed)


def test_ranges_of_channels_come_closer(stem: ConvStem):
    before = _spread(stem)
    equalise_stem(stem, _pictures())
    assert _spread(stem) < 0.7 * before


def test_without_pictures_nothing_changes(stem: ConvStem):
    same = copy.deepcopy(stem)
    equalise_stem(stem, [])
    for mine, other in zip(stem.parameters(), same.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_channel_that_is_always_zero_stays_finite(stem: ConvStem):
    equalise_stem(stem, _pictures())
    assert all(torch.isfinite(parameter).all() for parameter in stem.parameters())
