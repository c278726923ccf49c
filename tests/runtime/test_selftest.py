from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.bundles import repack, tiny_files
from umd_edge import BundleIntegrityError, Predictor, SelfTestError
from umd_edge._selftest import read_golden, write_golden


def _with_golden(tmp_path: Path, **changes) -> Predictor:
    """The tiny bundle with golden arrays replaced; None leaves one out."""
    files = tiny_files()
    golden = {**read_golden(files["golden.npz"]), **changes}
    kept = {name: array for name, array in golden.items() if array is not None}
    return Predictor.load(repack(tmp_path / "b.umd", {**files, "golden.npz": write_golden(kept)}))


def _golden() -> dict[str, np.ndarray]:
    return read_golden(tiny_files()["golden.npz"])


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_report_lists_every_check_with_its_tolerance(tiny_bundle: Path, variant: str):
    report = Predictor.load(tiny_bundle, variant=variant).verify()
    assert report.files == 8
    assert all(check.difference <= check.tolerance for check in report.checks)
    exact = {check.name for check in report.checks if check.tolerance == 0}
    sums = {"8-bit sums"} if variant == "int8" else set()
    assert exact == {"pixel_values", "input_ids", "attention_mask"} | sums
    document = report.to_dict()
    assert document["checks"][0] == {"name": "pixel_values", "difference": 0.0, "tolerance": 0.0}


@pytest.mark.parametrize("name", sorted(n for n in _golden() if n.startswith("int8/")))
def test_changed_output_fails_and_is_named(tmp_path: Path, name: str):
    changed = _golden()[name].copy()
    changed.flat[0] += 0.05
    with pytest.raises(SelfTestError, match=name.removeprefix("int8/")):
        _with_golden(tmp_path, **{name: changed}).verify()


@pytest.mark.parametrize("name", ["pixel_values", "image", "input_ids", "attention_mask"])
def test_input_that_differs_by_the_least_bit_fails(tmp_path: Path, name: str):
    changed = _golden()[name].copy()
    if changed.dtype == np.float32:
        changed.flat[0] = np.nextafter(changed.flat[0], np.float32(9))
    else:
        changed.flat[:20] += 1
    with pytest.raises(SelfTestError):
        _with_golden(tmp_path, **{name: changed}).verify()


def test_changed_weight_fails(tmp_path: Path):
    onnx = pytest.importorskip("onnx")
    files = tiny_files()
    model = onnx.load_from_string(files["graphs/fusion.int8.onnx"])
    weight = next(w for w in model.graph.initializer if w.name == "logits_vqa.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[3] += 20
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    files["graphs/fusion.int8.onnx"] = model.SerializeToString()
    with pytest.raises(SelfTestError, match="logits_vqa"):
        Predictor.load(repack(tmp_path / "b.umd", files)).verify()


def test_other_variant_is_not_touched_by_a_changed_output(tmp_path: Path):
    changed = _golden()["fp32/logits_vqa"] + 1
    predictor = _with_golden(tmp_path, **{"fp32/logits_vqa": changed})
    assert predictor.verify().variant == "int8"


def test_not_a_number_fails(tmp_path: Path):
    changed = _golden()["int8/match_logit"].copy()
    changed[0] = np.nan
    with pytest.raises(SelfTestError, match="match_logit by nan"):
        _with_golden(tmp_path, **{"int8/match_logit": changed}).verify()


def test_output_of_another_shape_fails(tmp_path: Path):
    changed = _golden()["int8/logits_vqa"][:1]
    with pytest.raises(SelfTestError, match="logits_vqa by inf"):
        _with_golden(tmp_path, **{"int8/logits_vqa": changed}).verify()


@pytest.mark.parametrize("name", ["image", "texts", "structured_mask", "int8/image_tokens"])
def test_missing_array_is_a_damaged_bundle(tmp_path: Path, name: str):
    with pytest.raises(BundleIntegrityError, match=name.rsplit("/", 1)[-1]):
        _with_golden(tmp_path, **{name: None}).verify()


@pytest.mark.parametrize("texts", [b"not json", b'{"a": 1}', b"[]", b'[""]', b"[1]"])
def test_texts_that_are_no_list_of_texts_are_a_damaged_bundle(tmp_path: Path, texts: bytes):
    with pytest.raises(BundleIntegrityError, match="golden"):
        _with_golden(tmp_path, texts=np.frombuffer(texts, np.uint8)).verify()


def test_tokenizer_of_another_vocabulary_fails(tmp_path: Path):
    files = tiny_files()
    files["tokenizer.json"] = files["tokenizer.json"].replace(b'"chest": ', b'"chesty": ')
    with pytest.raises(SelfTestError, match="input_ids"):
        Predictor.load(repack(tmp_path / "b.umd", files)).verify()
