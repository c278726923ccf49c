"""Which loss teaches which weights: facts that the method states and code loses easily."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.pairs import minute_reconstruction, random_pairs, rng
from umd_edge_train.objectives import MultiLevelReconstruction

ENCODERS = ("model.vision_encoder.", "model.text_encoder.", "model.fusion.")
TOWERS: dict[str, dict[str, Any]] = {
    "conv": {},
    "vit": {"vision__stem": "patch"},
    "clip": {"vision__stem": "patch", "vision__architecture": "clip"},
}


def _gradients(objective: MultiLevelReconstruction, loss: Tensor) -> dict[str, float]:
    """Largest absolute gradient of each parameter; 0 where there is none."""
    named = dict(objective.named_parameters())
    wanted = [name for name, parameter in named.items() if parameter.requires_grad]
    found = torch.autograd.grad(
        loss, [named[name] for name in wanted], retain_graph=True, allow_unused=True
    )
    sizes = {
        name: 0.0 if gradient is None else float(gradient.abs().max())
        for name, gradient in zip(wanted, found, strict=True)
    }
    return dict.fromkeys(named, 0.0) | sizes


def _parts(**config: Any) -> tuple[MultiLevelReconstruction, dict[str, Tensor]]:
    objective = minute_reconstruction(**config).train()
    # A teacher that equals the student would hide which of the two a gradient comes from.
    objective.model.text_encoder.backbone.embeddings.word_embeddings.weight.data.mul_(1.5)
    return objective, objective(random_pairs(4), rng()).parts


def _taught(gradients: dict[str, float], *prefixes: str) -> bool:
    """Whether some weight below every one of the prefixes has a gradient."""
    return all(
        any(size > 0.0 for name, size in gradients.items() if name.startswith(prefix))
        for prefix in prefixes
    )


@pytest.mark.parametrize("tower", TOWERS)
def test_the_released_feature_mim_teaches_mask_token_and_embedding_alone(tower: str):
    objective, parts = _parts(feature_mim="released", model=TOWERS[tower])
    gradients = _gradients(objective, parts["feature_mim_loss"])
    taught = {name for name, size in gradients.items() if size != 0.0}
    assert taught == {
        "mim_decoder.mask_token",
        "mim_decoder.embedding.weight",
        "mim_decoder.embedding.bias",
    }


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("kind", ["decoder", "visible"])
def test_other_feature_mims_teach_the_encoders(kind: str, tower: str):
    objective, parts = _parts(feature_mim=kind, model=TOWERS[tower])
    gradients = _gradients(objective, parts["feature_mim_loss"])
    assert _taught(gradients, *ENCODERS, "model.vision_encoder.backbone.embeddings")
    assert _taught(gradients, "mim_decoder.blocks") == (kind == "decoder")
    assert _taught(gradients, "feature_mim.predictor") == (kind == "decoder")
    assert not _taught(gradients, "mlm_head")


@pytest.mark.parametrize("kind", ["projected", "predictor", "predictor_masked"])
def test_feature_mlm_teaches_the_encoders_and_its_projection(kind: str):
    objective, parts = _parts(feature_mlm=kind)
    gradients = _gradients(objective, parts["feature_mlm_loss"])
    assert _taught(gradients, *ENCODERS, "feature_mlm.projection")
    assert not _taught(gradients, "mim_decoder")


def test_the_projection_gets_its_gradient_from_both_sides_as_released_only():
    for kind, sides in (("projected", 2), ("predictor", 1)):
        objective = minute_reconstruction(feature_mlm=kind).train()
        calls: list[Tensor] = []
        projection = objective.feature_mlm.projection
        projection.register_forward_hook(lambda m, i, out, calls=calls: calls.append(out))
        loss = objective(random_pairs(4), rng()).parts["feature_mlm_loss"]
        assert len(calls) == sides
        for side in torch.autograd.grad(loss, calls, retain_graph=True):
            assert side.abs().max() > 0.0
        # one and the same bias on both sides cancels
        bias = torch.autograd.grad(loss, projection.bias)[0].abs().max()
        assert (bias < 1e-6) == (sides == 2)


@pytest.mark.parametrize("tower", TOWERS)
def test_pixels_words_and_matches_teach_the_encoders(tower: str):
    objective, parts = _parts(model=TOWERS[tower])
    heads = {"mim_loss": "mim_decoder", "mlm_loss": "mlm_head", "itm_loss": "model.match_head"}
    for name, head in heads.items():
        gradients = _gradients(objective, parts[name])
        assert _taught(gradients, *ENCODERS, head), name
        for other in set(heads.values()) - {head}:
            assert not _taught(gradients, other), (name, other)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_decoder_teaches_the_layers_before_it_only(layer: int):
    """Source: M3AE decodes from the middle of the fusion."""
    objective, parts = _parts(mim_layer=layer)
    gradients = _gradients(objective, parts["mim_loss"])
    for index in range(2):
        assert _taught(gradients, f"model.fusion.image_layers.{index}.") == (index < layer)
        # the text's layer k reaches the image in layer k + 1
        assert _taught(gradients, f"model.fusion.text_layers.{index}.") == (index < layer - 1)
    assert _taught(gradients, "model.text_encoder") == (layer > 0)


def test_with_separate_views_each_loss_still_reads_both_modalities():
    objective, parts = _parts(views="separate")
    for name in ("mim_loss", "mlm_loss"):
        assert _taught(_gradients(objective, parts[name]), *ENCODERS), name


@pytest.mark.parametrize("feature_mim", ["released", "decoder", "visible"])
def test_the_teacher_never_gets_a_gradient(feature_mim: str):
    objective = minute_reconstruction(feature_mim=feature_mim).train()
    objective(random_pairs(4), rng()).loss.backward()
    teacher = list(objective.teacher.parameters())
    assert teacher
    assert not any(parameter.requires_grad for parameter in teacher)
    assert all(parameter.grad is None for parameter in teacher)
    optimised = {id(p) for p in objective.parameters() if p.requires_grad}
    assert not optimised & {id(parameter) for parameter in teacher}
    assert {id(parameter) for parameter in objective.model.parameters()} <= optimised


def test_features_after_the_encoders_are_compared_to_the_teacher_of_the_clean_pair():
    """What is masked changes the student's tokens and leaves the teacher's."""
    objective, batch = minute_reconstruction().eval(), random_pairs(3)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = objective.teacher.register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.no_grad():
        first, other = (objective(batch, rng(seed)) for seed in (1, 2))
    handle.remove()
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(first.parts["feature_mlm_loss"], other.parts["feature_mlm_loss"])


@pytest.mark.parametrize("tower", TOWERS)
def test_gradient_checkpointing_recomputes_blocks_and_changes_no_gradient(tower: str):
    gradients, calls = [], []
    for checkpointing in (False, True):
        objective = minute_reconstruction(feature_mim="decoder", model=TOWERS[tower]).train()
        if checkpointing:
            objective.model.enable_gradient_checkpointing()
        count = dict.fromkeys(("vision_encoder", "text_encoder"), 0)
        for encoder in count:
            backbone = getattr(objective.model, encoder).backbone
            first = next(m for m in backbone.modules() if isinstance(m, nn.Linear))

            def hook(*_: Any, encoder: str = encoder, count: dict[str, int] = count) -> None:
                count[encoder] += 1

            first.register_forward_hook(hook)
        objective(random_pairs(4), rng()).loss.backward()
        gradients.append({n: p.grad for n, p in objective.named_parameters() if p.grad is not None})
        calls.append(count)
    assert all(calls[1][encoder] == 2 * calls[0][encoder] > 0 for encoder in calls[0])
    assert set(gradients[0]) == set(gradients[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
