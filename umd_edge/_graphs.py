"""The three graphs of one variant, with the inputs and outputs that the format asks for."""

from __future__ import annotations

from ._bundle import Bundle
from ._insides import Insides
from ._manifest import Manifest, VariantSpec
from ._options import SessionOptions
from ._results import Int8Path
from ._session import GraphSession, GraphSpec, needs_u8u8
from ._task import output_name

__all__ = ["Graphs", "default_variant", "fusion_outputs", "graph_specs", "weight_bits"]


def fusion_outputs(manifest: Manifest) -> tuple[str, ...]:
    """Outputs of the fusion graph: the logits of each task in the manifest's order, then the match.

    A retrieval task has no logits of its own; it is scored by `match_logit` and the embeddings.
    """
    names = [output_name(task.name) for task in manifest.tasks if task.kind != "retrieval"]
    return (*names, "match_logit")


def graph_specs(manifest: Manifest) -> dict[str, GraphSpec]:
    """What the graphs `vision`, `text` and `fusion` must look like."""
    return {
        "vision": GraphSpec({"pixel_values": ("float", 4)}, ("image_tokens", "image_embedding")),
        "text": GraphSpec(
            {"input_ids": ("int64", 2), "attention_mask": ("int64", 2)},
            ("text_tokens", "text_embedding"),
        ),
        "fusion": GraphSpec(
            {
                "image_tokens": ("float", 3),
                "text_tokens": ("float", 3),
                "attention_mask": ("int64", 2),
                "structured_values": ("float", 2),
                "structured_mask": ("float", 2),
            },
            fusion_outputs(manifest),
        ),
    }


def default_variant(manifest: Manifest, provider: str) -> str:
    """The variant to run where none is named: the bundle's default, or one made for TensorRT.

    Raises:
        UsageError: The provider is `tensorrt` and the bundle has no variant for it.
    """
    if provider != "tensorrt":
        return manifest.default_variant
    from ._tensorrt_bundle import tensorrt_variant

    return tensorrt_variant(manifest, None)


def weight_bits(variant: VariantSpec) -> int:
    """Bits of a variant's integer weights, 8 where its notes do not say."""
    bits = variant.notes.get("weight_bits", 8)
    return bits if type(bits) is int and 2 <= bits <= 8 else 8


class Graphs:
    """Opened graphs of one variant."""

    def __init__(self, bundle: Bundle, variant: str, options: SessionOptions) -> None:
        chosen = bundle.manifest.variants[variant]
        specs = graph_specs(bundle.manifest)
        u8u8 = False
        self.int8_path: Int8Path = ""
        if variant.startswith("int8"):
            # Weights of 7 bits or fewer cannot saturate a sum of two products.
            u8u8 = options.provider == "cpu" and weight_bits(chosen) >= 8 and needs_u8u8()
            self.int8_path = "u8u8" if u8u8 else "native"

        def open_part(part: str) -> GraphSession:
            path = chosen.graphs[part]
            if options.provider == "tensorrt":
                from ._tensorrt_engine import open_session

                return open_session(bundle, variant, part, specs[part], options)
            return GraphSession(bundle.read(path), path, specs[part], options, u8u8=u8u8)

        self.vision = open_part("vision")
        self.text = open_part("text")
        self.fusion = open_part("fusion")
        self.insides = Insides(bundle, chosen.graphs, specs, options, u8u8=u8u8)
