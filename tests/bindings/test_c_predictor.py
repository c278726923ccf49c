"""Opening, asking, classifying and ranking in C, compared with the Python runtime."""

from __future__ import annotations

import ctypes
import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import umd_edge
from support import c_library
from support.bundles import repack, tiny_files, unpack
from support.c_library import (
    CError,
    CImage,
    CPredictor,
    Match,
    OpenOptions,
    Task,
    library,
    onnxruntime_library,
)
from support.retrieval import TEXTS, pictures, searchable
from umd_edge._image import load_image

ULPS = 4
"""numpy and the C library may round exp differently in the last bits."""


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> CPredictor:
    return CPredictor(tiny_bundle)


@pytest.fixture(scope="module")
def python(tiny_bundle: Path) -> umd_edge.Predictor:
    return umd_edge.Predictor.load(tiny_bundle)


IMAGE = np.random.default_rng(3).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def _close(given: float, wanted: float) -> bool:
    return abs(given - wanted) <= ULPS * np.spacing(wanted)


def test_description_is_that_of_the_manifest(
    opened: CPredictor, python: umd_edge.Predictor
) -> None:
    facts = opened.describe()
    assert facts.name.decode() == python.info.name
    assert facts.sha256.decode() == python.info.sha256
    assert facts.variant.decode() == python.variant
    assert facts.statement.decode() == python.manifest.intended_use.statement
    assert facts.onnxruntime.decode() == __import__("onnxruntime").__version__
    manifest = ctypes.string_at(facts.manifest, facts.manifest_size)
    assert hashlib.sha256(manifest).hexdigest() == python.info.sha256


def test_tasks_and_outputs_are_those_of_the_manifest(
    opened: CPredictor, python: umd_edge.Predictor
) -> None:
    for index, wanted in enumerate(python.tasks):
        task, name = Task(), ctypes.c_char_p()
        assert library().umd_get_task(opened.handle, index, ctypes.byref(task)) == 0
        assert (task.name.decode(), task.prompt.decode()) == (wanted.name, wanted.prompt)
        assert bool(task.multi_label) == wanted.multi_label
        assert bool(task.reads_text) == bool(wanted.text_paths)
        assert task.reads_values == len(wanted.structured_paths)
        outputs = []
        for output in range(task.output_count):
            assert library().umd_get_output(opened.handle, index, output, ctypes.byref(name)) == 0
            outputs.append((name.value or b"").decode())
        assert tuple(outputs) == wanted.outputs
    assert library().umd_get_task(opened.handle, index + 1, ctypes.byref(task)) == 21


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_answers_and_findings_are_those_of_python(tiny_bundle: Path, variant: str) -> None:
    opened = CPredictor(tiny_bundle, variant=variant.encode())
    python = umd_edge.Predictor.load(tiny_bundle, variant=variant)
    encoded, image = python.encode(IMAGE), opened.encode(IMAGE)
    assert (encoded.embedding == image.embedding()).all()
    _same_answers(image, encoded)
    _same_findings(image, encoded)


@pytest.mark.parametrize(
    ("variant", "row", "column", "side"),
    # in 8 bits so small a model rounds a single pixel away
    [("fp32", 0, 0, 1), ("fp32", 25, 35, 1), ("fp32", 49, 69, 1), ("int8", 20, 30, 24)],
)
def test_changed_pixels_make_the_comparison_fail(
    tiny_bundle: Path, variant: str, row: int, column: int, side: int
) -> None:
    """Negative control of the test above."""
    other = IMAGE.copy()
    other[row : row + side, column : column + side] ^= 0xFF
    image = CPredictor(tiny_bundle, variant=variant.encode()).encode(other)
    encoded = umd_edge.Predictor.load(tiny_bundle, variant=variant).encode(IMAGE)
    assert (encoded.embedding != image.embedding()).any()
    for compare in (_same_answers, _same_findings):
        with pytest.raises(AssertionError):
            compare(image, encoded)


def _same_answers(image: CImage, encoded: umd_edge.EncodedImage) -> None:
    for question in ("is there a pleural effusion ?", "Öl\u00a0?", "chest " * 100):
        wanted, given = encoded.ask(question), image.ask(question)
        ranked = [(wanted.answer, wanted.probability)]
        ranked += [(item.answer, item.probability) for item in wanted.alternatives]
        assert [item[0] for item in given.items] == [name for name, _ in ranked]
        assert all(_close(i[1], p) for i, (_, p) in zip(given.items, ranked, strict=True))
        assert [item[2] for item in given.items] == [True] + [False] * 5


def _same_findings(image: CImage, encoded: umd_edge.EncodedImage) -> None:
    cases: list[tuple[str, str | None, dict[str, Any]]] = [
        ("chest-xray", None, {}),
        ("chest-xray", "fever , cough", {"age": 61}),
        ("skin-lesion", None, {"itch": True, "region": " ARM ", "age": 20.5}),
        ("skin-lesion", None, {"structured.itch": 0}),
    ]
    for task, text, structured in cases:
        findings = encoded.classify(task, text=text, structured=structured).findings
        items = image.classify(task, text, structured).items
        assert [(i[0], i[2]) for i in items] == [(f.label, f.positive) for f in findings]
        assert all(_close(i[1], f.probability) for i, f in zip(items, findings, strict=True))


def test_abstention_and_intended_use_are_those_of_python(
    opened: CPredictor, python: umd_edge.Predictor
) -> None:
    wanted = python.encode(IMAGE).classify("breast-ultrasound")
    given = opened.encode(IMAGE).classify("breast-ultrasound")
    assert (wanted.status, wanted.reason) == (["ok", "abstain"][given.status], given.reason)
    for facts, status in (
        ({"dicom_modality": b"us"}, 0),
        ({"dicom_modality": b"MR"}, 3),
        ({"body_part": b"BREAST"}, 0),
    ):
        result = opened.encode(IMAGE, **facts).classify("breast-ultrasound")
        assert (result.status == 3) == (status == 3)
        assert bool(result.items) == (status != 3)
        if status == 3:
            assert "Modality (0008,0060)" in result.reason
            assert "MR" not in result.reason


def test_a_task_that_is_not_certain_abstains(tmp_path: Path) -> None:
    def strict(manifest: dict[str, Any]) -> None:
        manifest["tasks"][2]["thresholds"] = {"abstain": 0.999}

    result = CPredictor(repack(tmp_path / "s.umd", edit=strict)).encode(IMAGE)
    given = result.classify("breast-ultrasound")
    assert given.status == 1
    assert "0.999" in given.reason
    assert len(given.items) == 3


def test_ranking_is_that_of_python(tmp_path: Path) -> None:
    path = searchable(tmp_path / "search.umd", prompt="x ray")
    opened, python = CPredictor(path), umd_edge.Predictor.load(path)
    files = pictures(tmp_path / "pictures")
    arrays = [load_image(file).pixels for file in files]
    images = [opened.encode(array) for array in arrays]
    texts = (ctypes.c_char_p * len(TEXTS))(*[text.encode() for text in TEXTS])
    handles = (ctypes.c_void_p * len(images))(*[image.handle for image in images])
    for number, method in enumerate(("two_stage", "embedding", "fusion")):
        ranking = python.rank(arrays, TEXTS, method=method, candidates=2)  # type: ignore[arg-type]
        matches = (Match * len(TEXTS))()
        shared = (None, number, ctypes.c_uint32(2), None)
        given = library().umd_rank_texts(images[1].handle, texts, len(TEXTS), *shared, matches)
        assert given == 0
        _same_ranking(matches, ranking.texts_for(1))
        matches = (Match * len(images))()
        given = library().umd_rank_images(texts[3], handles, len(images), *shared, matches)
        assert given == 0
        _same_ranking(matches, ranking.images_for(3))


def test_one_changed_pixel_makes_the_comparison_of_rankings_fail(tmp_path: Path) -> None:
    path = searchable(tmp_path / "search.umd", prompt="x ray")
    array = load_image(pictures(tmp_path / "pictures")[1]).pixels
    other = array.copy()
    other[other.shape[0] // 2, other.shape[1] // 2] ^= 0xFF
    wanted = umd_edge.Predictor.load(path).rank([array], TEXTS, method="fusion").texts_for(0)
    texts = (ctypes.c_char_p * len(TEXTS))(*[text.encode() for text in TEXTS])
    opened, shared = CPredictor(path), (None, 2, ctypes.c_uint32(0), None)
    for pixels, differs in ((array, False), (other, True)):
        image, matches = opened.encode(pixels), (Match * len(TEXTS))()
        status = library().umd_rank_texts(image.handle, texts, len(TEXTS), *shared, matches)
        assert status == 0
        with pytest.raises(AssertionError) if differs else nullcontext():
            _same_ranking(matches, wanted)


def _same_ranking(matches: Any, wanted: tuple[umd_edge.Match, ...]) -> None:
    # numpy sums dot products in another order: 1e-6 is its error in float32.
    assert [m.index for m in matches] == [w.index for w in wanted]
    assert np.allclose([m.score for m in matches], [w.score for w in wanted], atol=1e-6)
    for given, place in zip(matches, wanted, strict=True):
        if place.match_logit is None:
            assert np.isnan(given.match_logit)
        else:
            assert given.match_logit == place.match_logit


def test_a_bundle_without_retrieval_does_not_rank(opened: CPredictor) -> None:
    image, matches = opened.encode(IMAGE), (Match * 1)()
    status = library().umd_rank_texts(
        image.handle, (ctypes.c_char_p * 1)(b"chest"), 1, None, 0, 0, None, matches
    )
    assert library().umd_status_name(status) == b"UnknownTaskError"


def test_a_batch_answers_each_question_alone(opened: CPredictor) -> None:
    image = opened.encode(IMAGE)
    questions = [b"which organ is shown ?", b" ", b"is there a lesion", b"caf\xe9"]
    results = (ctypes.c_void_p * 4)()
    statuses = (ctypes.c_int32 * 4)()
    status = library().umd_ask_batch(
        (ctypes.c_void_p * 4)(*[image.handle] * 4),
        (ctypes.c_char_p * 4)(*questions),
        ctypes.c_size_t(4),
        None,
        None,
        statuses,
        results,
    )
    assert list(statuses) == [0, 43, 0, 43]
    assert status == 43
    assert [bool(result) for result in results] == [True, False, True, False]
    for index in (0, 2):
        alone = image.ask(questions[index])
        assert c_library.CResult(ctypes.c_void_p(results[index])).items == alone.items


def test_self_test_runs_every_check(opened: CPredictor, python: umd_edge.Predictor) -> None:
    report = opened.selftest()
    assert report.checks == len(python.verify().checks)
    assert report.files == len(python.manifest.files)
    assert report.worst_difference <= report.tolerance


def test_self_test_fails_on_other_outputs(tmp_path: Path) -> None:
    def exact(manifest: dict[str, Any]) -> None:
        manifest["variants"]["int8"]["golden_tolerance"] = 0
        manifest["variants"]["int8"]["graphs"] = manifest["variants"]["fp32"]["graphs"]

    with pytest.raises(CError, match="self-test failed") as caught:
        CPredictor(repack(tmp_path / "b.umd", edit=exact), variant=b"int8").selftest()
    assert caught.value.name == "SelfTestError"


def test_directory_and_memory_give_the_same_bundle(
    tiny_bundle: Path, tmp_path: Path, opened: CPredictor
) -> None:
    folder = CPredictor(unpack(tmp_path / "folder"))
    data = tiny_bundle.read_bytes()
    memory = CPredictor.__new__(CPredictor)
    memory.handle = ctypes.c_void_p()
    options = OpenOptions(onnxruntime=str(onnxruntime_library()).encode())
    c_library.check(
        library().umd_open_memory(
            data, ctypes.c_size_t(len(data)), ctypes.byref(options), ctypes.byref(memory.handle)
        )
    )
    for other in (folder, memory):
        assert other.describe().sha256 == opened.describe().sha256
        assert other.encode(IMAGE).ask("chest").items == opened.encode(IMAGE).ask("chest").items


def test_results_outlive_their_predictor(tiny_bundle: Path) -> None:
    predictor = CPredictor(tiny_bundle)
    image = predictor.encode(IMAGE)
    wanted = image.ask("chest").items
    library().umd_close(predictor.handle)
    predictor.handle = ctypes.c_void_p()
    assert image.ask("chest").items == wanted


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        ({"variant": b"int4"}, "UsageError", "no variant 'int4'"),
        ({"threads": 257}, "UsageError", r"1\.\.256"),
        ({"threads": -1}, "UsageError", r"1\.\.256"),
        ({"sha256": b"0" * 64}, "BundleIntegrityError", "not the one that was asked for"),
        ({"onnxruntime": b"/nowhere/lib.so"}, "MissingDependencyError", "UMD_ONNXRUNTIME"),
        ({"onnxruntime": b"libm.so.6"}, "MissingDependencyError", "OrtGetApiBase"),
        ({"struct_size": 0}, "UsageError", "umd_open_options_init"),
    ],
)
def test_unusable_options_are_refused(
    tiny_bundle: Path, options: dict[str, Any], name: str, message: str
) -> None:
    size = options.pop("struct_size", None)
    given = OpenOptions(**{"onnxruntime": str(onnxruntime_library()).encode(), **options})
    if size is not None:
        given.struct_size = size
    handle = ctypes.c_void_p(1)
    status = library().umd_open(
        str(tiny_bundle).encode(), ctypes.byref(given), ctypes.byref(handle)
    )
    error = CError(status)
    assert (error.name, handle.value) == (name, None)
    with pytest.raises(CError, match=message):
        raise error


def test_settings_of_a_newer_caller_are_refused_unless_they_are_zero(tiny_bundle: Path) -> None:
    class Newer(OpenOptions):
        _fields_: ClassVar = [("later", ctypes.c_uint64)]

    for later, wanted in ((0, 0), (7, 20)):
        given = Newer(later=later, onnxruntime=str(onnxruntime_library()).encode())
        handle = ctypes.c_void_p()
        status = library().umd_open(
            str(tiny_bundle).encode(), ctypes.byref(given), ctypes.byref(handle)
        )
        assert status == wanted
        library().umd_close(handle)


@pytest.mark.parametrize(
    ("call", "name", "message"),
    [
        (lambda i: i.ask("?", task="chest-xray"), "UnknownTaskError", "question-answering"),
        (lambda i: i.ask(""), "TextInputError", "empty"),
        (lambda i: i.ask("chest\ufdd0"), "TextInputError", r"U\+FDD0"),
        (lambda i: i.classify("vqa"), "UnknownTaskError", "no classification task"),
        (lambda i: i.classify("skin-lesion", "red"), "TextInputError", "reads no text"),
        (lambda i: i.classify("chest-xray", " "), "TextInputError", "empty"),
        (
            lambda i: i.classify("chest-xray", structured={"itch": 1}),
            "StructuredInputError",
            "not read by task",
        ),
        (
            lambda i: i.classify("skin-lesion", structured={"itch": 2}),
            "StructuredInputError",
            "0 or 1",
        ),
        (
            lambda i: i.classify("skin-lesion", structured={"age": float("inf")}),
            "StructuredInputError",
            "finite number in a",
        ),
        (
            lambda i: i.classify("skin-lesion", structured={"age": 1e300}),
            "StructuredInputError",
            "beyond",
        ),
        (
            lambda i: i.classify("skin-lesion", structured={"age": "61"}),
            "StructuredInputError",
            "a number is needed",
        ),
        (
            lambda i: i.classify("skin-lesion", structured={"region": "moon"}),
            "StructuredInputError",
            "unknown category",
        ),
    ],
)
def test_unusable_input_is_refused(opened: CPredictor, call: Any, name: str, message: str) -> None:
    with pytest.raises(CError, match=message) as caught:
        call(opened.encode(IMAGE))
    assert caught.value.name == name


def test_null_objects_are_usage_errors() -> None:
    out = ctypes.c_void_p(1)
    assert library().umd_open(None, None, ctypes.byref(out)) == 20
    assert library().umd_open(b"x", None, None) == 20
    assert library().umd_encode(None, None, None, ctypes.byref(out)) == 20
    assert out.value is None
    assert library().umd_ask(None, b"x", None, None, ctypes.byref(out)) == 20
    assert library().umd_get_result(None, None) == 20
    for name in ("umd_close", "umd_image_free", "umd_result_free", "umd_cancel_free"):
        getattr(library(), name)(None)


def test_messages_hold_no_text_of_the_caller(opened: CPredictor) -> None:
    image = opened.encode(IMAGE)
    secret = "Müller"
    for attempt in (
        lambda: image.ask(f"{secret} \ufdd0"),
        lambda: image.classify("skin-lesion", secret),
        lambda: image.classify("skin-lesion", structured={"region": secret}),
        lambda: opened.encode(IMAGE, dicom_modality=b"M\xfcller"),
    ):
        with pytest.raises(CError) as caught:
            attempt()
        assert "ller" not in str(caught.value)


def test_manifest_bytes_can_be_read_by_the_caller(opened: CPredictor) -> None:
    facts = opened.describe()
    text = ctypes.string_at(facts.manifest, facts.manifest_size)
    assert json.loads(text) == json.loads(tiny_files()["manifest.json"])
