from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from support.training import write_recipe
from umd_edge.errors import DataError, UsageError
from umd_edge_train import checkpoint as checkpoint_module
from umd_edge_train.batches import epoch_batches
from umd_edge_train.checkpoint import CheckpointError, load_checkpoint, load_weights
from umd_edge_train.finetuning import FineTuning, TrainingDivergedError, finetune
from umd_edge_train.models import UMDModel
from umd_edge_train.recipe import Recipe, load_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
# No evaluation on the way: it takes as long as the training.
QUIET = "run.evaluate_every_epochs=1000"


def _recipe(folder: Path, *parts: str, settings: tuple[str, ...] = ()) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    return load_recipe(write_recipe(folder, *parts), (QUIET, *settings))


def _losses(out: Path) -> dict[int, dict[str, float]]:
    lines = (out / "history.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record["step"] for record in records if record["kind"] == "train"]
    assert steps == sorted(set(steps))
    return {record["step"]: record["losses"] for record in records if record["kind"] == "train"}


def _same_weights(one: Path, other: Path) -> bool:
    a, b = load_weights(one), load_weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(synth: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = _recipe(folder, "questions", "values")
    finetune(recipe, synth, folder / "run")
    return recipe, folder / "run"


# --- what a run leaves behind -------------------------------------


def test_a_run_leaves_everything_behind(finished: tuple[Recipe, Path]):
    recipe, out = finished
    assert json.loads((out / "recipe.json").read_text()) == json.loads(json.dumps(recipe.to_dict()))
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["validation"]) == {"vqa", "values"}
    assert metrics["step"] == max(_losses(out))
    with Image.open(out / "curves.png") as curves:
        assert curves.format == "PNG"
        assert min(curves.size) > 300
    assert len(list((out / "checkpoints").iterdir())) <= 2
    assert not [file for file in out.rglob("*") if "tmp" in file.name or ".old" in file.name]
    assert "state" not in {file.name for file in (out / "final").iterdir()}


def test_the_final_checkpoint_says_what_it_is_made_of(finished: tuple[Recipe, Path]):
    recipe, out = finished
    found = load_checkpoint(out / "final")
    assert [task.name for task in found.tasks] == ["vqa", "values"]
    assert found.provenance["recipe"]["seed"] == recipe.seed
    assert found.provenance["validation"]
    for source in found.provenance["data"].values():
        assert source["licences"] == {"CC0-1.0": source["licences"]["CC0-1.0"]}
        assert source["non_commercial_records"] == 0
        assert len(source["manifests"]["train.jsonl"]) == 64
    marker = found.structured_fields[0]
    assert marker.name == "structured.marker_mg_l"
    assert 20 < marker.mean < 55


def test_the_same_recipe_gives_the_same_weights_and_another_seed_does_not(
    finished: tuple[Recipe, Path], synth: Path, tmp_path: Path
):
    _, out = finished
    for name, settings in (("again", ()), ("other", ("seed=1",))):
        recipe = _recipe(tmp_path / name, "questions", "values", settings=settings)
        finetune(recipe, synth, tmp_path / name / "run")
    assert _same_weights(out / "final", tmp_path / "again" / "run" / "final")
    assert _losses(out) == _losses(tmp_path / "again" / "run")
    assert not _same_weights(out / "final", tmp_path / "other" / "run" / "final")


# --- learning -----------------------------------------------------


def test_one_batch_is_learnt_by_heart(synth: Path, tmp_path: Path):
    settings = ("optim.learning_rate=0.01", "optim.warmup_fraction=0.0", "optim.epochs=100")
    off = tuple(
        f"augment.{name}=0" for name in ("scale", "aspect", "brightness", "contrast", "colour")
    )
    hide = ("optim.structured_dropout=0", "optim.structured_dropout_all=0")
    recipe = _recipe(tmp_path, "questions", "values", settings=settings + off + hide)
    run = FineTuning(recipe, synth, tmp_path / "run", None)
    run.load_pictures()
    batch = next(
        epoch_batches(run.pictures, run.store.index, run.tokenizer, run.optim, recipe.seed, 0)
    )
    losses = [run.train_step(batch)["loss"] for _ in range(120)]
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.slow
def test_a_learnable_task_is_learnt(tmp_path: Path):
    """Which of four shapes is shown: chance is 0.25."""
    from umd_edge_train.synth import synthesise

    synthesise(tmp_path / "data", images=320, size=48)
    settings = (
        "optim.epochs=30",
        "optim.learning_rate=3e-3",
        "optim.average_decay=0.98",
        "optim.images_per_batch=16",
        "model.vision.stem_channels=[16, 16, 32, 16]",
        "augment.scale=0.1",
        "augment.aspect=0.0",
    )
    recipe = _recipe(tmp_path, "shapes", settings=settings)
    metrics = finetune(recipe, tmp_path / "data", tmp_path / "run")
    assert metrics["shapes"]["accuracy"]["value"] > 0.6


def test_a_picture_is_encoded_once_a_step_for_all_its_questions(
    synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pictures: list[int] = []
    questions: list[int] = []
    encode_image, encode_text = UMDModel.encode_image, UMDModel.encode_text

    def count_images(self: UMDModel, pixel_values: torch.Tensor) -> Any:
        pictures.append(len(pixel_values))
        return encode_image(self, pixel_values)

    def count_texts(self: UMDModel, input_ids: torch.Tensor, mask: torch.Tensor) -> Any:
        questions.append(len(input_ids))
        return encode_text(self, input_ids, mask)

    monkeypatch.setattr(UMDModel, "encode_image", count_images)
    monkeypatch.setattr(UMDModel, "encode_text", count_texts)
    recipe = _recipe(tmp_path, "questions", settings=("optim.texts_per_image=4",))
    run = FineTuning(recipe, synth, tmp_path / "run", None)
    run.load_pictures()
    batches = list(epoch_batches(run.pictures, run.store.index, run.tokenizer, run.optim, 0, 0))
    for batch in batches:
        run.train_step(batch)
    assert pictures == [len(set(batch.rows)) for batch in batches]
    assert questions == [len(batch.examples) for batch in batches]
    assert sum(questions) > 3 * sum(pictures)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_retrieval_task_trains(synth: Path, tmp_path: Path, precision: str):
    settings = (
        f"optim.precision={precision}",
        "optim.epochs=6",
        "optim.learning_rate=0.005",
        "optim.warmup_fraction=0.0",
    )
    recipe = _recipe(tmp_path, "captions", settings=settings)
    metrics = finetune(recipe, synth, tmp_path / "run")
    assert 0.0 <= metrics["captions"]["image_to_text_r10"]["value"] <= 1.0
    losses = [record["captions_loss"] for _, record in sorted(_losses(tmp_path / "run").items())]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert load_checkpoint(tmp_path / "run" / "final").tasks[0].kind == "retrieval"


def test_the_papers_vqa_loss_trains(synth: Path, tmp_path: Path):
    path = write_recipe(tmp_path, "questions")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('kind = "vqa"', 'kind = "vqa"\nloss = "bce"'), encoding="utf-8")
    finetune(load_recipe(path, (QUIET, "optim.epochs=1")), synth, tmp_path / "run")
    answers = len(load_checkpoint(tmp_path / "run" / "final").tasks[0].outputs)
    first = _losses(tmp_path / "run")[1]["vqa_loss"]
    assert first == pytest.approx(answers * 0.693, rel=0.1)  # summed, not averaged


# --- resuming -----------------------------------------------------

_KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from umd_edge_train.finetuning import finetune
from umd_edge_train.recipe import load_recipe
recipe, data, out, *settings = sys.argv[1:]
finetune(load_recipe(recipe, tuple(settings)), Path(data), Path(out))
"""


def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(
    finished: tuple[Recipe, Path], synth: Path, tmp_path: Path
):
    recipe, unbroken = finished
    path, out = write_recipe(tmp_path, "questions", "values"), tmp_path / "run"
    total = max(_losses(unbroken))
    lines = random.SystemRandom().randint(1, total - 1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _KILLED, str(path), str(synth), str(out), QUIET]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        history, deadline = out / "history.jsonl", time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if history.exists() and history.read_bytes().count(b"\n") >= lines:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (out / "final").exists()
    finetune(recipe, synth, out, resume=True)
    assert _losses(out) == _losses(unbroken), f"killed after line {lines}"
    assert _same_weights(out / "final", unbroken / "final"), f"killed after line {lines}"


def _stop_at(step: int):
    def on_step(done: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize("step", [1, 3, 8])
def test_a_run_that_was_stopped_goes_on_at_its_last_checkpoint(
    finished: tuple[Recipe, Path], synth: Path, tmp_path: Path, step: int
):
    """Before any checkpoint, right at one, and in the middle of the second epoch."""
    recipe, unbroken = finished
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune(recipe, synth, out, on_step=_stop_at(step))
    with (out / "history.jsonl").open("a", encoding="utf-8") as handle:
        handle.write('{"step": 99, "ki')  # a line that was cut short
    seen: list[int] = []
    finetune(recipe, synth, out, resume=True, on_step=seen.append)
    assert seen[0] == step // 3 * 3 + 1
    assert _losses(out) == _losses(unbroken)
    assert _same_weights(out / "final", unbroken / "final")


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(
    finished: tuple[Recipe, Path], synth: Path
):
    recipe, out = finished
    before = load_weights(out / "final")
    finetune(recipe, synth, out, resume=True)
    after = load_weights(out / "final")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_resuming_with_another_recipe_is_refused(finished, synth: Path, tmp_path: Path):
    _, out = finished
    other = _recipe(tmp_path, "questions", "values", settings=("optim.learning_rate=0.5",))
    with pytest.raises(UsageError, match="differs from the recipe given"):
        finetune(other, synth, out, resume=True)


def test_resuming_with_other_data_is_refused(finished, synth: Path, tmp_path: Path):
    from umd_edge_train.synth import synthesise

    recipe, out = finished
    synthesise(tmp_path / "other", images=48, size=32, seed=5)
    with pytest.raises(UsageError, match="has other data, another model or another vocabulary"):
        finetune(recipe, tmp_path / "other", out, resume=True)


def test_resuming_a_damaged_checkpoint_is_refused(finished, synth: Path, tmp_path: Path):
    import shutil

    recipe, out = finished
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    newest = sorted((copy / "checkpoints").iterdir())[-1]
    (newest / "state" / "optimizer.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="damaged"):
        finetune(recipe, synth, copy, resume=True)


def test_a_second_run_in_the_same_folder_is_refused(finished: tuple[Recipe, Path], synth: Path):
    recipe, out = finished
    before = (out / "history.jsonl").read_bytes()
    with pytest.raises(UsageError, match="already holds a run; continue it with --resume"):
        finetune(recipe, synth, out)
    assert (out / "history.jsonl").read_bytes() == before


# --- failures -----------------------------------------------------


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_that_diverges_stops_and_keeps_its_checkpoint(
    synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
):
    recipe = _recipe(tmp_path, "shapes", settings=("run.checkpoint_every_steps=2",))
    step = FineTuning.train_step

    def poisoned(self: FineTuning, batch: Any) -> dict[str, float]:
        if self.step == 3:
            bias = self.model.task_heads["logits_shapes"].layers[-1].bias
            if what == "loss":
                bias.data[0] = float("nan")
            else:
                bias.register_hook(lambda gradient: gradient * float("inf"))
        return step(self, batch)

    monkeypatch.setattr(FineTuning, "train_step", poisoned)
    with pytest.raises(TrainingDivergedError, match=f"the {what} is .* at step 4") as caught:
        finetune(recipe, synth, tmp_path / "run")
    assert caught.value.exit_code == 1
    assert "--init" in str(caught.value)
    kept = list((tmp_path / "run" / "checkpoints").iterdir())
    assert [folder.name for folder in kept] == ["step-0000002"]
    state = load_checkpoint(kept[0]).model.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_or_closed_disk_keeps_the_earlier_checkpoint_whole(
    synth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    recipe = _recipe(tmp_path, "shapes", settings=("run.checkpoint_every_steps=2",))
    write = Path.write_bytes
    written: list[Path] = []

    def filling_up(self: Path, data: bytes) -> int:
        written.append(self)
        if "step-0000004" in str(self) and self.name.startswith("optimizer"):
            write(self, data[: len(data) // 2])
            raise OSError(code, os.strerror(code))
        return write(self, data)

    monkeypatch.setattr(checkpoint_module.Path, "write_bytes", filling_up)
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        finetune(recipe, synth, tmp_path / "run")
    assert os.strerror(code) in str(caught.value)
    assert written
    monkeypatch.undo()
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-0000002"]
    seen: list[int] = []
    finetune(recipe, synth, tmp_path / "run", resume=True, on_step=seen.append)
    assert seen[0] == 3


def test_too_few_pictures_are_refused(synth: Path, tmp_path: Path):
    folder = tmp_path / "data" / "shapes"
    folder.mkdir(parents=True)
    (folder / "images").symlink_to(synth / "shapes" / "images")
    lines = (synth / "shapes" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "train.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
    (folder / "val.jsonl").write_text(lines[1] + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 training pictures; at least 2"):
        finetune(_recipe(tmp_path, "shapes"), tmp_path / "data", tmp_path / "run")


def test_a_missing_data_set_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"train\.jsonl"):
        finetune(_recipe(tmp_path, "shapes"), tmp_path, tmp_path / "run")


# --- licences -----------------------------------------------------


def _marked(synth: Path, folder: Path, marks: dict[int, object]) -> set[str]:
    """Copy `shapes` with other `non_commercial` marks (None: left out); returns their pictures."""
    target = folder / "shapes"
    target.mkdir(parents=True)
    (target / "images").symlink_to(synth / "shapes" / "images")
    (target / "val.jsonl").write_bytes((synth / "shapes" / "val.jsonl").read_bytes())
    marked, lines = set(), []
    source = (synth / "shapes" / "train.jsonl").read_text(encoding="utf-8")
    for number, line in enumerate(source.splitlines()):
        record = json.loads(line)
        if number in marks:
            marked.add(record["image"])
            record["non_commercial"] = marks[number]
            if marks[number] is None:
                del record["non_commercial"]
        lines.append(json.dumps(record))
    (target / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return marked


def test_records_that_are_not_free_never_reach_training(synth: Path, tmp_path: Path):
    marked = _marked(synth, tmp_path / "data", {0: True, 3: None, 4: "no", 7: True})
    assert len(marked) == 4
    recipe = _recipe(tmp_path, "shapes")
    run = FineTuning(recipe, tmp_path / "data", tmp_path / "run", None)
    used = {f"images/{picture.path.name}" for picture in run.pictures}
    assert used
    assert not used & marked
    source = run.checkpoint.provenance["data"]["shapes"]
    assert source["refused_non_commercial_records"] == 4
    assert source["non_commercial_records"] == 0


def test_records_that_are_not_free_take_part_only_when_asked_for_and_are_counted(
    synth: Path, tmp_path: Path
):
    marked = _marked(synth, tmp_path / "data", {0: True, 3: None})
    recipe = _recipe(tmp_path, "shapes", settings=("allow_non_commercial=true",))
    run = FineTuning(recipe, tmp_path / "data", tmp_path / "run", None)
    used = {f"images/{picture.path.name}" for picture in run.pictures}
    assert marked <= used
    assert run.checkpoint.provenance["data"]["shapes"]["non_commercial_records"] == 2


def test_a_data_set_without_free_records_is_refused(synth: Path, tmp_path: Path):
    _marked(synth, tmp_path / "data", dict.fromkeys(range(1000), True))
    with pytest.raises(DataError, match="no record may be used for training"):
        finetune(_recipe(tmp_path, "shapes"), tmp_path / "data", tmp_path / "run")


# --- starting from another checkpoint -----------------------------


def test_init_keeps_answers_words_and_weights(finished, synth: Path, tmp_path: Path):
    _, out = finished
    parent = load_checkpoint(out / "final")
    # Other records would give other answers, in another order.
    data = tmp_path / "data"
    (data / "questions").mkdir(parents=True)
    (data / "questions" / "images").symlink_to(synth / "questions" / "images")
    for split in ("train", "val"):
        lines = (synth / "questions" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        few = [line for line in lines if json.loads(line)["question_type"] != "count"]
        (data / "questions" / f"{split}.jsonl").write_text("\n".join(few), encoding="utf-8")
    recipe = _recipe(tmp_path, "questions")
    run = FineTuning(recipe, data, tmp_path / "run", out / "final")
    assert run.corpus.tasks[0].outputs == parent.tasks[0].outputs
    assert run.checkpoint.tokenizer_json == parent.tokenizer_json
    assert run.checkpoint.provenance["initialised_from"] == "final"
    own, given = run.model.state_dict(), parent.model.state_dict()
    changed = {name for name in own if not torch.equal(own[name], given[name])}
    # There are no structured fields here, so their part starts anew; all else is the parent's.
    assert changed
    assert all(name.startswith("fusion.structured.") for name in changed)


def test_init_starts_the_head_of_another_task_anew(finished, synth: Path, tmp_path: Path):
    _, out = finished
    run = FineTuning(_recipe(tmp_path, "shapes"), synth, tmp_path / "run", out / "final")
    own, given = run.model.state_dict(), load_weights(out / "final")
    assert "task_heads.logits_shapes.layers.0.weight" in own
    assert torch.equal(own["match_head.weight"], given["match_head.weight"])


def test_init_fits_the_positions_to_another_picture_size(finished, synth: Path, tmp_path: Path):
    _, out = finished
    given = load_weights(out / "final")
    name = next(key for key in given if key.startswith("vision") and "position_embed" in key)
    recipe = _recipe(tmp_path, "shapes", settings=("model.image_size=64",))
    run = FineTuning(recipe, synth, tmp_path / "run", out / "final")
    rows, table = given[name][0], run.model.state_dict()[name][0]
    assert table.shape == (1 + 4 * 4, rows.shape[1]) != rows.shape
    assert torch.equal(table[0], rows[0])
    # corners lie nearest to the corners of the smaller grid
    side = round((len(rows) - 1) ** 0.5)
    for new, old in ((1, 1), (4, side), (len(table) - 1, len(rows) - 1)):
        near = torch.cosine_similarity(table[new], rows[1:])
        assert near.argmax() == old - 1


def test_init_from_a_model_of_other_sizes_is_refused(finished, synth: Path, tmp_path: Path):
    _, out = finished
    recipe = _recipe(tmp_path, "shapes", settings=("model.fusion.intermediate_size=48",))
    with pytest.raises(CheckpointError, match=r"does not fit this model: \d+ tensors differ") as e:
        FineTuning(recipe, synth, tmp_path / "run", out / "final")
    assert "[model]" in str(e.value)


def test_init_from_nothing_is_refused(synth: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        finetune(_recipe(tmp_path, "shapes"), synth, tmp_path / "run", init=tmp_path / "nothing")


# --- cross-validation ---------------------------------------------


def test_folds_hold_out_every_patient_once(synth: Path, tmp_path: Path):
    from umd_edge_train.corpus import load_corpus

    held_out: list[str] = []
    for fold in range(3):
        recipe = _recipe(tmp_path, "shapes", settings=("folds=3", f"fold={fold}"))
        corpus = load_corpus(recipe, synth)
        (train,), (validation,) = corpus.train[0], corpus.validation[0]
        groups = [{example.group for example in part.examples} for part in (train, validation)]
        assert not groups[0] & groups[1]
        held_out += [example.id for example in validation.examples]
    lines = [
        json.loads(line)["id"]
        for split in ("train", "val")
        for line in (synth / "shapes" / f"{split}.jsonl").read_text().splitlines()
    ]
    assert sorted(held_out) == sorted(lines)


def test_a_numeric_field_that_holds_words_is_refused(synth: Path, tmp_path: Path):
    path = write_recipe(tmp_path, "values")
    text = path.read_text(encoding="utf-8")
    text = text.replace('"structured.ward"\nkind = "categorical"', '"sex"\nkind = "numeric"')
    path.write_text(text.replace(', "structured.ward"]', ', "sex"]'), encoding="utf-8")
    with pytest.raises(DataError, match="'sex': some training records hold no number"):
        finetune(load_recipe(path), synth, tmp_path / "run")


def test_a_field_that_no_record_has_is_refused(synth: Path, tmp_path: Path):
    path = write_recipe(tmp_path, "values")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("structured.ward", "structured.wart"), encoding="utf-8")
    with pytest.raises(DataError, match=r"'structured\.wart' is in no training record"):
        finetune(load_recipe(path), synth, tmp_path / "run")
