from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from support.training import FIELDS, TASKS, minute_config, minute_model
from umd_edge.errors import UsageError
from umd_edge_train.checkpoint import load_weights, save_weights
from umd_edge_train.config import PRESETS, from_dict, model_config
from umd_edge_train.gm_coord import (
    CoordinationConfig,
    GradientCoordination,
    modality_coefficients,
    modality_parameters,
)
from umd_edge_train.models import UMDModel
from umd_edge_train.models.heads import TaskHead

QUICK = settings(max_examples=40, deadline=None)
TEXT = ("text_encoder", "fusion.text_projection", "fusion.text_layers", "fusion.structured")
IMAGE = ("vision_encoder", "fusion.image_projection", "fusion.image_layers")
APPLICATIONS = ["none", "measure", "released", "scale_only", "post_update"]


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=_rng(seed), dtype=torch.float64)


class _Part(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, dtype=torch.float64))


def _stand_in(size: int = 400) -> nn.Module:
    """The names of a `UMDModel` with one vector for each part."""
    model, fusion = nn.Module(), nn.Module()
    model.text_encoder, model.vision_encoder = _Part(size), _Part(size)
    for name in ("text_projection", "text_layers", "structured"):
        setattr(fusion, name, _Part(size))
    for name in ("image_projection", "image_layers"):
        setattr(fusion, name, _Part(size))
    model.fusion = fusion
    model.match_head = nn.Linear(2, 1, dtype=torch.float64)
    model.task_heads = nn.ModuleDict()
    return model


def _coordination(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **config):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return GradientCoordination(model, CoordinationConfig(**config), optimizer)  # type: ignore


def _observe_ratio(coordination: GradientCoordination, ratio: float) -> None:
    """Let the text score `ratio` times as much as the image."""
    # probabilities of 1/2 and of 1/2 over the larger of both ratios
    high, low = 0.0, -math.log(2 * max(ratio, 1 / ratio) - 1)
    joint = [high, low] if ratio >= 1 else [low, high]
    head = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    coordination.observe(head, torch.tensor([joint], dtype=torch.float64), torch.tensor([0]))


def _ratio(coordination: GradientCoordination) -> float:
    coordination.before_update(_rng())
    return coordination.report()["ratio_text"]


def _fill_gradients(model: nn.Module, seed: int) -> None:
    rng = _rng(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype)


# --- coefficients -------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "damped"), [(1, 0.900), (2, 0.803), (3, 0.709), (5, 0.538), (10, 0.238)]
)
def test_coefficients_at_tabulated_ratios(ratio: float, damped: float):
    text = modality_coefficients(1.0, float(ratio), 0.1)
    assert (round(text.image, 3), text.text) == (damped, 1.0)
    image = modality_coefficients(1.0 * ratio, 1.0, 0.1)
    if ratio > 1:
        assert (round(image.text, 3), image.image) == (damped, 1.0)
        assert image.ratio_text == pytest.approx(ratio)


def test_at_a_tie_the_image_is_damped():
    assert modality_coefficients(3.0, 3.0, 0.1)[1:] == (1.0, 1.0 - math.tanh(0.1))


@QUICK
@given(text=st.floats(1e-6, 1e6), image=st.floats(1e-6, 1e6), alpha=st.floats(0.0, 5.0))
def test_coefficients_damp_the_better_modality_alone(text: float, image: float, alpha: float):
    found = modality_coefficients(text, image, alpha)
    better, worse = (found.text, found.image) if text > image else (found.image, found.text)
    assert worse == 1.0
    ratio = max(text, image) / min(text, image)
    assert better == pytest.approx(1.0 - math.tanh(alpha * ratio), abs=1e-9)
    assert found.ratio_text == pytest.approx(text / image)


@pytest.mark.parametrize(
    ("text", "image", "damped"), [(2.0, 0.0, "text"), (0.0, 2.0, "image"), (0.0, 0.0, "image")]
)
def test_a_modality_that_is_never_right_gives_finite_coefficients(text, image, damped: str):
    found = modality_coefficients(text, image, 0.1)
    assert all(math.isfinite(value) for value in found)
    assert getattr(found, damped) == (0.0 if text != image else 1.0 - math.tanh(0.1))
    assert getattr(found, "image" if damped == "text" else "text") == 1.0


@pytest.mark.parametrize("scores", [(math.nan, 1.0), (1.0, math.nan), (math.inf, math.inf)])
def test_scores_that_are_no_numbers_damp_nothing(scores: tuple[float, float]):
    found = modality_coefficients(*scores, 0.1)
    assert found[1:] == (1.0, 1.0)
    assert math.isnan(found.ratio_text)


# --- settings -----------------------------------------------------


def test_settings_are_read_from_a_table():
    table = {"application": "post_update", "score": "released", "scores": "last", "alpha": 1}
    config = from_dict(CoordinationConfig, table, "coordination")
    assert config == CoordinationConfig(
        application="post_update", score="released", scores="last", alpha=1.0
    )
    assert CoordinationConfig().application == "none"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"application": "always"}, "coordination.application: 'always' given; one of 'none'"),
        ({"score": "zero"}, "coordination.score"),
        ({"alpha": -0.1}, "coordination.alpha: -0.1 given; a finite number, 0 or more"),
        ({"alpha": math.nan}, "coordination.alpha"),
        ({"probe_learning_rate": math.inf}, "coordination.probe_learning_rate"),
        ({"beta": 0.1}, "unknown settings"),
    ],
)
def test_impossible_settings_are_refused(table: dict[str, object], message: str):
    with pytest.raises(UsageError, match=message):
        from_dict(CoordinationConfig, table, "coordination")


# --- whose parameters ---------------------------------------------


@pytest.mark.parametrize("preset", [*PRESETS, "minute"])
def test_every_parameter_of_every_preset_belongs_somewhere_once(preset: str):
    config = minute_config() if preset == "minute" else model_config({"preset": preset})
    with torch.device("meta"):
        model = UMDModel(config, TASKS, FIELDS)
    sets = modality_parameters(model)
    listed = [name for names in sets.values() for name in names]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    assert sets["text"].keys() == {n for n in listed if n.startswith(TEXT)}
    assert sets["image"].keys() == {n for n in listed if n.startswith(IMAGE)}
    assert {name.split(".")[0] for name in sets["none"]} >= {
        "fusion", "text_pooler", "image_pooler", "match_head", "task_heads",
    }  # fmt: skip


def test_a_parameter_that_belongs_nowhere_is_refused():
    model = _stand_in()
    model.sound_encoder = _Part(3)
    with pytest.raises(UsageError, match=r"'sound_encoder\.weight' belongs to neither"):
        _coordination(model)


@pytest.mark.parametrize("part", ["vision_encoder", "fusion.text_layers", "fusion.structured"])
def test_a_model_without_a_part_of_a_modality_is_refused(part: str):
    model = _stand_in()
    parent, _, name = part.rpartition(".")
    delattr(model.get_submodule(parent), name)
    with pytest.raises(UsageError, match=f"no parameter of the model starts with '{part}"):
        _coordination(model)


def test_an_optimiser_of_another_model_is_refused():
    model = _stand_in()
    with pytest.raises(UsageError, match=r"does not update 'text_encoder.weight' of the text"):
        _coordination(model, torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1))
    model.text_encoder.weight.requires_grad_(False)
    others = [p for p in model.parameters() if p.requires_grad]
    _coordination(model, torch.optim.SGD(others, lr=0.1))


# --- scores -------------------------------------------------------


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _head(width: int = 12, outputs: int = 5, seed: int = 3) -> TaskHead:
    head = TaskHead(width, outputs, 0.5).double()
    for number, parameter in enumerate(head.parameters()):
        parameter.data = _random(*parameter.shape, seed=seed + number)
    return head.train()


def _by_hand(head: TaskHead, joint: np.ndarray) -> np.ndarray:
    """Linear, LayerNorm, GELU, Linear of one vector, in numpy."""
    first, norm, last = (head.layers[i] for i in (0, 1, 4))
    w1, b1, g, h, w2, b2 = (
        p.detach().numpy() for layer in (first, norm, last) for p in (layer.weight, layer.bias)
    )
    x = w1 @ joint + b1
    x = (x - x.mean()) / np.sqrt(x.var() + norm.eps) * g + h
    x = x * 0.5 * (1 + np.array([math.erf(value / math.sqrt(2)) for value in x]))
    return w2 @ x + b2


def _halves(score: str, head: TaskHead, joint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    half = len(joint) // 2
    if score == "released":
        weight, bias = (p.detach().numpy() for p in head.layers[4].parameters())
        return (
            weight[:, :half] @ joint[:half] + bias / 2,
            weight[:, half:] @ joint[half:] + bias / 2,
        )
    text, image = joint.copy(), joint.copy()
    text[half:], image[:half] = 0.0, 0.0
    return _by_hand(head, text), _by_hand(head, image)


@pytest.mark.parametrize("score", ["released", "zero_out"])
def test_scores_are_the_probabilities_of_the_right_answers(score: str):
    head, joint, targets = _head(), _random(6, 12), torch.tensor([0, 4, -100, 2, 2, -100])
    wanted = np.zeros(2)
    for vector, target in zip(joint.numpy(), targets.tolist(), strict=True):
        if target >= 0:
            wanted += [_softmax(logits)[target] for logits in _halves(score, head, vector)]
    coordination = _coordination(_stand_in(), application="measure", score=score)
    coordination.observe(head, joint[:4], targets[:4])
    coordination.observe(head, joint[4:], targets[4:])
    assert _ratio(coordination) == pytest.approx(wanted[0] / wanted[1], rel=1e-9)


def test_scores_of_several_labels_are_means_over_those_known():
    head, joint = _head(outputs=3), _random(3, 12)
    nan = math.nan
    targets = [[1.0, nan, 0.0], [nan, nan, nan], [0.0, 1.0, 1.0]]
    wanted = np.zeros(2)
    for vector, row in zip(joint.numpy(), targets, strict=True):
        for side, logits in enumerate(_halves("zero_out", head, vector)):
            positive = 1 / (1 + np.exp(-logits))
            known = [
                p if t == 1.0 else 1 - p
                for p, t in zip(positive, row, strict=True)
                if not math.isnan(t)
            ]
            wanted[side] += sum(known) / len(known) if known else 0.0
    coordination = _coordination(_stand_in(), application="measure")
    coordination.observe(head, joint, torch.tensor(targets))
    assert _ratio(coordination) == pytest.approx(wanted[0] / wanted[1], rel=1e-9)


@pytest.mark.parametrize("score", ["released", "zero_out", "linear_head"])
def test_scores_of_retrieval_compare_candidates(score: str):
    head, joint = nn.Linear(12, 1).double(), _random(4, 3, 12)
    weight = head.weight.detach().numpy()[0]
    wanted = [
        sum(_softmax(candidates[:, half] @ weight[half])[0] for candidates in joint.numpy())
        for half in (slice(0, 6), slice(6, 12))
    ]
    coordination = _coordination(_stand_in(), application="measure", score=score)
    coordination.observe(head, joint, torch.zeros(4, dtype=torch.int64))
    assert _ratio(coordination) == pytest.approx(wanted[0] / wanted[1], rel=1e-9)


def test_all_micro_batches_are_scored_or_the_last_one():
    found = {}
    for scores in ("accumulated", "last"):
        coordination = _coordination(_stand_in(), application="measure", scores=scores)
        for ratio in (2.0, 0.25):
            coordination.begin_micro_batch()
            _observe_ratio(coordination, ratio)
        found[scores] = _ratio(coordination)
    # 0.5 + 0.125 against 0.25 + 0.5
    assert found == pytest.approx({"accumulated": 0.625 / 0.75, "last": 0.25})


def test_a_step_forgets_the_scores_of_the_one_before():
    coordination = _coordination(_stand_in(), application="measure")
    _observe_ratio(coordination, 8.0)
    assert _ratio(coordination) == pytest.approx(8.0)
    _observe_ratio(coordination, 0.5)
    assert _ratio(coordination) == pytest.approx(0.5)
    coordination.before_update(_rng())
    assert coordination.report() == {"coefficient_text": 1.0, "coefficient_image": 1.0}


def test_unlabelled_examples_give_no_ratio_and_damp_nothing():
    coordination = _coordination(_stand_in(), application="scale_only")
    coordination.observe(_head(), _random(2, 12), torch.tensor([-100, -100]))
    coordination.observe(_head(), _random(1, 12), torch.full((1, 5), math.nan))
    coordination.before_update(_rng())
    assert coordination.report() == {"coefficient_text": 1.0, "coefficient_image": 1.0}


@pytest.mark.parametrize("score", ["released", "zero_out", "linear_head"])
def test_scoring_leaves_no_trace(score: str):
    model = minute_model().train()
    head = model.task_heads["logits_vqa"]
    head.layers[3].p = 0.5
    joint = torch.randn(4, 32, generator=_rng(), requires_grad=True)
    before = torch.get_rng_state()
    coordination = _coordination(model, application="measure", score=score)
    coordination.observe(head, joint, torch.tensor([0, 3, 1, -100]))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in head.modules())
    assert joint.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not coordination._sums.requires_grad


@pytest.mark.parametrize(
    ("joint", "targets", "message"),
    [
        (torch.zeros(3, 12), torch.zeros(2).long(), r"\(3, 12\) and targets \(2,\) given"),
        (torch.zeros(3, 11), torch.zeros(3).long(), r"\(3, 11\)"),
        (torch.zeros(12), torch.zeros(12).long(), r"\(12,\)"),
        (torch.zeros(3, 2, 12), torch.zeros(3).long(), "a head with 5 outputs"),
        (torch.zeros(3, 10), torch.zeros(3).long(), "joint vector, 10 of them; use score"),
    ],
)
def test_vectors_that_do_not_suit_the_head_are_refused(joint, targets, message: str):
    coordination = _coordination(_stand_in(), application="measure", score="released")
    with pytest.raises(UsageError, match=message):
        coordination.observe(_head(), joint.double(), targets)


# --- linear probes ------------------------------------------------


def _probed(model: nn.Module) -> GradientCoordination:
    return _coordination(
        model, application="measure", score="linear_head", probe_learning_rate=0.05
    )


def _teach(coordination: GradientCoordination, model: UMDModel, steps: range) -> list[float]:
    """Steps in which the text half gives the answer away and the image half is noise."""
    ratios = []
    for step in steps:
        joint = torch.randn(16, 32, generator=_rng(step))
        targets = (joint[:, 0] > 0).long()
        several = torch.stack([(joint[:, 1] > 0).float(), targets.float()], dim=1)
        several = torch.cat([several, torch.full((16, 1), math.nan)], dim=1)
        coordination.observe(model.task_heads["logits_vqa"], joint, targets)
        coordination.observe(model.task_heads["logits_shape"], joint, several)
        ratios.append(_ratio(coordination))
    return ratios


def test_probes_learn_which_half_tells_the_answer():
    model = minute_model()
    before = copy.deepcopy(model.state_dict())
    ratios = _teach(_probed(model), model, range(60))
    assert ratios[0] == pytest.approx(1.0)
    assert min(ratios[-10:]) > 1.2
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("several", [False, True])
def test_probes_learn_by_the_gradient_of_cross_entropy(several: bool):
    model = minute_model()
    coordination = _probed(model)
    _teach(coordination, model, range(3))
    probe = coordination._probes.linear["logits_shape"]
    joint, nan = torch.randn(4, 32, generator=_rng()), math.nan
    if several:
        targets = torch.tensor([[1, 0, nan], [nan, nan, nan], [0, 0, 1], [1, 1, 0]])
        logits = probe(joint)
        terms = [
            nn.functional.softplus(-x if t else x)
            for x, t in zip(logits.flatten(), targets.flatten().tolist(), strict=True)
            if not math.isnan(t)
        ]
        loss = torch.stack(terms).sum()
    else:
        targets = torch.tensor([2, -100, 0, 1])
        loss = -torch.log_softmax(probe(joint), dim=1)[[0, 2, 3], [2, 0, 1]].sum()
    wanted = torch.autograd.grad(loss, list(probe.parameters()))
    # in two micro-batches
    coordination.observe(model.task_heads["logits_shape"], joint[:1], targets[:1])
    coordination.observe(model.task_heads["logits_shape"], joint[1:], targets[1:])
    for parameter, gradient in zip(probe.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_probes_go_on_where_they_were_saved(tmp_path: Path):
    model = minute_model()
    through = _probed(model)
    wanted = _teach(through, model, range(6))[3:]
    first = _probed(model)
    _teach(first, model, range(3))
    save_weights(tmp_path, first.state_dict(), "coordination")
    second = _probed(model)
    second.load_state_dict(load_weights(tmp_path, "coordination"))
    assert _teach(second, model, range(3, 6)) == wanted
    assert _teach(_probed(model), model, range(3, 6)) != wanted


def test_a_state_of_another_run_is_refused():
    model = minute_model()
    state = _probed(model).state_dict()
    with pytest.raises(UsageError, match="score = 'zero_out' uses none"):
        _coordination(model, application="measure").load_state_dict(state)
    with pytest.raises(UsageError, match="resume with the same tasks"):
        _probed(minute_model(tasks=TASKS[:1])).load_state_dict(state)
    with pytest.raises(UsageError, match="the saved state has probes \\[\\]"):
        _probed(model).load_state_dict({})
    assert _coordination(model, application="released").state_dict() == {}


def test_a_head_without_a_probe_is_refused():
    with pytest.raises(UsageError, match="another TaskHead was given"):
        _probed(minute_model()).observe(_head(32), torch.zeros(1, 32), torch.zeros(1).long())


# --- gradients and updates ----------------------------------------


@pytest.mark.parametrize("ratio", [1.0, 2.0, 10.0, 0.1])
def test_released_adds_noise_of_a_gradients_own_deviation(ratio: float):
    model = _stand_in(size=20_000)
    _fill_gradients(model, 1)
    with torch.no_grad():
        for scale, parameter in enumerate(model.parameters(), start=1):
            parameter.grad.mul_(scale).add_(0.5)
    old = {name: p.grad.clone() for name, p in model.named_parameters()}
    coordination = _coordination(model, application="released")
    _observe_ratio(coordination, ratio)
    coordination.before_update(_rng(5))
    report = coordination.report()
    for name, parameter in model.named_parameters():
        if name.startswith("match_head"):
            assert torch.equal(parameter.grad, old[name])
            continue
        k = report["coefficient_text" if name.startswith(TEXT) else "coefficient_image"]
        noise = parameter.grad - k * old[name]
        assert float(noise.std()) == pytest.approx(float(old[name].std()), rel=0.03)
        assert abs(float(noise.mean())) < 0.03 * float(noise.std())
        assert abs(float(torch.corrcoef(torch.stack([noise, old[name]]))[0, 1])) < 0.03


@pytest.mark.parametrize("ratio", [1.0, 2.0, 10.0])
def test_released_turns_a_gradient_by_the_angle_that_noise_makes(ratio: float):
    model = _stand_in(size=20_000)
    _fill_gradients(model, 1)
    old = model.vision_encoder.weight.grad.clone()
    coordination = _coordination(model, application="released")
    _observe_ratio(coordination, 1 / ratio)
    coordination.before_update(_rng(5))
    k = 1 - math.tanh(0.1 * ratio)
    cosine = torch.cosine_similarity(old, model.vision_encoder.weight.grad, dim=0)
    assert float(cosine) == pytest.approx(k / math.hypot(k, 1.0), abs=0.02)


def _rewritten(seed: int, application: str = "released") -> list[Tensor]:
    model = _stand_in()
    _fill_gradients(model, 1)
    coordination = _coordination(model, application=application)
    _observe_ratio(coordination, 3.0)
    coordination.before_update(_rng(seed))
    return [parameter.grad for parameter in model.parameters()]


def test_noise_comes_from_the_generator_alone():
    torch.manual_seed(1)
    one = _rewritten(5)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(one, _rewritten(5), strict=True))
    assert not torch.equal(one[0], _rewritten(6)[0])


def test_processes_with_different_examples_agree(monkeypatch: pytest.MonkeyPatch):
    model = _stand_in()
    ratios = (4.0, 0.5)
    sums = []
    for ratio in ratios:
        lone = _coordination(model, application="measure")
        _observe_ratio(lone, ratio)
        sums.append(lone._sums.clone())
    found = []
    for mine, other in ((0, 1), (1, 0)):
        coordination = _coordination(model, application="measure")
        _observe_ratio(coordination, ratios[mine])
        with monkeypatch.context() as patch:
            patch.setattr(torch.distributed, "is_initialized", lambda: True)
            patch.setattr(torch.distributed, "all_reduce", lambda t, o=sums[other]: t.add_(o))
            coordination.before_update(_rng())
        found.append(coordination.report())
    assert found[0] == found[1]
    assert found[0]["ratio_text"] == pytest.approx((0.5 + 0.25) / (0.125 + 0.5))


def test_tensors_of_one_element_and_without_gradient_stay_as_they_are():
    model = _stand_in()
    model.fusion.text_projection = _Part(1)
    _fill_gradients(model, 1)
    model.vision_encoder.weight.grad = None
    single = model.fusion.text_projection.weight.grad.clone()
    coordination = _coordination(model, application="released")
    _observe_ratio(coordination, 3.0)
    coordination.before_update(_rng())
    assert model.vision_encoder.weight.grad is None
    assert torch.equal(model.fusion.text_projection.weight.grad, single)
    assert torch.isfinite(model.text_encoder.weight.grad).all()


def test_a_gradient_that_is_no_number_stays_one():
    # so that the check of the gradient's norm still sees it
    model = _stand_in()
    _fill_gradients(model, 1)
    model.text_encoder.weight.grad[3] = math.nan
    coordination = _coordination(model, application="released")
    _observe_ratio(coordination, 3.0)
    coordination.before_update(_rng())
    assert torch.isnan(model.text_encoder.weight.grad[3])
    assert torch.isfinite(model.vision_encoder.weight.grad).all()


@pytest.mark.parametrize("application", APPLICATIONS)
def test_only_what_is_named_changes_in_a_step(application: str):
    """Against the same step without coordination, by plain SGD."""
    model = _stand_in()
    plain, before = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for each in (plain, model):
        _fill_gradients(each, 1)
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    coordination = _coordination(model, optimizer, application=application)
    _observe_ratio(coordination, 5.0)
    coordination.before_update(_rng())
    optimizer.step()
    coordination.after_update()
    k = 1 - math.tanh(0.5)
    for name, parameter in model.named_parameters():
        start = before.get_parameter(name).detach()
        own, other = parameter.detach() - start, plain.get_parameter(name).detach() - start
        if application == "released" and name.startswith(TEXT + IMAGE):
            assert not torch.allclose(own, other)
        elif name.startswith(TEXT) and application in ("scale_only", "post_update"):
            torch.testing.assert_close(own, k * other)
        else:
            assert torch.equal(own, other)
    assert set(coordination.report()) == (
        set() if application == "none" else {"ratio_text", "coefficient_text", "coefficient_image"}
    )


# --- under AdamW --------------------------------------------------


def _displacement(
    application: str, ratio: float, steps: int = 60, gradient: float = 0.0, **settings_
) -> tuple[Tensor, Tensor]:
    """How far a text and an image parameter go; gradients are random, or constant +-`gradient`."""
    model = _stand_in()
    adamw = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-30, "weight_decay": 0.0, **settings_}
    optimizer = torch.optim.AdamW(model.parameters(), **adamw)
    coordination = _coordination(model, optimizer, application=application)
    sign = torch.sign(_random(400, seed=99))
    for step in range(steps):
        _fill_gradients(model, step)
        if gradient:
            for parameter in (model.text_encoder.weight, model.vision_encoder.weight):
                parameter.grad = gradient * sign
        _observe_ratio(coordination, ratio)
        coordination.before_update(_rng(step))
        optimizer.step()
        coordination.after_update()
    text, image = model.text_encoder.weight.detach(), model.vision_encoder.weight.detach()
    if gradient:
        return (1.0 - text) * sign, (1.0 - image) * sign
    return text - 1.0, image - 1.0


def test_adamw_divides_a_constant_coefficient_out():
    plain, scaled = _displacement("measure", 10.0), _displacement("scale_only", 10.0)
    for wanted, found in zip(plain, scaled, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-12)


def test_a_scaled_update_is_not_divided_out():
    plain, scaled = _displacement("measure", 10.0), _displacement("post_update", 10.0)
    k = 1 - math.tanh(1.0)
    torch.testing.assert_close(scaled[0], k * plain[0], rtol=1e-9, atol=1e-12)
    assert torch.equal(scaled[1], plain[1])


def test_a_scaled_update_is_a_scaled_learning_rate_weight_decay_included():
    k = 1 - math.tanh(0.5)
    scaled = _displacement("post_update", 0.2, weight_decay=0.3)
    plain = _displacement("measure", 0.2, weight_decay=0.3)
    slow = _displacement("measure", 0.2, weight_decay=0.3, lr=1e-3 * k)
    assert torch.equal(scaled[0], plain[0])
    torch.testing.assert_close(scaled[1], slow[1], rtol=1e-9, atol=1e-12)


def test_under_adamw_the_released_rule_acts_through_its_noise():
    """A constant gradient: 0.6 without noise, whatever k; with it about 0.6 k / sqrt(k^2 + 1)."""
    settings_ = {"steps": 150, "gradient": 1.0, "lr": 4e-3}
    for application in ("measure", "scale_only"):
        text, image = _displacement(application, 10.0, **settings_)
        assert float(text.mean()) == pytest.approx(0.6, rel=1e-6)
        assert float(image.mean()) == pytest.approx(0.6, rel=1e-6)
    text, image = _displacement("released", 10.0, **settings_)
    k = 1 - math.tanh(1.0)
    assert float(image.mean()) == pytest.approx(0.6 / math.sqrt(2), rel=0.06)
    assert float(text.mean()) == pytest.approx(0.6 * k / math.hypot(k, 1.0), rel=0.15)


# --- with a model -------------------------------------------------


def _step(application: str, score: str) -> tuple[UMDModel, UMDModel, dict[str, float]]:
    """A model before and after one step on random pictures and texts, and the report."""
    model = minute_model().train()
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    coordination = _coordination(model, optimizer, application=application, score=score)
    rng = _rng(4)
    image, _ = model.encode_image(torch.randn(4, 3, 32, 32, generator=rng))
    mask = torch.ones(4, 6, dtype=torch.int64)
    text, _ = model.encode_text(torch.randint(5, 160, (4, 6), generator=rng), mask)
    joint = model.fuse_tokens(
        image, text, mask, torch.zeros(4, len(FIELDS)), torch.zeros(4, len(FIELDS))
    )
    head, targets = model.task_heads["logits_vqa"], torch.tensor([0, 1, 2, 3])
    nn.functional.cross_entropy(head(joint), targets).backward()
    coordination.begin_micro_batch()
    coordination.observe(head, joint, targets)
    coordination.before_update(_rng(1))
    optimizer.step()
    coordination.after_update()
    return before, model, coordination.report()


@pytest.mark.parametrize("score", ["released", "zero_out", "linear_head"])
def test_a_step_of_a_model_slows_the_modality_that_is_ahead(score: str):
    _, plain, _ = _step("none", score)
    before, found, report = _step("post_update", score)
    slowed = {"text": report["coefficient_text"], "image": report["coefficient_image"]}
    assert sorted(slowed.values())[1] == 1.0
    assert sorted(slowed.values())[0] < 0.901
    for modality, parameters in modality_parameters(found).items():
        k = slowed.get(modality, 1.0)
        for name, parameter in parameters.items():
            start = before.get_parameter(name).detach()
            wanted = start + k * (plain.get_parameter(name).detach() - start)
            torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-5, atol=1e-6, msg=name)
