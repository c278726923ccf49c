"""Every loss of a distillation against a short reference in NumPy, and its gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from umd_edge.errors import UsageError
from umd_edge_export.distil_losses import (
    pooled_loss,
    relation_loss,
    resize_grid,
    similarity_loss,
    soft_answer_loss,
    token_loss,
)
from umd_edge_export.soft_answers import mean_answers
from umd_edge_train.config import from_dict
from umd_edge_train.distillation_config import DistillationConfig

QUICK = settings(max_examples=20, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
TEMPERATURES = st.floats(0.5, 8.0)


def _pair(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng) * 2, torch.randn(*shape, generator=rng) * 2


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _checked(function, student: Tensor) -> None:
    """The gradient of a loss is that of its finite differences."""
    assert torch.autograd.gradcheck(function, (student.double().requires_grad_(),), atol=1e-5)


# --- soft answers -------------------------------------------------


@QUICK
@given(SEEDS, TEMPERATURES)
def test_softmax_answers_are_compared_by_their_divergence(seed: int, temperature: float):
    student, teacher = _pair(seed, 3, 5)
    p = _softmax(teacher.double().numpy() / temperature)
    q = _softmax(student.double().numpy() / temperature)
    wanted = temperature**2 * (p * np.log(p / q)).sum(axis=1)
    found = soft_answer_loss(student, teacher, temperature, sigmoid=False)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3, atol=1e-5)


@QUICK
@given(SEEDS, TEMPERATURES)
def test_sigmoid_answers_are_compared_output_by_output(seed: int, temperature: float):
    student, teacher = _pair(seed, 3, 5)
    p = _sigmoid(teacher.double().numpy() / temperature)
    q = _sigmoid(student.double().numpy() / temperature)
    terms = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = soft_answer_loss(student, teacher, temperature, sigmoid=True)
    np.testing.assert_allclose(found.numpy(), temperature**2 * terms.mean(axis=1), atol=2e-5)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_equal_answers_cost_nothing_and_no_gradient_reaches_the_teacher(sigmoid: bool):
    student, teacher = _pair(1, 4, 3)
    assert soft_answer_loss(teacher, teacher, 3.0, sigmoid=sigmoid).abs().max() < 1e-6
    teacher.requires_grad_()
    student.requires_grad_()
    soft_answer_loss(student, teacher, 3.0, sigmoid=sigmoid).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0.0


@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_gradient_of_soft_answers_is_right(sigmoid: bool):
    student, teacher = _pair(2, 2, 3)
    told = teacher.double()
    _checked(lambda x: soft_answer_loss(x, told, 2.0, sigmoid=sigmoid), student)


def test_a_constant_on_all_softmax_logits_changes_nothing():
    student, teacher = _pair(3, 2, 4)
    moved = soft_answer_loss(student + 5.0, teacher - 7.0, 2.0, sigmoid=False)
    torch.testing.assert_close(moved, soft_answer_loss(student, teacher, 2.0, sigmoid=False))


# --- several teachers ---------------------------------------------


@QUICK
@given(SEEDS, st.integers(1, 4), st.booleans())
def test_several_teachers_are_the_mean_of_their_probabilities(seed: int, count: int, sigmoid: bool):
    rng = torch.Generator().manual_seed(seed)
    logits = [torch.randn(2, 4, generator=rng) * 3 for _ in range(count)]
    squash = _sigmoid if sigmoid else _softmax
    wanted = np.mean([squash(x.double().numpy()) for x in logits], axis=0)
    found = squash(mean_answers(logits, sigmoid=sigmoid).double().numpy())
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_mean_of_certain_answers_stays_finite(sigmoid: bool):
    sure = torch.tensor([[80.0, -80.0]])
    assert bool(torch.isfinite(mean_answers([sure, sure], sigmoid=sigmoid)).all())
    # two teachers that contradict each other surely: one half each
    even = mean_answers([sure, -sure], sigmoid=sigmoid)
    torch.testing.assert_close(even[0, 0], even[0, 1])


# --- similarities -------------------------------------------------


def _divergence(told: np.ndarray, said: np.ndarray, temperature: float) -> np.ndarray:
    p, q = _softmax(told / temperature), _softmax(said / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(axis=1)


@QUICK
@given(SEEDS, TEMPERATURES)
def test_similarities_are_compared_both_ways(seed: int, temperature: float):
    student, texts = _pair(seed, 4, 4)
    images, _ = _pair(seed + 1, 4, 4)
    s, t, i = (x.double().numpy() for x in (student, texts, images))
    wanted = (_divergence(t, s, temperature) + _divergence(i, s.T, temperature)) / 2
    found = similarity_loss(student, texts, images, temperature)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3, atol=1e-5)


def test_equal_similarities_cost_nothing_and_their_gradient_is_right():
    student, teacher = _pair(8, 3, 3)
    same = similarity_loss(student, student, student.T, 2.0)
    torch.testing.assert_close(same, torch.zeros(3), atol=1e-5, rtol=0.0)
    told = teacher.double().requires_grad_()
    _checked(lambda x: similarity_loss(x, told, told.T, 2.0), student)
    assert told.grad is None


# --- features -----------------------------------------------------


def _smooth_l1(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1.0, 0.5 * x**2, np.abs(x) - 0.5)


@QUICK
@given(SEEDS)
def test_tokens_are_compared_with_normalised_ones(seed: int):
    student, teacher = _pair(seed, 2, 3, 8)
    told = teacher.double().numpy()
    told = (told - told.mean(-1, keepdims=True)) / np.sqrt(told.var(-1, keepdims=True) + 1e-5)
    wanted = _smooth_l1(student.double().numpy() - told).mean(axis=(1, 2))
    np.testing.assert_allclose(token_loss(student, teacher).numpy(), wanted, rtol=1e-4)


def test_the_scale_of_a_teachers_tokens_does_not_matter():
    student, teacher = _pair(4, 2, 3, 8)
    torch.testing.assert_close(
        token_loss(student, teacher), token_loss(student, 50.0 * teacher), rtol=1e-3, atol=1e-4
    )


@QUICK
@given(SEEDS)
def test_pooled_vectors_are_compared_by_their_angle(seed: int):
    student, teacher = _pair(seed, 3, 6)
    a, b = student.double().numpy(), teacher.double().numpy()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(pooled_loss(student, teacher).numpy(), 1 - cosine, atol=1e-5)


def _relations(x: np.ndarray, heads: int) -> np.ndarray:
    batch, tokens, width = x.shape
    part = width // heads
    out = np.empty((batch, heads, tokens, tokens))
    for h in range(heads):
        own = x[:, :, h * part : (h + 1) * part]
        out[:, h] = _softmax(own @ own.transpose(0, 2, 1) / math.sqrt(part))
    return out


@QUICK
@given(SEEDS, st.sampled_from([1, 2, 4]))
def test_relations_are_compared_whatever_the_widths(seed: int, heads: int):
    student, _ = _pair(seed, 2, 5, 8)
    teacher, _ = _pair(seed + 1, 2, 5, 12)
    p = _relations(teacher.double().numpy(), heads)
    q = _relations(student.double().numpy(), heads)
    wanted = (p * np.log(p / q)).sum(axis=3).mean(axis=(1, 2))
    found = relation_loss(student, teacher, heads).numpy()
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        token_loss,
        lambda x, y: pooled_loss(x[:, 0], y[:, 0]),
        lambda x, y: relation_loss(x, y, 2),
    ],
)
def test_the_gradients_of_features_are_right(loss):
    student, teacher = _pair(5, 2, 4, 4)
    told = teacher.double().requires_grad_()
    _checked(lambda x: loss(x, told), 0.3 * student)
    assert told.grad is None


@pytest.mark.parametrize(("side", "smaller"), [(4, 2), (6, 3), (5, 5)])
def test_a_finer_grid_is_averaged_to_a_coarser_one(side: int, smaller: int):
    tokens = torch.randn(2, side * side, 3)
    found = resize_grid(tokens, smaller)
    step = side // smaller
    blocks = tokens.numpy().reshape(2, smaller, step, smaller, step, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(found.numpy(), blocks.reshape(2, -1, 3), atol=1e-6)


# --- settings -----------------------------------------------------


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"soft_weight": -1.0}, "soft_weight"),
        ({"token_weight": float("inf")}, "token_weight"),
        ({"relation_heads": 0}, "relation_heads"),
        ({"soft_weight": 0.0, "label_weight": 0.0}, "nothing is learnt"),
        ({"softness": 1.0}, "softness"),
        ({"unlabelled": [{"file": "x.jsonl"}]}, "dataset"),
    ],
)
def test_settings_that_mean_nothing_are_refused(table: dict[str, object], told: str):
    with pytest.raises(UsageError, match=told):
        from_dict(DistillationConfig, table, "distillation")


def test_labels_may_weigh_nothing_where_a_teacher_speaks():
    config = DistillationConfig(label_weight=0.0)
    assert config.has_teacher
    assert not config.has_features
    assert not DistillationConfig(soft_weight=0.0).has_teacher
    assert DistillationConfig(soft_weight=0.0, relation_weight=0.1).has_features
