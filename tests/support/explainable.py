"""The tiny bundle with the tensors that explanations read, as an export names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from support.bundles import repack, tiny_files

WIDTH = 8
PROOF = {
    "measure": "faithfulness",
    "gain": 0.2,
    "low": 0.1,
    "high": 0.3,
    "n": 60,
    "split": "val",
}


def proof(**proven: bool) -> dict[str, Any]:
    """Method -> entry of a proof; `low` is above 0 where it is proven."""
    return {
        method: {**PROOF, "proven": value, "low": 0.1 if value else -0.1}
        for method, value in proven.items()
    }


def explainable_bundle(
    out: Path, edit: Callable[[dict[str, Any]], object] = lambda manifest: None
) -> Path:
    """Write the tiny bundle with `patch_cells` and `image_attention` in its graphs."""
    files = tiny_files()
    for variant in ("fp32", "int8"):
        names = {part: f"graphs/{part}.{variant}.onnx" for part in ("vision", "fusion")}
        files[names["vision"]] = _with_cells(files[names["vision"]])
        files[names["fusion"]] = _with_attention(files[names["fusion"]])
    return repack(out, files, edit)


def _with_cells(graph: bytes) -> bytes:
    model = onnx.load_model_from_string(graph)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == "pooled":
                    names[index] = "patch_cells"
    return model.SerializeToString()


def _with_attention(graph: bytes) -> bytes:
    """Softmax over image tokens of their products with structured values and words."""
    model = onnx.load_model_from_string(graph)
    constants = {
        "explain.two": np.array([2], np.int64),
        "explain.one": np.array([1], np.int64),
        "explain.wide": np.ones((1, 1, WIDTH), np.float32),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    steps = [
        ("Unsqueeze", ["structured_values", "explain.two"], "explain.values", {}),
        ("Mul", ["explain.values", "explain.wide"], "explain.fields", {}),
        ("Concat", ["explain.fields", "text_tokens"], "explain.stream", {"axis": 1}),
        ("Transpose", ["image_tokens"], "explain.turned", {"perm": [0, 2, 1]}),
        ("MatMul", ["explain.stream", "explain.turned"], "explain.product", {}),
        ("Softmax", ["explain.product"], "explain.softmax", {"axis": -1}),
        ("Unsqueeze", ["explain.softmax", "explain.one"], "image_attention", {}),
    ]
    model.graph.node.extend(
        helper.make_node(kind, inputs, [output], **attributes)
        for kind, inputs, output, attributes in steps
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()
