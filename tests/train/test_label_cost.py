"""What missing a label costs: decisions lean, losses do not see it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from support.training import write_recipe
from umd_edge.errors import UsageError
from umd_edge_train.checkpoint import load_checkpoint
from umd_edge_train.cli import main
from umd_edge_train.finetuning import finetune
from umd_edge_train.label_costs import set_label_costs
from umd_edge_train.objectives import SupervisedObjective
from umd_edge_train.recipe import load_recipe, recipe_from_dict
from umd_edge_train.run_inputs import read_inputs

_ILL = "tasks.0.label_cost={ill=3.0}"
_LOGITS = torch.tensor([[1.0, -1.0], [0.5, 0.2], [-2.0, 1.0], [0.0, 0.0]])
_ILL_WELL = torch.tensor([0, 1, 0, 1])
_ILL_ROW = torch.tensor([1.0, 0.0])


def _objective(
    synth: Path, tmp_path: Path, *settings: str, kind: str = "values"
) -> SupervisedObjective:
    recipe = load_recipe(write_recipe(tmp_path, kind), list(settings))
    inputs = read_inputs(recipe, synth, None)
    return SupervisedObjective(recipe, inputs.corpus, inputs.tokenizer)


def test_the_loss_sees_the_logits_without_it(synth: Path, tmp_path: Path):
    plain, leaning = _objective(synth, tmp_path), _objective(synth, tmp_path, _ILL)
    raised = _LOGITS + np.log(3.0) * _ILL_ROW
    assert plain.tasks[0].outputs == ("ill", "well")
    assert torch.equal(plain.believed(0, raised), raised)
    assert torch.allclose(leaning.believed(0, raised), _LOGITS)
    expected = plain.losses(0, _LOGITS, _ILL_WELL)
    assert torch.allclose(leaning.losses(0, raised, _ILL_WELL), expected)


@given(st.floats(0.02, 0.98), st.floats(0.1, 10.0))
def test_the_cheapest_decision_is_the_largest_logit(probability: float, cost: float):
    # A label of this probability, against one that costs 1: calling it saves cost * p, and costs
    # 1 - p where it is not there.
    logit = np.log(probability) + np.log(cost) - np.log1p(-probability)
    if abs(cost * probability - (1 - probability)) > 1e-9:
        assert (logit > 0) == (cost * probability > 1 - probability)


def test_what_costs_least_leans_by_the_logarithm(synth: Path, tmp_path: Path):
    # Where as many are ill as well, the logits that cost least differ by log 3.
    objective = _objective(synth, tmp_path, _ILL, "tasks.0.class_weight=none")
    lean = torch.log(torch.tensor(3.0)).requires_grad_()
    logits = torch.stack([lean, torch.zeros(())]).expand(2, 2)
    objective.losses(0, logits, torch.tensor([0, 1])).sum().backward()
    assert lean.grad is not None
    assert float(lean.grad) == pytest.approx(0.0, abs=1e-6)


def _mean_logits(run: Path) -> torch.Tensor:
    return _mean_logits_of(run / "final")


def _mean_logits_of(checkpoint: Path) -> torch.Tensor:
    model = load_checkpoint(checkpoint).model
    head = next(iter(model.task_heads.values()))
    width = next(p for p in head.parameters() if p.ndim == 2).shape[1]
    with torch.no_grad():
        mean: torch.Tensor = head(torch.zeros(1, width))
    return mean[0]


def test_a_run_with_it_decides_for_the_costly_label_more_often(synth: Path, tmp_path: Path):
    leans = []
    for name, settings in (("plain", []), ("leaning", ["tasks.0.label_cost={ill=1000.0}"])):
        (tmp_path / name).mkdir()
        recipe = load_recipe(
            write_recipe(tmp_path / name, "values"),
            ["optim.epochs=4", "optim.structured_dropout=1.0", *settings],
        )
        finetune(recipe, synth, tmp_path / name / "run")
        mean = _mean_logits(tmp_path / name / "run")
        leans.append(float(mean[0] - mean[1]))
    assert leans[1] > leans[0]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("{sick=2.0}", r"labels \['sick'\] given"),
        ("{ill=0}", "label_cost.ill: 0 given"),
        ("{ill=-1.0}", "above 0"),
        ("{ill=inf}", "finite"),
        ('{ill="much"}', "'much' given"),
        ("{ill=true}", "True given"),
        ("[2.0]", "dict is needed"),
    ],
)
def test_wrong_settings_are_told(synth: Path, tmp_path: Path, setting: str, told: str):
    with pytest.raises(UsageError, match=told):
        _objective(synth, tmp_path, f"tasks.0.label_cost={setting}")


def test_questions_have_none(synth: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="only a classification has one, not 'vqa'"):
        _objective(synth, tmp_path, "tasks.0.label_cost={yes=2.0}", kind="questions")


# --- a finished checkpoint ----------------------------------------


@pytest.fixture(scope="module")
def finished(synth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    recipe = load_recipe(write_recipe(folder, "values"), [_ILL, "optim.epochs=1"])
    finetune(recipe, synth, folder / "run")
    return folder / "run" / "final"


def _pack(finished: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["pack", str(finished), "--out", str(out), *options])


def test_a_finished_checkpoint_takes_other_costs(finished: Path, tmp_path: Path):
    done = _pack(finished, tmp_path / "new", "--task", "values", "--label-cost", "ill=6")
    assert done.exit_code == 0, done.output
    old, new = load_checkpoint(finished), load_checkpoint(tmp_path / "new")
    before, after = _mean_logits(finished.parent), _mean_logits_of(tmp_path / "new")
    # 3 of the recipe is replaced, not multiplied
    expected = before + math.log(6 / 3) * _ILL_ROW
    assert torch.allclose(after, expected, atol=2e-3)
    recipe = recipe_from_dict(new.provenance["recipe"])
    assert recipe.training_of(0).label_cost == {"ill": 6.0}
    assert recipe_from_dict(old.provenance["recipe"]).training_of(0).label_cost == {"ill": 3.0}


def test_the_costs_of_the_recipe_change_nothing(finished: Path, tmp_path: Path):
    again = set_label_costs(load_checkpoint(finished), "values", {"ill": 3.0})
    for name, tensor in load_checkpoint(finished).model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--task", "values"), "belong together"),
        (("--label-cost", "ill=2"), "belong together"),
        (("--task", "values", "--label-cost", "ill"), "LABEL=COST"),
        (("--task", "values", "--label-cost", "ill=much"), "LABEL=COST"),
        (("--task", "values", "--label-cost", "ill=0"), "above 0"),
        (("--task", "values", "--label-cost", "ill=nan"), "above 0"),
        (("--task", "values", "--label-cost", "sick=2"), "['sick'] given"),
        (("--task", "eyes", "--label-cost", "ill=2"), "'eyes' given"),
    ],
)
def test_wrong_costs_leave_nothing_behind(
    finished: Path, tmp_path: Path, options: tuple[str, ...], told: str
):
    done = _pack(finished, tmp_path / "new", *options)
    assert done.exit_code == 2
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_its_recipe_is_refused(finished: Path):
    bare = replace(load_checkpoint(finished), provenance={})
    with pytest.raises(UsageError, match="no recipe of task"):
        set_label_costs(bare, "values", {"ill": 2.0})
