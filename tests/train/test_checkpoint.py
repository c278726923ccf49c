from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from support.training import TASKS, minute_checkpoint, minute_config, minute_model
from umd_edge._claims import claim_folder
from umd_edge_train import checkpoint as module
from umd_edge_train import folder as folders
from umd_edge_train.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_weights,
    pack_checkpoint,
    read_settings,
    save_checkpoint,
    save_weights,
    settings_of,
    write_directory_atomically,
)
from umd_edge_train.hashes import SUMS, write_hashes

MIB = 2**20


@pytest.fixture(scope="module")
def original() -> Checkpoint:
    return minute_checkpoint()


@pytest.fixture
def saved(original: Checkpoint, tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    folder.mkdir()
    save_checkpoint(folder, original, original.model.state_dict())
    return folder


@pytest.fixture
def in_parts(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same checkpoint in several parts."""
    tensors = load_weights(saved)
    (saved / "model.safetensors").unlink()
    monkeypatch.setattr(module, "_PART_BYTES", 30_000)
    save_weights(saved, tensors)
    write_hashes(saved)
    assert len(list(saved.glob("model-*"))) > 2
    return saved


def _edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(value)), encoding="utf-8")


def test_round_trip(original: Checkpoint, saved: Path):
    loaded = load_checkpoint(saved)
    assert not loaded.model.training
    assert settings_of(loaded) == settings_of(original) == read_settings(saved)
    assert loaded.provenance == original.provenance
    own, got = original.model.state_dict(), loaded.model.state_dict()
    assert own.keys() == got.keys()
    assert all(torch.equal(own[name], got[name]) for name in own)
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.model.encode_image(pixels)[0], original.model.encode_image(pixels)[0])


def test_a_changed_weight_is_seen(original: Checkpoint, saved: Path):
    tensors = load_weights(saved)
    tensors["match_head.bias"] += 1e-6
    save_weights(saved, tensors)
    write_hashes(saved)
    got = load_checkpoint(saved).model.state_dict()
    own = original.model.state_dict()
    assert [name for name in own if not torch.equal(own[name], got[name])] == ["match_head.bias"]


def test_loading_leaves_the_random_state_alone(saved: Path):
    before = torch.get_rng_state()
    load_checkpoint(saved)
    assert torch.equal(before, torch.get_rng_state())


def test_the_same_checkpoint_gives_the_same_bytes(
    original: Checkpoint, saved: Path, tmp_path: Path
):
    again = tmp_path / "again"
    again.mkdir()
    save_checkpoint(again, original, original.model.state_dict())
    for file in saved.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_a_checkpoint_holds_no_pickle(saved: Path):
    listed = {file.suffix or file.name for file in saved.iterdir()}
    assert listed == {".json", ".safetensors", SUMS}


def test_large_weights_are_split_into_parts_of_at_most_15_mib(tmp_path: Path):
    tensors = {f"layer.{i:03d}": torch.full((MIB,), float(i)) for i in range(10)}
    tensors["counter"] = torch.tensor(5)
    save_weights(tmp_path, tensors)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert len(files) == 4
    assert all(file.stat().st_size <= 15 * MIB for file in files)
    loaded = load_weights(tmp_path)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_tensor_larger_than_a_part_has_its_own(tmp_path: Path):
    tensors = {"a": torch.zeros(2), "b": torch.ones(4 * MIB), "c": torch.zeros(2)}
    save_weights(tmp_path, tensors)
    assert len(list(tmp_path.iterdir())) == 3
    assert load_weights(tmp_path).keys() == tensors.keys()


def test_parts_load_as_one(original: Checkpoint, in_parts: Path):
    got = load_checkpoint(in_parts).model.state_dict()
    assert all(torch.equal(got[name], t) for name, t in original.model.state_dict().items())


def test_packed_weights_are_close_and_smaller(saved: Path, tmp_path: Path):
    loaded = load_checkpoint(saved)
    pack_checkpoint(loaded, tmp_path / "packed")
    packed = load_checkpoint(tmp_path / "packed")
    assert settings_of(packed) == settings_of(loaded)
    size = {f: (f / "model.safetensors").stat().st_size for f in (saved, tmp_path / "packed")}
    assert size[tmp_path / "packed"] < 0.75 * size[saved]
    for name, tensor in packed.model.state_dict().items():
        torch.testing.assert_close(
            tensor, loaded.model.state_dict()[name], rtol=2**-11, atol=1e-7, msg=name
        )


# --- damage ---------------------------------------


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tasks.json", "tokenizer.json", "provenance.json"]
)
def test_a_missing_file_is_named(saved: Path, name: str):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(saved)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_weights_are_damaged(saved: Path, keep: int):
    (saved / SUMS).unlink()
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", ["config.json", "tasks.json", "provenance.json"])
def test_truncated_json_is_damaged(saved: Path, name: str):
    text = (saved / name).read_text(encoding="utf-8")
    (saved / name).write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{name}.*no valid JSON"):
        load_checkpoint(saved)


def test_a_missing_part_is_reported(in_parts: Path):
    sorted(in_parts.glob("model-*"))[1].unlink()
    with pytest.raises(CheckpointError, match="parts of model are there"):
        load_checkpoint(in_parts)


def test_a_single_part_that_is_left_is_reported(in_parts: Path):
    for part in sorted(in_parts.glob("model-*"))[1:]:
        part.unlink()
    with pytest.raises(CheckpointError, match="1 of "):
        load_checkpoint(in_parts)


@pytest.mark.parametrize("name", ["model-00009-of-00003", "model-one-of-three"])
def test_a_renamed_part_is_reported(in_parts: Path, name: str):
    sorted(in_parts.glob("model-*"))[0].rename(in_parts / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="misnamed"):
        load_checkpoint(in_parts)


def test_a_renamed_tensor_does_not_fit_and_the_message_is_one_line(saved: Path):
    tensors = load_weights(saved)
    tensors["stranger"] = tensors.pop("match_head.bias")
    save_weights(saved, tensors)
    write_hashes(saved)
    with pytest.raises(CheckpointError, match="2 tensors differ, such as") as e:
        load_checkpoint(saved)
    assert "\n" not in str(e.value)


def test_weights_of_another_size_do_not_fit(original: Checkpoint, saved: Path, tmp_path: Path):
    other = minute_model(minute_config(fusion__intermediate_size=48))
    save_weights(saved, other.state_dict())
    write_hashes(saved)
    with pytest.raises(CheckpointError, match="weights do not fit") as caught:
        load_checkpoint(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [2, 0, None, "1"])
def test_another_format_is_refused(saved: Path, version: object):
    _edit(saved / "config.json", lambda config: {**config, "format_version": version})
    with pytest.raises(CheckpointError, match="this version reads 1"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", lambda c: [c]),
        ("config.json", lambda c: {k: v for k, v in c.items() if k != "model"}),
        ("config.json", lambda c: {k: v for k, v in c.items() if k != "structured_fields"}),
        ("config.json", lambda c: {**c, "model": 3}),
        ("config.json", lambda c: {**c, "model": {**c["model"], "colour": "red"}}),
        ("config.json", lambda c: {**c, "tokenizer": {}}),
        ("config.json", lambda c: {**c, "preprocessing": {"height": 32}}),
        ("tasks.json", lambda tasks: 7),
        ("tasks.json", lambda tasks: [{"name": "a"}]),
    ],
)
def test_settings_that_describe_no_model_are_refused(saved: Path, name: str, change: Any):
    _edit(saved / name, change)
    with pytest.raises(CheckpointError):
        load_checkpoint(saved)


@pytest.mark.parametrize("kind", ["nothing", "file"])
def test_what_is_no_directory_is_refused(tmp_path: Path, kind: str):
    path = tmp_path / "x"
    if kind == "file":
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        load_checkpoint(path)


# --- replacing ---------------------------------------


def _fill(text: str):
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text(text, encoding="utf-8")

    return write


def _listing(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_directory_is_replaced_whole(tmp_path: Path):
    target = tmp_path / "deep" / "final"
    write_directory_atomically(target, _fill("one"))
    write_directory_atomically(target, _fill("two"))
    assert (target / "a.txt").read_text() == "two"
    assert _listing(target.parent) == ["final"]


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), PermissionError(errno.EACCES, "denied")],
)
def test_a_failed_write_keeps_the_old_directory_and_leaves_no_rubbish(
    tmp_path: Path, failure: OSError
):
    target = tmp_path / "final"
    write_directory_atomically(target, _fill("one"))

    def fail(folder: Path) -> None:
        _fill("half")(folder)
        raise failure

    with pytest.raises(CheckpointError, match="what was saved before is kept") as caught:
        write_directory_atomically(target, fail)
    assert str(failure.strerror) in str(caught.value)
    assert (target / "a.txt").read_text() == "one"
    assert _listing(tmp_path) == ["final"]


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that cannot exchange two names in one step."""
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)


def test_a_directory_is_replaced_whole_without_an_exchange(tmp_path: Path, no_exchange: None):
    test_a_directory_is_replaced_whole(tmp_path)


def test_a_failure_between_the_two_renames_brings_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_exchange: None
):
    target = tmp_path / "final"
    write_directory_atomically(target, _fill("one"))
    rename, calls = os.rename, []

    def second_fails(source: Any, destination: Any) -> None:
        calls.append(destination)
        if len(calls) == 2:
            raise OSError(errno.EIO, "i/o error")
        rename(source, destination)

    monkeypatch.setattr(folders.os, "rename", second_fails)
    with pytest.raises(CheckpointError):
        write_directory_atomically(target, _fill("two"))
    assert (target / "a.txt").read_text() == "one"
    assert _listing(tmp_path) == ["final"]


def test_a_writer_killed_between_the_two_renames_leaves_a_checkpoint_that_loads(
    saved: Path, no_exchange: None
):
    retired = saved.with_name(f".{saved.name}.old")
    saved.rename(retired)  # where the kill fell
    assert load_checkpoint(saved).tasks == TASKS
    write_directory_atomically(saved, _fill("new"))
    assert (saved / "a.txt").read_text() == "new"
    assert not retired.exists()


def test_what_a_killed_writer_left_goes_and_what_a_living_one_holds_stays(tmp_path: Path):
    dead, target = tmp_path / ".final.0.tmp", tmp_path / "final"
    (dead / "state").mkdir(parents=True)
    with claim_folder("final", tmp_path) as held:
        assert held == dead
        (held / "a.txt").write_text("half")
        write_directory_atomically(target, _fill("one"))
        assert _listing(held) == ["a.txt"]
    assert _listing(tmp_path) == ["final"]


def test_an_interruption_keeps_the_old_directory(tmp_path: Path):
    target = tmp_path / "final"
    write_directory_atomically(target, _fill("one"))

    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_directory_atomically(target, interrupted)
    assert (target / "a.txt").read_text() == "one"


def test_pretrained_sources_do_not_matter_to_a_saved_model(original: Checkpoint, saved: Path):
    def point_elsewhere(config: dict[str, Any]) -> dict[str, Any]:
        config["model"]["vision"]["pretrained"] = "/gone"
        return config

    _edit(saved / "config.json", point_elsewhere)
    assert read_settings(saved) == settings_of(original)
    assert load_checkpoint(saved).model.config.vision.pretrained == ""


def test_settings_differ_when_the_vocabulary_does(original: Checkpoint, saved: Path):
    shutil.copy(saved / "config.json", saved / "tokenizer.json")
    assert read_settings(saved) != settings_of(original)
    assert settings_of(replace(original, max_length=9)) != settings_of(original)
