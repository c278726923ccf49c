"""Out-of-distribution scores in C, compared with the Python runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import umd_edge
from support.c_library import CError, CPredictor, CResult
from support.fitted import OOD, RANK, TASKS, ood_arrays, scored_bundle
from umd_edge.errors import BundleIntegrityError, ManifestError

RNG = np.random.default_rng(11)
IMAGES = [
    RNG.integers(0, 256, (40, 70), dtype=np.uint8),
    RNG.integers(0, 256, (33, 31, 3), dtype=np.uint8),
    np.zeros((20, 20), np.uint8),
    np.full((50, 16, 3), (255, 10, 30), np.uint8),
    (np.add.outer(np.arange(90), np.arange(120)) % 256).astype(np.uint8),
    RNG.integers(0, 65_536, (44, 45), dtype=np.uint16),
]


@pytest.fixture(scope="module")
def width() -> int:
    """Of the token statistics of the tiny bundle."""
    predictor = umd_edge.Predictor.load(_tiny())
    return 2 * int(predictor.encode(IMAGES[0]).features()[0].shape[2])


def _tiny() -> Path:
    return Path(__file__).parents[1] / "data" / "tiny.umd"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, width: int) -> Path:
    return scored_bundle(tmp_path_factory.mktemp("ood") / "ood.umd", ood_arrays(width))


@pytest.mark.parametrize("number", range(len(IMAGES)))
def test_scores_statuses_and_reasons_are_those_of_python(number: int, bundle: Path) -> None:
    given, wanted = CPredictor(bundle), umd_edge.Predictor.load(bundle)
    image, encoded = given.encode(IMAGES[number]), wanted.encode(IMAGES[number])
    pairs: list[tuple[Any, Any]] = [(image.ask("chest ?"), encoded.ask("chest ?"))]
    pairs += [(image.classify(task), encoded.classify(task)) for task in TASKS[1:]]
    for ours, theirs in pairs:
        _same_score(ours, theirs)


def _same_score(ours: CResult, theirs: umd_edge.Answer | umd_edge.Classification) -> None:
    assert theirs.ood_score is not None
    assert ours.ood_score == pytest.approx(theirs.ood_score, rel=1e-6)
    statuses = ["ok", "abstain", "out_of_distribution"]
    assert (statuses[ours.status], ours.reason) == (theirs.status, theirs.reason)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *[("features", name) for name in ("centre", "scale", "basis", "weights", "rest")],
        *[("appearance", name) for name in ("appearance_centre", "whitening")],
    ],
)
def test_one_changed_byte_of_an_array_makes_the_comparison_fail(
    part: str, name: str, tmp_path: Path, width: int
) -> None:
    """Negative control: where this part decides, the score tells its constants."""
    spec = {**OOD, "limits": {"features": 1e9, "appearance": 1e9, "energy": 1e9, part: 1.0}}
    arrays = ood_arrays(width)
    kept = scored_bundle(tmp_path / "kept.umd", arrays, spec)
    constants = np.ascontiguousarray(arrays[f"chest-xray/{name}"])
    constants.view(np.uint8).flat[2] ^= 0x40
    arrays[f"chest-xray/{name}"] = constants
    changed = scored_bundle(tmp_path / "changed.umd", arrays, spec)
    wanted = umd_edge.Predictor.load(kept).classify(IMAGES[0], "chest-xray")
    _same_score(CPredictor(kept).encode(IMAGES[0]).classify("chest-xray"), wanted)
    with pytest.raises(AssertionError):
        _same_score(CPredictor(changed).encode(IMAGES[0]).classify("chest-xray"), wanted)


def test_one_changed_pixel_makes_the_comparison_fail(bundle: Path) -> None:
    wanted = umd_edge.Predictor.load(bundle).classify(IMAGES[1], "chest-xray")
    other = IMAGES[1].copy()
    other[16, 15] ^= 0xFF
    with pytest.raises(AssertionError):
        _same_score(CPredictor(bundle).encode(other).classify("chest-xray"), wanted)


def test_every_part_can_be_the_farthest(tmp_path: Path, width: int) -> None:
    arrays = ood_arrays(width)
    found = set()
    for part in ("features", "appearance", "energy"):
        limits = {"features": 1e9, "appearance": 1e9, "energy": 1e9}
        limits[part] = -2.999999 if part == "energy" else 1e-6
        path = scored_bundle(tmp_path / f"{part}.umd", arrays, {**OOD, "limits": limits})
        given = CPredictor(path).encode(IMAGES[0]).classify("chest-xray")
        wanted = umd_edge.Predictor.load(path).classify(IMAGES[0], "chest-xray")
        assert given.status == 2
        assert given.reason == wanted.reason
        found.add(given.reason.split(":")[1].split(" is ")[0].split(" are ")[0])
    assert len(found) == 3


def test_without_a_fit_there_is_no_score(tiny_bundle: Path) -> None:
    result = CPredictor(tiny_bundle).encode(IMAGES[0]).ask("chest ?")
    assert np.isnan(result.ood_score)
    assert result.status in (0, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("vqa/basis"),
        lambda arrays: arrays.update({"vqa/centre": np.zeros(3, np.float32)}),
        lambda arrays: arrays.update({"vqa/scale": arrays["vqa/scale"].astype(np.float64)}),
        lambda arrays: arrays.update({"vqa/whitening": np.zeros((16, 16), np.float32)}),
        lambda arrays: arrays.update({"vqa/rest": np.full(1, np.nan, np.float32)}),
        lambda arrays: arrays.update({"vqa/weights": np.full(RANK, -1, np.float32)}),
        lambda arrays: arrays.update({"vqa/weights": np.zeros(0, np.float32)}),
    ],
)
def test_arrays_that_do_not_fit_are_refused_as_in_python(
    change: Any, tmp_path: Path, width: int
) -> None:
    arrays = ood_arrays(width)
    change(arrays)
    path = scored_bundle(tmp_path / "bad.umd", arrays)
    with pytest.raises(BundleIntegrityError):
        umd_edge.Predictor.load(path)
    with pytest.raises(CError) as caught:
        CPredictor(path)
    assert caught.value.name == "BundleIntegrityError"


def test_arrays_of_another_width_are_told_when_an_image_comes(tmp_path: Path, width: int) -> None:
    path = scored_bundle(tmp_path / "wide.umd", ood_arrays(width + 2))
    with pytest.raises(CError, match="another width"):
        CPredictor(path).encode(IMAGES[0])


@pytest.mark.parametrize(
    "spec",
    [
        {**OOD, "method": "guess"},
        {**OOD, "more": 1},
        {**OOD, "file": "../ood.npz"},
        {**OOD, "energy_centre": 0.0},
        {**OOD, "quantile": 1.0},
        {**OOD, "n": 0},
        {**OOD, "limits": {"features": 0.0, "appearance": 1.0, "energy": 1.0}},
        {**OOD, "limits": {"features": 1.0, "appearance": 1.0}},
        [],
    ],
)
def test_what_is_no_specification_is_refused_as_in_python(
    spec: object, tmp_path: Path, width: int
) -> None:
    path = scored_bundle(tmp_path / "bad.umd", ood_arrays(width), spec)
    with pytest.raises(ManifestError):
        umd_edge.Predictor.load(path)
    with pytest.raises(CError) as caught:
        CPredictor(path)
    assert caught.value.name == "ManifestError"


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, width: int) -> None:
    path = scored_bundle(tmp_path / "bad.umd", ood_arrays(width), {**OOD, "file": "none.npz"})
    with pytest.raises(CError) as caught:
        CPredictor(path)
    assert caught.value.name in ("BundleIntegrityError", "ManifestError")
