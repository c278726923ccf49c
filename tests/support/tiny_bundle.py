"""A bundle of a few kB with the real inputs and outputs and made-up weights.

`tests/data/tiny.umd` is what `build_tiny_bundle` gives. Building needs `onnx`, using does not.
Run this file to write it again: `python -m support.tiny_bundle` from `tests/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from umd_edge._bundle import Bundle, file_entries, write_bundle
from umd_edge._graphs import Graphs
from umd_edge._manifest import IntendedUse, Manifest, TokenizerSpec, VariantSpec
from umd_edge._options import SessionOptions
from umd_edge._preprocess import PreprocessSpec, preprocess
from umd_edge._selftest import compute_golden_outputs, write_golden
from umd_edge._structured import StructuredField
from umd_edge._task import TaskSpec, output_name
from umd_edge._tokenizer import TextTokenizer

TINY_PATH = Path(__file__).resolve().parent.parent / "data" / "tiny.umd"
SIDE, WIDTH, PATCH = 16, 8, 8
TEXTS = ["is there a pleural effusion ?", "chest"]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_WORDS = (
    "is there a the pleural effusion pneumonia what which organ shown modality plane chest x ray "
    "breast ultrasound skin lesion signs of an image finding ? , . brain fever cough ##s ##ing"
)
VOCABULARY = {token: index for index, token in enumerate(_SPECIAL + _WORDS.split())}

TASKS: list[dict[str, Any]] = [
    {
        "name": "vqa",
        "kind": "vqa",
        "answers": ["yes", "no", "ct", "mri", "x-ray", "chest", "brain", "axial"],
        "reads": ["question"],
    },
    {
        "name": "chest-xray",
        "kind": "classification",
        "labels": ["No Finding", "Pneumonia", "Effusion"],
        "multi_label": True,
        "probability": {"kind": "sigmoid", "temperature": 1.5},
        "operating_points": {"Pneumonia": 0.3},
        "prompt": "chest x ray",
        "reads": ["text", "age"],
        "applies_to": {"dicom_modality": ["CR", "DX"], "body_part": ["CHEST", "THORAX"]},
    },
    {
        "name": "breast-ultrasound",
        "kind": "classification",
        "labels": ["benign", "malignant", "normal"],
        "prompt": "breast ultrasound",
        "thresholds": {"abstain": 0.34},
        "applies_to": {"dicom_modality": ["US"]},
    },
    {
        "name": "skin-lesion",
        "kind": "classification",
        "labels": ["ACK", "BCC", "MEL", "NEV", "SCC", "SEK"],
        "prompt": "skin lesion",
        "reads": ["structured.itch", "age", "region"],
    },
]
FIELDS = (
    StructuredField(name="structured.itch", kind="binary"),
    StructuredField(name="age", kind="numeric", unit="a", mean=60.0, std=16.0),
    StructuredField(name="region", kind="categorical", categories=("face", "arm", "back")),
)


def tokenizer_json() -> bytes:
    """A WordPiece tokenizer, spelled out so that its bytes do not depend on a library's version."""
    special = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, token in enumerate(_SPECIAL)
    ]
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        ],
        "pair": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {
            token: {"id": token, "ids": [VOCABULARY[token]], "tokens": [token]}
            for token in ("[CLS]", "[SEP]")
        },
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": VOCABULARY,
        },
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


class _Graph:
    """Collects nodes and weights of one ONNX graph."""

    def __init__(self, *, int8: bool) -> None:
        self.int8 = int8
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def linear(self, x: str, weight: np.ndarray, output: str) -> str:
        """x @ weight; with `int8`, U8 activations and S8 weights of 7 bits."""
        if not self.int8:
            return self.add("MatMul", [x, self.constant(f"{output}.weight", weight)], output)
        scale = np.float32(np.abs(weight).max() / 63)
        whole = np.clip(np.rint(weight / scale), -64, 63).astype(np.int8)
        a = [
            self.constant(f"{output}.a_scale", np.float32(0.04)),
            self.constant(f"{output}.a_zero", np.uint8(128)),
        ]
        w = [
            self.constant(f"{output}.w_scale", scale),
            self.constant(f"{output}.w_zero", np.int8(0)),
        ]
        self.add("QuantizeLinear", [x, *a], f"{output}.q")
        self.add("DequantizeLinear", [f"{output}.q", *a], f"{output}.a")
        self.add("DequantizeLinear", [self.constant(f"{output}.weight", whole), *w], f"{output}.w")
        return self.add("MatMul", [f"{output}.a", f"{output}.w"], output)

    def finish(self, name: str, inputs: list[Any], outputs: list[tuple[str, list[Any]]]) -> bytes:
        infos = [helper.make_tensor_value_info(o, TensorProto.FLOAT, s) for o, s in outputs]
        graph = helper.make_graph(self.nodes, name, inputs, infos, self.weights)
        opset = helper.make_opsetid("", 20)
        model = helper.make_model(
            graph, opset_imports=[opset], ir_version=10, producer_name="umd-edge-tests"
        )
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
        return data


def _weight(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).uniform(-0.6, 0.6, shape).astype(np.float32)


def _float(name: str, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _int64(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])


def vision_graph(*, int8: bool) -> bytes:
    g = _Graph(int8=int8)
    g.add(
        "AveragePool",
        ["pixel_values"],
        "pooled",
        kernel_shape=[PATCH, PATCH],
        strides=[PATCH, PATCH],
    )
    g.add("Reshape", ["pooled", g.constant("flat", np.array([0, 0, -1], np.int64))], "flattened")
    g.add("Transpose", ["flattened"], "patches", perm=[0, 2, 1])
    g.linear("patches", _weight(1, 3, WIDTH), "projected")
    position = _weight(2, 1, (SIDE // PATCH) ** 2, WIDTH)
    g.add("Add", ["projected", g.constant("position", position)], "image_tokens")
    axis = g.constant("axis", np.array([1], np.int64))
    g.add("ReduceMean", ["image_tokens", axis], "image_embedding", keepdims=0)
    tokens = (SIDE // PATCH) ** 2
    return g.finish(
        "vision",
        [_float("pixel_values", "batch", 3, SIDE, SIDE)],
        [("image_tokens", ["batch", tokens, WIDTH]), ("image_embedding", ["batch", WIDTH])],
    )


def _masked_mean(g: _Graph, tokens: str, output: str) -> None:
    g.add("Cast", ["attention_mask"], f"{output}.mask", to=TensorProto.FLOAT)
    one = g.constant(f"{output}.one", np.array([1], np.int64))
    two = g.constant(f"{output}.two", np.array([2], np.int64))
    g.add("Unsqueeze", [f"{output}.mask", two], f"{output}.mask3")
    g.add("Mul", [tokens, f"{output}.mask3"], f"{output}.kept")
    g.add("ReduceSum", [f"{output}.kept", one], f"{output}.sum", keepdims=0)
    g.add("ReduceSum", [f"{output}.mask", one], f"{output}.count", keepdims=1)
    g.add("Div", [f"{output}.sum", f"{output}.count"], output)


def text_graph(*, int8: bool) -> bytes:
    g = _Graph(int8=int8)
    table = g.constant("table", _weight(3, len(VOCABULARY), WIDTH))
    g.add("Gather", [table, "input_ids"], "embedded")
    g.linear("embedded", _weight(4, WIDTH, WIDTH), "mixed")
    g.add("Tanh", ["mixed"], "text_tokens")
    _masked_mean(g, "text_tokens", "text_embedding")
    return g.finish(
        "text",
        [_int64("input_ids"), _int64("attention_mask")],
        [("text_tokens", ["batch", "length", WIDTH]), ("text_embedding", ["batch", WIDTH])],
    )


def fusion_graph(tasks: list[TaskSpec], *, int8: bool) -> bytes:
    g = _Graph(int8=int8)
    _masked_mean(g, "text_tokens", "text_mean")
    axis = g.constant("axis", np.array([1], np.int64))
    g.add("ReduceMean", ["image_tokens", axis], "image_mean", keepdims=0)
    g.add("Mul", ["structured_values", "structured_mask"], "structured_known")
    parts = ["image_mean", "text_mean", "structured_known", "structured_mask"]
    g.add("Concat", parts, "joined", axis=1)
    g.linear("joined", _weight(5, 2 * WIDTH + 2 * len(FIELDS), 2 * WIDTH), "mixed")
    g.add("Tanh", ["mixed"], "hidden")
    outputs: list[tuple[str, list[Any]]] = []
    for index, task in enumerate(tasks):
        name = output_name(task.name)
        g.linear("hidden", 3 * _weight(10 + index, 2 * WIDTH, len(task.outputs)), name)
        outputs.append((name, ["batch", len(task.outputs)]))
    g.linear("hidden", _weight(6, 2 * WIDTH, 1), "match")
    g.add("Squeeze", ["match", axis], "match_logit")
    fields = len(FIELDS)
    return g.finish(
        "fusion",
        [
            _float("image_tokens", "batch", "tokens", WIDTH),
            _float("text_tokens", "batch", "length", WIDTH),
            _int64("attention_mask"),
            _float("structured_values", "batch", fields),
            _float("structured_mask", "batch", fields),
        ],
        [*outputs, ("match_logit", ["batch"])],
    )


def _golden_inputs(spec: PreprocessSpec, tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
    rows, columns = np.mgrid[0:40, 0:52]
    image = np.stack([rows * 5, columns * 4, (rows * columns) % 251], axis=2).astype(np.uint8)
    input_ids, attention_mask = tokenizer.encode(TEXTS)
    return {
        "image": image,
        "pixel_values": preprocess(image, spec)[None],
        "texts": np.frombuffer(json.dumps(TEXTS).encode(), np.uint8),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "structured_values": np.array([[1, 0.5, 2], [0, 0, 0]], np.float32),
        "structured_mask": np.array([[1, 1, 1], [0, 0, 0]], np.float32),
    }


def make_manifest(files: dict[str, bytes], **changes: Any) -> Manifest:
    """The tiny bundle's manifest for these files; any field can be replaced."""
    graphs = {
        variant: {part: f"graphs/{part}.{variant}.onnx" for part in ("vision", "text", "fusion")}
        for variant in ("fp32", "int8")
    }
    values: dict[str, Any] = {
        "name": "tiny-test",
        "version": "0.0.1",
        "created": "2026-01-01T00:00:00Z",
        "intended_use": IntendedUse(statement="For tests only: the weights are made up."),
        "preprocessing": PreprocessSpec(height=SIDE, width=SIDE),
        "tokenizer": TokenizerSpec(file="tokenizer.json", max_length=12),
        "structured_fields": FIELDS,
        "tasks": tuple(TaskSpec.from_dict(task) for task in TASKS),
        "variants": {
            "fp32": VariantSpec(graphs=graphs["fp32"], golden_tolerance=0.01),
            "int8": VariantSpec(
                graphs=graphs["int8"], golden_tolerance=0.02, notes={"weight_bits": 7}
            ),
        },
        "default_variant": "int8",
        "opset": 20,
        "golden": "golden.npz",
        "files": file_entries(files),
        "provenance": {"made_by": "tests/support/tiny_bundle.py"},
    }
    return Manifest(**{**values, **changes})


def pack(files: dict[str, bytes], out: Path, **changes: Any) -> Path:
    """Write a bundle of these files with a fitting manifest."""
    manifest = make_manifest(files, **changes)
    write_bundle({**files, "manifest.json": manifest.to_bytes()}, out)
    return out


def build_tiny_bundle(out: Path) -> Path:
    """Write the bundle to `out`."""
    tasks = [TaskSpec.from_dict(task) for task in TASKS]
    files = {"tokenizer.json": tokenizer_json()}
    for variant in ("fp32", "int8"):
        int8 = variant == "int8"
        files[f"graphs/vision.{variant}.onnx"] = vision_graph(int8=int8)
        files[f"graphs/text.{variant}.onnx"] = text_graph(int8=int8)
        files[f"graphs/fusion.{variant}.onnx"] = fusion_graph(tasks, int8=int8)
    tokenizer = TextTokenizer.from_bytes(files["tokenizer.json"], 12)
    golden = _golden_inputs(PreprocessSpec(height=SIDE, width=SIDE), tokenizer)
    # The graphs are opened from a first bundle, whose golden outputs are still missing.
    bundle = Bundle.open(pack({**files, "golden.npz": write_golden(golden)}, out))
    outputs = {
        f"{variant}/{name}": np.round(value, 2)  # the same on every processor
        for variant in ("fp32", "int8")
        for name, value in compute_golden_outputs(
            Graphs(bundle, variant, SessionOptions()), golden
        ).items()
    }
    return pack({**files, "golden.npz": write_golden({**golden, **outputs})}, out)


if __name__ == "__main__":
    build_tiny_bundle(TINY_PATH)
