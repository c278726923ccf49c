"""Models of `transformers` as teachers of features: what they take and what they give."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from support.training import minute_model
from umd_edge.errors import MissingDependencyError, UsageError
from umd_edge_export.distil_features import FeatureHeads
from umd_edge_export.published import PublishedTeacher
from umd_edge_train.distillation_config import DistillationConfig
from umd_edge_train.tokenizer import train_wordpiece

PART = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=48,
        patch_size=16,
    )
    ViTModel(config).save_pretrained(folder)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_a_published_vision_model_teaches_features(vit: Path):
    teacher = PublishedTeacher(str(vit))
    assert (teacher.spec.height, teacher.spec.width) == (48, 48)
    assert teacher.spec.mean == (0.1, 0.2, 0.3)
    assert teacher.spec.std == (0.4, 0.5, 0.6)
    encoded = teacher.encode(torch.randn(2, 3, 48, 48), [], relations=True)
    assert encoded.grid.shape == (2, 9, 24)
    assert encoded.pooled["image"].shape == (2, 24)
    assert len(encoded.relations) == 3
    heads = FeatureHeads(minute_model(), [teacher], DistillationConfig(token_weight=1.0))
    # grids of 2 x 2 and 3 x 3: both become the coarser one
    assert heads.tokens(0, torch.randn(2, 4, 16), encoded.grid).shape == (2,)


def test_a_published_model_of_texts_is_no_teacher_of_pictures(tmp_path: Path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(**sizes, vocab_size=20, intermediate_size=8)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="vision"):
        PublishedTeacher(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UsageError, match="how large"):
        PublishedTeacher(str(tmp_path))


def test_a_published_model_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(UsageError, match="feature-teacher"):
        PublishedTeacher(str(tmp_path / "nothing"))


def test_a_vision_language_model_teaches_pictures_and_texts(tmp_path: Path):
    from tokenizers import Tokenizer
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    config = CLIPConfig(
        text_config={**PART, "vocab_size": 160, "max_position_embeddings": 16, "eos_token_id": 3},
        vision_config={**PART, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    words = Tokenizer.from_str(train_wordpiece(["which shape"], 160).decode())
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    teacher = PublishedTeacher(str(tmp_path))
    encoded = teacher.encode(torch.randn(1, 3, 32, 32), ["which shape", "shape"], relations=False)
    assert encoded.grid.shape == (1, 4, 16)
    assert encoded.pooled["text"].shape == (2, 16)
    assert encoded.relations == ()
    assert math.isfinite(float(encoded.pooled["text"].sum()))


def convolutional(folder: Path, settings: dict[str, object]) -> Path:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 12], depths=[1, 1, 1, 1])
    ResNetModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    "size",
    [
        {"size": 64},
        {"size": {"shortest_edge": 64}},
        {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}},
    ],
)
def test_a_convolutional_model_teaches_features(size: dict[str, object], tmp_path: Path):
    teacher = PublishedTeacher(str(convolutional(tmp_path, size)))
    assert (teacher.spec.height, teacher.spec.width) == (64, 64)
    pixels = torch.randn(2, 3, 64, 64)
    encoded = teacher.encode(pixels, [], relations=False)
    # the map of 12 channels at a 32nd of the size, row by row
    wanted = teacher.tower(pixel_values=pixels).last_hidden_state
    assert wanted.shape == (2, 12, 2, 2)
    assert torch.equal(encoded.grid[1, 2], wanted[1, :, 1, 0])
    assert teacher.grid_width == 12
    assert teacher.pooled_widths == {"image": 12}
    heads = FeatureHeads(
        minute_model(), [teacher], DistillationConfig(token_weight=1.0, pooled_weight=1.0)
    )
    assert heads.projections["grid_0"].out_features == 12
    assert math.isfinite(float(heads.tokens(0, torch.randn(2, 4, 16), encoded.grid).detach().sum()))


def test_a_model_that_never_says_how_large_its_pictures_are_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="how large"):
        PublishedTeacher(str(convolutional(tmp_path, {"image_mean": [0.5, 0.5, 0.5]})))


def test_relations_of_a_model_without_attention_are_refused(tmp_path: Path):
    teacher = PublishedTeacher(str(convolutional(tmp_path, {"size": 64})))
    with pytest.raises(UsageError, match="relation_weight"):
        teacher.encode(torch.randn(1, 3, 64, 64), [], relations=True)


def test_the_vision_part_of_a_language_model_teaches_features(tmp_path: Path):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaModel

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**PART, image_size=32, patch_size=16),
        text_config=LlamaConfig(**PART, vocab_size=50),
    )
    LlavaModel(config).save_pretrained(tmp_path)
    # since transformers 5 the settings of pictures stand inside those of the whole processor
    settings = {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}}
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    teacher = PublishedTeacher(str(tmp_path))
    assert (teacher.spec.mean, teacher.spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert teacher.pooled_widths == {"image": 16}
    assert teacher.encode(torch.randn(1, 3, 32, 32), ["a"], relations=True).grid.shape == (1, 4, 16)
    # the language model, most of the weights, is not kept
    assert not any("language" in name for name, _ in teacher.named_parameters())


def test_a_model_that_needs_more_than_pictures_is_refused(tmp_path: Path):
    from transformers import ViltConfig, ViltModel

    config = ViltConfig(**PART, image_size=32, patch_size=16, vocab_size=50)
    ViltModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UsageError, match="pictures of 32 x 32 alone"):
        PublishedTeacher(str(tmp_path))


def test_a_missing_package_is_named(vit: Path, monkeypatch):
    from transformers import AutoModel

    def missing(name: str) -> None:
        raise ImportError("\nSomeModel requires the timm library but it was not found.\n")

    monkeypatch.setattr(AutoModel, "from_pretrained", missing)
    with pytest.raises(MissingDependencyError, match="timm") as told:
        PublishedTeacher(str(vit))
    assert "\n" not in str(told.value)
