from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from support.training import FIELDS, TASKS, minute_config, minute_model
from umd_edge_train.models.fusion import CrossModalLayer
from umd_edge_train.objectives import contrastive_loss, match_loss, wrong_texts
from umd_edge_train.objectives.supervised import (
    classification_loss,
    multi_label_loss,
    vqa_loss,
)

QUICK = settings(max_examples=12, deadline=None)


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=_rng(seed), dtype=torch.float64) * 2


# --- references: written from the formulas, one example at a time, without torch's losses ---------


def _softmax(row: list[float]) -> list[float]:
    top = max(row)
    weights = [math.exp(value - top) for value in row]
    return [weight / sum(weights) for weight in weights]


def _cross_entropy(row: list[float], target: int, weights: list[float], smoothing: float) -> float:
    logs = [math.log(p) for p in _softmax(row)]
    spread = sum(weight * log for weight, log in zip(weights, logs, strict=True)) / len(row)
    return -(1 - smoothing) * weights[target] * logs[target] - smoothing * spread


def _binary(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_classification_loss_is_weighted_smoothed_cross_entropy(smoothing: float, weighted: bool):
    logits, targets = _random(5, 4), [0, 3, 1, 3, 2]
    weights = [0.5, 2.0, 1.0, 3.0] if weighted else [1.0] * 4
    got = classification_loss(
        logits,
        torch.tensor(targets),
        torch.tensor(weights, dtype=torch.float64) if weighted else None,
        smoothing,
    )
    wanted = [
        _cross_entropy(row, target, weights, smoothing)
        for row, target in zip(logits.tolist(), targets, strict=True)
    ]
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_classification_loss_of_an_unknown_answer_is_zero_and_gives_no_gradient():
    logits = _random(2, 3).requires_grad_()
    losses = classification_loss(logits, torch.tensor([-100, 1]), None, 0.05)
    losses.sum().backward()
    assert losses[0] == 0.0
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


def test_multi_label_loss_is_the_mean_over_known_labels():
    logits = _random(4, 3)
    nan = math.nan
    targets = [[1.0, 0.0, 1.0], [nan, 1.0, 0.0], [nan, nan, 1.0], [nan, nan, nan]]
    wanted = []
    for row, target in zip(logits.tolist(), targets, strict=True):
        terms = [_binary(x, t) for x, t in zip(row, target, strict=True) if not math.isnan(t)]
        wanted.append(sum(terms) / len(terms) if terms else 0.0)
    got = multi_label_loss(logits, torch.tensor(targets, dtype=torch.float64))
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_vqa_loss_is_summed_over_the_answers_and_all_negative_for_a_strange_answer():
    logits, targets = _random(3, 5), [2, -100, 0]
    wanted = [
        sum(_binary(x, float(k == target)) for k, x in enumerate(row))
        for row, target in zip(logits.tolist(), targets, strict=True)
    ]
    np.testing.assert_allclose(vqa_loss(logits, torch.tensor(targets)), wanted, rtol=1e-12)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def test_contrastive_loss_counts_every_pair_with_the_same_text_as_right():
    images, texts = _unit(_random(4, 6)), _unit(_random(4, 6, seed=1))
    same = torch.eye(4, dtype=torch.bool)
    same[1, 3] = same[3, 1] = True
    similarity = (images @ texts.T / 0.07).tolist()
    wanted = []
    for i in range(4):
        row = _softmax(similarity[i])
        column = _softmax([similarity[j][i] for j in range(4)])
        right = [j for j in range(4) if same[i, j]]
        wanted.append(
            -0.5 * (math.log(sum(row[j] for j in right)) + math.log(sum(column[j] for j in right)))
        )
    np.testing.assert_allclose(contrastive_loss(images, texts, same), wanted, rtol=1e-9)


def test_contrastive_loss_of_a_batch_with_one_text_is_zero():
    images, texts = _unit(_random(3, 6)), _unit(_random(3, 6, seed=1))
    losses = contrastive_loss(images, texts, torch.ones(3, 3, dtype=torch.bool))
    np.testing.assert_allclose(losses, 0.0, atol=1e-12)


def test_match_loss_weighs_true_and_wrong_pairs_alike():
    true, wrong = _random(4), _random(7, seed=1)
    means = [
        np.mean([_binary(x, 1.0) for x in true.tolist()]),
        np.mean([_binary(x, 0.0) for x in wrong.tolist()]),
    ]
    assert float(match_loss(true, wrong)) == pytest.approx(np.mean(means), rel=1e-12)
    assert float(match_loss(true, wrong[:0])) == pytest.approx(means[0], rel=1e-12)


def test_wrong_texts_are_wrong_and_minus_one_where_there_is_none():
    same = torch.eye(5, dtype=torch.bool)
    same[0] = True
    for seed in range(20):
        chosen = wrong_texts(same, _rng(seed))
        assert chosen[0] == -1
        assert all(not same[i, j] for i, j in enumerate(chosen.tolist()) if i)
    assert {int(wrong_texts(same, _rng(seed))[1]) for seed in range(40)} == {0, 2, 3, 4}


# --- gradients ---------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: classification_loss(
            x, torch.tensor([0, 2, 1]), torch.tensor([1.0, 2.0, 0.5]).double(), 0.1
        ),
        lambda x: multi_label_loss(
            x, torch.tensor([[1.0, 0, math.nan], [0, 1, 1], [math.nan, 0, 0]]).double()
        ),
        lambda x: vqa_loss(x, torch.tensor([0, -100, 2])),
        lambda x: contrastive_loss(_unit(x), _unit(_random(3, 3, seed=5)), torch.eye(3).bool()),
        lambda x: match_loss(x[0], x[1]),
    ],
    ids=["classification", "multi-label", "vqa", "contrastive", "match"],
)
def test_gradients_of_losses_are_right(loss):
    assert torch.autograd.gradcheck(loss, (_random(3, 3, seed=9).requires_grad_(),))


def test_gradients_of_a_fusion_layer_are_right():
    layer = CrossModalLayer(minute_config().fusion, 0.0).double()
    bias = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
    bias[..., -1] = -3.0e4
    x, other = _random(1, 2, 16, seed=1), _random(1, 3, 16, seed=2)
    assert torch.autograd.gradcheck(
        lambda a, b: layer(a, b, None, bias), (x.requires_grad_(), other.requires_grad_())
    )


def test_gradcheck_notices_a_wrong_gradient():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2.1

    with pytest.raises(RuntimeError, match="Jacobian"):
        torch.autograd.gradcheck(Wrong.apply, (_random(3).requires_grad_(),))


# --- what the joint vector may and may not depend on ------


def _inputs(count: int, length: int, seed: int) -> dict[str, Tensor]:
    rng = _rng(seed)
    lengths = torch.randint(2, length + 1, (count,), generator=rng)
    mask = (torch.arange(length)[None] < lengths[:, None]).long()
    values = torch.randn(count, len(FIELDS), generator=rng)
    values[:, 2] = torch.randint(0, 2, (count,), generator=rng).float()
    return {
        "pixel_values": torch.randn(count, 3, 32, 32, generator=rng),
        "input_ids": torch.randint(5, 160, (count, length), generator=rng) * mask,
        "attention_mask": mask,
        "structured_values": values,
        "structured_mask": torch.randint(0, 2, (count, len(FIELDS)), generator=rng).float(),
    }


@torch.no_grad()
def _as_model(model, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    dtype = model.match_head.weight.dtype
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def _joint(model, inputs: dict[str, Tensor]) -> Tensor:
    inputs = _as_model(model, inputs)
    image, _ = model.encode_image(inputs["pixel_values"])
    text, _ = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
    return model.fuse_tokens(
        image,
        text,
        inputs["attention_mask"],
        inputs["structured_values"],
        inputs["structured_mask"],
    )


@pytest.fixture(scope="module", params=["bert", "roberta"])
def model(request: pytest.FixtureRequest):
    # float64: rounding is out of the way, so the invariants below hold to nine digits
    return minute_model(minute_config(text__architecture=request.param)).double()


@QUICK
@given(seed=st.integers(0, 999), extra=st.integers(1, 6), filler=st.integers(0, 159))
def test_padding_of_a_text_changes_nothing(model, seed: int, extra: int, filler: int):
    inputs = _inputs(3, 7, seed)
    padded = dict(inputs)
    padded["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (0, extra), value=filler)
    padded["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, extra))
    torch.testing.assert_close(_joint(model, padded), _joint(model, inputs), rtol=0, atol=1e-9)


@QUICK
@given(
    seed=st.integers(0, 999),
    pooling=st.sampled_from(["first", "mean", "masked_mean"]),
    hidden=st.floats(-1e6, 1e6),
)
def test_a_hidden_structured_value_changes_nothing(seed: int, pooling: str, hidden: float):
    model = minute_model(minute_config(fusion__pooling=pooling))
    inputs = _inputs(3, 6, seed)
    changed = dict(inputs)
    absent = inputs["structured_mask"] == 0
    changed["structured_values"] = inputs["structured_values"].masked_fill(absent, hidden)
    assert torch.equal(_joint(model, changed), _joint(model, inputs))


def test_a_present_structured_value_changes_the_result_and_so_does_its_absence(model):
    inputs = _inputs(2, 6, 0)
    inputs["structured_mask"][:] = 1.0
    base = _joint(model, inputs)
    for column in range(len(FIELDS)):
        changed = copy.deepcopy(inputs)
        changed["structured_values"][:, column] = 1.0 - changed["structured_values"][:, column]
        hidden = copy.deepcopy(inputs)
        hidden["structured_mask"][:, column] = 0.0
        assert (_joint(model, changed) - base).abs().max() > 1e-4, FIELDS[column].name
        assert (_joint(model, hidden) - base).abs().max() > 1e-4, FIELDS[column].name


@QUICK
@given(seed=st.integers(0, 999), row=st.integers(0, 3))
def test_a_batch_of_one_equals_its_row_of_a_larger_batch(model, seed: int, row: int):
    inputs = _inputs(4, 6, seed)
    alone = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
    torch.testing.assert_close(
        _joint(model, alone)[0], _joint(model, inputs)[row], rtol=0, atol=1e-9
    )


@QUICK
@given(seed=st.integers(0, 999), order=st.permutations(range(4)))
def test_permuting_a_batch_permutes_the_outputs(model, seed: int, order: list[int]):
    inputs = _inputs(4, 6, seed)
    turned = {name: tensor[order] for name, tensor in inputs.items()}
    torch.testing.assert_close(
        _joint(model, turned), _joint(model, inputs)[order], rtol=0, atol=1e-9
    )


def test_text_and_picture_both_change_the_result(model):
    inputs = _inputs(2, 6, 3)
    base = _joint(model, inputs)
    other = _inputs(2, 6, 4)
    for name in ("pixel_values", "input_ids"):
        assert (_joint(model, {**inputs, name: other[name]}) - base).abs().max() > 1e-4, name


def test_fuse_names_every_task_and_the_match(model):
    inputs = _as_model(model, _inputs(2, 6, 3))
    with torch.no_grad():
        image, unit_image = model.encode_image(inputs["pixel_values"])
        text, unit_text = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
        outputs = model.fuse(
            image,
            text,
            inputs["attention_mask"],
            inputs["structured_values"],
            inputs["structured_mask"],
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in outputs.items()}
    heads = {f"logits_{task.name}": (2, len(task.outputs)) for task in TASKS}
    assert shapes == {**heads, "match_logit": (2,)}
    for unit in (unit_image, unit_text):
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(2, dtype=unit.dtype))
