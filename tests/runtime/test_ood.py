from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import umd_edge
from support.ood_bundle import SPEC, arrays, noise, smooth, with_ood
from support.pictures import make_dicom
from umd_edge import BundleIntegrityError, ManifestError, Predictor
from umd_edge._appearance import APPEARANCE, appearance_statistics
from umd_edge._arrays import read_arrays, write_arrays
from umd_edge._ood import (
    OodModel,
    OodScore,
    energy,
    load_models,
    token_statistics,
)
from umd_edge._ood_spec import OodSpec
from umd_edge._task import TaskSpec

BLACK = np.zeros((16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Predictor:
    return Predictor.load(with_ood(tmp_path_factory.mktemp("ood") / "ood.umd"))


def plain_appearance(image: np.ndarray) -> list[float]:
    """Each statistic by its definition in docs/bundle-format.md, with loops and floats."""
    seen = image[::2, ::2].astype(float)
    if image.shape[2] == 3:
        red, green, blue = seen[..., 0], seen[..., 1], seen[..., 2]
        grey = np.floor((77 * red + 150 * green + 29 * blue + 128) / 256)
        tints = [red - green, green - blue]
    else:
        grey, tints = seen[..., 0], [np.zeros(seen.shape[:2])] * 2
    levels = grey / 255
    rows, columns = levels.shape
    spread = levels.std()
    shares = [((grey >= 16 * k) & (grey < 16 * k + 16)).mean() for k in range(16)]
    inside = np.zeros(levels.shape, bool)
    inside[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4] = True

    def log(value: float) -> float:
        return math.log(value + 0.01)

    def step(values: np.ndarray, axis: int, by: int) -> float:
        ahead = np.roll(values, -by, axis)
        stop = [rows, columns]
        stop[axis] -= by
        return float(np.abs(ahead - values)[: stop[0], : stop[1]].mean())

    return [
        levels.mean(),
        log(spread),
        ((levels - levels.mean()) ** 3).mean() / (spread + 0.02) ** 3,
        -sum(share * math.log(share) for share in shares if share),
        log(shares[0]),
        log(shares[15]),
        *(log(step(levels, axis, by)) for by in (1, 4) for axis in (1, 0)),
        levels[inside].mean() - levels[~inside].mean(),
        levels[: rows // 2].mean() - levels[rows // 2 :].mean(),
        levels[:, : columns // 2].mean() - levels[:, columns // 2 :].mean(),
        log(sum(np.abs(tint).mean() / 255 for tint in tints)),
        *(tint.mean() / 255 for tint in tints),
        log(sum(step(tint / 255, 1, 1) for tint in tints)),
    ]


pictures = st.tuples(
    st.integers(16, 40), st.integers(16, 40), st.sampled_from([1, 3]), st.integers(0, 10**6)
)


@settings(max_examples=60, deadline=None)
@given(pictures, st.integers(1, 256))
def test_appearance_is_what_its_definition_says(shape, levels: int):
    rows, columns, channels, seed = shape
    image = np.random.default_rng(seed).integers(0, levels, (rows, columns, channels))
    image = image.astype(np.uint8)
    found = appearance_statistics(image)
    assert found.shape == (len(APPEARANCE),)
    np.testing.assert_allclose(found, plain_appearance(image), rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_grey_looks_the_same_in_one_channel_and_in_three(seed: int):
    grey = np.random.default_rng(seed).integers(0, 256, (20, 24, 1), dtype=np.uint8)
    assert np.array_equal(
        appearance_statistics(grey), appearance_statistics(np.repeat(grey, 3, axis=2))
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 10**6))
def test_token_statistics_are_mean_and_deviation(count: int, width: int, seed: int):
    tokens = np.random.default_rng(seed).normal(1, 2, (count, width)).astype(np.float32)
    wide = tokens.astype(np.float64)
    expected = np.concatenate([wide.mean(0), wide.std(0)])
    np.testing.assert_allclose(token_statistics(tokens), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=9))
def test_energy_is_the_negative_logarithm_of_a_sum(logits):
    values = np.array(logits, np.float32)
    one = -math.log(math.fsum(math.exp(v - max(logits)) for v in logits)) - max(logits)
    many = -math.fsum(max(v, 0) + math.log1p(math.exp(-abs(v))) for v in logits)
    assert energy(values, multi_label=False) == pytest.approx(one, abs=1e-9)
    assert energy(values, multi_label=True) == pytest.approx(many, abs=1e-9)


def test_energy_of_extreme_logits_is_finite():
    huge = np.array([3e38, -3e38], np.float32)
    assert np.isfinite(energy(huge, multi_label=False))
    assert np.isfinite(energy(huge, multi_label=True))


def model_of(**changes) -> OodModel:
    spec = OodSpec.from_dict({**SPEC, **changes}, "out_of_distribution")
    found = {name.split("/")[1]: value for name, value in arrays().items()}
    wide = {name: value.astype(np.float64) for name, value in found.items()}
    rest = float(wide.pop("rest")[0])
    return OodModel(spec=spec, rest=rest, **wide)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_features_distance_is_a_quadratic_form(seed: int):
    model = model_of()
    statistics = np.random.default_rng(seed).normal(0, 3, len(model.centre))
    z = (statistics - model.centre) * model.scale
    inside = model.basis.T @ np.diag(model.weights) @ model.basis
    outside = model.rest * (np.eye(len(z)) - model.basis.T @ model.basis)
    expected = math.sqrt(z @ (inside + outside) @ z)
    assert model.features_distance(statistics) == pytest.approx(expected, rel=1e-5)


def test_score_is_the_largest_part_and_names_it():
    model = model_of(limits={"features": 2.0, "appearance": 4.0, "energy": 10.0}, energy_centre=5.0)
    near = OodScore(0.5, "features")
    for energy_, expected in (
        (7.0, near),  # (7 - 5) / (10 - 5) = 0.4
        (20.0, OodScore(3.0, "energy")),
        (-1e9, near),
    ):
        logits = np.array([-energy_, -1e30], np.float32)  # the log-sum-exp is the first
        assert model.score(near, logits, multi_label=False) == expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=9),
    st.floats(0, 5),
    st.booleans(),
)
def test_score_is_that_of_the_whole_energy(logits, image: float, multi_label: bool):
    model = model_of(limits={"features": 2.0, "appearance": 4.0, "energy": 10.0}, energy_centre=5.0)
    values = np.array(logits, np.float32)
    part = (energy(values, multi_label=multi_label) - 5.0) / 5.0
    found = model.score(OodScore(image, "features"), values, multi_label=multi_label)
    assert found.value == max(image, part)
    assert found.part == ("energy" if part > image else "features")


@pytest.mark.parametrize(("value", "out"), [(0.0, False), (1.0, False), (1.0000001, True)])
def test_one_is_the_last_value_within(value: float, out: bool):
    score = OodScore(value, "appearance")
    assert score.is_out is out
    assert bool(score.reason) is out


def test_smooth_pictures_are_within_and_noise_and_blanks_are_not(scored: Predictor):
    for seed in range(100, 110):
        result = scored.classify(smooth(seed), "chest-xray")
        assert (result.status, result.reason) == ("ok", "")
        assert 0 < result.ood_score < 1
    for picture in (noise(1), BLACK, 255 - BLACK):
        result = scored.classify(picture, "chest-xray")
        assert result.status == "out_of_distribution"
        assert result.ood_score > 1
        assert f"{result.ood_score:.2f} times" in result.reason


def test_values_come_with_the_status_and_are_those_of_a_bundle_without(
    scored: Predictor, tiny_bundle: Path
):
    plain = Predictor.load(tiny_bundle)
    flagged = scored.classify(noise(2), "skin-lesion")
    assert flagged.status == "out_of_distribution"
    assert flagged.findings == plain.classify(noise(2), "skin-lesion").findings
    answer = scored.ask(noise(2), "which organ ?")
    assert answer.status == "out_of_distribution"
    assert answer.answer == plain.ask(noise(2), "which organ ?").answer


def test_json_has_the_score_where_the_bundle_has_one(scored: Predictor, tiny_bundle: Path):
    line = scored.classify(BLACK, "chest-xray").to_dict()
    assert line["ood_score"] == scored.classify(BLACK, "chest-xray").ood_score
    assert scored.ask(BLACK, "which organ ?").to_dict()["ood_score"] > 1
    plain = Predictor.load(tiny_bundle)
    assert "ood_score" not in plain.classify(BLACK, "chest-xray").to_dict()
    assert plain.ask(BLACK, "which organ ?").ood_score is None


def test_intended_use_comes_before_distribution_and_that_before_abstention(
    tmp_path: Path, scored: Predictor
):
    pytest.importorskip("pydicom")
    wrong = make_dicom(BLACK[..., 0], Modality="CT", BodyPartExamined="CHEST")
    outside = scored.classify(wrong, "chest-xray")
    assert (outside.status, outside.findings) == ("outside_intended_use", ())
    assert outside.ood_score is None

    def always_abstain(manifest):
        manifest["tasks"][2]["thresholds"] = {"abstain": 1.0}

    careful = Predictor.load(with_ood(tmp_path / "careful.umd", edit=always_abstain))
    assert careful.classify(BLACK, "breast-ultrasound").status == "out_of_distribution"
    assert careful.classify(smooth(3), "breast-ultrasound").status == "abstain"


def test_score_has_the_same_bits_alone_in_company_and_in_threads(scored: Predictor):
    pictures = [smooth(seed) for seed in range(20, 28)] + [noise(seed) for seed in range(8)]
    alone = [scored.classify(picture, "skin-lesion").ood_score for picture in pictures]
    mapped = [outcome.result.ood_score for outcome in scored.map(pictures, task="skin-lesion")]
    encoded = [scored.encode(picture) for picture in pictures]
    for item in encoded:
        item.ask("which organ ?")
        item.classify("chest-xray")
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda e: e.classify("skin-lesion").ood_score, encoded * 4))
    assert mapped == alone
    assert threaded == alone * 4


def test_statistics_are_computed_once_for_all_tasks_and_questions(
    scored: Predictor, monkeypatch: pytest.MonkeyPatch
):
    from umd_edge import _encoded, _ood

    calls = []
    for module, name in ((_ood, "token_statistics"), (_encoded, "appearance_statistics")):
        original = getattr(module, name)

        def counted(*args, _name=name, _original=original):
            calls.append(_name)
            return _original(*args)

        monkeypatch.setattr(module, name, counted)
    encoded = scored.encode(smooth(1))
    for _ in range(2):
        encoded.classify("chest-xray")
        encoded.classify("skin-lesion")
        encoded.ask("which organ ?")
    assert sorted(calls) == ["appearance_statistics", "token_statistics"]


def test_pixels_written_to_after_encoding_do_not_count(scored: Predictor, tiny_bundle: Path):
    for predictor in (scored, Predictor.load(tiny_bundle)):
        picture = smooth(5)
        expected = predictor.encode(picture.copy()).profile().appearance
        encoded = predictor.encode(picture)
        picture[:] = 0
        assert np.array_equal(encoded.profile().appearance, expected)


def test_retrieval_and_tasks_without_a_score_stay_without(tmp_path: Path):
    def only_skin(manifest):
        for task in manifest["tasks"]:
            if task["name"] != "skin-lesion":
                del task["out_of_distribution"]

    predictor = Predictor.load(with_ood(tmp_path / "skin.umd", edit=only_skin))
    assert predictor.classify(BLACK, "skin-lesion").status == "out_of_distribution"
    assert predictor.classify(BLACK, "chest-xray").ood_score is None


def broken(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """The arrays with some of `vqa` replaced, or left out where None."""
    found = dict(arrays())
    for name, value in changes.items():
        if value is None:
            del found[f"vqa/{name}"]
        else:
            found[f"vqa/{name}"] = value
    return found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"centre": None}, "needs the float32 arrays"),
        ({"whitening": None}, "needs the float32 arrays"),
        ({"centre": np.zeros(16)}, "needs the float32 arrays"),
        ({"centre": np.zeros(15, np.float32)}, "do not fit together"),
        ({"basis": np.zeros((3, 9), np.float32)}, "do not fit together"),
        ({"weights": np.zeros((0,), np.float32)}, "do not fit together"),
        ({"rest": np.zeros((2,), np.float32)}, "do not fit together"),
        ({"whitening": np.zeros((16, 16), np.float32)}, "do not fit together"),
        ({"rest": np.array([np.nan], np.float32)}, "not finite"),
        ({"scale": np.full(16, np.inf, np.float32)}, "not finite"),
        ({"weights": np.array([1, -1, 1], np.float32)}, "below 0"),
    ],
)
def test_damaged_arrays_are_refused_when_the_bundle_is_opened(
    tmp_path: Path, changed, message: str
):
    path = with_ood(tmp_path / "bad.umd", broken(**changed))
    with pytest.raises(BundleIntegrityError, match=message) as error:
        Predictor.load(path)
    assert "'ood.npz'" in str(error.value)


def test_arrays_of_another_model_are_refused_at_their_first_use(tmp_path: Path):
    wide = {"centre": (20,), "scale": (20,), "basis": (3, 20)}
    found = broken(**{name: np.zeros(shape, np.float32) for name, shape in wide.items()})
    predictor = Predictor.load(with_ood(tmp_path / "other.umd", found))
    with pytest.raises(BundleIntegrityError, match="tokens of another width"):
        predictor.ask(BLACK, "which organ ?")


@pytest.mark.parametrize("data", [b"", b"no zip", write_arrays({"a": np.zeros(3)})[:-9]])
def test_a_file_that_is_no_npz_is_refused(data: bytes):
    task = TaskSpec.from_dict(
        {"name": "vqa", "kind": "vqa", "answers": ["a"], "out_of_distribution": SPEC}
    )
    with pytest.raises(BundleIntegrityError, match=r"file 'ood\.npz' is no readable npz"):
        load_models([task], lambda name: data)


def test_arrays_come_back_as_written():
    written = arrays()
    read = read_arrays(write_arrays(written), "file")
    assert set(read) == set(written)
    assert all(np.array_equal(read[name], value) for name, value in written.items())
    assert write_arrays(written) == write_arrays(dict(reversed(written.items())))


def test_spec_reads_back_what_it_writes():
    spec = OodSpec.from_dict(SPEC, "x")
    assert spec.to_dict() == SPEC
    assert OodSpec.from_dict(spec.to_dict(), "x") == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, r"x\.method: 'mahalanobis' is the only one"),
        ({"file": "../ood.npz"}, r"x\.file: a path inside the bundle"),
        ({"file": 3}, r"x\.file: a path inside"),
        ({"limits": {"features": 1.0}}, r"x\.limits: missing keys"),
        ({"limits": {**SPEC["limits"], "colour": 1.0}}, r"x\.limits: unknown keys"),
        ({"limits": {**SPEC["limits"], "features": 0}}, "must be above 0"),
        ({"limits": {**SPEC["limits"], "appearance": "1"}}, r"limits\.appearance: a number"),
        ({"limits": {**SPEC["limits"], "energy": True}}, r"limits\.energy: a number"),
        ({"energy_centre": 50.0}, "below the limit of the energy"),
        ({"quantile": 1.0}, "between 0 and 1"),
        ({"n": 0}, r"x\.n: an integer"),
        ({"seed": 1}, "unknown keys"),
    ],
)
def test_a_spec_that_is_none_is_refused(changes, message: str):
    with pytest.raises(ManifestError, match=message):
        OodSpec.from_dict({**SPEC, **changes}, "x")


def test_a_file_that_the_manifest_does_not_list_is_refused(tmp_path: Path):
    path = with_ood(tmp_path / "unlisted.umd", file="elsewhere.npz")
    with pytest.raises(ManifestError, match=r"not listed but used: \['elsewhere\.npz'\]"):
        Predictor.load(path)


def test_schema_and_reader_agree_on_the_spec():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(umd_edge.__file__).parent / "manifest.schema.json").read_text())
    task = {"name": "vqa", "kind": "vqa", "answers": ["a"], "out_of_distribution": SPEC}
    validator = jsonschema.Draft202012Validator(
        {**schema["$defs"]["task"], **{"$defs": schema["$defs"]}}
    )
    assert validator.is_valid(task)
    for broken_spec in ({"method": "magic"}, {"n": 0}, {"quantile": 0}, {"seed": 1}):
        assert not validator.is_valid({**task, "out_of_distribution": {**SPEC, **broken_spec}})


def test_a_model_of_tiny_pictures_has_no_score(tmp_path: Path):
    def shrink(manifest):
        manifest["preprocessing"]["height"] = 15

    with pytest.raises(ManifestError, match="sides of at least 16"):
        Predictor.load(with_ood(tmp_path / "small.umd", edit=shrink))


@pytest.mark.parametrize("side", [16, 17, 31])
def test_the_smallest_pictures_have_an_appearance(side: int):
    image = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    assert np.isfinite(appearance_statistics(image)).all()
    assert np.isfinite(appearance_statistics(0 * image)).all()
