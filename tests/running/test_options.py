from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from support.pictures import gradient
from umd_edge import Predictor, SessionOptions, UsageError
from umd_edge._session import _provider_options

IMAGE = gradient()
QUESTION = "Which organ is shown?"


def _settings(predictor: Predictor):
    return [
        graph._session.get_session_options()
        for graph in (
            predictor._engine.graphs.vision,
            predictor._engine.graphs.text,
            predictor._engine.graphs.fusion,
        )
    ]


def _spins(settings) -> str:
    return settings.get_session_config_entry("session.intra_op.allow_spinning")


def test_defaults_are_those_of_a_device(tiny_bundle: Path):
    for settings in _settings(Predictor.load(tiny_bundle)):
        assert not settings.enable_cpu_mem_arena
        assert settings.enable_mem_pattern
        assert not settings.use_deterministic_compute
        assert settings.intra_op_num_threads == 1
        assert settings.inter_op_num_threads == 1
        assert settings.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        assert _spins(settings) == "0"


def test_every_option_reaches_all_three_sessions(tiny_bundle: Path):
    options = SessionOptions(
        threads=3, spinning=True, arena=True, memory_pattern=False, deterministic=True
    )
    for settings in _settings(Predictor.load(tiny_bundle, options)):
        assert settings.enable_cpu_mem_arena
        assert not settings.enable_mem_pattern
        assert settings.use_deterministic_compute
        assert settings.intra_op_num_threads == 3
        assert _spins(settings) == "1"


@pytest.mark.parametrize("name", ["spinning", "arena", "memory_pattern", "deterministic"])
@pytest.mark.parametrize("value", [1, None, "yes"])
def test_a_switch_is_true_or_false(name: str, value):
    with pytest.raises(UsageError, match=name):
        SessionOptions(**{name: value})


@pytest.mark.parametrize("provider", ["tensorrt", "openvino"])
def test_a_provider_that_cannot_promise_equal_bits_is_refused(provider: str):
    with pytest.raises(UsageError, match="deterministic"):
        SessionOptions(provider=provider, deterministic=True)
    assert SessionOptions(provider=provider).provider == provider


def test_deterministic_cuda_uses_no_tf32_and_no_search():
    chosen = _provider_options(SessionOptions(provider="cuda", deterministic=True))
    assert chosen == {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}
    assert _provider_options(SessionOptions(provider="cuda")) == {}


@pytest.mark.parametrize(
    "options",
    [
        {"deterministic": True},
        {"threads": 2},
        {"threads": 3, "spinning": True},
        {"arena": True},
        {"memory_pattern": False},
    ],
)
def test_no_option_changes_a_bit_of_the_default_bundle(options: dict):
    """With the graphs that users have: those of the tiny bundle are too small for two threads."""
    reference = Predictor.default()
    other = Predictor.default(SessionOptions(**options))
    rng = np.random.default_rng(3)
    for _ in range(2):
        image = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
        first, second = reference.encode(image), other.encode(image)
        np.testing.assert_array_equal(first.features()[0], second.features()[0])
        np.testing.assert_array_equal(first.embedding, second.embedding)
        for question in ("what is shown?", "is there a fracture of the left arm?"):
            assert first.ask(question).to_dict() == second.ask(question).to_dict()


def test_deterministic_bits_are_equal_from_process_to_process():
    program = (
        "import numpy as np, umd_edge; "
        "p = umd_edge.Predictor.default(umd_edge.SessionOptions(deterministic=True)); "
        "x = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8); "
        "print(p.ask(x, 'what is shown?').to_dict(), p.encode(x).features()[0].tobytes().hex())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len(runs[0]) > 1000


def test_warm_up_runs_every_graph_and_every_prompt(tiny_bundle: Path, monkeypatch):
    predictor = Predictor.load(tiny_bundle)
    timing = predictor.warm_up()
    assert timing.vision_ms > 0
    assert timing.total_ms >= timing.vision_ms + timing.fusion_ms
    # Negative control below: a fresh predictor has to encode the prompt.
    for warm in (True, False):
        asked = []
        used = predictor if warm else Predictor.load(tiny_bundle)
        original = used._engine.tokenizer.encode_one
        monkeypatch.setattr(
            used._engine.tokenizer,
            "encode_one",
            lambda text, _asked=asked, _original=original: (_asked.append(text), _original(text))[
                1
            ],
        )
        used.classify(IMAGE, "skin-lesion")
        assert bool(asked) is not warm


def test_warm_up_changes_no_bit(tiny_bundle: Path):
    cold, warm = Predictor.load(tiny_bundle), Predictor.load(tiny_bundle)
    warm.warm_up()
    assert cold.ask(IMAGE, QUESTION).alternatives == warm.ask(IMAGE, QUESTION).alternatives


def test_several_bundles_answer_in_one_process(tiny_bundle: Path, tmp_path: Path):
    from support.bundles import repack

    def edit(manifest):
        manifest["tasks"][0]["answers"] = [f"answer {n}" for n in range(8)]

    other_path = repack(tmp_path / "other.umd", edit=edit)
    one, other = Predictor.load(tiny_bundle), Predictor.load(other_path)
    fp32 = Predictor.load(tiny_bundle, variant="fp32")
    answers = [predictor.ask(IMAGE, QUESTION) for predictor in (one, other, fp32, one)]
    assert answers[0].probability == answers[1].probability == answers[3].probability
    assert answers[1].answer.startswith("answer ")
    assert answers[2].variant == "fp32"
    assert answers[2].probability != answers[0].probability
    assert answers[0].bundle != answers[1].bundle
