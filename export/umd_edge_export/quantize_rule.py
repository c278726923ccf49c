"""Which layers stay in float where no labelled records decide it: a rule, found once by measuring.

* The text graph: it is small, and an error in a word is one in every answer.
* The first convolutions of a stem: they see the finest detail with the fewest channels.
* The products that make logits: they are small, and next to the decision.

The rule was measured on the default architecture; another one may need another. With labelled
records `sensitivity_search` decides instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from .quantize_layers import Layer

__all__ = ["QUANTISED_PARTS", "early_convolutions", "float_nodes", "head_products", "rule_float"]

QUANTISED_PARTS = ("vision", "fusion")
_PRODUCTS = ("Conv", "MatMul", "Gemm")
_EARLY = 3


def float_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of products without a constant weight: there is nothing to quantise."""
    constants = {item.name for item in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in _PRODUCTS and node.input[1] not in constants
    ]


def early_convolutions(model: onnx.ModelProto) -> list[str]:
    """Names of the first convolutions: of a stem the first three, else the first.

    In float they cost a third of the stem's arithmetic. Of one default model they saved a third of
    the decisions that 8 bits would have changed, of the next none.
    """
    pixels = {item.name for item in model.graph.input}
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    reads_pixels = any(
        node.op_type == "Conv" and node.input[0] in pixels for node in model.graph.node
    )
    if not reads_pixels:
        return []
    return names[:_EARLY] if len(names) > _EARLY + 1 else names[:1]


def head_products(model: onnx.ModelProto) -> list[str]:
    """Names of the products that make logits of the joint vector.

    From each output `logits_*` back the last two, and the one that gives `match_logit`.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    names: dict[str, None] = {}
    for output in model.graph.output:
        if output.name.startswith("logits_"):
            wanted = 2
        else:
            wanted = 1 if output.name == "match_logit" else 0
        node = makers.get(output.name)
        while node is not None and wanted:
            if node.op_type in _PRODUCTS:
                names[node.name] = None
                wanted -= 1
            node = next((makers[name] for name in node.input if name in makers), None)
    return list(names)


def rule_float(graphs: Mapping[str, onnx.ModelProto], layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Those of the layers that the rule leaves in float; tables are never among them."""
    kept = {
        part: {*early_convolutions(model), *head_products(model)} for part, model in graphs.items()
    }
    return tuple(
        layer
        for layer in layers
        if not layer.is_table
        and (layer.part not in QUANTISED_PARTS or layer.node in kept[layer.part])
    )
