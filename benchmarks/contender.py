"""One contender of the race, in a process of its own.

It loads the model, says what it is, and then answers one JSON line for each that it reads: runs a
part of the work a number of times and gives the seconds, or gives its logits or its largest memory.
Only numpy is needed to start it; each contender imports its own library, from its own interpreter
where `race --python` names one.

`python contender.py NAME FOLDER [--threads N] [--prepare | --once]`
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CONTENDERS", "Contender", "input_arrays", "serve"]

Array = npt.NDArray[Any]
PARTS = ("vision", "text", "fusion")
_TEXT = ("input_ids", "attention_mask")
_STRUCTURED = ("structured_values", "structured_mask")


def _bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


class Contender(ABC):
    """The three graphs of the model in one library. Subclasses fill in `__init__` and the parts.

    Attributes:
        versions: Library -> version.
        disk: Bytes of weights and graphs that a device has to hold.
    """

    versions: dict[str, str]
    disk: int

    @abstractmethod
    def vision(self, pixel_values: Array) -> Any:
        """(B, 3, H, W) float32 -> image tokens in the library's own form."""

    @abstractmethod
    def text(self, input_ids: Array, attention_mask: Array) -> Any:
        """(B, L) int64 each -> text tokens in the library's own form."""

    @abstractmethod
    def fusion(self, image: Any, text: Any, mask: Array, values: Array, present: Array) -> Array:
        """Tokens, mask (B, L) int64 and structured values (B, F) float32 -> logits (B, K)."""

    def further(self, image: Any, feeds: dict[str, Array]) -> Array:
        """Logits of a question about an encoded image."""
        words = self.text(*(feeds[name] for name in _TEXT))
        structured = (feeds[name] for name in _STRUCTURED)
        return self.fusion(image, words, feeds["attention_mask"], *structured)

    def first(self, feeds: dict[str, Array]) -> Array:
        """Logits of a question about a picture that is new."""
        return self.further(self.vision(feeds["pixel_values"]), feeds)


class _Torch(Contender):
    def __init__(self, folder: Path, settings: dict[str, Any], threads: int) -> None:
        import torch

        from umd_edge_train.checkpoint import load_checkpoint

        torch.set_num_threads(threads)
        self._torch, self._name = torch, settings["logits"]
        path = Path(settings["checkpoint"])
        self._model = load_checkpoint(path).model.eval()
        self._vision: Callable[..., Any] = self._model.encode_image
        self._text: Callable[..., Any] = self._model.encode_text
        self._fuse: Callable[..., Any] = self._model.fuse
        self.versions = {"torch": str(torch.__version__)}
        self.disk = _bytes(path.glob("model*.safetensors"))

    def _tensors(self, *arrays: Any) -> list[Any]:
        from_numpy = self._torch.from_numpy
        return [from_numpy(item) if isinstance(item, np.ndarray) else item for item in arrays]

    def vision(self, pixel_values: Array) -> Any:
        with self._torch.inference_mode():
            return self._vision(*self._tensors(pixel_values))[0]

    def text(self, input_ids: Array, attention_mask: Array) -> Any:
        with self._torch.inference_mode():
            return self._text(*self._tensors(input_ids, attention_mask))[0]

    def fusion(self, image: Any, text: Any, mask: Array, values: Array, present: Array) -> Array:
        with self._torch.inference_mode():
            outputs = self._fuse(*self._tensors(image, text, mask, values, present))
            logits: Array = outputs[self._name].numpy()
            return logits


class _TorchCompiled(_Torch):
    def __init__(self, folder: Path, settings: dict[str, Any], threads: int) -> None:
        super().__init__(folder, settings, threads)
        # one compiled form a shape, as its makers advise for few shapes
        options = {"dynamic": False}
        self._vision = self._torch.compile(self._vision, **options)
        self._text = self._torch.compile(self._text, **options)
        self._fuse = self._torch.compile(self._fuse, **options)


class _Sessions(Contender):
    """Graphs that are called with names and arrays."""

    name: str

    @abstractmethod
    def _run(self, part: str, output: str, feeds: dict[str, Any]) -> Any:
        """One graph's output."""

    def vision(self, pixel_values: Array) -> Any:
        return self._run("vision", "image_tokens", {"pixel_values": pixel_values})

    def text(self, input_ids: Array, attention_mask: Array) -> Any:
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self._run("text", "text_tokens", feeds)

    def fusion(self, image: Any, text: Any, mask: Array, values: Array, present: Array) -> Array:
        feeds = {
            "image_tokens": image,
            "text_tokens": text,
            "attention_mask": mask,
            "structured_values": values,
            "structured_mask": present,
        }
        logits: Array = self._run("fusion", self.name, feeds)
        return logits


class _OnnxRuntime(_Sessions):
    def __init__(self, folder: Path, settings: dict[str, Any], threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.name = settings["logits"]
        paths = [folder / self.kind / f"{part}.onnx" for part in PARTS]
        self.disk = _bytes(paths)
        self.versions = {"onnxruntime": str(onnxruntime.__version__)}
        self._sessions = {
            path.stem: onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            for path in paths
        }

    kind = "fp32"

    def _run(self, part: str, output: str, feeds: dict[str, Any]) -> Any:
        return self._sessions[part].run([output], feeds)[0]


class _OnnxRuntimeDynamic(_OnnxRuntime):
    kind = "dynamic"


class _OpenVino(_Sessions):
    kind, hint = "fp32", "f32"

    def __init__(self, folder: Path, settings: dict[str, Any], threads: int) -> None:
        import openvino  # type: ignore[import-not-found]

        self.name = settings["logits"]
        self.versions = {"openvino": str(openvino.__version__)}
        suffix = "onnx" if self.kind == "fp32" else "xml"
        paths = [folder / self.kind / f"{part}.{suffix}" for part in PARTS]
        self.disk = _bytes(item for path in paths for item in path.parent.glob(f"{path.stem}.*"))
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.hint,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        core = openvino.Core()
        models = {path.stem: core.compile_model(str(path), "CPU", options) for path in paths}
        self._requests = {part: model.create_infer_request() for part, model in models.items()}

    @classmethod
    def prepare(cls, folder: Path) -> None:
        """Quantise the float32 graphs with NNCF, as its documentation says for transformers."""
        import nncf  # type: ignore[import-not-found]
        import openvino

        core, target = openvino.Core(), folder / cls.kind
        samples = input_arrays(folder, "calibration")
        count = len(samples["pixel_values"])
        rows = [{name: item[i : i + 1] for name, item in samples.items()} for i in range(count)]
        for part in PARTS:
            model = core.read_model(str(folder / "fp32" / f"{part}.onnx"))
            names = [item.get_any_name() for item in model.inputs]
            feeds = [{name: row[name] for name in names} for row in rows]
            done = nncf.quantize(
                model, nncf.Dataset(feeds), model_type=nncf.ModelType.TRANSFORMER, subset_size=count
            )
            compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            for row in rows:  # what the fusion reads
                outputs = compiled({name: row[name] for name in names})
                row.update({item.get_any_name(): value for item, value in outputs.items()})
            openvino.save_model(done, str(target / f"{part}.xml"), compress_to_fp16=False)

    def _run(self, part: str, output: str, feeds: dict[str, Any]) -> Any:
        request = self._requests[part]
        request.infer(feeds, share_inputs=True)
        return request.get_tensor(output).data


class _OpenVinoBfloat(_OpenVino):
    hint = "bf16"


class _OpenVinoInt8(_OpenVino):
    kind = "nncf"


class _OpenVinoInt8Bfloat(_OpenVino):
    kind, hint = "nncf", "bf16"


class _UmdEdge(_Sessions):
    def __init__(self, folder: Path, settings: dict[str, Any], threads: int) -> None:
        import umd_edge

        predictor = umd_edge.Predictor.load(settings["bundle"], threads=threads)
        graphs = predictor._engine.graphs
        self.name = settings["logits"]
        self._graphs = {part: getattr(graphs, part) for part in PARTS}
        self.versions = {"umd-edge": umd_edge.__version__}
        self.disk = sum(len(predictor.bundle.read(self._graphs[p].name)) for p in PARTS)

    def _run(self, part: str, output: str, feeds: dict[str, Any]) -> Any:
        return self._graphs[part].run(feeds, [output])[0]


CONTENDERS: dict[str, Callable[[Path, dict[str, Any], int], Contender]] = {
    "torch-eager": _Torch,
    "torch-compile": _TorchCompiled,
    "ort-fp32": _OnnxRuntime,
    "ort-dynamic": _OnnxRuntimeDynamic,
    "openvino-fp32": _OpenVino,
    "openvino-fp32-bf16": _OpenVinoBfloat,
    "openvino-int8": _OpenVinoInt8,
    "openvino-int8-bf16": _OpenVinoInt8Bfloat,
    "umd-edge": _UmdEdge,
}


def input_arrays(folder: Path, name: str) -> dict[str, Array]:
    """Arrays of `inputs-NAME.npz`: a batch size, or `calibration`."""
    with np.load(folder / f"inputs-{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _peak_memory() -> int | None:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _seconds(contender: Contender, order: dict[str, Any], feeds: dict[str, Array]) -> list[float]:
    image = contender.vision(feeds["pixel_values"])
    works: dict[str, Callable[[], Any]] = {
        "first": lambda: contender.first(feeds),
        "further": lambda: contender.further(image, feeds),
        "vision": lambda: contender.vision(feeds["pixel_values"]),
    }
    work = works[order["part"]]
    for _ in range(order["warm_up"]):
        work()
    times = []
    for _ in range(order["repeats"]):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return times


def serve(contender: Contender, folder: Path) -> None:
    """Answer orders from standard input until it ends."""
    for line in sys.stdin:
        order = json.loads(line)
        reply: dict[str, Any]
        if order["do"] == "run":
            feeds = input_arrays(folder, str(order["batch"]))
            reply = {"seconds": _seconds(contender, order, feeds)}
        elif order["do"] == "logits":
            reply = {"logits": contender.first(input_arrays(folder, str(order["batch"]))).tolist()}
        else:
            reply = {"bytes": _peak_memory()}
        _say(reply)


def _say(reply: dict[str, Any]) -> None:
    assert sys.__stdout__ is not None
    sys.__stdout__.write(json.dumps(reply) + "\n")
    sys.__stdout__.flush()


def main() -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prepare", action="store_true", help="quantise with NNCF")
    parser.add_argument("--once", action="store_true")
    given = parser.parse_args()
    sys.stdout = sys.stderr  # libraries print; the replies are alone on the real one
    settings = json.loads((given.folder / "settings.json").read_text(encoding="utf-8"))
    try:
        if given.prepare:
            _OpenVinoInt8.prepare(given.folder)
            return 0
        contender = CONTENDERS[given.name](given.folder, settings, given.threads)
        contender.first(input_arrays(given.folder, "1"))  # some compile only now
    except ImportError as error:
        _say({"missing": f"{error.name or error} is not installed in {sys.executable}"})
        return 0
    except Exception as error:  # a library of its own kind each; the others go on
        _say({"missing": f"it failed with {type(error).__name__}: {error}"[:300]})
        return 1
    if given.once:
        return 0
    versions = {"python": platform.python_version(), **contender.versions}
    _say({"ready": True, "versions": versions, "disk": contender.disk})
    serve(contender, given.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
