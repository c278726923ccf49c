from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.training import FIELDS, TASKS, minute_config, minute_model
from umd_edge.errors import UsageError
from umd_edge_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from umd_edge_train.config import PRESETS, ModelConfig, model_config
from umd_edge_train.models import UMDModel
from umd_edge_train.models.heads import Pooler
from umd_edge_train.models.vision_encoder import VisionEncoder
from umd_edge_train.tokenizer import published_tokenizer, train_wordpiece


def _millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def _on_meta(preset: str) -> UMDModel:
    with torch.device("meta"):
        return UMDModel(model_config({"preset": preset}), TASKS, FIELDS)


# --- sizes ---------------------------------------


def test_base_has_the_papers_sizes():
    model = _on_meta("base")
    vision, config = model.vision_encoder, model.config
    # 11 of 12 CLIP blocks. A larger position table (384 instead of 224 pixels) is 0.3 M of it.
    assert _millions(vision) == pytest.approx(79.0, abs=0.5)
    assert len(vision.backbone.encoder.layers) == 11
    assert _millions(model.text_encoder) == pytest.approx(124.6, abs=1.0)
    layers = [*model.fusion.image_layers, *model.fusion.text_layers]
    assert len(layers) == 12
    assert sum(map(_millions, layers)) == pytest.approx(113.4, abs=0.2)
    assert config.fusion.pooling == "first"
    head = model.task_heads["logits_vqa"]
    assert [tuple(layer.weight.shape) for layer in head.layers if isinstance(layer, nn.Linear)] == [
        (1536, 1536),
        (len(TASKS[1].outputs), 1536),
    ]


def test_presets_grow_and_tiny_is_small_enough_for_a_wheel():
    sizes = [_millions(_on_meta(preset)) for preset in ("nano", "tiny", "small", "base")]
    assert sizes == sorted(sizes)
    assert sizes[1] < 12.0  # one byte a weight must leave room in 15 MB
    assert set(PRESETS) == {"nano", "tiny", "small", "base"}


def _vision_products(preset: str, side: int) -> float:
    """Multiply-adds of convolutions and matrix products of one picture, counted as they run."""
    config = model_config({"preset": preset, "image_size": side})
    model = UMDModel(config, TASKS, FIELDS).eval()
    count = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal count
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        count += output.numel() * (module.weight.numel() // module.weight.shape[0])

    for module in model.vision_encoder.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add)
    with torch.inference_mode():
        model.encode_image(torch.zeros(1, 3, side, side))
    return float(count)


def test_nano_is_half_of_tiny_or_less():
    assert _millions(_on_meta("nano")) < 0.5 * _millions(_on_meta("tiny"))
    assert _vision_products("nano", 112) < 0.45 * _vision_products("tiny", 112)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_encode_pictures_of_their_size(preset: str):
    model = _on_meta(preset).eval()
    side = model.config.image_size
    with torch.device("meta"):
        tokens, embedding = model.encode_image(torch.zeros(1, 3, side, side))
    count = 1 + (side // 16) ** 2 + (model.config.vision.stem == "conv")
    assert tokens.shape == (1, count, model.config.vision.hidden_size)
    assert embedding.shape == (1, model.config.fusion.embedding_size)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_stems_end_on_the_same_grid_and_see_the_whole_picture(stem: str):
    model = minute_model(minute_config(vision__stem=stem))
    picture = torch.zeros(1, 3, 32, 32)
    base = model.vision_encoder(picture)
    assert base.shape == (1, 5 + (stem == "conv"), 16)
    for row, column in ((0, 0), (0, 31), (31, 0), (31, 31)):
        changed = picture.clone()
        changed[..., row, column] = 5.0
        assert not torch.equal(model.vision_encoder(changed), base)


# --- masked views ---------------------------------------

TOWERS: dict[str, dict[str, Any]] = {
    "conv": {},
    "blanked": {},
    "vit": {"vision__stem": "patch"},
    "clip": {"vision__stem": "patch", "vision__architecture": "clip"},
}
KEEP = torch.tensor([[0, 5, 6, 15], [1, 2, 8, 11], [3, 7, 12, 14]])


def _visible_pixels(keep: Tensor) -> Tensor:
    """(B, K) -> (B, 1, 64, 64) bool: pixels of these of 4 x 4 patches."""
    grid = torch.zeros(len(keep), 16, dtype=torch.bool).scatter(1, keep, True)
    squares = grid.view(-1, 1, 4, 1, 4, 1).expand(-1, 1, 4, 16, 4, 16)
    return squares.reshape(-1, 1, 64, 64)


def _encoder(tower: str) -> VisionEncoder:
    encoder = minute_model(minute_config(image_size=64, **TOWERS[tower])).vision_encoder
    if tower == "blanked":
        encoder.masked_stem = "blanked"
    return encoder


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("tower", TOWERS)
def test_masked_pixels_influence_no_visible_token(tower: str, training: bool):
    encoder = _encoder(tower).train(training)
    pictures, visible = torch.randn(3, 3, 64, 64), _visible_pixels(KEEP)
    tokens = encoder(pictures, KEEP)
    assert tokens.shape == (3, 5 + (tower in ("conv", "blanked")), 16)
    other = torch.where(visible, pictures, torch.randn(3, 3, 64, 64) * 1e3)
    assert torch.equal(encoder(other, KEEP), tokens)
    one = KEEP[1, 2]  # of a visible patch, by contrast, every pixel counts
    changed = pictures.clone()
    changed[1, :, 16 * (one // 4), 16 * (one % 4)] += 3.0
    assert not torch.equal(encoder(changed, KEEP)[1], tokens[1])


@pytest.mark.parametrize("tower", ["vit", "clip", "blanked"])
def test_patches_have_their_position_before_others_are_dropped(tower: str):
    encoder = _encoder(tower)
    picture = torch.randn(1, 3, 64, 64)
    everything = torch.arange(16)[None]
    torch.testing.assert_close(encoder(picture, everything), encoder(picture))
    alike = picture[:, :, :16, :16].repeat(1, 1, 4, 4)  # all patches equal, but for their place
    first, last = (encoder(alike, torch.tensor([[place]])) for place in (0, 15))
    assert not torch.allclose(first, last)
    torch.testing.assert_close(encoder(picture), encoder(picture, None), rtol=0, atol=0)


def test_the_summary_of_a_masked_view_is_the_mean_of_visible_cells():
    encoder = minute_model(minute_config(image_size=64)).vision_encoder
    pictures = torch.randn(3, 3, 64, 64)
    got = encoder(pictures, KEEP)[:, -1]
    for row, patches in enumerate(KEEP.tolist()):
        squares = [
            pictures[row, :, 16 * (p // 4) : 16 * (p // 4) + 16, 16 * (p % 4) : 16 * (p % 4) + 16]
            for p in patches
        ]
        cells = encoder.stem(torch.stack(squares))
        assert cells.shape == (4, 16, 1, 1)
        torch.testing.assert_close(got[row], cells[:, :, 0, 0].mean(dim=0))


def test_a_blanked_view_is_the_whole_picture_with_nothing_in_the_removed_patches():
    encoder = _encoder("blanked")
    pictures = torch.randn(3, 3, 64, 64)
    cells = encoder.stem(pictures * _visible_pixels(KEEP)).flatten(2)
    for row, patches in enumerate(KEEP.tolist()):
        wanted = cells[row][:, patches].mean(dim=1)
        torch.testing.assert_close(encoder(pictures, KEEP)[row, -1], wanted)
    # patch 6 touches patch 5, whose last column it sees; patches by themselves do not
    changed = pictures.clone()
    changed[0, :, 16:32, 31] += 3.0
    last = torch.tensor([[5, 6], [5, 6], [5, 6]])
    for tower, moves in (("blanked", True), ("conv", False)):
        stem_cells = _encoder(tower)._stem_cells
        before, after = (stem_cells(encoder.stem, x, last)[0, 1] for x in (pictures, changed))
        assert torch.equal(before, after) is not moves, tower


@pytest.mark.parametrize("tower", ["conv", "blanked"])
def test_batch_statistics_describe_whole_pictures_only(tower: str):
    encoder = _encoder(tower).train()
    pictures = torch.randn(3, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in encoder.named_buffers()}
    encoder(pictures, KEEP).sum().backward()
    for name, tensor in encoder.named_buffers():
        assert torch.equal(tensor, before[name]), name
    whole = copy.deepcopy(encoder)
    encoder.eval().refresh_statistics(pictures)
    for name, tensor in encoder.named_buffers():
        assert torch.equal(tensor, before[name]), name
    encoder.train().refresh_statistics(pictures)
    whole(pictures)
    for name, tensor in encoder.stem.named_buffers():
        assert torch.equal(tensor, dict(whole.stem.named_buffers())[name]), name
        assert not torch.equal(tensor, before[f"stem.{name}"]), name


def test_the_hook_of_a_masked_view_is_gone_even_after_an_error():
    encoder = minute_model(minute_config(image_size=64, vision__stem="patch")).vision_encoder
    whole = encoder(torch.ones(1, 3, 64, 64))
    with pytest.raises(ValueError, match="image size"):
        encoder(torch.ones(1, 3, 32, 32), KEEP[:1])
    assert torch.equal(encoder(torch.ones(1, 3, 64, 64)), whole)


def test_fusion_states_end_in_what_the_heads_read():
    model = minute_model(minute_config(fusion__num_layers=3, fusion__pooling="first"))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        image, _ = model.encode_image(torch.randn(2, 3, 32, 32))
        text, _ = model.encode_text(torch.randint(5, 160, (2, 4)), mask)
        states = model.fusion_states(image, text, mask)
        absent = torch.zeros(2, len(FIELDS))
        joint = model.fuse_tokens(image, text, mask, absent, absent)
    assert [(t.shape, i.shape) for t, i in states] == [((2, 4, 16), (2, 5, 16))] * 4
    for index in range(3):
        assert not torch.allclose(states[index][1], states[index + 1][1])
    pooled = torch.tanh(model.text_pooler.dense(states[-1][0][:, 0]))
    torch.testing.assert_close(joint[:, :16], pooled)


def test_the_model_is_the_same_for_the_same_seed_only():
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(UMDModel(minute_config(), TASKS, FIELDS).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_unknown_words_have_their_own_position_in_roberta():
    """A WordPiece [UNK] has the id that RoBERTa's own vocabulary gives to padding."""
    model = minute_model(minute_config(text__architecture="roberta"))
    encoder = model.text_encoder
    ids, mask = torch.tensor([[2, 1, 1, 9, 3]]), torch.ones(1, 5).long()
    captured: list[Tensor] = []
    table = encoder.backbone.embeddings.position_embeddings
    handle = table.register_forward_hook(lambda module, args, out: captured.append(args[0]))
    encoder(ids, mask)
    handle.remove()
    assert captured[0].tolist() == [[2, 3, 4, 5, 6]]


# --- pooling ---------------------------------------


def _pool(pooling: Any, tokens: Tensor, mask: Tensor | None, first: int) -> np.ndarray:
    pooler = Pooler(tokens.shape[-1], pooling)
    nn.init.eye_(pooler.dense.weight)
    nn.init.zeros_(pooler.dense.bias)
    return pooler(tokens, mask, first).detach().atanh().numpy()


def test_pooling_modes():
    tokens = torch.tensor([[[0.1, 0.2], [0.3, 0.1], [0.5, 0.9]]])
    mask = torch.tensor([[0.0, 1.0, 1.0]])
    np.testing.assert_allclose(_pool("first", tokens, mask, 1), [[0.3, 0.1]], atol=1e-6)
    np.testing.assert_allclose(_pool("mean", tokens, mask, 0), [[0.3, 0.4]], atol=1e-6)
    np.testing.assert_allclose(_pool("masked_mean", tokens, mask, 0), [[0.4, 0.5]], atol=1e-6)
    np.testing.assert_allclose(_pool("masked_mean", tokens, None, 0), [[0.3, 0.4]], atol=1e-6)
    np.testing.assert_array_equal(_pool("masked_mean", tokens, torch.zeros(1, 3), 0), [[0.0, 0.0]])


# --- published weights ---------------------------------------

TOWER = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CLIP = {
    "vision__architecture": "clip",
    "vision__activation": "quick_gelu",
    "vision__layer_norm_eps": 1e-5,
    "vision__stem": "patch",
    "vision__num_layers": 2,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny checkpoints as `transformers` saves them."""
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        CLIPConfig,
        CLIPModel,
        PreTrainedTokenizerFast,
        RobertaConfig,
        RobertaModel,
        ViTConfig,
        ViTModel,
    )

    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(3)
    clip_text = {**TOWER, "vocab_size": 20, "projection_dim": 8}
    clip_vision = {**TOWER, "image_size": 32, "patch_size": 16, "projection_dim": 8}
    CLIPModel(
        CLIPConfig(text_config=clip_text, vision_config=clip_vision, projection_dim=8)
    ).save_pretrained(folder / "clip")
    ViTModel(ViTConfig(**TOWER, image_size=32, patch_size=16)).save_pretrained(folder / "vit")
    BertForMaskedLM(
        BertConfig(**TOWER, vocab_size=170, max_position_embeddings=40)
    ).save_pretrained(folder / "bert")
    RobertaModel(
        RobertaConfig(**TOWER, vocab_size=170, max_position_embeddings=40, layer_norm_eps=1e-5)
    ).save_pretrained(folder / "roberta")
    vocabulary = train_wordpiece(["is there a nodule in the left lung", "what organ is it"], 160)
    (folder / "words.json").write_bytes(vocabulary)
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "words.json"), unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder / "bert")
    return folder


def test_clip_weights_give_clips_own_tokens_without_its_last_block(published: Path):
    from transformers import CLIPVisionModel

    model = UMDModel(
        minute_config(**CLIP, vision__pretrained=str(published / "clip")), TASKS, FIELDS
    ).eval()
    tower = CLIPVisionModel.from_pretrained(published / "clip").eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        got = model.vision_encoder(pixels)
        states = tower(pixels, output_hidden_states=True).hidden_states
        # hidden_states[k] is what k blocks give
        wanted = tower.post_layernorm(states[2])
        all_blocks = tower.post_layernorm(states[3])
    torch.testing.assert_close(got, wanted)
    assert not torch.allclose(got, all_blocks)


def test_vit_weights_give_vits_own_tokens(published: Path):
    from transformers import ViTModel

    config = minute_config(
        vision__stem="patch", vision__num_layers=3, vision__pretrained=str(published / "vit")
    )
    model = UMDModel(config, TASKS, FIELDS).eval()
    tower = ViTModel.from_pretrained(published / "vit").eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = tower(pixels).last_hidden_state
        torch.testing.assert_close(model.vision_encoder(pixels), wanted)


def test_a_larger_picture_resizes_the_grid_of_positions_only(published: Path):
    config = minute_config(
        **{**CLIP, "vision__pretrained": str(published / "clip"), "image_size": 64}
    )
    model = UMDModel(config, TASKS, FIELDS).eval()
    small = UMDModel(
        minute_config(**CLIP, vision__pretrained=str(published / "clip")), TASKS, FIELDS
    )
    table = model.vision_encoder.backbone.embeddings.position_embedding.weight
    old = small.vision_encoder.backbone.embeddings.position_embedding.weight
    assert table.shape == (17, 16)
    assert torch.equal(table[0], old[0])
    # Bicubic weights sum to 1, and the grid is symmetric: the mean over it stays.
    torch.testing.assert_close(table[1:].mean(0), old[1:].mean(0), atol=1e-5, rtol=0)
    assert model.encode_image(torch.zeros(1, 3, 64, 64))[0].shape == (1, 17, 16)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_text_weights_give_the_encoders_own_tokens(published: Path, kind: str):
    from transformers import AutoModel

    eps = {"bert": 1e-12, "roberta": 1e-5}[kind]
    config = minute_config(
        text__architecture=kind,
        text__num_layers=3,
        text__layer_norm_eps=eps,
        text__pretrained=str(published / kind),
    )
    model = UMDModel(config, TASKS, FIELDS).eval()
    tower = AutoModel.from_pretrained(published / kind).eval()
    ids, mask = torch.randint(5, 160, (2, 7)), torch.ones(2, 7).long()
    mask[1, 4:] = 0
    ids[1, 4:] = {"bert": 0, "roberta": 1}[kind]  # each pads with its own id
    with torch.no_grad():
        wanted = tower(input_ids=ids, attention_mask=mask).last_hidden_state
        got, _ = model.encode_text(ids, mask)
    torch.testing.assert_close(got[0], wanted[0])
    torch.testing.assert_close(got[1, :4], wanted[1, :4])


def test_a_checkpoint_of_published_encoders_loads_after_they_are_gone(
    published: Path, tmp_path: Path
):
    from umd_edge._preprocess import PreprocessSpec

    config = minute_config(**CLIP, vision__pretrained=str(published / "clip"))
    model = UMDModel(config, TASKS, FIELDS).eval()
    spec = PreprocessSpec(height=32, width=32)
    checkpoint = Checkpoint(model, b"{}", TASKS, FIELDS, spec, 16, {})
    save_checkpoint(tmp_path, checkpoint, model.state_dict())
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(
        text.replace(str(published), "/nowhere"), encoding="utf-8"
    )
    loaded = load_checkpoint(tmp_path).model
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.encode_image(pixels)[0], model.encode_image(pixels)[0])


def test_the_tokenizer_of_a_published_text_encoder_is_used(published: Path):
    words = (published / "words.json").read_bytes()
    from tokenizers import Tokenizer

    got = Tokenizer.from_str(published_tokenizer(str(published / "bert")).decode())
    wanted = Tokenizer.from_str(words.decode())
    assert got.get_vocab() == wanted.get_vocab()
    assert got.encode("is there a nodule?").ids == wanted.encode("is there a nodule?").ids


# --- failures ---------------------------------------


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def _config(part: str, name: str) -> ModelConfig:
    return minute_config(vision__stem="patch", **{f"{part}__pretrained": name})


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("part", ["vision", "text"])
@pytest.mark.parametrize("name", ["umd-edge-tests/there-is-no-such-model", "/no/such/folder"])
def test_an_encoder_that_is_not_there_is_one_clear_error(part: str, name: str):
    with pytest.raises(UsageError) as caught:
        UMDModel(_config(part, name), TASKS, FIELDS)
    message = str(caught.value)
    assert f"model.{part}.pretrained" in message
    assert name in message
    assert "local directory" in message
    assert "\n" not in message


@pytest.mark.usefixtures("_offline")
def test_a_tokenizer_that_is_not_there_is_one_clear_error():
    with pytest.raises(UsageError, match=r"tokenizer.*cannot be loaded"):
        published_tokenizer("umd-edge-tests/there-is-no-such-model")


@pytest.mark.parametrize("damage", ["config", "weights", "no weights"])
def test_a_damaged_published_encoder_is_one_clear_error(
    published: Path, tmp_path: Path, damage: str
):
    for file in (published / "vit").iterdir():
        content = file.read_bytes()
        if damage == "no weights" and file.suffix == ".safetensors":
            continue
        if file.name == {"config": "config.json", "weights": "model.safetensors"}.get(damage):
            content = content[: len(content) // 2]
        (tmp_path / file.name).write_bytes(content)
    with pytest.raises(UsageError, match=r"model\.vision\.pretrained.*cannot be loaded"):
        UMDModel(_config("vision", str(tmp_path)), TASKS, FIELDS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision__hidden_size": 32}, r"model\.vision\.hidden_size = 16"),
        ({"vision__num_layers": 4}, r"lower model\.vision\.num_layers"),
        ({"vision__architecture": "clip"}, r"model\.vision\.architecture = 'vit'"),
        ({"vision__stem": "conv"}, r"model\.vision\.stem = 'patch'"),
        ({"vision__layer_norm_eps": 1e-5}, r"model\.vision\.layer_norm_eps = 1e-12"),
        ({"vision__patch_size": 8}, r"model\.vision\.patch_size = 16"),
    ],
)
def test_sizes_that_are_not_the_published_ones_are_named(
    published: Path, changes: dict[str, Any], expected: str
):
    config = minute_config(
        **{"vision__stem": "patch", "vision__pretrained": str(published / "vit"), **changes}
    )
    with pytest.raises(UsageError, match=expected):
        UMDModel(config, TASKS, FIELDS)


def test_a_vocabulary_larger_than_the_published_one_is_refused(published: Path):
    config = minute_config(text__pretrained=str(published / "bert"), vocabulary_size=171)
    with pytest.raises(UsageError, match="word_embeddings"):
        UMDModel(config, TASKS, FIELDS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision__num_heads": 3}, r"model\.vision: hidden_size 16"),
        ({"text__num_heads": 5}, r"model\.text: hidden_size 16"),
        ({"fusion__num_heads": 7}, r"model\.fusion: hidden_size 16"),
        ({"image_size": 40}, r"image_size 40"),
        ({"vision__stem_channels": [8, 8]}, r"needs 4 stem_channels"),
        ({"vision__stem_convolutions": [1]}, r"needs 4 stem_channels"),
        ({"text__positions": 15}, r"model\.text\.positions: 15 given; max_length 16 or more"),
        ({"fusion__pooling": "max"}, r"model\.fusion\.pooling.*'max'"),
        ({"preset": "huge"}, r"model\.preset.*'huge'"),
    ],
)
def test_sizes_that_fit_no_model_are_refused(changes: dict[str, Any], expected: str):
    with pytest.raises(UsageError, match=expected):
        minute_config(**changes)
