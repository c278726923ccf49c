"""The losses of reconstruction against short references, and what the whole objective does."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from support.pairs import VOCABULARY, minute_reconstruction, random_pairs, rng
from support.training import FIELDS, TASKS, minute_config, minute_model
from umd_edge.errors import UsageError
from umd_edge_train.config import from_dict
from umd_edge_train.masking import Vocabulary
from umd_edge_train.models import UMDModel
from umd_edge_train.models.decoders import MIMDecoder
from umd_edge_train.momentum_teacher import MomentumTeacher
from umd_edge_train.objectives import (
    CleanFeatures,
    MultiLevelReconstruction,
    PairBatch,
    PairFeatures,
    ReconstructionConfig,
)
from umd_edge_train.objectives.feature_mim import FeatureMIM
from umd_edge_train.objectives.feature_mlm import FeatureMLM
from umd_edge_train.objectives.itm import draw_matches, itm_loss
from umd_edge_train.objectives.mim import mim_loss, patch_pixels
from umd_edge_train.objectives.mlm import mlm_loss

QUICK = settings(max_examples=10, deadline=None)
B, N, K, L, D, W = 3, 6, 2, 5, 8, 4  # pictures, patches, visible ones, tokens, widths


def _features() -> PairFeatures:
    torch.manual_seed(5)
    order = torch.stack([torch.randperm(N) for _ in range(B)])
    targets = torch.tensor([[-100, 7, -100, 9, -100], [-100] * 5, [3, -100, -100, -100, -100]])
    return PairFeatures(
        clean=CleanFeatures(minute_model(), _batch()),
        keep=order[:, :K].sort(dim=1).values,
        removed=order[:, K:].sort(dim=1).values,
        targets=targets,
        image_tokens=torch.randn(B, 1 + K, D),
        decoder_input=torch.randn(B, 1 + K, D),
        text_tokens=torch.randn(B, L, D),
        teacher_image=torch.randn(B, 1 + N, D),
        teacher_text=torch.randn(B, L, D),
    )


def _batch() -> PairBatch:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    return PairBatch(torch.zeros(B, 3, 4, 4), mask, mask, mask - 1)


# --- each loss against its formula, one element at a time ---------------------------------------


def test_patch_pixels_are_the_pictures_squares_row_by_row():
    picture = torch.randn(2, 3, 4, 6)
    got = patch_pixels(picture, 2)
    assert got.shape == (2, 6, 12)
    squares = [picture[:, :, y : y + 2, x : x + 2] for y in (0, 2) for x in (0, 2, 4)]
    for patch, square in enumerate(squares):
        assert torch.equal(got[:, patch], square.flatten(1))


def test_mim_loss_compares_normalised_pixels_of_removed_patches():
    removed = torch.tensor([[0, 2], [1, 3]])
    prediction, pixels = torch.randn(2, 4, 12), torch.randn(2, 4, 12) * 7 + 40
    terms = []
    for row, patches in enumerate(removed.tolist()):
        for patch in patches:
            x = pixels[row, patch].double().numpy()
            normalised = (x - x.mean()) / math.sqrt(x.var(ddof=1) + 1e-6)
            terms.append(np.mean((prediction[row, patch].double().numpy() - normalised) ** 2))
    loss = mim_loss(prediction, pixels, removed)
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)


def test_mim_loss_of_a_blank_patch_is_finite_and_visible_patches_do_not_count():
    pixels, prediction = torch.full((1, 2, 12), 3.0), torch.zeros(1, 2, 12)
    prediction[0, 0] = 99.0
    assert float(mim_loss(prediction, pixels, torch.tensor([[1]]))) == 0.0


def test_mlm_loss_is_the_cross_entropy_of_masked_tokens():
    head, features = nn.Linear(D, 11), _features()
    terms, hits = [], []
    for row, column in torch.nonzero(features.targets != -100).tolist():
        logits = head(features.text_tokens[row, column]).detach().double().numpy()
        target = int(features.targets[row, column])
        terms.append(np.log(np.exp(logits).sum()) - logits[target])
        hits.append(logits.argmax() == target)
    loss, accuracy = mlm_loss(head, features.text_tokens, features.targets)
    assert float(loss.detach()) == pytest.approx(np.mean(terms), rel=1e-5)
    assert float(accuracy) == pytest.approx(np.mean(hits))
    certain = features.text_tokens.new_zeros(11, D)
    certain[9, 0] = 1e4
    sure = nn.Linear(D, 11, bias=False)
    sure.weight.data = certain
    _, accuracy = mlm_loss(sure, torch.ones(1, 2, D), torch.tensor([[9, 2]]))
    assert float(accuracy) == 0.5


def test_mlm_loss_without_masked_tokens_is_zero_with_zero_gradient():
    head = nn.Linear(D, 11)
    loss, accuracy = mlm_loss(head, torch.randn(1, L, D), torch.full((1, L), -100))
    loss.backward()
    assert float(loss.detach()) == float(accuracy) == 0.0
    assert head.weight.grad is not None
    assert not head.weight.grad.any()


def _mean_square(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a - b) ** 2))


@pytest.mark.parametrize("kind", ["released", "decoder", "visible"])
def test_feature_mim_is_its_formula(kind: Any):
    features = _features()
    loss_module = FeatureMIM(kind, D, W)
    decoder = MIMDecoder(D, W, 1, 1, side=3, patch_size=2)
    decoded = torch.randn(B, N, W)
    teacher = features.teacher_image.double().numpy()[:, 1:]
    terms = []
    for row in range(B):
        for patch in features.removed[row].tolist() if kind != "visible" else []:
            t = teacher[row, patch]
            if kind == "released":
                embedded = decoder.embedding(features.teacher_image[row, 1 + patch])
                terms.append(
                    _mean_square(
                        decoder.mask_token.detach().numpy()[0, 0], embedded.detach().numpy()
                    )
                )
            else:
                predicted = loss_module.predictor(decoded[row, patch]).detach().numpy()
                terms.append(_mean_square(predicted, (t - t.mean()) / np.sqrt(t.var() + 1e-5)))
        for slot, patch in enumerate(features.keep[row].tolist() if kind == "visible" else []):
            student = features.image_tokens[row, 1 + slot].numpy()
            terms.append(_mean_square(student, teacher[row, patch]))
    loss = loss_module(features, decoder, decoded)
    assert float(loss.detach()) == pytest.approx(np.mean(terms), rel=1e-5)


def test_a_target_by_channel_tells_patches_apart_where_all_tokens_are_nearly_alike():
    features, decoder = _features(), MIMDecoder(D, W, 1, 1, side=3, patch_size=2)
    alike = features.teacher_image[:1, :1] + 0.01 * features.teacher_image
    features = dataclasses.replace(features, teacher_image=alike)
    teacher = alike[:, 1:].double().numpy()
    rows = np.array([teacher[b, p] for b in range(B) for p in features.removed[b].tolist()])
    spread = (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-5)
    losses = {}
    for target in ("token", "channel"):
        loss_module = FeatureMIM("decoder", D, W, target)
        # the best that a predictor which sees nothing can do
        nn.init.zeros_(loss_module.predictor.weight)
        constant = rows - rows.mean(axis=1, keepdims=True)
        constant = (constant / np.sqrt(rows.var(axis=1, keepdims=True) + 1e-5)).mean(axis=0)
        best = constant if target == "token" else np.zeros(D)
        loss_module.predictor.bias.data = torch.tensor(best, dtype=torch.float32)
        loss = loss_module(features, decoder, torch.randn(B, N, W))
        losses[target] = float(loss.detach())
    assert losses["channel"] == pytest.approx(np.mean(spread**2), rel=1e-2)
    assert losses["channel"] > 0.8
    assert losses["token"] < 0.01


@pytest.mark.parametrize("kind", ["projected", "predictor", "predictor_masked"])
def test_feature_mlm_is_its_formula(kind: Any):
    features, batch, loss_module = _features(), _batch(), FeatureMLM(kind, D)
    terms = []
    for row in range(B):
        for column in range(L):
            z, t = features.text_tokens[row, column], features.teacher_text[row, column]
            projected = loss_module.projection(z).detach().numpy()
            if kind == "projected":
                target = loss_module.projection(t).detach().numpy()
                terms.append(_mean_square(projected, target))
            elif kind == "predictor" and batch.attention_mask[row, column]:
                terms.append(_mean_square(projected, t.numpy()))
            elif kind == "predictor_masked" and features.targets[row, column] != -100:
                terms.append(_mean_square(projected, t.numpy()))
    assert len(terms) == {"projected": 15, "predictor": 12, "predictor_masked": 3}[kind]
    loss = loss_module(batch, features)
    assert float(loss.detach()) == pytest.approx(np.mean(terms), rel=1e-5)


def test_feature_losses_without_a_teacher_are_refused():
    features = dataclasses.replace(_features(), teacher_image=None, teacher_text=None)
    with pytest.raises(ValueError, match="teacher's image"):
        FeatureMIM("visible", D, W)(features, MIMDecoder(D, W, 1, 1, 3, 2), torch.zeros(B, N, W))
    with pytest.raises(ValueError, match="teacher's text"):
        FeatureMLM("predictor", D)(_batch(), features)


def test_itm_loss_is_a_two_way_softmax():
    logits = torch.tensor([1.5, -0.3, 0.2, -2.0])
    is_true = torch.tensor([True, True, False, False])
    pairs = torch.stack([torch.zeros(4), logits], dim=1)  # not a match, a match
    wanted = nn.functional.cross_entropy(pairs, is_true.long())
    loss, accuracy = itm_loss(logits, is_true)
    torch.testing.assert_close(loss, wanted)
    assert float(accuracy) == 0.5


# --- swapped pictures ---------------------------------------


@QUICK
@given(count=st.integers(2, 9), seed=st.integers(0, 99))
def test_half_of_the_pairs_stay_true_and_no_other_picture_is_the_own(count: int, seed: int):
    batch = random_pairs(count, side=8)
    picture, counted = draw_matches(batch, rng(seed))
    assert counted.all()
    assert int((picture == torch.arange(count)).sum()) == count // 2
    assert picture.min() >= 0
    assert picture.max() < count


def test_every_pair_is_swapped_now_and_then_and_every_other_picture_drawn():
    batch = random_pairs(4, side=8)
    drawn = torch.stack([draw_matches(batch, rng(seed))[0] for seed in range(200)])
    for text in range(4):
        often = torch.bincount(drawn[:, text], minlength=4)
        assert often.min() > 10
        assert 60 < often[text] < 140


def test_a_picture_that_stands_twice_is_not_wrong_for_its_other_text():
    batch = random_pairs(3, side=8)
    batch.pixel_values[1] = batch.pixel_values[0]
    batch.input_ids[2], batch.attention_mask[2] = batch.input_ids[0], batch.attention_mask[0]
    # 0 and 1 share the picture, 0 and 2 the text: nothing is wrong for 0
    for seed in range(30):
        picture, counted = draw_matches(batch, rng(seed))
        assert picture[0] == 0
        assert picture[1] in (1, 2)
        assert picture[2] in (1, 2)
        assert int(counted.sum()) == (3 if counted[0] else 2)


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_counts_where_no_picture_is_wrong(count: int):
    batch = random_pairs(count, side=8)
    batch.pixel_values[:] = batch.pixel_values[0].clone()
    assert not draw_matches(batch, rng())[1].any()


def test_a_text_without_words_matches_no_picture_and_fails_none():
    batch = random_pairs(4, side=8)
    batch.word_ids[2] = -1
    drawn = [draw_matches(batch, rng(seed)) for seed in range(60)]
    assert not any(counted[2] for _, counted in drawn)
    # its picture is still a wrong one for the others
    assert any((picture[[0, 1, 3]] == 2).any() for picture, _ in drawn)


# --- the whole objective ---------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "released": {},
    "decoder": {"feature_mim": "decoder", "feature_mlm": "predictor", "views": "separate"},
    "visible": {"feature_mim": "visible", "feature_mlm": "predictor_masked", "mim_layer": 1},
    "m3ae": {"feature_mim": "none", "feature_mlm": "none", "views": "separate", "mim_layer": 1},
    "contrast": {
        "feature_mim": "decoder",
        "feature_target": "channel",
        "feature_mlm": "predictor",
        "contrast_weight": 0.3,
        "stem": "blanked",
    },
}
NAMES = {"mim_loss", "mlm_loss", "feature_mim_loss", "feature_mlm_loss", "itm_loss"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_the_weighted_sum_of_its_parts(variant: str):
    objective = minute_reconstruction(alpha=0.6, itm_weight=2.0, **VARIANTS[variant])
    output = objective(random_pairs(4), rng())
    features = {"feature_mim_loss", "feature_mlm_loss"} if variant != "m3ae" else set()
    contrast = {"contrast_loss"} if variant == "contrast" else set()
    assert set(output.parts) == {"mim_loss", "mlm_loss", "itm_loss"} | features | contrast
    weight = dict.fromkeys(NAMES, 0.6) | dict.fromkeys(features, 0.4) | {"itm_loss": 2.0}
    weight["contrast_loss"] = 0.3
    wanted = sum(weight[name] * float(part.detach()) for name, part in output.parts.items())
    assert float(output.loss.detach()) == pytest.approx(wanted, rel=1e-5)
    assert output.loss.dtype == torch.float32
    assert (objective.teacher is None) == (variant == "m3ae")


def test_calibration_has_no_matching_and_weights_of_its_own():
    objective = minute_reconstruction(
        itm=False, mim_weight=1.0, mlm_weight=1.0, feature_weight=1e-5
    )
    output = objective(random_pairs(4), rng())
    assert set(output.parts) == NAMES - {"itm_loss"}
    pixels_and_words = float(output.parts["mim_loss"].detach() + output.parts["mlm_loss"].detach())
    assert float(output.loss.detach()) == pytest.approx(pixels_and_words, rel=1e-3)


def test_contrast_tells_the_pairs_of_a_batch_apart_by_their_unfused_embeddings():
    objective = minute_reconstruction(contrast_weight=1.0).eval()
    batch = random_pairs(5)
    batch.input_ids[3], batch.attention_mask[3] = batch.input_ids[0], batch.attention_mask[0]
    batch.word_ids[1] = -1  # a picture without a text of its own
    with torch.no_grad():
        output = objective(batch, rng())
        image = objective.model.encode_image(batch.pixel_values)[1].double().numpy()
        text = objective.model.encode_text(batch.input_ids, batch.attention_mask)[1]
    rows = [0, 2, 3, 4]
    scores = np.exp(image[rows] @ text.double().numpy()[rows].T / 0.07)
    right = np.eye(4) + np.eye(4)[[2, 1, 0, 3]] * [[1], [0], [1], [0]]  # 0 and 3 share a text
    terms = [-np.log((s * right).sum(axis=1) / s.sum(axis=1)) for s in (scores, scores.T)]
    assert float(output.parts["contrast_loss"]) == pytest.approx(np.mean(terms), rel=1e-4)
    hits = right[np.arange(4), scores.argmax(axis=1)]
    assert float(output.aux["contrast_accuracy"]) == pytest.approx(hits.mean())


def test_contrast_belongs_to_matching_and_needs_two_texts():
    calibration = minute_reconstruction(itm=False, contrast_weight=1.0)
    assert "contrast_loss" not in calibration(random_pairs(4), rng()).parts
    batch = random_pairs(3)
    batch.word_ids[1:] = -1
    assert "contrast_loss" not in minute_reconstruction(contrast_weight=1.0)(batch, rng()).parts


@pytest.mark.parametrize("views", ["joint", "separate"])
def test_losses_read_the_views_they_should(views: Any):
    """By hand: masked and whole encodings, the right fusion layer, the clean teacher."""
    objective = minute_reconstruction(
        views=views, mim_layer=1, feature_mim="visible", feature_mlm="predictor"
    )
    objective.eval()
    batch, model = random_pairs(3), objective.model
    seen: dict[str, PairFeatures] = {}
    handle = objective.feature_mlm.register_forward_hook(
        lambda module, inputs, output: seen.update(features=inputs[1])
    )
    corrupted: list[Tensor] = []
    words = model.text_encoder.backbone.embeddings.word_embeddings
    other = words.register_forward_hook(lambda module, inputs, out: corrupted.append(inputs[0]))
    with torch.no_grad():
        output = objective(batch, rng())
    handle.remove()
    other.remove()
    features = seen["features"]
    with torch.no_grad():
        masked = model.encode_text(corrupted[0], batch.attention_mask)[0]
        whole = model.encode_text(batch.input_ids, batch.attention_mask)[0]
        part = model.encode_image(batch.pixel_values, features.keep)[0]
        picture = model.encode_image(batch.pixel_values)[0]
        joint = views == "joint"
        of_image = model.fusion_states(part, masked if joint else whole, batch.attention_mask)
        of_text = model.fusion_states(part if joint else picture, masked, batch.attention_mask)
        clean = model.fusion_states(picture, whole, batch.attention_mask)[-1]
    torch.testing.assert_close(features.image_tokens, of_image[2][1])
    torch.testing.assert_close(features.decoder_input, of_image[1][1])
    torch.testing.assert_close(features.text_tokens, of_text[2][0])
    torch.testing.assert_close(features.teacher_text, clean[0])
    torch.testing.assert_close(features.teacher_image, clean[1])
    assert (features.targets[corrupted[0] != batch.input_ids] != -100).all()
    decoder = objective.mim_decoder
    predicted = decoder.pixels(decoder(features.decoder_input, features.keep))
    pixels = patch_pixels(batch.pixel_values, 16)
    wanted = mim_loss(predicted, pixels, features.removed)
    torch.testing.assert_close(output.parts["mim_loss"], wanted.detach())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_generator_gives_the_same_losses_and_another_one_others(variant: str):
    objective, batch = minute_reconstruction(**VARIANTS[variant]).eval(), random_pairs(4)
    with torch.no_grad():
        first, again, other = (objective(batch, rng(seed)).parts for seed in (1, 1, 2))
    for name in first:
        assert torch.equal(first[name], again[name]), name
    assert not torch.equal(first["mim_loss"], other["mim_loss"])
    assert not torch.equal(first["mlm_loss"], other["mlm_loss"])


def test_a_batch_of_one_has_no_matching_loss_and_no_nan():
    objective = minute_reconstruction(model={"image_size": 32}).train()
    output = objective(random_pairs(1, side=32), rng())  # one visible patch of four
    assert set(output.parts) == NAMES - {"itm_loss"}
    output.loss.backward()
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize("mask", ["some", "none"])
def test_texts_of_padding_alone_give_finite_losses(architecture: str, mask: str):
    objective = minute_reconstruction(
        feature_mlm="predictor", model={"text__architecture": architecture}
    )
    batch = random_pairs(4)
    rows = slice(None) if mask == "none" else slice(0, 2)
    batch.attention_mask[rows] = 0
    batch.word_ids[rows] = -1
    output = objective.train()(batch, rng())
    assert all(torch.isfinite(part) for part in output.parts.values())
    if mask == "none":
        assert float(output.parts["mlm_loss"].detach()) == 0.0
        assert float(output.parts["feature_mlm_loss"].detach()) == 0.0


@pytest.mark.parametrize("variant", ["released", "decoder"])
def test_bfloat16_gives_float32_losses_near_the_others(variant: str):
    objective, batch = minute_reconstruction(**VARIANTS[variant]).eval(), random_pairs(4)
    with torch.no_grad():
        wanted = objective(batch, rng()).parts
        with torch.autocast("cpu", torch.bfloat16):
            got = objective(batch, rng()).parts
    for name, part in got.items():
        assert part.dtype == torch.float32
        # the minute model's large weights make its match logit coarse
        torch.testing.assert_close(part, wanted[name], rtol=0.1, atol=0.3 * (name == "itm_loss"))


def test_one_batch_can_be_learnt():
    torch.manual_seed(0)
    student = UMDModel(minute_config(image_size=64, initializer_range=0.1), TASKS, FIELDS)
    config = ReconstructionConfig(
        feature_mim="decoder",
        feature_mlm="predictor",
        decoder_width=32,
        decoder_layers=1,
        decoder_heads=2,
    )
    objective = MultiLevelReconstruction(student, config, VOCABULARY, itm=True).train()
    batch = random_pairs(4)
    # ramps up or down: which of them, only the visible patches tell
    ramp = torch.linspace(-1.0, 1.0, 16)
    strength = torch.tensor([1.0, -1.0, 2.0, -2.0])[:, None, None, None]
    batch.pixel_values[:] = ramp.repeat(4) * strength
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(40):
        output = objective(batch, rng())  # the same masks each time
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.update_teacher()
        losses.append({name: float(part.detach()) for name, part in output.parts.items()})
    assert set(losses[0]) == NAMES
    for name, first in losses[0].items():
        assert losses[-1][name] < 0.3 * first, (name, losses[0], losses[-1])


# --- clean features and further objectives -----------------------


@pytest.mark.parametrize("stem", ["conv", "patch"])
def test_clean_features_are_those_of_the_encoders_in_the_shapes_they_say(stem: str):
    model = minute_model(minute_config(image_size=64, vision__stem=stem)).eval()
    batch, sizes = random_pairs(3), model.config
    clean = CleanFeatures(model, batch)
    tokens, image = model.encode_image(batch.pixel_values)
    words, text = model.encode_text(batch.input_ids, batch.attention_mask)
    rows, columns = clean.grid
    assert (rows, columns) == (4, 4)
    assert torch.equal(clean.image_tokens, tokens)
    assert torch.equal(clean.image_patches, tokens[:, 1 : 1 + rows * columns])
    assert clean.image_patches.shape == (3, 16, sizes.vision.hidden_size)
    assert tokens.shape[1] == 1 + 16 + (stem == "conv")
    assert torch.equal(clean.text_tokens, words)
    assert clean.text_tokens.shape == (3, 10, sizes.text.hidden_size)
    assert torch.equal(clean.image_embedding, image)
    assert torch.equal(clean.text_embedding, text)
    for unit, projection, whole in (
        (image, model.image_embedding, clean.image_global),
        (text, model.text_embedding, clean.text_global),
    ):
        assert whole.shape == (3, projection.in_features)
        torch.testing.assert_close(nn.functional.normalize(projection(whole)), unit)


class _Asking(nn.Module):
    """Reads what `names` says of the clean features, twice; keeps what it was given."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        self.given: list[Tensor] = []

    def forward(self, batch: PairBatch, features: PairFeatures) -> Tensor | None:
        self.given = [getattr(features.clean, name) for name in self.names * 2]
        return sum((given.float().square().mean() for given in self.given), torch.zeros(()))


def _with_further(itm: bool, **objectives: nn.Module) -> MultiLevelReconstruction:
    model = minute_model(minute_config(image_size=64))
    config = ReconstructionConfig(decoder_layers=1)
    return MultiLevelReconstruction(model, config, VOCABULARY, itm=itm, objectives=objectives)


@pytest.mark.parametrize("itm", [True, False])
def test_each_encoder_runs_once_a_step_for_all_who_ask_and_not_for_nobody(itm: bool):
    whole: list[str] = []
    names = ("image_tokens", "image_global", "text_global", "text_embedding")
    for asked in ((), names[:2], names):
        objective = _with_further(itm, one=_Asking(*asked), other=_Asking(*asked)).train()
        whole.clear()
        model, batch = objective.model, random_pairs(4)
        model.vision_encoder.register_forward_hook(
            lambda _, inputs, output: whole.append("image") if inputs[-1] is None else None
        )
        model.text_encoder.register_forward_hook(
            lambda _, inputs, output, ids=batch.input_ids: (
                whole.append("text") if inputs[0] is ids else None
            )
        )
        output = objective(batch, rng())
        needed = [["image", "text"], ["image"], []][2 - len(asked) // 2 if not itm else 0]
        assert sorted(whole) == needed
        one, other = (objective.further[f"{name}_loss"].given for name in ("one", "other"))
        assert all(torch.equal(mine, yours) for mine, yours in zip(one, other, strict=True))
        assert output.loss.requires_grad


def test_who_asks_without_a_graph_takes_it_from_no_other():
    model, batch = minute_model(minute_config(image_size=64)), random_pairs(2)
    clean = CleanFeatures(model, batch)
    names = ("image_global", "image_tokens", "text_tokens", "text_embedding")
    with torch.no_grad():
        first = [getattr(clean, name) for name in names]
        without = CleanFeatures(model, batch)
    again = [getattr(clean, name) for name in names]
    assert all(mine is yours for mine, yours in zip(first, again, strict=True))
    assert all(tensor.requires_grad for tensor in again)
    assert not any(getattr(without, name).requires_grad for name in names)


def test_a_further_objective_teaches_the_encoders_and_counts_as_it_is():
    objective = _with_further(False, own=_Asking("image_patches", "text_tokens")).train()
    output = objective(random_pairs(4), rng())
    parts, weights = output.parts, {**objective.config.weights, "own_loss": 1.0}
    wanted = sum(weights[name] * float(part.detach()) for name, part in parts.items())
    assert float(output.loss.detach()) == pytest.approx(wanted, rel=1e-5)
    towers = (objective.model.vision_encoder, objective.model.text_encoder)
    first = [next(p for p in tower.parameters() if p.ndim > 1) for tower in towers]
    assert all(g.abs().max() > 0.0 for g in torch.autograd.grad(parts["own_loss"], first))


def test_further_objectives_leave_the_other_losses_as_they_are():
    torch.manual_seed(0)
    alone = _with_further(True).eval()
    beside = _with_further(True, own=_Asking("text_global")).eval()
    weights = {n: t for n, t in alone.state_dict().items() if not n.startswith("further.")}
    beside.load_state_dict(weights, strict=True)
    with torch.no_grad():
        given, own = (o(random_pairs(4), rng()).parts for o in (beside, alone))
    assert set(given) - set(own) == {"own_loss"}
    assert all(torch.equal(given[name], part) for name, part in own.items())


class _Returning(nn.Module):
    def __init__(self, loss: Tensor | None) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, batch: PairBatch, features: PairFeatures) -> Tensor | None:
        return self.loss


def test_a_further_objective_may_have_nothing_for_a_batch_but_no_loss_of_each_pair():
    none = _with_further(False, own=_Returning(None))(random_pairs(2), rng())
    assert "own_loss" not in none.parts
    with pytest.raises(ValueError, match=r"own_loss: \(2,\) given; a scalar is needed"):
        _with_further(False, own=_Returning(torch.ones(2)))(random_pairs(2), rng())


@pytest.mark.parametrize("name", ["mim", "contrast", "a.b", "", "two words"])
def test_a_further_objective_needs_a_name_of_its_own(name: str):
    with pytest.raises(UsageError, match=rf"objectives: '{name}' given; letters"):
        _with_further(False, **{name: _Returning(None)})


# --- teacher ---------------------------------------


def test_the_teacher_starts_as_a_copy_and_follows_the_student():
    objective = minute_reconstruction(teacher_decay=0.75)
    student, teacher = objective.model, objective.teacher.model
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with torch.no_grad():
        for tensor in student.state_dict().values():
            tensor.add_(3 if not tensor.is_floating_point() else torch.rand_like(tensor))
    objective.update_teacher()
    for name, tensor in student.state_dict().items():
        wanted = tensor
        if tensor.is_floating_point():
            wanted = 0.75 * before[name] + 0.25 * tensor
        torch.testing.assert_close(teacher.state_dict()[name], wanted)
    counters = [n for n in before if n.endswith("num_batches_tracked")]
    running = [n for n in before if n.endswith("running_mean")]
    assert counters
    assert running


def test_a_random_teacher_is_another_model_of_the_same_sizes():
    student = minute_model()
    teacher = MomentumTeacher(student, 0.9, "random").model
    own, other = student.state_dict(), teacher.state_dict()
    assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in other.items()}
    assert not torch.equal(own["match_head.weight"], other["match_head.weight"])


def test_the_teacher_is_saved_and_stays_in_evaluation_mode():
    objective = minute_reconstruction().train()
    assert objective.model.training
    assert not any(module.training for module in objective.teacher.modules())
    objective(random_pairs(4), rng())
    objective.model.match_head.weight.data.add_(1.0)
    objective.update_teacher()
    restored = minute_reconstruction()
    restored.load_state_dict(objective.state_dict(), strict=True)
    torch.testing.assert_close(
        restored.teacher.model.match_head.weight, objective.teacher.model.match_head.weight
    )


def test_without_feature_losses_there_is_no_teacher_to_update():
    objective = minute_reconstruction(feature_mim="none", feature_mlm="none")
    objective.update_teacher()
    assert not any(name.startswith("teacher") for name in objective.state_dict())


# --- settings ---------------------------------------


def test_decoder_sizes_follow_the_fusion_and_can_be_set():
    small = minute_reconstruction(decoder_layers=4)
    assert (small.mim_decoder.width, len(small.mim_decoder.blocks)) == (8, 4)
    assert minute_reconstruction(decoder_width=24, decoder_heads=3).mim_decoder.width == 24


def test_the_released_decoder_has_the_papers_sizes():
    with torch.device("meta"):
        decoder = MIMDecoder(768, 384, 4, 6, side=24, patch_size=16)
    assert sum(p.numel() for p in decoder.parameters()) / 1e6 == pytest.approx(7.7, abs=0.05)
    assert decoder.positions.shape == (577, 384)


def test_positions_tell_all_patches_apart():
    decoder = MIMDecoder(8, 16, 1, 1, side=5, patch_size=2)
    assert not decoder.positions[0].any()
    assert len({tuple(row) for row in decoder.positions.tolist()}) == 26


@pytest.mark.parametrize(
    ("table", "setting"),
    [
        ({"image_mask_ratio": 1.0}, "image_mask_ratio: 1.0"),
        ({"image_mask_ratio": 0}, "image_mask_ratio: 0.0"),
        ({"text_mask_ratio": -0.1}, "text_mask_ratio: -0.1"),
        ({"text_mask_ratio": float("nan")}, "text_mask_ratio: nan"),
        ({"alpha": 1.5}, "alpha: 1.5"),
        ({"teacher_decay": 1.0}, "teacher_decay: 1.0"),
        ({"itm_weight": -1.0}, "itm_weight: -1.0"),
        ({"contrast_weight": -0.5}, "contrast_weight: -0.5"),
        ({"stem": "blank"}, "stem: 'blank'.*'patchwise', 'blanked'"),
        ({"feature_target": "batch"}, "feature_target: 'batch'.*'token', 'channel'"),
        ({"decoder_layers": 0}, "decoder_layers: 0"),
        ({"decoder_heads": -2}, "decoder_heads: -2"),
        ({"feature_mim": "on"}, "feature_mim: 'on'.*'released', 'decoder', 'visible', 'none'"),
        ({"views": "both"}, "views: 'both'"),
        ({"mask_ratio": 0.5}, "unknown settings"),
    ],
)
def test_settings_that_make_no_sense_are_named(table: dict[str, Any], setting: str):
    with pytest.raises(UsageError, match=rf"reconstruction[.:] ?{setting}"):
        from_dict(ReconstructionConfig, table, "reconstruction")


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"image_mask_ratio": 0.95}, "image_mask_ratio: 0.95 given, which leaves none of 16"),
        ({"image_mask_ratio": 1e-12}, "image_mask_ratio: 1e-12 given, which removes none of 16"),
        ({"mim_layer": 3}, r"mim_layer: 3 given; -1\.\.2"),
        ({"mim_layer": -2}, r"mim_layer: -2 given; -1\.\.2"),
        ({"decoder_width": 10}, "decoder_width: 10"),
        ({"decoder_width": 16, "decoder_heads": 5}, "decoder_width: 16.*decoder_heads 5"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_named(changes: dict[str, Any], setting: str):
    with pytest.raises(UsageError, match=rf"reconstruction\.{setting}"):
        minute_reconstruction(**changes)


def test_a_tokenizer_of_another_model_is_refused():
    strange = Vocabulary(161, 4, VOCABULARY.ordinary_ids)
    with pytest.raises(UsageError, match=r"vocabulary_size: 160 given; the tokenizer has 161"):
        MultiLevelReconstruction(minute_model(), ReconstructionConfig(), strange, itm=True)


def test_pictures_of_a_single_patch_are_refused():
    with pytest.raises(UsageError, match="leaves none of 1 patches"):
        minute_reconstruction(model={"image_size": 16})
    assert minute_config(image_size=16).image_size == 16
