from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.bundles import TINY
from support.ood_bundle import noise, smooth
from umd_edge import DataError, Predictor
from umd_edge._arrays import read_arrays, write_arrays
from umd_edge._bundle import file_entries, write_bundle
from umd_edge._ood import load_models
from umd_edge._records import read_records
from umd_edge_export.ood import MIN_IMAGES, OOD_FILE, fit_ood, fit_ood_of
from umd_edge_export.ood_fit import ImageStatistics, build_model, fit_model, quantile_above


def make_statistics(count: int, seed: int = 0, shift: float = 0.0) -> ImageStatistics:
    """Statistics that lie near a plane of three directions; three images a patient."""
    rng = np.random.default_rng(seed)
    plane = np.random.default_rng(99).normal(size=(3, 24))
    return ImageStatistics(
        rng.normal(size=(count, 3)) @ plane + 0.1 * rng.normal(size=(count, 24)) + shift,
        rng.normal(size=(count, 17)) + shift,
        rng.normal(-4, 1, count) + shift,
        tuple(f"patient-{index // 3}" for index in range(count)),
    )


def scores(arrays, spec, statistics: ImageStatistics) -> np.ndarray:
    """The score of each image, part by part as `umd_edge._ood` states it."""
    model = build_model(arrays, spec)
    parts = [
        [model.features_distance(row) / spec.limits["features"] for row in statistics.tokens],
        [
            model.appearance_distance(row) / spec.limits["appearance"]
            for row in statistics.appearance
        ],
        (statistics.energies - spec.energy_centre) / (spec.limits["energy"] - spec.energy_centre),
    ]
    return np.max(parts, axis=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=300), st.floats(0.05, 0.999))
def test_quantile_leaves_a_further_value_above_with_the_chance_that_is_said(values, share):
    limit = quantile_above(np.array(values), share)
    assert limit in values
    below = sum(value <= limit for value in values)
    assert below >= min(share * (len(values) + 1), len(values)) - 1e-9


def test_quantile_of_few_values_is_the_largest():
    assert quantile_above(np.arange(98.0), 0.99) == 97
    assert quantile_above(np.arange(99.0), 0.99) == 98
    assert quantile_above(np.arange(199.0), 0.99) == 197


@pytest.mark.parametrize("quantile", [0.9, 0.99])
def test_the_stated_share_of_validation_images_is_within(quantile: float):
    validation, reference = make_statistics(300, 1), make_statistics(400, 2)
    arrays, spec = fit_model(validation, reference, file="ood.npz", quantile=quantile)
    found = scores(arrays, spec, validation)
    assert quantile <= (found <= 1.0 + 1e-12).mean() <= quantile + 0.01
    assert (spec.quantile, spec.n, spec.file) == (quantile, 300, "ood.npz")


def test_images_of_the_same_kind_are_within_and_others_are_not():
    arrays, spec = fit_model(make_statistics(300, 1), make_statistics(400, 2), file="ood.npz")
    assert (scores(arrays, spec, make_statistics(300, 3)) > 1).mean() < 0.04
    assert (scores(arrays, spec, make_statistics(50, 4, shift=8.0)) > 1).all()
    off_the_plane = make_statistics(50, 5)
    turned = replace(off_the_plane, tokens=np.roll(off_the_plane.tokens, 5, axis=1))
    assert (scores(arrays, spec, turned) > 1).mean() > 0.8


def test_energy_speaks_up_only_far_from_what_was_seen():
    validation = make_statistics(300, 1)
    arrays, spec = fit_model(validation, make_statistics(400, 2), file="ood.npz")
    usual = quantile_above(validation.energies, 0.99)
    centre = float(np.median(validation.energies))
    assert spec.energy_centre == pytest.approx(centre, rel=1e-5)
    assert spec.limits["energy"] >= centre + 2 * (usual - centre)
    extreme = replace(validation, energies=validation.energies + 50)
    assert (scores(arrays, spec, extreme) > 1).all()


def test_without_reference_images_each_is_measured_by_other_patients():
    validation = make_statistics(150, 1)
    arrays, spec = fit_model(validation, None, file="ood.npz")
    assert (scores(arrays, spec, make_statistics(300, 3)) > 1).mean() < 0.05
    # Negative control: measured by a fit that has seen them, they look closer than they are.
    seen, near = fit_model(validation, validation, file="ood.npz")
    assert near.limits["appearance"] < spec.limits["appearance"]
    assert np.array_equal(seen["centre"], arrays["centre"])


def test_fitting_again_gives_the_same_bytes():
    one, two = (fit_model(make_statistics(90), None, file="ood.npz") for _ in range(2))
    assert write_arrays(one[0]) == write_arrays(two[0])
    assert one[1] == two[1]


def test_the_order_of_the_images_changes_no_byte():
    """Sums then round otherwise, as they do on another machine."""
    one, order = make_statistics(300, 2), np.random.default_rng(5).permutation(300)
    validation = make_statistics(120, 1)
    first = fit_model(validation, one, file="ood.npz")
    second = fit_model(validation, one.take(order), file="ood.npz")
    assert write_arrays(first[0]) == write_arrays(second[0])
    assert first[1] == second[1]


def test_basis_is_orthonormal_and_weights_are_positive():
    arrays, _ = fit_model(make_statistics(90), None, file="ood.npz")
    basis = arrays["basis"].astype(np.float64)
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-5)
    assert (arrays["weights"] > 0).all()
    assert arrays["rest"] > 0


def test_a_statistic_that_never_varies_does_not_decide_by_a_trace():
    """Grey films have no colour; one saved with a trace of it is still a film."""
    validation = make_statistics(120, 1)
    validation.appearance[:, [13, 14, 15, 16]] = [np.log(0.01), 0.0, 0.0, np.log(0.01)]
    arrays, spec = fit_model(validation, None, file="ood.npz")
    trace, colour = (replace(validation, appearance=validation.appearance.copy()) for _ in "ab")
    trace.appearance[:, 13] = np.log(0.012)
    colour.appearance[:, [13, 16]] = np.log(0.3)
    before = (scores(arrays, spec, validation) > 1).mean()
    assert (scores(arrays, spec, trace) > 1).mean() <= before + 0.02
    assert (scores(arrays, spec, colour) > 1).all()


def write_records(folder: Path, count: int, name: str = "records.jsonl") -> Path:
    """Questions, films and lesions about smooth pictures, one patient each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(count):
        picture = folder / f"{name}-{index}.png"
        Image.fromarray(smooth(1000 + index)).save(picture)
        lines += [
            {
                "question": question,
                "answer": "chest",
                "labels": ["No Finding", "Pneumonia", "Effusion"],
            }
            | {"image": picture.name, "patient_id": f"patient-{index}"}
            for question in ("which organ ?", "is this normal ?")
        ]
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    records = read_records(write_records(tmp_path_factory.mktemp("ood"), 60))
    return fit_ood(Predictor.load(TINY), records)


def test_each_picture_counts_once(fit):
    assert fit.report["vqa"]["validation_images"] == 60
    assert fit.specs["vqa"].n == 60


def test_the_bundle_with_the_fit_judges_as_fitted(fit, tmp_path: Path):
    bundle = Predictor.load(TINY).bundle
    files = {name: bundle.read(name) for name in bundle.manifest.files} | fit.files
    tasks = tuple(
        replace(task, out_of_distribution=fit.specs.get(task.name))
        for task in bundle.manifest.tasks
    )
    manifest = replace(bundle.manifest, tasks=tasks, files=file_entries(files))
    out = tmp_path / "fitted.umd"
    write_bundle({**files, "manifest.json": manifest.to_bytes()}, out)
    predictor = Predictor.load(out)
    within = [predictor.classify(smooth(s), "chest-xray").status for s in range(1000, 1060)]
    assert within.count("ok") >= 57
    assert all(
        predictor.classify(picture, "chest-xray").status == "out_of_distribution"
        for picture in (noise(1), noise(2), np.zeros((20, 20), np.uint8))
    )


def test_a_task_with_too_few_pictures_is_left_out_and_says_so(fit, tmp_path: Path):
    records = read_records(write_records(tmp_path, MIN_IMAGES - 1))
    few = fit_ood(Predictor.load(TINY), records)
    assert few.files == {}
    assert set(few.report) == {task.name for task in Predictor.load(TINY).tasks}
    assert f"at least {MIN_IMAGES} of 16 are needed" in few.report["vqa"]["left_out"]


def test_the_file_holds_what_every_task_needs_and_no_more(fit):
    arrays = read_arrays(fit.files[OOD_FILE], "file")
    names = ("centre", "scale", "basis", "weights", "rest", "appearance_centre", "whitening")
    assert set(arrays) == {f"{task}/{name}" for task in fit.specs for name in names}
    predictor = Predictor.load(TINY)
    tasks = [
        replace(task, out_of_distribution=fit.specs.get(task.name)) for task in predictor.tasks
    ]
    assert set(load_models(tasks, lambda name: fit.files[name])) == set(fit.specs)


def test_reference_records_say_where_the_images_lie(tmp_path: Path):
    validation = read_records(write_records(tmp_path, 45, "val.jsonl"))
    reference = read_records(write_records(tmp_path, 50, "train.jsonl"))
    fitted = fit_ood(Predictor.load(TINY), validation, reference)
    assert fitted.report["vqa"]["reference_images"] == 50
    assert fitted.report["vqa"]["validation_images"] == 45


def test_a_picture_that_cannot_be_read_is_named_by_its_line(tmp_path: Path):
    path = write_records(tmp_path, MIN_IMAGES)
    (tmp_path / "records.jsonl-7.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"records\.jsonl:15"):
        fit_ood(Predictor.load(TINY), read_records(path))


def test_a_fit_replaces_its_own_tasks_and_keeps_the_others(fit):
    bundle = Predictor.load(TINY).bundle
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    tasks, first = fit.apply(bundle.manifest.tasks, files)
    only = replace(
        fit,
        specs={"vqa": replace(fit.specs["vqa"], n=7)},
        arrays={key: 2 * value for key, value in fit.arrays.items() if key.startswith("vqa/")},
    )
    again, second = only.apply(tasks, first)
    assert [task.out_of_distribution.n for task in again if task.name == "vqa"] == [7]
    assert again[1:] == tasks[1:]
    before, after = (read_arrays(item[OOD_FILE], "file") for item in (first, second))
    assert set(before) == set(after)
    for key, value in before.items():
        expected = 2 * value if key.startswith("vqa/") else value
        assert np.array_equal(after[key], expected)


def test_a_fit_of_nothing_changes_nothing(fit):
    bundle = Predictor.load(TINY).bundle
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    nothing = replace(fit, specs={}, arrays={})
    assert nothing.apply(bundle.manifest.tasks, files) == (bundle.manifest.tasks, files)


def test_restricted_records_are_refused(tmp_path: Path):
    path = write_records(tmp_path, 3)
    with pytest.raises(DataError, match="not marked `non_commercial: false`"):
        fit_ood_of(TINY, [path])
    assert fit_ood_of(TINY, [path], allow_non_commercial=True).files == {}


@pytest.fixture(scope="module")
def films(shared_data: Path):
    """The default bundle's score of chest films, and those of the other sets."""
    predictor = Predictor.default()

    def of(name: str, split: str) -> list:
        records = read_records(shared_data / name / f"{split}.jsonl")
        return [record for record in records if record.raw.get("non_commercial") is False]

    fitted = fit_ood(predictor, of("nihcxr", "val"), of("nihcxr", "train")[::2])
    bundle = predictor.bundle
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    tasks, _ = fitted.apply(bundle.manifest.tasks, files)
    films_alone = [task for task in tasks if task.name == "chest-xray"]
    models = load_models(films_alone, lambda name: fitted.files[name])

    def scores_of(pictures) -> np.ndarray:
        model = models["chest-xray"]
        encoded = [predictor.encode(picture) for picture in pictures]
        return np.array([item.profile().score(model).value for item in encoded])

    def paths(name: str, split: str, most: int) -> list[Path]:
        return list(dict.fromkeys(record.image_path for record in of(name, split)))[:most]

    return scores_of, paths


@pytest.mark.slow
def test_on_real_films_other_images_are_told_apart(films):
    """Each kind is told apart with an AUROC of at least 0.95; none of them is in the fit."""
    scores_of, paths = films
    own = scores_of(paths("nihcxr", "test", 85))
    assert (own > 1).mean() <= 0.1
    rng = np.random.default_rng(0)
    pictures = [np.asarray(Image.open(path).convert("L")) for path in paths("nihcxr", "test", 40)]
    kinds = {
        "ultrasound": paths("busi", "test", 40),
        "skin": paths("padufes", "test", 40),
        "inverted": [255 - picture for picture in pictures],
        "noise": [rng.integers(0, 256, (200, 200, 3), dtype=np.uint8) for _ in range(20)],
        "blank": [np.full((90, 120), level, np.uint8) for level in range(0, 256, 15)],
    }
    for kind, images in kinds.items():
        strange = scores_of(images)
        told = np.mean([(own < value).mean() for value in strange])
        assert told >= 0.95, kind
        assert (strange > 1).mean() >= 0.8, kind


@pytest.mark.slow
def test_on_real_films_pixels_put_in_disorder_are_told_apart(films):
    """The same levels in another order: only edges and the encoder can tell."""
    scores_of, paths = films
    rng = np.random.default_rng(0)
    shuffled = []
    for path in paths("nihcxr", "test", 20):
        pixels = np.asarray(Image.open(path).convert("L").resize((112, 112)))
        shuffled.append(rng.permutation(pixels.ravel()).reshape(pixels.shape))
    assert (scores_of(shuffled) > 1).all()
