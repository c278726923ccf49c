from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from support.training import write_recipe
from umd_edge_train.cli import main

QUIET = "run.evaluate_every_epochs=1000"


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _fails(code: int, expected: str, *arguments: object) -> str:
    """The command fails with one line on stderr; returns the line."""
    done = _run(*arguments)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert expected in lines[0]
    assert done.stderr.rstrip().endswith(lines[0])
    assert "Traceback" not in done.output
    return lines[0]


@pytest.fixture(scope="module")
def trained(synth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that the command itself made."""
    folder = tmp_path_factory.mktemp("cli")
    recipe = write_recipe(folder, "questions", "shapes")
    out = folder / "run"
    done = _run(
        *("finetune", "--recipe", recipe, "--data", synth, "--out", out),
        *("--set", QUIET, "--set", "optim.epochs=1"),
    )
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.stdout
    assert f"checkpoint: {out / 'final'}" in done.stderr
    return out


# --- finetune -----------------------------------------------------


def test_settings_of_the_command_line_are_kept_with_the_run(trained: Path):
    recipe = json.loads((trained / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["optim"]["epochs"] == 1
    assert recipe["run"]["evaluate_every_epochs"] == 1000


def test_a_second_run_in_the_same_folder_is_a_usage_error(trained: Path, synth: Path):
    recipe = trained.parent / "recipe.toml"
    _fails(2, "--resume", "finetune", "--recipe", recipe, "--data", synth, "--out", trained)


def test_resuming_with_other_settings_is_a_usage_error(trained: Path, synth: Path):
    recipe = trained.parent / "recipe.toml"
    _fails(
        2,
        "differs from the recipe given",
        *("finetune", "--recipe", recipe, "--data", synth, "--out", trained, "--resume"),
    )


@pytest.mark.parametrize(
    ("settings", "code", "expected"),
    [
        (["optim.epochz=3"], 2, "unknown settings ['epochz']"),
        (["optim.epochs=many"], 2, "int is needed"),
        (["optim"], 2, "path.to.setting=value"),
        (["optim.images_per_batch=1"], 2, "2 or more"),
        (["model.preset=huge"], 2, "'huge'"),
        (["model.vocabulary_size=20"], 2, "model.vocabulary_size: 20 given"),
        (["model.vision.pretrained=/no/such/folder", "model.vision.stem=patch"], 2, "/no/such"),
        (['train_splits=["nowhere"]'], 4, "nowhere.jsonl"),
    ],
)
def test_a_bad_setting_is_one_line(
    synth: Path, tmp_path: Path, settings: list[str], code: int, expected: str
):
    recipe = write_recipe(tmp_path, "shapes")
    options = [word for setting in settings for word in ("--set", setting)]
    arguments = ("--recipe", recipe, "--data", synth, "--out", tmp_path / "run", *options)
    _fails(code, expected, "finetune", *arguments)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_missing_recipe_data_set_or_checkpoint_is_one_line(synth: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path, "shapes")
    out = ("--out", tmp_path / "run")
    _fails(2, "give a TOML file", "finetune", "--recipe", tmp_path / "x", "--data", synth, *out)
    _fails(4, "train.jsonl", "finetune", "--recipe", recipe, "--data", tmp_path, *out)
    _fails(
        3,
        "no checkpoint directory",
        *("finetune", "--recipe", recipe, "--data", synth, *out, "--init", tmp_path / "x"),
    )


def test_a_run_that_diverges_is_one_line(synth: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path, "shapes")
    settings = ("--set", "optim.learning_rate=1e30", "--set", QUIET)
    out = ("--out", tmp_path / "run")
    _fails(1, "is nan at", "finetune", "--recipe", recipe, "--data", synth, *out, *settings)


def test_an_interrupted_run_says_how_to_go_on(
    synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("umd_edge_train.run.Run.train_step", interrupted)
    recipe, out = write_recipe(tmp_path, "shapes"), tmp_path / "run"
    done = _run("finetune", "--recipe", recipe, "--data", synth, "--out", out)
    assert done.exit_code not in (0, 2, 3, 4)
    assert "--resume goes on from the newest checkpoint" in done.stderr
    assert "Traceback" not in done.output
    monkeypatch.undo()
    again = ("--out", out, "--resume", "--set", "optim.epochs=2")
    done = _run("finetune", "--recipe", recipe, "--data", synth, *again)
    assert done.exit_code == 0, done.output


def test_a_full_disk_is_one_line(synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from umd_edge_train.history import History

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "history.jsonl")

    monkeypatch.setattr(History, "add", full)
    recipe = write_recipe(tmp_path, "shapes")
    line = _fails(
        1,
        "history.jsonl",
        *("finetune", "--recipe", recipe, "--data", synth, "--out", tmp_path / "run"),
    )
    assert os.strerror(errno.ENOSPC) in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("finetune",),
        ("finetune", "--recipe", "x"),
        ("evaluate", "x"),
        ("nonsense",),
        ("--threads", "0", "data", "check", "x"),
    ],
)
def test_a_wrong_call_shows_usage(arguments: tuple[str, ...]):
    done = _run(*arguments)
    assert done.exit_code == 2
    assert "Usage:" in done.output


# --- evaluate, report, pack ---------------------------------------


def test_evaluate_gives_metrics_as_json(trained: Path, synth: Path):
    manifest = synth / "shapes" / "test.jsonl"
    done = _run("evaluate", trained / "final", "--task", "shapes", "--data", manifest, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["task"] == "shapes"
    assert report["n"] == len(manifest.read_text(encoding="utf-8").splitlines())
    assert set(report["metrics"]["accuracy"]) == {"value", "low", "high", "n"}


def test_evaluate_gives_a_table_for_people(trained: Path, synth: Path):
    manifest = synth / "questions" / "val.jsonl"
    done = _run("evaluate", trained / "final", "--task", "vqa", "--data", manifest)
    assert done.exit_code == 0, done.output
    assert "closed_accuracy" in done.stdout
    assert "records" in done.stdout


def test_evaluate_reports_errors_as_one_line(trained: Path, synth: Path, tmp_path: Path):
    final, manifest = trained / "final", synth / "shapes" / "val.jsonl"
    data = ("--data", manifest)
    _fails(2, "this checkpoint has ['shapes', 'vqa']", "evaluate", final, "--task", "lungs", *data)
    _fails(3, "no checkpoint directory", "evaluate", tmp_path / "x", "--task", "shapes", *data)
    _fails(4, "cannot be read", "evaluate", final, "--task", "vqa", "--data", tmp_path / "x")
    told = _fails(4, "fits task 'vqa'", "evaluate", final, "--task", "vqa", *data)
    assert str(manifest) in told
    assert told.endswith("Give records with image, question, answer")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"labels": ["disc"], "image": "gone.png"}\n{', encoding="utf-8")
    _fails(4, "broken.jsonl:2", "evaluate", final, "--task", "shapes", "--data", broken)
    broken.write_text('{"labels": ["disc"], "image": "gone.png"}\n', encoding="utf-8")
    _fails(4, "gone.png", "evaluate", final, "--task", "shapes", "--data", broken)
    broken.write_text('{"labels": ["cat"], "image": "gone.png"}\n', encoding="utf-8")
    _fails(4, "'cat'", "evaluate", final, "--task", "shapes", "--data", broken)


def test_a_look_at_the_test_split_must_be_logged(trained: Path, synth: Path, tmp_path: Path):
    final, log = trained / "final", tmp_path / "LOG.md"
    arguments = ("report", final, "--data", synth, "--split", "test")
    _fails(2, "must be logged", *arguments)
    done = _run(*arguments, "--log", log)
    assert done.exit_code == 0, done.output
    text = log.read_text(encoding="utf-8")
    assert "test split" in text
    assert "shapes/shapes" in text
    _run(*arguments, "--log", log)
    assert log.read_text(encoding="utf-8").count("test split") == 2


def test_pack_leaves_a_checkpoint_without_state(trained: Path, synth: Path, tmp_path: Path):
    newest = sorted((trained / "checkpoints").iterdir())[-1]
    done = _run("pack", newest, "--out", tmp_path / "packed")
    assert done.exit_code == 0, done.output
    assert "state" not in {path.name for path in (tmp_path / "packed").iterdir()}
    manifest = synth / "shapes" / "val.jsonl"
    arguments = ("--task", "shapes", "--data", manifest, "--json")
    before, after = (
        json.loads(_run("evaluate", path, *arguments).stdout)["metrics"]["accuracy"]["value"]
        for path in (newest, tmp_path / "packed")
    )
    assert before == after


def test_the_data_commands_and_the_help_start_without_torch():
    code = (
        "import sys; from click.testing import CliRunner; from umd_edge_train.cli import main; "
        "done = CliRunner().invoke(main, ['data', 'check', '/no/such/folder']); "
        "assert done.exit_code not in (0, 1), done.output; "
        "assert CliRunner().invoke(main, ['finetune', '--help']).exit_code == 0; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
