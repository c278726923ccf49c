from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from support.training import FIELDS, minute_config, write_recipe
from umd_edge._task import TaskSpec
from umd_edge.errors import DataError, UsageError
from umd_edge_train.checkpoint import CheckpointError
from umd_edge_train.cli import main
from umd_edge_train.experiments.baselines import baseline_predictions
from umd_edge_train.experiments.cnn import SmallCNN, is_cnn, load_cnn, train_cnn
from umd_edge_train.experiments.run_predictions import predict_run
from umd_edge_train.recipe import Recipe, load_recipe

_SINGLE = TaskSpec(name="t", kind="classification", outputs=("a", "b"), prompt="which")


def _recipe(folder: Path, *parts: str, settings: tuple[str, ...] = ()) -> Recipe:
    return load_recipe(write_recipe(folder, *parts), ("allow_non_commercial=true", *settings))


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- fitted baselines ---------------------------------------------


def test_majority_equals_a_count_by_hand(synth: Path, tmp_path: Path):
    found = baseline_predictions("majority", _recipe(tmp_path, "shapes"), "shapes", synth, "val")
    train = [r["labels"][0] for r in _records(synth / "shapes" / "train.jsonl")]
    order = ["disc", "square", "line", "no finding"]
    counts = Counter(train)
    most = max(order, key=lambda label: counts[label])
    val = {r["id"]: r["labels"][0] for r in _records(synth / "shapes" / "val.jsonl")}
    assert dict(zip(found.ids, found.right, strict=True)) == {k: v == most for k, v in val.items()}
    assert found.metrics["balanced_accuracy"]["value"] == pytest.approx(1 / len(set(val.values())))


def test_majority_of_questions_ignores_the_question(synth: Path, tmp_path: Path):
    recipe = _recipe(tmp_path, "questions")
    found = baseline_predictions("majority", recipe, "vqa", synth, "val")
    counts = Counter(r["answer"] for r in _records(synth / "questions" / "train.jsonl"))
    top = counts.most_common(1)[0][1]
    best = {answer for answer, n in counts.items() if n == top}
    val = _records(synth / "questions" / "val.jsonl")
    shares = {a: np.mean([a in r["answers"] for r in val]) for a in best}
    assert np.mean(found.right) == pytest.approx(next(iter(shares.values())))


def _planted(folder: Path, rule: str) -> Path:
    """Questions whose answer follows from the words or from the brightness of the picture."""
    from PIL import Image

    rng = np.random.default_rng(0)
    home = folder / "questions"
    home.mkdir(parents=True)
    for split, count in (("train", 60), ("val", 30)):
        lines = []
        for i in range(count):
            bright, word = bool(rng.random() < 0.5), str(rng.choice(["red", "blue"]))
            level = 150 if bright else 90
            grey = rng.normal(level, 20, (20, 20)).clip(0, 255).astype(np.uint8)
            Image.fromarray(grey).save(home / f"{split}{i}.png")
            truth = word == "red" if rule == "words" else bright
            lines.append(
                {
                    "id": f"{split}{i}",
                    "patient_id": f"{split}-p{i // 2}",
                    "image": f"{split}{i}.png",
                    "question": f"is the {word} thing there?",
                    "answer": "yes" if truth else "no",
                    "question_type": "colour",
                    "non_commercial": False,
                }
            )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (home / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("rule", "question_only", "pixels"),
    [("words", (0.99, 1.0), (0.9, 1.0)), ("brightness", (0.2, 0.8), (0.9, 1.0))],
)
def test_regressions_learn_a_rule_that_they_can_see_and_no_other(
    tmp_path: Path, rule: str, question_only: tuple[float, float], pixels: tuple[float, float]
):
    data = _planted(tmp_path / "data", rule)
    recipe = _recipe(tmp_path, "questions")
    for kind, (low, high) in (("question-only", question_only), ("pixels", pixels)):
        found = baseline_predictions(kind, recipe, "vqa", data, "val")
        assert low <= np.mean(found.right) <= high, kind


def test_class_weights_of_the_recipe_hold_for_regressions_too(synth: Path, tmp_path: Path):
    # A constant prompt says nothing, so balanced weights leave no label ahead of another.
    balanced = baseline_predictions(
        "question-only", _recipe(tmp_path, "shapes"), "shapes", synth, "val"
    )
    assert balanced.metrics["brier"]["value"] == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [("cnn", "shapes", "fitted on the spot"), ("majority", "nose", "the recipe has")],
)
def test_what_cannot_be_fitted_is_refused(
    synth: Path, tmp_path: Path, kind: Any, task: str, message: str
):
    with pytest.raises(UsageError, match=message):
        baseline_predictions(kind, _recipe(tmp_path, "shapes"), task, synth, "val")


def _shaded(folder: Path) -> Path:
    """Pictures with two findings, of which brightness gives one away."""
    from PIL import Image

    rng = np.random.default_rng(0)
    home = folder / "shapes"
    home.mkdir(parents=True)
    for split, count in (("train", 60), ("val", 40)):
        lines = []
        for i in range(count):
            bright, coin = bool(rng.random() < 0.3), bool(rng.random() < 0.5)
            grey = rng.normal(150 if bright else 90, 20, (20, 20)).clip(0, 255).astype(np.uint8)
            Image.fromarray(grey).save(home / f"{split}{i}.png")
            found = (("film", True), ("bright", bright), ("coin", coin))
            record = {
                "id": f"{split}{i}",
                "patient_id": f"{split}-p{i}",
                "image": f"{split}{i}.png",
                "labels": [name for name, there in found if there],
                "non_commercial": False,
            }
            lines.append(record)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (home / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_several_labels_have_a_regression_each(tmp_path: Path):
    data = _shaded(tmp_path / "data")
    settings = (
        "tasks.0.multi_label=true",
        'tasks.0.labels=["bright", "coin", "film"]',
        'tasks.0.probability={kind="sigmoid"}',
        'tasks.0.target={field="labels", absent="negative"}',
    )
    recipe = _recipe(tmp_path, "shapes", settings=settings)
    pixels = baseline_predictions("pixels", recipe, "shapes", data, "val")
    majority = baseline_predictions("majority", recipe, "shapes", data, "val")
    assert pixels.metrics["auroc_bright"]["value"] > 0.95
    assert 0.2 < pixels.metrics["auroc_coin"]["value"] < 0.8
    assert majority.metrics["macro_auroc"]["value"] == 0.5
    train = _records(data / "shapes" / "train.jsonl")
    share = np.mean(["bright" in r["labels"] for r in train])
    assert [row[0] for row in majority.scores] == pytest.approx([share] * 40, abs=0.01)


def test_a_missing_split_is_a_data_error(synth: Path, tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read"):
        baseline_predictions("majority", _recipe(tmp_path, "shapes"), "shapes", synth, "none")


# --- small CNN ----------------------------------------------------


@pytest.fixture(scope="module")
def cnn(synth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a CNN on shapes."""
    folder = tmp_path_factory.mktemp("cnn")
    settings = ("optim.epochs=2", "run.evaluate_every_epochs=1000")
    train_cnn(_recipe(folder, "shapes", settings=settings), synth, folder / "run")
    return folder / "run"


def test_the_cnn_leaves_a_run_folder_like_any_run(cnn: Path, synth: Path):
    assert is_cnn(cnn / "final")
    steps = [json.loads(line) for line in (cnn / "history.jsonl").read_text().splitlines()]
    pictures = len(_records(synth / "shapes" / "train.jsonl"))
    full, rest = divmod(pictures, 8)
    assert sum(r["kind"] == "train" for r in steps) == 2 * (full + (rest >= 2))
    metrics = json.loads((cnn / "metrics.json").read_text(encoding="utf-8"))
    assert "balanced_accuracy" in metrics["validation"]["shapes"]


def test_the_saved_cnn_gives_the_metrics_of_its_run(cnn: Path, synth: Path, tmp_path: Path):
    kept = tmp_path / "kept.json"
    found = predict_run(cnn / "final", "shapes", synth, "val", kept)
    metrics = json.loads((cnn / "metrics.json").read_text(encoding="utf-8"))["validation"]
    for name, metric in found.metrics.items():
        assert metric["value"] == pytest.approx(metrics["shapes"][name]["value"], abs=1e-6)
    # kept predictions are used as they are, until something changes
    table = json.loads(kept.read_text(encoding="utf-8"))
    kept.write_text(json.dumps({**table, "right": [1] * len(table["right"])}), encoding="utf-8")
    assert all(predict_run(cnn / "final", "shapes", synth, "val", kept).right)
    kept.write_text(json.dumps({**table, "fingerprint": "old"}), encoding="utf-8")
    assert predict_run(cnn / "final", "shapes", synth, "val", kept).right == found.right


def test_a_damaged_cnn_is_refused(cnn: Path, tmp_path: Path):
    import shutil

    shutil.copytree(cnn / "final", tmp_path / "final")
    (tmp_path / "final" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        load_cnn(tmp_path / "final")
    (tmp_path / "final" / "provenance.json").unlink()
    with pytest.raises(CheckpointError, match="no readable provenance"):
        is_cnn(tmp_path / "final")


def test_the_cnn_ignores_padding_and_hidden_values():
    torch.manual_seed(0)
    model = SmallCNN(minute_config(), (_SINGLE,), FIELDS).eval()
    ids = torch.tensor([[5, 6, 7]])
    tokens, mean = model.encode_text(ids, torch.ones(1, 3, dtype=torch.int64))
    padded, same = model.encode_text(torch.tensor([[5, 6, 7, 9]]), torch.tensor([[1, 1, 1, 0]]))
    torch.testing.assert_close(mean, same)
    image, _ = model.encode_image(torch.rand(1, 3, 32, 32))
    hidden = torch.zeros(1, len(FIELDS))
    one = model.fuse_tokens(image, tokens, torch.ones(1, 3), torch.rand(1, len(FIELDS)), hidden)
    two = model.fuse_tokens(image, padded, torch.tensor([[1, 1, 1, 0]]), hidden, hidden)
    torch.testing.assert_close(one, two)


def test_the_cnn_has_no_transformer_and_needs_a_stem():
    names = {type(m).__name__ for m in SmallCNN(minute_config(), (_SINGLE,), FIELDS).modules()}
    assert "ConvStem" in names
    assert not any("Attention" in name or "Model" in name for name in names)
    with pytest.raises(UsageError, match="stem = 'conv'"):
        SmallCNN(minute_config(vision__stem="patch"), (_SINGLE,), FIELDS)


def test_the_cnn_refuses_retrieval():
    task = TaskSpec(name="c", kind="retrieval", outputs=(), reads=("caption",))
    with pytest.raises(UsageError, match="leave retrieval tasks out"):
        SmallCNN(minute_config(), (task,), FIELDS)


# --- command ------------------------------------------------------


def _baseline(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["baseline", *map(str, arguments)])


def test_the_command_prints_and_logs(synth: Path, tmp_path: Path):
    recipe, log = write_recipe(tmp_path, "shapes"), tmp_path / "log.md"
    common = ("--recipe", recipe, "--data", synth, "--kind", "majority")
    done = _baseline(*common, "--split", "test", "--log", log, "--json")
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)["majority/shapes"]["accuracy"]["value"]
    assert f"| majority/shapes | accuracy | {value:.3f} |" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--split", "test"), "must be logged"),
        (("--kind", "cnn"), "give --out"),
        (("--kind", "majority", "--task", "nose"), "the recipe has"),
    ],
)
def test_wrong_calls_are_usage_errors(synth: Path, tmp_path: Path, options, expected: str):
    recipe = write_recipe(tmp_path, "shapes")
    done = _baseline("--recipe", recipe, "--data", synth, *options)
    assert done.exit_code == 2
    assert expected in done.stderr
