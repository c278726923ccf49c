"""Planted defects in a checkpoint, its data or the disk: refused, and nothing half-written."""

from __future__ import annotations

import errno
import json
import shutil
import struct
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.export_fixtures import TASKS, make_records
from umd_edge.errors import DataError
from umd_edge_export.bundle import build_bundle
from umd_edge_export.errors import ExportError
from umd_edge_export.samples import choose_samples, read_free_records
from umd_edge_export.weights import check_weights
from umd_edge_train.checkpoint import CheckpointError, load_checkpoint
from umd_edge_train.hashes import SUMS

WEIGHTS = "model.safetensors"


@pytest.fixture
def copied(checkpoint_dir, tmp_path):
    """A copy of the checkpoint to damage, without its list of hashes."""
    return shutil.copytree(checkpoint_dir, tmp_path / "copied", ignore=shutil.ignore_patterns(SUMS))


def _refused(error, checkpoint, data, folder, match, **options):
    out = folder / "model.umd"
    out.write_bytes(b"the bundle of yesterday")
    with pytest.raises(error, match=match):
        build_bundle(checkpoint, data, out, **options)
    assert out.read_bytes() == b"the bundle of yesterday"
    left = {item.name for item in folder.iterdir()} - {"model.umd", "copied", "data"}
    assert left == set()


def _change(folder, name, value):
    weights = load_file(str(folder / WEIGHTS))
    weights[name].view(-1)[0] = value
    save_file(weights, str(folder / WEIGHTS))


def _flip(path, offset, bit):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(bytes(data))


def _offset(path, name):
    """Where the bytes of a tensor begin: 8 bytes of length, then a JSON header."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return 8 + size + json.loads(data[8 : 8 + size])[name]["data_offsets"][0]


@pytest.mark.parametrize(
    ("value", "match"),
    [(float("nan"), "not finite"), (float("-inf"), "not finite"), (1e30, "far beyond the others")],
)
def test_an_implausible_weight_is_refused(copied, records, tmp_path, value, match):
    _change(copied, "match_head.weight", value)
    _refused(ExportError, copied, [records], tmp_path, f"match_head.weight.*{match}")


@pytest.mark.parametrize("factor", [2**16, 2**64])
def test_a_weight_that_a_high_bit_made_large_is_refused(checkpoint_dir, factor):
    checkpoint = load_checkpoint(checkpoint_dir)
    check_weights(checkpoint)  # negative control
    with torch.no_grad():
        weight = checkpoint.model.vision_encoder.stem.layers[1].convolution.weight
        weight.view(-1)[3] = 0.2 * factor
    with pytest.raises(ExportError, match="far beyond"):
        check_weights(checkpoint)


@pytest.mark.parametrize("times", [4.0, 40.0])
def test_a_single_weight_that_stands_out_is_refused(checkpoint_dir, times):
    checkpoint = load_checkpoint(checkpoint_dir)
    with torch.no_grad():
        weight = checkpoint.model.vision_encoder.stem.layers[1].convolution.weight
        weight.mul_(1.0 / weight.abs().max())
        weight.view(-1)[3] = -times
        if times < 16:  # others do as much in trained models
            check_weights(checkpoint)
            return
        with pytest.raises(ExportError, match="magnitude 40"):
            check_weights(checkpoint)
        weight.view(-1)[4] = 30.0  # not alone: the tensor is like that
        check_weights(checkpoint)


def test_with_hashes_a_flipped_low_bit_is_refused(checkpoint_dir, copied, records, tmp_path):
    shutil.copy(checkpoint_dir / SUMS, copied)
    _flip(copied / WEIGHTS, _offset(copied / WEIGHTS, "match_head.weight"), 0)
    _refused(CheckpointError, copied, [records], tmp_path, "SHA-256 differs")


def test_without_hashes_a_flipped_high_bit_is_refused_and_a_low_one_cannot_be(copied):
    place = _offset(copied / WEIGHTS, "match_head.weight")
    _flip(copied / WEIGHTS, place, 0)
    check_weights(load_checkpoint(copied))
    _flip(copied / WEIGHTS, place + 3, 6)  # the highest bit of the exponent
    with pytest.raises(ExportError, match=r"match_head\.weight"):
        check_weights(load_checkpoint(copied))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "does not list"),
        ("0" * 64 + "  config.json\n", "does not list"),
        ("no sum\n", "line 1"),
        ("0" * 64 + f"  ../{WEIGHTS}\n", "line 1"),
        ("0" * 64 + f"  {WEIGHTS}\n", "SHA-256 differs"),
        ("0" * 64 + f"  {WEIGHTS}\n" + "0" * 64 + "  gone.json\n", "SHA-256 differs|missing"),
    ],
)
def test_a_list_of_hashes_that_does_not_fit_is_refused(copied, records, tmp_path, text, match):
    (copied / SUMS).write_text(text)
    _refused(CheckpointError, copied, [records], tmp_path, match)


def test_a_truncated_checkpoint_is_refused(copied, records, tmp_path):
    data = (copied / WEIGHTS).read_bytes()
    (copied / WEIGHTS).write_bytes(data[: len(data) // 2])
    _refused(CheckpointError, copied, [records], tmp_path, "damaged")


def test_a_checkpoint_without_its_date_is_refused(copied, records, tmp_path):
    (copied / "provenance.json").write_text("{}")
    _refused(ExportError, copied, [records], tmp_path, "created")


def _model(*tasks):
    """What choosing records needs of a checkpoint."""
    return SimpleNamespace(tasks=tasks, structured_fields=())


def _choose(path, *tasks):
    files = read_free_records([path], allow_non_commercial=False)
    return choose_samples(files, _model(*tasks), 12)


def _only(records, folder, modality):
    """The records of one kind alone."""
    folder.mkdir()
    kept = [line for line in records.read_text().splitlines() if f'"{modality}"' in line]
    path = folder / "one.jsonl"
    path.write_text("\n".join(kept) + "\n")
    return path


def test_photographs_for_a_chest_bundle_are_refused(records, tmp_path):
    photographs = _only(records, tmp_path / "data", "photo")
    with pytest.raises(DataError, match=r"no record that one of the tasks \['chest-xray'\]"):
        _choose(photographs, TASKS[1])
    assert len(_choose(_only(records, tmp_path / "films", "X-ray"), TASKS[1])) == 6


def test_data_of_one_task_for_a_bundle_of_several_are_refused(checkpoint_dir, records, tmp_path):
    films = _only(records, tmp_path / "data", "X-ray")
    match = r"task 'vqa' can read \(it fits \['chest-xray'\]\)"
    _refused(DataError, checkpoint_dir, [films], tmp_path, match)


def test_text_without_pictures_is_refused(tmp_path):
    data = tmp_path / "data.jsonl"
    line = {"id": "1", "question": "is it?", "answer": "yes", "non_commercial": False}
    data.write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match="no `image`"):
        _choose(data, TASKS[0])


def test_range_data_that_fits_no_task_is_refused(checkpoint_dir, tmp_path):
    data = tmp_path / "data" / "train.jsonl"
    data.parent.mkdir()
    data.write_text('{"id": "1", "image": "a.png", "non_commercial": false}\n')
    _refused(DataError, checkpoint_dir, [data], tmp_path, "no record that one of the tasks")


def test_missing_range_data_is_refused(checkpoint_dir, tmp_path):
    _refused(DataError, checkpoint_dir, [tmp_path / "no.jsonl"], tmp_path, "cannot be read")


def test_a_missing_picture_is_refused(checkpoint_dir, tmp_path):
    data = make_records(tmp_path / "data")
    (data.parent / "000.png").unlink()
    _refused(DataError, checkpoint_dir, [data], tmp_path, "train.jsonl:1", variants=("fp32",))


@pytest.fixture
def traced(models, monkeypatch):
    """The graphs of the session's checkpoint, traced once."""
    monkeypatch.setattr(
        "umd_edge_export.bundle.export_graphs", lambda checkpoint, pictures=(): models
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_and_leaves_nothing(
    traced, checkpoint_dir, records, tmp_path, monkeypatch, code
):
    def full(*_):
        raise OSError(code, "the system's words")

    monkeypatch.setattr("umd_edge._bundle.os.fsync", full)
    _refused(
        ExportError,
        checkpoint_dir,
        [records],
        tmp_path,
        r"model\.umd' was not written \(the system's words\); free some space",
        variants=("fp32",),
    )


def test_another_error_of_the_system_is_not_called_a_full_disk(
    traced, checkpoint_dir, records, tmp_path, monkeypatch
):
    def broken(*_):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr("umd_edge._bundle.os.fsync", broken)
    _refused(OSError, checkpoint_dir, [records], tmp_path, "input/output", variants=("fp32",))


class _Odd(torch.nn.Module):
    """A layer that ONNX has no operator for."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, joint):
        return torch.lgamma(self.inner(joint))


def test_an_unsupported_layer_is_refused_by_name(checkpoint_dir, records, tmp_path, monkeypatch):
    checkpoint = load_checkpoint(checkpoint_dir)
    heads = checkpoint.model.task_heads
    heads["logits_vqa"] = _Odd(heads["logits_vqa"])
    monkeypatch.setattr("umd_edge_export.bundle.load_checkpoint", lambda path: checkpoint)
    _refused(ExportError, checkpoint_dir, [records], tmp_path, r"lgamma' has no form in ONNX")
