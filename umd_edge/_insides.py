"""Parts of a bundle's graphs that only explanations run; opened when they are first used.

The sessions that answer stay as they are: nothing here makes an answer slower or other than it is.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ._bundle import Bundle
from ._options import SessionOptions
from ._session import GraphSession, GraphSpec
from .errors import ProviderUnavailableError, UsageError

__all__ = ["ATTENTION", "CELLS", "Insides"]

ATTENTION = "image_attention"
"""In the fusion graph: (B, heads, F + L, image tokens) float32, the attention of structured values
and words to the image in the last layer."""
CELLS = "patch_cells"
"""In the vision graph: (B, C, rows, columns) float32, what each patch is before patches see each
other."""


class Insides:
    """The parts of one variant's graphs. Thread-safe."""

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[str, str],
        specs: Mapping[str, GraphSpec],
        options: SessionOptions,
        *,
        u8u8: bool,
    ) -> None:
        self._bundle, self._graphs, self._specs = bundle, graphs, specs
        self._options, self._u8u8 = options, u8u8
        self._lock = threading.Lock()
        self._opened: dict[str, GraphSession] = {}

    def attention(self) -> GraphSession:
        """Inputs of the fusion -> `image_attention`.

        Raises:
            UsageError: The bundle's graphs do not name that tensor.
            ProviderUnavailableError: The provider is `tensorrt`.
        """
        return self._open("attention", "fusion", {}, [ATTENTION])

    def cells(self) -> GraphSession:
        """`pixel_values` -> `patch_cells`; raises as `attention`."""
        return self._open("cells", "vision", {}, [CELLS])

    def encoder(self) -> GraphSession:
        """`patch_cells` (and `pixel_values`, of which only the batch counts) -> `image_tokens`.

        Raises as `attention`.
        """
        return self._open("encoder", "vision", {CELLS: 4}, ["image_tokens"])

    def _open(
        self, name: str, part: str, inputs: Mapping[str, int], outputs: list[str]
    ) -> GraphSession:
        with self._lock:
            if name not in self._opened:
                self._opened[name] = self._make(part, inputs, outputs)
            return self._opened[name]

    def _make(self, part: str, inputs: Mapping[str, int], outputs: list[str]) -> GraphSession:
        if self._options.provider == "tensorrt":
            raise ProviderUnavailableError(
                "an engine of TensorRT cannot be looked into; open the bundle with provider 'cpu' "
                "to explain a result"
            )
        path = self._graphs[part]
        data = self._bundle.read(path)
        for tensor in (*inputs, *outputs):
            if tensor in (ATTENTION, CELLS) and tensor.encode() not in data:
                raise UsageError(
                    f"{path!r} names no tensor {tensor!r}, so this bundle has no map of that kind; "
                    "choose another method, or export the bundle again"
                )
        from ._subgraph import extract

        cut, fed = extract(data, inputs, outputs)
        whole = self._specs[part].inputs
        kinds = {key: whole[key] if key in whole else ("float", inputs[key]) for key in fed}
        return GraphSession(cut, path, GraphSpec(kinds, outputs), self._options, u8u8=self._u8u8)
