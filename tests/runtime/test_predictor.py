from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from support.bundles import repack, tiny_files
from support.pictures import gradient, make_dicom
from umd_edge import (
    BundleNotFoundError,
    ImageInputError,
    InferenceError,
    Predictor,
    ProviderUnavailableError,
    SessionOptions,
    StructuredInputError,
    TextInputError,
    UnknownTaskError,
    UsageError,
)

IMAGE = gradient()
QUESTION = "Which organ is shown?"


@pytest.fixture(scope="module", params=["int8", "fp32"])
def predictor(request) -> Predictor:
    bundle = Path(__file__).resolve().parent.parent / "data" / "tiny.umd"
    return Predictor.load(bundle, variant=request.param)


@pytest.fixture
def fresh(tiny_bundle: Path) -> Predictor:
    return Predictor.load(tiny_bundle)


def _plain(result):
    """A result without its times, which differ from call to call."""
    return {key: value for key, value in result.to_dict().items() if key != "timing_ms"}


def test_result_says_what_gave_it(predictor: Predictor):
    answer = predictor.ask(IMAGE, QUESTION)
    assert answer.bundle == predictor.info
    assert (answer.variant, answer.provider) == (predictor.variant, "cpu")
    assert answer.bundle.sha256 == predictor.bundle.sha256
    assert answer.int8_path == ("" if predictor.variant == "fp32" else "native")


def test_answer_and_alternatives_are_ranked(predictor: Predictor):
    answer = predictor.ask(IMAGE, QUESTION)
    ranked = [answer.probability, *(item.probability for item in answer.alternatives)]
    assert ranked == sorted(ranked, reverse=True)
    assert len(answer.alternatives) == 5
    assert answer.text == answer.answer
    assert answer.answer not in {item.answer for item in answer.alternatives}


def test_single_label_findings_sum_to_one_with_one_positive(predictor: Predictor):
    result = predictor.classify(IMAGE, "skin-lesion")
    assert sum(finding.probability for finding in result.findings) == pytest.approx(1.0)
    assert [finding.label for finding in result.findings if finding.positive] == [result.top.label]


def test_multi_label_findings_go_by_their_operating_points(predictor: Predictor):
    result = predictor.classify(IMAGE, "chest-xray")
    limits = {"Pneumonia": 0.3}
    for finding in result.findings:
        assert finding.positive == (finding.probability >= limits.get(finding.label, 0.5))


def test_one_shot_and_encoded_give_the_same_bits(predictor: Predictor):
    encoded = predictor.encode(IMAGE)
    assert _plain(encoded.ask(QUESTION)) == _plain(predictor.ask(IMAGE, QUESTION))
    values = {"age": 50, "itch": True, "region": "face"}
    assert _plain(encoded.classify("skin-lesion", structured=values)) == _plain(
        predictor.classify(IMAGE, "skin-lesion", structured=values)
    )


def test_image_is_decoded_preprocessed_and_encoded_once(
    fresh: Predictor, monkeypatch: pytest.MonkeyPatch
):
    from umd_edge import _encoded, _encoding_calls

    calls = []
    for module, name in ((_encoding_calls, "load_image"), (_encoded, "normalise")):
        original = getattr(module, name)

        def counted(*args, _name=name, _original=original, **options):
            calls.append(_name)
            return _original(*args, **options)

        monkeypatch.setattr(module, name, counted)
    run = fresh._engine.graphs.vision.run
    monkeypatch.setattr(
        fresh._engine.graphs.vision, "run", lambda feeds: (calls.append("vision"), run(feeds))[1]
    )
    encoded = fresh.encode(IMAGE)
    for _ in range(3):
        encoded.ask(QUESTION)
        encoded.classify("chest-xray")
    assert calls == ["load_image", "normalise", "vision"]


def test_prompts_and_questions_are_encoded_once_and_notes_are_not_kept(
    fresh: Predictor, monkeypatch: pytest.MonkeyPatch
):
    texts = []
    original = fresh._engine.tokenizer.encode_one
    monkeypatch.setattr(
        fresh._engine.tokenizer, "encode_one", lambda t: (texts.append(t), original(t))[1]
    )
    encoded = fresh.encode(IMAGE)
    for _ in range(2):
        encoded.classify("skin-lesion")
        encoded.ask(QUESTION)
        encoded.classify("chest-xray", text="fever")
    assert texts.count("skin lesion") == 1
    assert texts.count("chest x ray fever") == 2
    assert texts.count(QUESTION) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_many_threads_get_the_bits_of_one(tiny_bundle: Path, threads: int):
    predictor = Predictor.load(tiny_bundle, threads=threads)
    images = [np.roll(IMAGE, shift, axis=1) for shift in range(4)]
    alone = [_plain(predictor.classify(image, "skin-lesion")) for image in images]

    def work(index: int):
        image = images[index % 4]
        return index % 4, _plain(predictor.classify(image, "skin-lesion"))

    with ThreadPoolExecutor(8) as pool:
        for index, result in pool.map(work, range(80)):
            assert result == alone[index]


def test_one_encoded_image_may_be_shared_by_threads(fresh: Predictor):
    encoded = fresh._decode(IMAGE, None)
    barrier = threading.Barrier(8)

    def work(_):
        barrier.wait()
        return id(encoded.features()[0]), encoded.ask(QUESTION).probability

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(work, range(8)))) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_sample_alone_in_a_batch_and_padded_is_bit_identical(predictor: Predictor, threads: int):
    bundle = Predictor.load(
        predictor.bundle.path, variant=predictor.variant, threads=threads
    )._engine
    rng = np.random.default_rng(0)
    shape = (5, 3, 16, 16)
    pixels = rng.normal(size=shape).astype(np.float32)
    ids, mask = bundle.tokenizer.encode(
        ["chest", "is there a pleural effusion ?", "skin lesion", "x ray", "brain ?"]
    )
    values = rng.normal(size=(5, 3)).astype(np.float32)
    known = (rng.random((5, 3)) < 0.5).astype(np.float32)

    def run(rows: slice, length: int, extra: int) -> list[np.ndarray]:
        i, m = ids[rows, :length], mask[rows, :length]
        i = np.pad(i, ((0, 0), (0, extra)))
        m = np.pad(m, ((0, 0), (0, extra)))
        image = bundle.graphs.vision.run({"pixel_values": pixels[rows]})
        text = bundle.graphs.text.run({"input_ids": i, "attention_mask": m})
        return bundle.graphs.fusion.run(
            {
                "image_tokens": image[0],
                "text_tokens": text[0],
                "attention_mask": m,
                "structured_values": values[rows],
                "structured_mask": known[rows],
            }
        )

    together = run(slice(0, 5), ids.shape[1], 4)
    for row in range(5):
        alone = run(slice(row, row + 1), int(mask[row].sum()), 0)
        for a, b in zip(alone, together, strict=True):
            if predictor.variant == "int8":
                assert np.array_equal(a[0], b[row])
            else:
                assert np.allclose(a[0], b[row], rtol=0, atol=1e-6)


def test_question_changes_the_answer_and_so_does_the_image(predictor: Predictor):
    encoded = predictor.encode(IMAGE)
    first = encoded.ask("chest")
    assert first.probability != encoded.ask("brain fever").probability
    assert first.probability != predictor.ask(IMAGE // 2, "chest").probability


def test_structured_values_and_text_change_the_findings(predictor: Predictor):
    encoded = predictor.encode(IMAGE)
    plain = encoded.classify("skin-lesion")
    assert encoded.classify("skin-lesion", structured={"age": 20}).findings != plain.findings
    assert encoded.classify("skin-lesion", structured={"age": None}).findings == plain.findings
    assert encoded.classify("skin-lesion", structured={}).findings == plain.findings
    with_text = encoded.classify("chest-xray", text="cough")
    assert with_text.findings != encoded.classify("chest-xray").findings


def test_evaluation_gets_the_probabilities_of_the_public_calls(predictor: Predictor):
    encoded = predictor.encode(IMAGE)
    task = predictor.manifest.task("skin-lesion")
    values = np.array([1, (50 - 60) / 16, 0], np.float32), np.array([1, 1, 0], np.float32)
    given = predictor.probabilities(encoded, task, task.prompt, values)
    public = encoded.classify("skin-lesion", structured={"itch": True, "age": 50})
    assert [finding.probability for finding in public.findings] == list(given)


def test_embedding_is_there_and_read_only(predictor: Predictor):
    encoded = predictor.encode(IMAGE)
    assert encoded.embedding.shape == (8,)
    with pytest.raises(ValueError, match="read-only"):
        encoded.features()[0][0] = 0


def test_timing_holds_each_stage_once(predictor: Predictor):
    encoded = predictor.encode(IMAGE)
    assert encoded.timing.vision_ms > 0
    further = encoded.ask(QUESTION).timing
    assert (further.decode_ms, further.vision_ms) == (0.0, 0.0)
    assert further.fusion_ms > 0
    whole = predictor.ask(IMAGE, QUESTION).timing
    stages = [whole.decode_ms, whole.preprocess_ms, whole.vision_ms, whole.fusion_ms]
    assert all(stage > 0 for stage in stages)
    # The question may have been read while the vision graph ran.
    assert whole.text_ms > 0
    assert whole.total_ms >= sum(stages) - 1e-6


def test_repr_of_a_result_tells_nothing_about_the_patient(predictor: Predictor):
    answer = predictor.ask(IMAGE, "is there pneumonia in JANE ?")
    assert "JANE" not in repr(answer)
    assert f"answer={answer.answer!r}" not in repr(answer)
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.probability = 1.0


class TestAbstaining:
    def test_low_probability_abstains_with_a_reason(self, tiny_bundle: Path, tmp_path: Path):
        def edit(manifest):
            manifest["tasks"][2]["thresholds"] = {"abstain": 0.999}

        predictor = Predictor.load(repack(tmp_path / "b.umd", edit=edit))
        result = predictor.classify(IMAGE, "breast-ultrasound")
        assert result.status == "abstain"
        assert "0.999" in result.reason
        assert len(result.findings) == 3
        usual = Predictor.load(tiny_bundle).classify(IMAGE, "breast-ultrasound")
        assert (usual.status, usual.reason) == ("ok", "")


class TestIntendedUse:
    @pytest.fixture(autouse=True)
    def _needs_pydicom(self):
        pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

    @pytest.mark.parametrize(
        ("tags", "told"),
        [
            ({"Modality": "CT"}, "Modality (0008,0060)"),
            ({"Modality": "CR", "BodyPartExamined": "KNEE"}, "BodyPartExamined (0018,0015)"),
        ],
    )
    def test_contradicting_header_gives_a_status_and_no_inference(
        self, fresh: Predictor, monkeypatch: pytest.MonkeyPatch, tags: dict, told: str
    ):
        for graph in (fresh._engine.graphs.vision, fresh._engine.graphs.fusion):
            monkeypatch.setattr(graph, "run", lambda feeds: pytest.fail("inference ran"))
        result = fresh.classify(make_dicom(IMAGE[..., 0], **tags), "chest-xray")
        assert result.status == "outside_intended_use"
        assert told in result.reason
        assert not result.findings
        for value in ("'CT'", "KNEE"):
            assert value not in result.reason

    @pytest.mark.parametrize(
        "tags",
        [
            {"Modality": "CR"},
            {"Modality": "dx", "BodyPartExamined": "chest"},
            {"Modality": None, "BodyPartExamined": None},
            {"Modality": "", "BodyPartExamined": ""},
        ],
    )
    def test_fitting_or_absent_tags_contradict_nothing(self, fresh: Predictor, tags: dict):
        result = fresh.classify(make_dicom(IMAGE[..., 0], **tags), "chest-xray")
        assert result.status == "ok"

    def test_task_for_anything_takes_anything(self, fresh: Predictor):
        assert fresh.classify(make_dicom(IMAGE, Modality="OT"), "skin-lesion").status == "ok"

    def test_question_outside_the_intended_use_gets_no_answer(self, tmp_path: Path):
        def edit(manifest):
            manifest["tasks"][0]["applies_to"] = {"dicom_modality": ["US"]}

        predictor = Predictor.load(repack(tmp_path / "b.umd", edit=edit))
        answer = predictor.ask(make_dicom(IMAGE[..., 0]), QUESTION)
        assert (answer.status, answer.answer, answer.probability) == (
            "outside_intended_use",
            "",
            0.0,
        )


class TestRefusals:
    @pytest.mark.parametrize("task", ["nothing", "vqa", "", None])
    def test_unknown_classification_task_is_told_with_the_known_ones(self, predictor, task):
        with pytest.raises(UnknownTaskError, match="chest-xray"):
            predictor.classify(IMAGE, task)

    @pytest.mark.parametrize("task", ["nothing", "skin-lesion"])
    def test_unknown_question_task_is_told_with_the_known_ones(self, predictor, task):
        with pytest.raises(UnknownTaskError, match="vqa"):
            predictor.ask(IMAGE, QUESTION, task=task)

    def test_task_is_checked_before_the_image_is_read(self, predictor: Predictor):
        with pytest.raises(UnknownTaskError):
            predictor.classify("absent.png", "nothing")
        with pytest.raises(TextInputError):
            predictor.ask("absent.png", "")

    @pytest.mark.parametrize("question", ["", "  \n", None, 5])
    def test_empty_question_is_refused(self, predictor: Predictor, question):
        with pytest.raises(TextInputError, match="question is empty"):
            predictor.ask(IMAGE, question)

    def test_very_long_question_is_refused_and_a_long_one_is_cut(self, predictor: Predictor):
        with pytest.raises(TextInputError, match="10000 are allowed"):
            predictor.ask(IMAGE, "chest " * 5000)
        assert predictor.ask(IMAGE, "chest " * 50).status == "ok"

    def test_text_for_a_task_that_reads_none_is_refused(self, predictor: Predictor):
        with pytest.raises(TextInputError, match="reads no text"):
            predictor.classify(IMAGE, "skin-lesion", text="fever")

    def test_empty_text_is_refused(self, predictor: Predictor):
        with pytest.raises(TextInputError, match="empty"):
            predictor.classify(IMAGE, "chest-xray", text=" ")

    @pytest.mark.parametrize(
        ("task", "values"),
        [
            ("skin-lesion", {"unheard": 1}),
            ("skin-lesion", {"age": "old"}),
            ("skin-lesion", {"age": float("nan")}),
            ("skin-lesion", {"region": "tail"}),
            ("skin-lesion", {"itch": 2}),
            ("chest-xray", {"itch": True}),
            ("breast-ultrasound", {"age": 5}),
        ],
    )
    def test_wrong_structured_value_is_refused(self, predictor, task: str, values: dict):
        with pytest.raises(StructuredInputError):
            predictor.classify(IMAGE, task, structured=values)

    def test_missing_image_is_told(self, predictor: Predictor):
        with pytest.raises(ImageInputError, match=r"absent\.png"):
            predictor.encode("absent.png")

    def test_unknown_variant_is_told_with_the_known_ones(self, tiny_bundle: Path):
        with pytest.raises(UsageError, match=r"int4.*fp32.*int8"):
            Predictor.load(tiny_bundle, variant="int4")

    def test_options_and_keywords_together_are_refused(self, tiny_bundle: Path):
        with pytest.raises(UsageError, match="not both"):
            Predictor.load(tiny_bundle, SessionOptions(), threads=2)

    @pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, 1000])
    def test_odd_number_of_threads_is_refused(self, threads):
        with pytest.raises(UsageError, match="threads"):
            SessionOptions(threads=threads)

    def test_provider_that_is_not_there_is_not_replaced(self, tiny_bundle: Path):
        for provider in ("tensorrt", "openvino", "quantum"):
            with pytest.raises(ProviderUnavailableError, match="cpu"):
                Predictor.load(tiny_bundle, provider=provider)

    def test_missing_default_bundle_is_told_with_advice(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        import importlib.resources

        monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
        with pytest.raises(BundleNotFoundError, match="--bundle"):
            Predictor.default()

    def test_default_bundle_is_the_one_in_the_package(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_bundle: Path
    ):
        import importlib.resources

        (tmp_path / "bundles").mkdir()
        (tmp_path / "bundles" / "default.umd").write_bytes(tiny_bundle.read_bytes())
        monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
        assert Predictor.default().info.name == "tiny-test"

    def test_labels_that_do_not_fit_the_logits_are_an_error(self, tmp_path: Path):
        def edit(manifest):
            manifest["tasks"][3]["labels"].append("surplus")

        predictor = Predictor.load(repack(tmp_path / "b.umd", tiny_files(), edit))
        with pytest.raises(InferenceError, match="logits_skin_lesion"):
            predictor.classify(IMAGE, "skin-lesion")


def test_a_question_asked_again_gives_the_same_bits_without_the_text_graph(fresh: Predictor):
    encoded = fresh.encode(IMAGE)
    first = encoded.ask(QUESTION)
    fresh._engine.graphs.text.run = None  # type: ignore[assignment]
    again = encoded.ask(QUESTION)
    assert again.to_dict() == first.to_dict()
    with pytest.raises(TypeError):
        encoded.ask("something that was never asked")


def test_only_the_last_questions_are_kept(fresh: Predictor):
    encoded = fresh.encode(IMAGE)
    for number in range(70):
        encoded.ask(f"is finding {number} present?")
    kept = fresh._engine._questions
    assert len(kept) == 64
    assert any("finding 69 " in text for text in kept)
    assert not any("finding 5 " in text for text in kept)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(fresh: Predictor, value: float):
    encoded = fresh.encode(IMAGE)
    logits = np.zeros((1, 8), np.float32)
    logits[0, 3] = value
    fresh._engine.graphs.fusion._run = lambda names, feeds, options: [logits]
    with pytest.raises(InferenceError, match="'logits_vqa' is not 8 finite numbers"):
        encoded.ask(QUESTION)
