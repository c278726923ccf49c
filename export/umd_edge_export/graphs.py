"""The three graphs of a checkpoint as ONNX: vision, text, fusion.

Names and shapes of inputs and outputs are those of the bundle format. The graphs are free of source
paths, stack traces and whatever else varies from run to run: the same checkpoint gives the same
bytes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from optimum.exporters.base import ExporterConfig
from optimum.utils import DummyTextInputGenerator, DummyVisionInputGenerator, NormalizedConfig
from optimum.utils.input_generators import DummyInputGenerator
from torch import Tensor, nn
from transformers import PretrainedConfig

from umd_edge._insides import ATTENTION, CELLS
from umd_edge._manifest import PARTS
from umd_edge_train.checkpoint import Checkpoint
from umd_edge_train.models import UMDModel
from umd_edge_train.models.model import unit_vectors

from .equalise import equalise_stem
from .errors import ExportError
from .rewrite import Seen, prepare_model, stable_mean, watch_attention

__all__ = ["OPSET", "PARTS", "GraphIO", "export_graphs", "graph_io", "strip_model"]

OPSET = 20
"""23 emits `Attention`, which TensorRT before 10.14 lacks; 18 lacks 16-bit float scales."""

Axes = dict[str, dict[int, str]]


@dataclass(frozen=True, slots=True)
class GraphIO:
    """Inputs and outputs of one graph with their dynamic axes."""

    inputs: Axes
    outputs: Axes
    integers: frozenset[str] = field(default=frozenset({"input_ids", "attention_mask"}))


def graph_io(checkpoint: Checkpoint) -> dict[str, GraphIO]:
    """Inputs and outputs of the graphs `vision`, `text` and `fusion`, in the format's order."""
    batch = {0: "batch"}
    words = {0: "batch", 1: "length"}
    heads = {name: batch for name in checkpoint.model.task_heads}
    return {
        "vision": GraphIO(
            {"pixel_values": batch}, {"image_tokens": batch, "image_embedding": batch}
        ),
        "text": GraphIO(
            {"input_ids": words, "attention_mask": words},
            {"text_tokens": words, "text_embedding": batch},
        ),
        "fusion": GraphIO(
            {
                "image_tokens": batch,
                "text_tokens": words,
                "attention_mask": words,
                "structured_values": batch,
                "structured_mask": batch,
            },
            {**heads, "match_logit": batch},
        ),
    }


class _VisionGraph(nn.Module):
    def __init__(self, model: UMDModel) -> None:
        super().__init__()
        self.model = model
        self._cells = Seen()
        _cell_maker(model).register_forward_hook(lambda *call: self._cells.keep(call[-1]))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # As `UMDModel.encode_image`, with the mean in a fixed order.
        tokens = self.model.vision_encoder(pixel_values)
        embedding = unit_vectors(self.model.image_embedding(stable_mean(tokens, None)))
        return tokens, embedding, self._cells.tensor


def _cell_maker(model: UMDModel) -> nn.Module:
    """The module whose output holds one vector for each patch, which has not seen the others."""
    encoder = model.vision_encoder
    if encoder.stem is not None:
        return encoder.stem
    return next(part for part in encoder.backbone.modules() if isinstance(part, nn.Conv2d))


class _TextGraph(nn.Module):
    def __init__(self, model: UMDModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode_text(input_ids, attention_mask)


class _FusionGraph(nn.Module):
    def __init__(self, model: UMDModel) -> None:
        super().__init__()
        self.model = model
        self._attention = watch_attention(model)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        attention_mask: Tensor,
        structured_values: Tensor,
        structured_mask: Tensor,
    ) -> tuple[Tensor, ...]:
        outputs = self.model.fuse(
            image_tokens, text_tokens, attention_mask, structured_values, structured_mask
        )
        names = [*self.model.task_heads, "match_logit"]
        return (*(outputs[name] for name in names), self._attention.tensor)


class _FusionInputs(DummyInputGenerator):  # type: ignore[misc]
    """Inputs that `optimum` has no generator for."""

    SUPPORTED_INPUT_NAMES = ("image_tokens", "text_tokens", "structured_values", "structured_mask")

    def __init__(
        self, task: str, normalized_config: Any, batch_size: int, sequence_length: int, **_: Any
    ) -> None:
        config = normalized_config.config
        fields = [batch_size, config.num_fields]
        self.shapes = {
            "image_tokens": [batch_size, config.num_image_tokens, config.image_width],
            "text_tokens": [batch_size, sequence_length, config.text_width],
            "structured_values": fields,
            "structured_mask": fields,
        }

    def generate(
        self,
        input_name: str,
        framework: str = "pt",
        int_dtype: str = "int64",
        float_dtype: str = "fp32",
    ) -> Any:
        return self.random_float_tensor(
            self.shapes[input_name], min_value=0, framework=framework, dtype=float_dtype
        )


class _PartConfig(ExporterConfig):  # type: ignore[misc]
    """How `optimum` describes one of the graphs."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (
        DummyTextInputGenerator,
        DummyVisionInputGenerator,
        _FusionInputs,
    )
    ATOL_FOR_VALIDATION = 1e-4

    def __init__(self, config: PretrainedConfig, part: GraphIO) -> None:
        super().__init__(config, task="feature-extraction")
        self._part = part

    @property
    def inputs(self) -> Axes:
        return self._part.inputs

    @property
    def outputs(self) -> Axes:
        return self._part.outputs


def _sizes(checkpoint: Checkpoint) -> PretrainedConfig:
    """Sizes of the inputs, in the form that the generators read."""
    model = checkpoint.model
    grid = model.config.image_size // model.config.vision.patch_size
    return PretrainedConfig(
        vocab_size=model.config.vocabulary_size,
        num_channels=checkpoint.preprocess.channels,
        image_size=[checkpoint.preprocess.height, checkpoint.preprocess.width],
        num_fields=model.num_fields,
        num_image_tokens=grid**2 + 1 + model.has_summary,
        image_width=model.vision_encoder.hidden_size,
        text_width=model.text_encoder.hidden_size,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress, logs what it lacks and warns about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def strip_model(model: onnx.ModelProto) -> None:
    """Remove what is not computation: paths, stack traces, notes, intermediate shapes."""
    model.producer_name, model.producer_version, model.doc_string = "umd-edge-export", "", ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "umd", ""
    del graph.value_info[:]
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]


def _export(graph: nn.Module, config: _PartConfig, inner: tuple[str, ...]) -> onnx.ModelProto:
    """Trace one graph; its last outputs, `inner`, are then named tensors inside it and no more."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Length 1 and batch 1 would be taken for constants.
        inputs = config.generate_dummy_inputs(framework="pt", batch_size=2, sequence_length=11)
    # `optimum` calls lists of 1s and 0s of a mask integers, as the format does.
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            kwargs={name: inputs[name] for name in config.inputs},
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
            input_names=list(config.inputs),
            output_names=[*config.outputs, *inner],
            dynamic_shapes={name: dict(axes) for name, axes in config.inputs.items()},
        )
    model = cast(onnx.ModelProto, cast(Any, program).model_proto)
    strip_model(model)
    for _ in inner:
        model.graph.output.pop()
    onnx.checker.check_model(model)
    return model


def _require_finite(model: UMDModel) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ExportError(
                f"the checkpoint's weight {name!r} holds values that are not finite; the file is "
                "damaged or the training diverged: use another checkpoint"
            )


def export_graphs(
    checkpoint: Checkpoint, pictures: Iterable[npt.NDArray[np.float32]] = ()
) -> dict[str, onnx.ModelProto]:
    """Trace the model into float32 graphs.

    What explanations read is named inside them: `patch_cells` in `vision`, `image_attention` in
    `fusion`.

    Args:
        checkpoint: Its model is left as it is.
        pictures: `pixel_values` (1, 3, H, W) of real pictures, by which the channels of a
            convolutional stem are equalised for 8 bits; the function stays the same.

    Returns:
        `vision`, `text` and `fusion`, with the input and output names of the bundle format and
        dynamic batch and text length.

    Raises:
        ExportError: A weight is not finite, or batch normalisation cannot be folded.
    """
    _require_finite(checkpoint.model)
    model = prepare_model(checkpoint.model)
    if model.vision_encoder.stem is not None:
        equalise_stem(model.vision_encoder.stem, pictures)
    wrappers = {"vision": _VisionGraph, "text": _TextGraph, "fusion": _FusionGraph}
    sizes = _sizes(checkpoint)
    parts = graph_io(checkpoint)
    inner = {"vision": (CELLS,), "text": (), "fusion": (ATTENTION,)}
    return {
        part: _export(wrappers[part](model), _PartConfig(sizes, parts[part]), inner[part])
        for part in PARTS
    }
