"""What a mistake costs where a structured value is not shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.training import write_recipe
from umd_edge.errors import UsageError
from umd_edge_train.finetuning import finetune
from umd_edge_train.objectives import SupervisedObjective
from umd_edge_train.recipe import load_recipe
from umd_edge_train.run_inputs import read_inputs

_MARKER = 'tasks.0.hidden_weight=[{field="structured.marker_mg_l", labels=["ill"], factor=3.0}]'
_LOGITS = torch.tensor([[1.0, -1.0], [0.5, 0.2], [-2.0, 1.0], [0.0, 0.0]])
_ILL_WELL = torch.tensor([0, 1, 0, 1])


def _objective(synth: Path, tmp_path: Path, *settings: str) -> SupervisedObjective:
    recipe = load_recipe(write_recipe(tmp_path, "values"), list(settings))
    inputs = read_inputs(recipe, synth, None)
    return SupervisedObjective(recipe, inputs.corpus, inputs.tokenizer)


@pytest.mark.parametrize(
    ("marker", "ward", "factors"),
    [
        (1.0, 1.0, [1.0, 1.0, 1.0, 1.0]),
        (0.0, 1.0, [3.0, 1.0, 3.0, 1.0]),
        (1.0, 0.0, [1.0, 1.0, 1.0, 1.0]),
        (0.0, 0.0, [3.0, 1.0, 3.0, 1.0]),
    ],
)
def test_only_the_label_whose_value_is_hidden_weighs_more(
    synth: Path, tmp_path: Path, marker: float, ward: float, factors: list[float]
):
    shown = torch.tensor([[marker, ward]] * 4)
    plain = _objective(synth, tmp_path).losses(0, _LOGITS, _ILL_WELL, shown)
    weighted = _objective(synth, tmp_path, _MARKER).losses(0, _LOGITS, _ILL_WELL, shown)
    assert torch.allclose(weighted, plain * torch.tensor(factors))


def test_weights_of_two_values_multiply(synth: Path, tmp_path: Path):
    both = _MARKER[:-1] + ', {field="structured.ward", labels=["ill", "well"], factor=0.5}]'
    plain = _objective(synth, tmp_path).losses(0, _LOGITS, _ILL_WELL, torch.zeros(4, 2))
    weighted = _objective(synth, tmp_path, both).losses(0, _LOGITS, _ILL_WELL, torch.zeros(4, 2))
    assert torch.allclose(weighted, plain * torch.tensor([1.5, 0.5, 1.5, 0.5]))


def test_not_knowing_leans_by_the_logarithm_of_the_factor(synth: Path, tmp_path: Path):
    # Where as many are ill as well, the logits that cost least differ by log 3.
    objective = _objective(synth, tmp_path, _MARKER, "tasks.0.class_weight=none")
    lean = torch.log(torch.tensor(3.0)).requires_grad_()
    logits = torch.stack([lean, torch.zeros(())]).expand(2, 2)
    objective.losses(0, logits, torch.tensor([0, 1]), torch.zeros(2, 2)).sum().backward()
    assert lean.grad is not None
    assert float(lean.grad) == pytest.approx(0.0, abs=1e-6)


def test_a_run_with_it_learns_other_weights(synth: Path, tmp_path: Path):
    weights = []
    for name, settings in (("plain", []), ("weighted", [_MARKER])):
        (tmp_path / name).mkdir()
        recipe = load_recipe(
            write_recipe(tmp_path / name, "values"),
            ["optim.epochs=1", "optim.structured_dropout=1.0", *settings],
        )
        finetune(recipe, synth, tmp_path / name / "run")
        weights.append((tmp_path / name / "run" / "final" / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ('[{field="structured.ward", labels=["sick"]}]', r"labels \['sick'\] given"),
        ('[{field="age", labels=["ill"]}]', "field 'age' given"),
        ('[{field="structured.ward", labels=[]}]', "none given"),
        ('[{field="structured.ward", labels=["ill"], factor=0}]', "factor"),
        ('[{field="structured.ward"}]', "labels"),
        ('[{labels=["ill"], fields="x"}]', "unknown settings"),
    ],
)
def test_wrong_settings_are_told(synth: Path, tmp_path: Path, setting: str, told: str):
    with pytest.raises(UsageError, match=told):
        _objective(synth, tmp_path, f"tasks.0.hidden_weight={setting}")


def test_questions_have_none(synth: Path, tmp_path: Path):
    path = write_recipe(tmp_path, "questions")
    setting = 'tasks.0.hidden_weight=[{field="age", labels=["yes"]}]'
    recipe = load_recipe(path, [setting])
    inputs = read_inputs(recipe, synth, None)
    with pytest.raises(UsageError, match="single-label"):
        SupervisedObjective(recipe, inputs.corpus, inputs.tokenizer)
