from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.training import minute_config, minute_model
from umd_edge.errors import UsageError
from umd_edge_train.models import UMDModel
from umd_edge_train.optim import WeightAverage, build_optimizer, learning_rate
from umd_edge_train.recipe import OptimConfig

QUICK = settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module")
def model() -> UMDModel:
    return minute_model()


def _names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of each group's parameters, in order."""
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[by_id[id(p)] for p in group["params"]] for group in optimizer.param_groups]


# --- groups -------------------------------------------------------


def test_groups_are_the_rest_and_the_stem_each_with_and_without_decay(model: UMDModel):
    config = OptimConfig(stem_rate=0.5, weight_decay=0.1)
    optimizer = build_optimizer(model, config)
    settings_ = [(g["rate"], g["weight_decay"]) for g in optimizer.param_groups]
    assert settings_ == [(1.0, 0.1), (1.0, 0.0), (0.5, 0.1), (0.5, 0.0)]
    every = list(model.named_parameters())
    wanted = [
        [n for n, p in every if (".stem." in n) == in_stem and (p.ndim > 1) == matrices]
        for in_stem in (False, True)
        for matrices in (True, False)
    ]
    assert _names(model, optimizer) == wanted
    assert optimizer.defaults["betas"] == (0.9, 0.98)


@pytest.mark.parametrize("stem", ["conv", "patch"])
@pytest.mark.parametrize(("head_rate", "fusion_rate"), [(1, 1), (50, 5), (10, 1), (1, 5), (0, 0.5)])
def test_every_parameter_is_in_one_group_of_its_rate(
    stem: str, head_rate: float, fusion_rate: float
):
    model = minute_model(minute_config(vision__stem=stem))
    config = OptimConfig(stem_rate=3.0)
    optimizer = build_optimizer(model, config, head_rate=head_rate, fusion_rate=fusion_rate)
    rates = {
        name: group["rate"]
        for group, names in zip(optimizer.param_groups, _names(model, optimizer), strict=True)
        for name in names
    }
    listed = [name for names in _names(model, optimizer) for name in names]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    for name, rate in rates.items():
        wanted = 1.0
        if name.startswith("vision_encoder.stem"):
            wanted = 3.0
        elif name.startswith(("task_heads", "match_head", "text_embedding", "image_embedding")):
            wanted = head_rate
        elif name.startswith(("fusion", "text_pooler", "image_pooler", "image_shortcut")):
            wanted = 1.0 if name == "fusion.type_embedding" else fusion_rate
        assert rate == wanted, name


def test_heads_around_a_model_learn_at_the_rate_of_heads(model: UMDModel):
    whole = torch.nn.ModuleDict(
        {"model": model, "mlm_head": torch.nn.Linear(4, 4), "mim_decoder": torch.nn.Linear(4, 4)}
    )
    optimizer = build_optimizer(whole, OptimConfig(), head_rate=50.0, fusion_rate=5.0)
    rates = {
        name: group["rate"]
        for group, names in zip(optimizer.param_groups, _names(whole, optimizer), strict=True)
        for name in names
    }
    assert rates["mlm_head.weight"] == rates["mim_decoder.bias"] == 50.0
    assert rates["model.fusion.text_projection.weight"] == 5.0
    assert rates["model.text_encoder.backbone.embeddings.word_embeddings.weight"] == 1.0


def test_moments_saved_without_rates_fit_an_optimiser_with_rates_of_one(model: UMDModel):
    config = OptimConfig(stem_rate=2.0)
    before = build_optimizer(model, config)
    for number, (_, parameter) in enumerate(model.named_parameters()):
        parameter.grad = torch.full_like(parameter, 1.0 + number)
    before.step()
    after = build_optimizer(model, config, head_rate=1.0, fusion_rate=1.0)
    after.load_state_dict(before.state_dict())
    for parameter in model.parameters():
        assert torch.equal(after.state[parameter]["exp_avg"], before.state[parameter]["exp_avg"])
        parameter.grad = None


def test_a_frozen_parameter_is_in_no_group(model: UMDModel):
    model.match_head.weight.requires_grad_(False)
    try:
        groups = _names(model, build_optimizer(model, OptimConfig()))
    finally:
        model.match_head.weight.requires_grad_(True)
    named = {name for names in groups for name in names}
    assert "match_head.weight" not in named
    assert "match_head.bias" in named


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["head_rate", "fusion_rate"])
def test_an_impossible_rate_is_refused(model: UMDModel, name: str, rate: float):
    with pytest.raises(UsageError, match=f"{name}: .* 0 or more"):
        build_optimizer(model, OptimConfig(), **{name: rate})


# --- schedule -----------------------------------------------------


@QUICK
@given(
    total=st.integers(1, 500),
    fraction=st.floats(0.0, 0.5),
    kind=st.sampled_from(["cosine", "linear"]),
)
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(total: int, fraction: float, kind):
    config = OptimConfig(learning_rate=2.0, warmup_fraction=fraction)
    rates = [learning_rate(step, total, config, kind) for step in range(total + 1)]
    peak = max(1, round(fraction * total)) - 1
    assert rates[peak] == 2.0 == max(rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[0] > 0.0
    if peak + 1 < total:
        assert rates[total] == pytest.approx(0.0, abs=1e-12)


def test_schedules_at_a_quarter_a_half_and_three_quarters_of_their_fall():
    config = OptimConfig(learning_rate=1.0, warmup_fraction=0.2)
    steps = [40, 60, 80]  # 20 steps of warm-up, then 80 of decay
    linear = [learning_rate(step, 100, config, "linear") for step in steps]
    cosine = [learning_rate(step, 100, config) for step in steps]
    assert linear == pytest.approx([0.75, 0.5, 0.25])
    half = math.sqrt(0.5) / 2
    assert cosine == pytest.approx([0.5 + half, 0.5, 0.5 - half])


def test_an_unknown_schedule_is_refused():
    with pytest.raises(UsageError, match="'step' given; 'cosine' or 'linear'"):
        learning_rate(90, 100, OptimConfig(), "step")  # type: ignore[arg-type]


# --- running average ----------------------------------------------


def test_the_average_forgets_its_start_and_copies_integers():
    model = torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.fill_(100.0)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(1.0)
    model.num_batches_tracked.fill_(7)
    wanted = 100.0
    for step in range(1, 200):
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * 1.0
        assert float(average.tensors["weight"][0]) == pytest.approx(wanted, rel=1e-4)
    assert int(average.tensors["num_batches_tracked"]) == 7
    other = WeightAverage(torch.nn.BatchNorm1d(2), 0.9)
    other.load(average.tensors)
    average.tensors["weight"].zero_()
    assert float(other.tensors["weight"][0]) == pytest.approx(wanted, rel=1e-4)
