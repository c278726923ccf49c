"""Teachers: what they read, what they say, and what their features are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.training import FIELDS, TASKS, minute_config, minute_model
from umd_edge._preprocess import PreprocessSpec
from umd_edge._records import build_examples, read_records
from umd_edge._task import TargetSpec, TaskSpec
from umd_edge.errors import UsageError
from umd_edge_export.distil_data import without_target
from umd_edge_export.distil_features import (
    FeatureHeads,
    patch_grid,
    recorded_relations,
)
from umd_edge_export.teachers import Ensemble, Teacher, teacher_sources
from umd_edge_train.checkpoint import Checkpoint, CheckpointError
from umd_edge_train.distillation_config import DistillationConfig
from umd_edge_train.tokenizer import train_wordpiece

SHAPE = replace(TASKS[0], target=TargetSpec(field="labels"))
VQA = TASKS[1]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    lines = []
    for index in range(4):
        Image.fromarray(np.full((32, 32, 3), 60 * index, np.uint8)).save(folder / f"{index}.png")
        record = {"id": f"r{index}", "patient_id": f"p{index}", "image": f"{index}.png"}
        if index < 3:
            record |= {"labels": [SHAPE.outputs[index]], "structured": {"marker": 20.0 * index}}
        else:
            record |= {"question": "is it a disc", "answer": "no"}
        lines.append(json.dumps(record))
    path = folder / "train.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return read_records(path)


def _checkpoint(tasks=(SHAPE, VQA), fields=FIELDS, **changes) -> Checkpoint:
    config = minute_config(**changes)
    words = train_wordpiece(["which shape", "is it a disc"], 160)
    size = config.image_size
    return Checkpoint(
        model=minute_model(config, tasks, fields),
        tokenizer_json=words,
        tasks=tasks,
        structured_fields=fields,
        preprocess=PreprocessSpec(height=size, width=size),
        max_length=16,
        provenance={},
    )


def _examples(records, task=SHAPE, fields=FIELDS):
    return build_examples(records, without_target(task), fields).examples


def _answers(ensemble: Ensemble, task: str, examples, size: int = 32):
    torch.manual_seed(3)
    pictures = torch.randn(len(examples), 3, size, size)
    encoded = [teacher.encode(pictures) for teacher in ensemble.each()]
    questions = {task: (torch.arange(len(examples)), examples)}
    return ensemble(encoded, questions, "float32")[task], pictures


# --- what they say ------------------------------------------------


def test_a_single_teacher_says_what_its_checkpoint_says(records):
    checkpoint = _checkpoint()
    ensemble = Ensemble([Teacher(checkpoint, records)], (SHAPE,), frozenset())
    examples = _examples(records)
    said, pictures = _answers(ensemble, "shape", examples)
    model = checkpoint.model
    tokens, _ = model.encode_image(pictures)
    words, mask = Teacher(checkpoint, records)._tokenizer.encode([e.text for e in examples])
    mask = torch.from_numpy(mask)
    text, _ = model.encode_text(torch.from_numpy(words), mask)
    values = torch.from_numpy(np.stack([e.structured_values for e in examples]))
    present = torch.from_numpy(np.stack([e.structured_mask for e in examples]))
    with torch.no_grad():
        joint = model.fuse_tokens(tokens, text, mask, values, present)
        wanted = model.task_heads["logits_shape"](joint).log_softmax(dim=1)
    assert bool(said.known.all())
    torch.testing.assert_close(said.logits.log_softmax(dim=1), wanted)
    torch.testing.assert_close(said.joints[0], joint)


def test_a_teacher_sees_the_values_that_its_student_does_not(records):
    """The student has no structured field; the teacher's answers follow its own all the same."""
    ensemble = Ensemble([Teacher(_checkpoint(), records)], (SHAPE,), frozenset())
    blind = replace(SHAPE, reads=())
    students = build_examples(records, without_target(blind), FIELDS[1:2]).examples
    assert not any(example.structured_mask.any() for example in students)
    said, _ = _answers(ensemble, "shape", students)
    seen, _ = _answers(ensemble, "shape", _examples(records))
    torch.testing.assert_close(said.logits, seen.logits)
    changed = [replace(r, raw={**r.raw, "structured": {"marker": 90.0}}) for r in records]
    other = Ensemble([Teacher(_checkpoint(), changed)], (SHAPE,), frozenset())
    assert not torch.allclose(_answers(other, "shape", students)[0].logits, said.logits)


def test_outputs_are_matched_by_name(records):
    turned = replace(SHAPE, outputs=("none", "square", "disc", "line"))
    ensemble = Ensemble([Teacher(_checkpoint(), records)], (turned,), frozenset())
    assert ensemble.shared == {"shape": ["none", "disc", "line"]}
    said, _ = _answers(ensemble, "shape", _examples(records))
    own = Ensemble([Teacher(_checkpoint(), records)], (SHAPE,), frozenset())
    plain, _ = _answers(own, "shape", _examples(records))
    assert said.rows.tolist() == [0, 2, 3]
    torch.testing.assert_close(said.logits, plain.logits[:, [2, 0, 1]])


def test_records_that_a_teacher_cannot_read_are_not_taught(records):
    picky = replace(SHAPE, select={"patient_id": ("p0", "p2")})
    teacher = Teacher(_checkpoint(tasks=(picky, VQA)), records)
    ensemble = Ensemble([teacher], (SHAPE,), frozenset())
    said, _ = _answers(ensemble, "shape", _examples(records))
    assert said.known.tolist() == [True, False, True, False]
    joint = said.joints[0]
    assert not joint[~said.known].any()
    assert joint[said.known].any(dim=1).all()


def test_teachers_never_train(records):
    ensemble = Ensemble([Teacher(_checkpoint(dropout=0.5), records)], (SHAPE,), frozenset())
    ensemble.train()
    assert not any(module.training for module in ensemble.modules())
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    first, _ = _answers(ensemble, "shape", _examples(records))
    again, _ = _answers(ensemble, "shape", _examples(records))
    assert torch.equal(first.logits, again.logits)


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ((replace(SHAPE, name="form"),), "same name"),
        ((replace(SHAPE, outputs=("star", "disc")),), "shares the outputs"),
        ((TaskSpec(name="shape", kind="retrieval", outputs=(), reads=("caption",)),), "same name"),
    ],
)
def test_teachers_without_anything_in_common_are_refused(records, tasks, told):
    with pytest.raises(UsageError, match=told):
        Ensemble([Teacher(_checkpoint(), records)], tasks, frozenset())


def test_where_a_teacher_comes_from_is_added_up(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    data = {
        "a": {"licences": {"CC0": 2}, "train_records": 2, "non_commercial_records": 0},
        "b": {"licences": {"CC0": 1, "CC-BY-NC": 4}, "non_commercial_records": 4},
    }
    (tmp_path / "provenance.json").write_text(json.dumps({"data": data}))
    found = teacher_sources([tmp_path, tmp_path])
    assert set(found) == {"teacher 1", "teacher 2"}
    assert found["teacher 1"]["licences"] == {"CC0": 3, "CC-BY-NC": 4}
    assert found["teacher 1"]["non_commercial_records"] == 4
    assert len(str(found["teacher 1"]["weights"])) == 64


def test_a_teacher_without_provenance_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="provenance"):
        teacher_sources([tmp_path])


# --- features -----------------------------------------------------


def test_the_grid_leaves_class_and_register_tokens_out():
    tokens = torch.arange(2 * 21 * 3.0).reshape(2, 21, 3)
    assert torch.equal(patch_grid(tokens), tokens[:, 5:])
    assert torch.equal(patch_grid(tokens[:, :17]), tokens[:, 1:17])
    assert torch.equal(patch_grid(tokens[:, :16]), tokens[:, :16])


def test_relations_are_those_of_the_last_block(records):
    teacher = Teacher(_checkpoint(vision__num_layers=2), records)
    layer = teacher.model.vision_encoder.backbone.layers[-1]
    attention = next(m for m in layer.modules() if hasattr(m, "q_proj"))
    read = []
    handle = attention.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    encoded = teacher.encode(torch.randn(2, 3, 32, 32), relations=True)
    handle.remove()
    assert encoded.grid.shape == (2, 4, 16)
    for name, found in zip(("q_proj", "k_proj", "v_proj"), encoded.relations, strict=True):
        torch.testing.assert_close(found, getattr(attention, name)(read[0]))
    # nothing stays behind on the model
    assert not attention.q_proj._forward_hooks
    assert teacher.encode(torch.randn(1, 3, 32, 32)).relations == ()


def test_an_encoder_without_attention_has_no_relations():
    with (
        pytest.raises(UsageError, match="relation_weight"),
        recorded_relations(torch.nn.Linear(2, 2), wanted=True),
    ):
        pass


def test_relation_heads_must_divide_the_widths(records):
    config = DistillationConfig(relation_weight=1.0, relation_heads=3)
    with pytest.raises(UsageError, match="relation_heads"):
        FeatureHeads(minute_model(), [Teacher(_checkpoint(), records)], config)


def test_projections_are_those_of_the_weights_that_count(records):
    teachers = [Teacher(_checkpoint(), records)]
    student = minute_model()
    heads = FeatureHeads(student, teachers, DistillationConfig(token_weight=1.0))
    assert set(heads.projections) == {"grid_0"}
    heads = FeatureHeads(student, teachers, DistillationConfig(pooled_weight=1.0))
    assert set(heads.projections) == {"joint_0"}
    assert heads.projections["joint_0"].weight.shape == (32, 32)
    assert not list(FeatureHeads(student, teachers, DistillationConfig()).parameters())
