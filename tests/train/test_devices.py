"""Evaluation on the model's device, told by tensors that mix with no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from support.training import FIELDS, TASKS, minute_model, write_recipe
from umd_edge._preprocess import PreprocessSpec
from umd_edge._records import Example, build_examples, read_records
from umd_edge._retrieval_metrics import retrieval_items
from umd_edge._task import TaskSpec
from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import UsageError
from umd_edge_train import devices
from umd_edge_train.devices import device_of, on_training_device, training_device
from umd_edge_train.evaluate import task_logits
from umd_edge_train.finetuning import finetune
from umd_edge_train.models import UMDModel
from umd_edge_train.pictures import PictureStore
from umd_edge_train.recipe import load_recipe
from umd_edge_train.retrieval import score_items
from umd_edge_train.tokenizer import train_wordpiece

CAPTIONS = TaskSpec(name="captions", kind="retrieval", outputs=(), reads=("caption",))
SPEC = PreprocessSpec(height=32, width=32)
AWAY = torch.device("cuda", 7)


class _Away(Tensor):
    """A tensor on a device that no machine has; its numbers are where they always were."""


class _Device(TorchFunctionMode):
    """Moves tensors there and back, and lets none of one place meet one of the other."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to and AWAY in args:
            return _away(args[0])
        if func is Tensor.cpu:
            return _here(args[0])
        if kwargs.get("device") == AWAY:
            del kwargs["device"]
            return _away(func(*args, **kwargs))
        places = {isinstance(t, _Away) for t in tree_leaves((args, kwargs)) if _is_tensor(t)}
        assert places != {True, False}, f"{func} mixes two devices"
        assert places != {True} or func is not Tensor.numpy, "numpy reads no other device"
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        return tree_map(_away, result) if places == {True} else result


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _away(value: Any) -> Any:
    return Tensor.as_subclass(value, _Away) if _is_tensor(value) else value


def _here(value: Any) -> Any:
    return Tensor.as_subclass(value, Tensor) if _is_tensor(value) else value


class _ModelAway:
    """A model whose weights are there: it takes and gives tensors of that device alone."""

    def __init__(self, model: UMDModel) -> None:
        self.num_fields = model.num_fields
        self.encode_image = self._there(model.encode_image)
        self.encode_text = self._there(model.encode_text)
        self.fuse_tokens = self._there(model.fuse_tokens)
        self.match_head = self._there(model.match_head)
        self.task_heads = {name: self._there(head) for name, head in model.task_heads.items()}

    def _there(self, part: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Tensor) -> Any:
            assert all(isinstance(tensor, _Away) for tensor in given), "an input was not moved"
            with torch._C.DisableTorchFunction():
                return tree_map(_away, part(*map(_here, given)))

        return call

    def eval(self) -> None:
        """It knows no other mode."""

    def parameters(self) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(device=AWAY)


@pytest.fixture(scope="module")
def records(synth: Path) -> Path:
    return synth / "questions" / "images_train.jsonl"


@pytest.fixture(scope="module")
def captions(records: Path) -> tuple[Example, ...]:
    return build_examples(read_records(records), CAPTIONS, FIELDS).examples[:12]


@pytest.fixture(scope="module")
def tokenizer(captions: tuple[Example, ...]) -> TextTokenizer:
    return TextTokenizer.from_bytes(train_wordpiece([e.text for e in captions], 160), 16)


@pytest.fixture(scope="module")
def store(captions: tuple[Example, ...]) -> PictureStore:
    return PictureStore(sorted({e.image_path for e in captions}), 32, 32, SPEC.coefficient_bits)


def test_logits_are_computed_where_the_model_is(
    captions: tuple[Example, ...], tokenizer: TextTokenizer, store: PictureStore
):
    model, given = minute_model(), (TASKS[1], captions, store, tokenizer, SPEC, 5)
    ordered, here = task_logits(model, *given)
    with _Device():
        again, back = task_logits(cast(UMDModel, _ModelAway(model)), *given)
    assert type(back) is Tensor
    assert back.dtype == torch.float32
    assert torch.equal(back, here)
    assert again == ordered


@pytest.mark.parametrize("method", ["embedding", "two_stage", "fusion"])
def test_pairs_are_scored_where_the_model_is(
    captions: tuple[Example, ...], tokenizer: TextTokenizer, store: PictureStore, method: Any
):
    model = minute_model(tasks=(CAPTIONS,))
    given = (retrieval_items(captions), store, tokenizer, SPEC)
    here = score_items(model, *given, method=method, candidates=2)
    with _Device():
        away = cast(UMDModel, _ModelAway(model))
        back = score_items(away, *given, method=method, candidates=2)
    np.testing.assert_array_equal(back.cosine, here.cosine)
    np.testing.assert_array_equal(back.match_logits, here.match_logits)


def test_an_input_that_stays_behind_is_noticed():
    """The device of this file can say no: without that the tests above would show nothing."""
    model = cast(UMDModel, _ModelAway(minute_model()))
    pixels, rows = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])
    with _Device(), torch.inference_mode():
        with pytest.raises(AssertionError, match="not moved"):
            model.encode_image(pixels)
        tokens, _ = model.encode_image(pixels.to(device_of(model)))
        with pytest.raises(AssertionError, match="mixes two devices"):
            tokens[rows]
        with pytest.raises(AssertionError, match="numpy"):
            tokens.numpy()
        assert tokens[rows.to(AWAY)].cpu().numpy().shape[0] == 2


# --- the training device ------------------------------------------


def test_the_training_device_is_that_of_the_runs():
    assert training_device() == Accelerator(cpu=not torch.cuda.is_available()).device


class _Moved(nn.Linear):
    """Notes where it is moved, and stays."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.moves: list[torch.device] = []

    def to(self, device: torch.device) -> _Moved:  # type: ignore[override]
        self.moves.append(device)
        return self


def test_a_model_returns_from_the_training_device_even_after_an_error(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(devices, "training_device", lambda: AWAY)
    model = _Moved()
    with pytest.raises(ValueError, match="broken"), on_training_device(model):
        assert model.moves == [AWAY]
        raise ValueError("broken")
    assert model.moves == [AWAY, torch.device("cpu")]


def test_float16_without_a_gpu_is_refused_before_anything_is_read(tmp_path: Path):
    recipe = load_recipe(write_recipe(tmp_path, "shapes"), ("optim.precision=float16",))
    with pytest.raises(UsageError, match=r"optim\.precision: 'float16' given.*needs a GPU"):
        finetune(recipe, tmp_path / "nowhere", tmp_path / "run")
    assert not (tmp_path / "run").exists()
