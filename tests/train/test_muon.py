from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from support.training import minute_model
from umd_edge.errors import UmdEdgeError
from umd_edge_train.muon import Muon, orthogonalised
from umd_edge_train.optim import build_optimizer
from umd_edge_train.recipe import OptimConfig, recipe_from_dict

QUICK = settings(max_examples=30, deadline=None)


@QUICK
@given(st.integers(1, 24), st.integers(1, 40), st.integers(0, 999), st.floats(-6, 6))
def test_singular_values_end_near_one_and_directions_stay(m: int, n: int, seed: int, size: float):
    u, _, v = torch.linalg.svd(
        torch.randn(m, n, generator=torch.Generator().manual_seed(seed)), full_matrices=False
    )
    values = torch.linspace(1.0, 3.0, min(m, n))
    found = orthogonalised(10.0**size * (u * values) @ v)
    assert found.shape == (m, n)
    inner = u.T @ found @ v.T
    assert ((inner.diagonal() > 0.6) & (inner.diagonal() < 1.3)).all()
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 0.1


def _groups(matrix: Tensor, vector: Tensor) -> list[dict[str, object]]:
    return [
        {"params": [matrix], "weight_decay": 0.1, "orthogonalise": True},
        {"params": [vector], "weight_decay": 0.0},
    ]


def _gradients(shape: tuple[int, ...], steps: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=rng) for _ in range(steps)]


def _walk(optimizer: torch.optim.Optimizer, parameter: Tensor, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (6, 6)])
def test_a_matrix_moves_as_with_torchs_own(shape: tuple[int, int]):
    own, other = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    reference = torch.optim.Muon(
        [other], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    _walk(Muon(_groups(own, nn.Parameter(torch.zeros(3))), lr=0.01), own, _gradients(shape, 5))
    _walk(reference, other, _gradients(shape, 5))
    assert not torch.allclose(own, torch.ones(shape), atol=1e-2)
    torch.testing.assert_close(own, other, atol=2e-4, rtol=0)


def test_a_convolution_moves_as_the_matrix_of_its_outputs():
    kernel, matrix = nn.Parameter(torch.ones(4, 3, 2, 2)), nn.Parameter(torch.ones(4, 12))
    gradients = _gradients((4, 3, 2, 2), 3)
    spare = nn.Parameter(torch.zeros(3))
    _walk(Muon(_groups(kernel, spare), lr=0.01), kernel, gradients)
    _walk(Muon(_groups(matrix, spare), lr=0.01), matrix, [g.reshape(4, 12) for g in gradients])
    assert torch.equal(kernel.reshape(4, 12), matrix)


def test_the_other_groups_move_as_with_adamw():
    own, other = (nn.Parameter(torch.ones(5)) for _ in range(2))
    muon = Muon(_groups(nn.Parameter(torch.ones(2, 2)), own), lr=0.01, betas=(0.9, 0.98))
    _walk(muon, own, _gradients((5,), 4))
    adamw = torch.optim.AdamW([other], lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)
    _walk(adamw, other, _gradients((5,), 4))
    assert torch.equal(own, other)


def test_a_parameter_without_a_gradient_stays():
    matrix = nn.Parameter(torch.ones(3, 3))
    optimizer = Muon(_groups(matrix, nn.Parameter(torch.zeros(3))), lr=0.01)
    optimizer.step()
    assert torch.equal(matrix, torch.ones(3, 3))
    assert not optimizer.state


def test_a_saved_state_continues_alike():
    gradients = _gradients((3, 5), 6)
    one, two = (nn.Parameter(torch.ones(3, 5)) for _ in range(2))
    spare = nn.Parameter(torch.zeros(3))
    whole = Muon(_groups(one, spare), lr=0.01)
    _walk(whole, one, gradients)
    first = Muon(_groups(two, spare), lr=0.01)
    _walk(first, two, gradients[:3])
    second = Muon(_groups(two, spare), lr=0.01)
    second.load_state_dict(first.state_dict())
    _walk(second, two, gradients[3:])
    assert torch.equal(one, two)


def test_embeddings_heads_and_the_first_convolution_are_left_to_adamw():
    model = minute_model()
    optimizer = build_optimizer(model, OptimConfig(algorithm="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    moved = {
        names[id(p)]: p.ndim
        for group in optimizer.param_groups
        if group.get("orthogonalise")
        for p in group["params"]
    }
    assert len(moved) > 10 and min(moved.values()) > 1
    for part in ("embedding", "task_heads", "match_head", "structured", "stem.layers.0."):
        assert any(part in name for name in names.values())
        assert not any(part in name for name in moved)
    assert any("stem.layers.1.convolution" in name for name in moved)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(names)


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(UmdEdgeError, match="algorithm"):
        recipe_from_dict({"name": "x", "optim": {"algorithm": "sgd"}})
