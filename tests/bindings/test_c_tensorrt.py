"""TensorRT in C, by ONNX Runtime's provider: refused where it is not, told what to do where it is.

No test here runs on a GPU. The ONNX Runtime that has the provider is a stand-in, which writes down
what it is told and computes on the processor.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import umd_edge
from support.bundles import repack, tiny_files
from support.c_library import (
    BINDINGS,
    CError,
    CPredictor,
    build,
    library,
    onnxruntime_library,
)
from support.requirements import lacking
from umd_edge import Bundle

IMAGE = np.random.default_rng(8).integers(0, 256, (40, 60), dtype=np.uint8)
PARTS = ("vision", "text", "fusion")
TOKENS = 4
"""Of the tiny bundle's vision graph."""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that has the provider."""
    source = BINDINGS / "c" / "tests" / "fake_onnxruntime.c"
    flags = ["-shared", "-fPIC", "-fvisibility=default"]
    return build(tmp_path_factory.mktemp("fake") / "libonnxruntime.so", flags, [source])


@pytest.fixture
def engines(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options that open with the stand-in; its notes go to `tmp_path / "log"`."""
    monkeypatch.setenv("FAKE_REAL", str(onnxruntime_library()))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    (tmp_path / "engines").mkdir()
    # The stand-in reads the C environment, which ctypes shares with Python's.
    return {
        "onnxruntime": str(stand_in).encode(),
        "provider": b"tensorrt",
        "engines": str(tmp_path / "engines").encode(),
    }


def _notes(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def _fixed_files() -> dict[str, bytes]:
    """The tiny bundle with a fixed number of image tokens, as the export writes it."""
    open_axis, count = b"\x0a\x08\x12\x06tokens", TOKENS
    fixed_axis = b"\x0a\x08\x08" + bytes([count | 0x80, *[0x80] * 5, 0])
    files = tiny_files()
    for variant in ("fp32", "int8"):
        name = f"graphs/fusion.{variant}.onnx"
        assert files[name].count(open_axis) == 1
        files[name] = files[name].replace(open_axis, fixed_axis)
    return files


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Variants `fp32` and `int8`."""
    return repack(tmp_path / "fixed.umd", _fixed_files())


@pytest.fixture
def bundle_for_it(tmp_path: Path) -> Path:
    """The same with a variant `int8-trt`."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["variants"]["int8-trt"] = manifest["variants"]["int8"]

    return repack(tmp_path / "for_it.umd", _fixed_files(), edit)


def test_a_library_without_it_is_refused_as_in_python(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(CError, match="'tensorrt' is not in this ONNX Runtime") as caught:
        CPredictor(tiny_bundle, provider=b"tensorrt", engines=str(tmp_path).encode())
    with pytest.raises(umd_edge.UmdEdgeError) as python:
        umd_edge.Predictor.load(tiny_bundle, provider="tensorrt")
    assert caught.value.name == type(python.value).__name__ == "ProviderUnavailableError"
    assert caught.value.status == 51
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_without_a_variant_for_it_is_refused_as_in_python(tmp_path: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        del manifest["variants"]["fp32"]

    path = repack(tmp_path / "b.umd", edit=edit)
    with pytest.raises(CError, match="'int8-trt' and 'fp32'") as caught:
        CPredictor(path, provider=b"tensorrt")
    with pytest.raises(umd_edge.UmdEdgeError) as python:
        umd_edge.Predictor.load(path, provider="tensorrt")
    assert caught.value.name == type(python.value).__name__ == "UsageError"


@pytest.mark.parametrize("provider", [b"cuda", b"openvino", b"", b"CPU", b"tensorrt "])
def test_unknown_providers_are_refused(tiny_bundle: Path, provider: bytes) -> None:
    with pytest.raises(CError, match="'cpu' or 'tensorrt' is allowed") as caught:
        CPredictor(tiny_bundle, provider=provider)
    assert caught.value.status == 51


def test_the_processor_is_the_default(tiny_bundle: Path) -> None:
    for options in ({}, {"provider": b"cpu"}):
        assert CPredictor(tiny_bundle, **options).describe().provider == b"cpu"


def test_every_graph_goes_to_tensorrt_whole(
    engines: dict[str, Any], bundle_for_it: Path, tmp_path: Path
) -> None:
    opened = CPredictor(bundle_for_it, **engines)
    facts = opened.describe()
    assert (facts.provider, facts.variant, facts.int8_path) == (b"tensorrt", b"int8-trt", b"native")
    notes = _notes(tmp_path)
    assert notes.count("session tensorrt") == 3
    assert notes.count("session.disable_cpu_ep_fallback=1") == 3
    assert notes.count("released") == 3
    assert notes.count("trt_int8_enable=1") == 3
    assert notes.count("trt_fp16_enable=0") == 3
    assert notes.count("release CPUExecutionProvider") == 1


def test_float_graphs_do_not_switch_8_bits_on(
    engines: dict[str, Any], bundle: Path, tmp_path: Path
) -> None:
    assert CPredictor(bundle, **engines).describe().variant == b"fp32"
    assert _notes(tmp_path).count("trt_int8_enable=0") == 3


def test_shapes_are_those_of_the_engines_that_python_builds(
    engines: dict[str, Any], bundle: Path, tmp_path: Path
) -> None:
    from umd_edge._tensorrt_builder import Profile

    opened = CPredictor(bundle, **engines)
    longest = opened.describe().max_length
    names = [re.findall(r"[a-z_]+(?=:)", n) for n in _notes(tmp_path) if "_min_shapes=" in n]
    image = ["image_tokens", "pixel_values"]
    words = ["attention_mask", "attention_mask", "input_ids", "text_tokens"]
    values = ["structured_mask", "structured_values"]
    assert sorted(name for part in names for name in part) == sorted([*image, *words, *values])
    facts = opened.describe()
    pixels = (-1, facts.channels, facts.height, facts.width)
    for name, shape in (("pixel_values", pixels), ("input_ids", (-1, -1))):
        wanted = Profile(max_batch=16, max_length=longest).shapes(name, shape)
        for kind, sizes in zip(("min", "opt", "max"), wanted, strict=True):
            text = f"{name}:{'x'.join(map(str, sizes))}"
            found = [n for n in _notes(tmp_path) if n.startswith(f"trt_profile_{kind}_shapes=")]
            assert any(text in note.split("=")[1].split(",") for note in found), (text, found)


def test_engines_of_other_graphs_are_never_in_the_same_folder(
    engines: dict[str, Any], bundle: Path, tmp_path: Path
) -> None:
    CPredictor(bundle, **engines)
    manifest = Bundle.open(bundle).manifest
    graphs = manifest.variants["fp32"].graphs
    version = __import__("onnxruntime").__version__
    wanted = {f"{manifest.files[graphs[part]].sha256}-{version}" for part in PARTS}
    assert {path.name for path in (tmp_path / "engines").iterdir()} == wanted
    used = {n.split("=")[1] for n in _notes(tmp_path) if n.startswith("trt_engine_cache_path=")}
    assert used == {str(tmp_path / "engines" / name) for name in wanted}
    CPredictor(bundle, **engines)  # they may be there already


def test_answers_are_those_of_the_variant(engines: dict[str, Any], bundle: Path) -> None:
    given = CPredictor(bundle, **engines).encode(IMAGE).ask("chest ?")
    wanted = umd_edge.Predictor.load(bundle, variant="fp32").encode(IMAGE).ask("chest ?")
    assert given.items[0][0] == wanted.answer
    assert abs(given.items[0][1] - wanted.probability) < 1e-6
    CPredictor(bundle, **engines).selftest()


@pytest.mark.parametrize("step", ["create", "update", "append", "session"])
def test_what_does_not_start_is_an_error_and_never_the_processor(
    step: str, engines: dict[str, Any], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAIL", step)
    with pytest.raises(CError, match=r"does not take .* libnvinfer\.so\.10 is not there") as caught:
        CPredictor(bundle, **engines)
    assert caught.value.name == "ProviderUnavailableError"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engines": None}, "engines is NULL"),
        ({"engines": b"/nowhere"}, "is not there; make it"),
        ({"engines": b"/etc/hostname"}, "is not there; make it"),
        ({"engines": b"/" * 3000}, "is not there; make it"),
        ({"provider": None}, "provider 'tensorrt' alone"),
        ({"trust_engines": 2}, "0 or 1"),
        ({"public_keys": b"ab" * 32}, "trust_engines"),
    ],
)
def test_unusable_options_are_refused(
    change: dict[str, Any], message: str, engines: dict[str, Any], bundle: Path
) -> None:
    with pytest.raises(CError, match=message) as caught:
        CPredictor(bundle, **{**engines, **change})
    assert caught.value.name == "UsageError"


def test_trusted_engines_leave_the_signature_needed(engines: dict[str, Any], bundle: Path) -> None:
    with pytest.raises(CError) as caught:
        CPredictor(bundle, **engines, public_keys=b"ab" * 32, trust_engines=1)
    assert caught.value.name == "BundleSignatureError"


def test_a_folder_that_cannot_be_written_is_an_error(engines: dict[str, Any], bundle: Path) -> None:
    if not Path("/proc/self").is_dir():
        lacking("cc", "no /proc, the folder that nobody can write into")
    with pytest.raises(CError, match="cannot be written") as caught:
        CPredictor(bundle, **{**engines, "engines": b"/proc/self"})
    assert caught.value.name == "UsageError"


def test_older_callers_get_the_processor(tiny_bundle: Path) -> None:
    from support.c_library import OpenOptions

    given = OpenOptions(
        onnxruntime=str(onnxruntime_library()).encode(),
        provider=b"nonsense",
        engines=b"nonsense",
    )
    given.struct_size = OpenOptions.provider.offset
    handle = ctypes.c_void_p()
    status = library().umd_open(
        str(tiny_bundle).encode(), ctypes.byref(given), ctypes.byref(handle)
    )
    assert status == 0
    library().umd_close(handle)


def test_a_graph_with_another_open_axis_is_refused(
    engines: dict[str, Any], tiny_bundle: Path
) -> None:
    with pytest.raises(CError, match="no fixed size") as caught:
        CPredictor(tiny_bundle, **engines)
    assert caught.value.name == "BundleIntegrityError"
