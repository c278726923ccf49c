from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from support.bundles import repack, tiny_files
from support.pictures import gradient
from umd_edge import (
    BundleError,
    BundleIntegrityError,
    BundleNotFoundError,
    Predictor,
    PredictorSlot,
    SelfTestError,
    SessionOptions,
    UsageError,
)
from umd_edge._selftest import read_golden, write_golden

IMAGE = gradient()
QUESTION = "Which organ is shown?"


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[Path, Path]:
    """Two bundles that name themselves differently."""
    paths = tmp_path / "one.umd", tmp_path / "two.umd"
    for path in paths:
        repack(path, edit=lambda manifest, _name=path.stem: manifest.update(name=_name))
    return paths


def failing(path: Path) -> Path:
    """A sound bundle whose golden outputs no machine gives."""
    files = tiny_files()
    golden = dict(read_golden(files["golden.npz"]))
    golden["int8/match_logit"] = golden["int8/match_logit"] + 1
    return repack(path, {**files, "golden.npz": write_golden(golden)})


def damaged(path: Path) -> Path:
    data = bytearray(repack(path).read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def named(slot: PredictorSlot) -> str:
    return slot.predictor.ask(IMAGE, QUESTION).bundle.name


def test_a_swap_replaces_the_bundle_and_a_rollback_brings_it_back(bundles):
    one, two = bundles
    with PredictorSlot.open(one) as slot:
        assert (named(slot), slot.previous) == ("one", None)
        assert slot.swap(two).name == "two"
        assert (named(slot), slot.previous) == ("two", str(one))
        assert slot.rollback().name == "one"
        assert (named(slot), slot.info.name, slot.previous) == ("one", "one", str(two))


@pytest.mark.parametrize("make", [failing, damaged, lambda path: path])
def test_a_bundle_that_cannot_be_used_leaves_the_old_one(bundles, tmp_path, make):
    state = tmp_path / "slot.json"
    with PredictorSlot.open(bundles[0], state=state) as slot:
        active, content = slot.predictor, state.read_bytes()
        with pytest.raises(BundleError):
            slot.swap(make(tmp_path / "new.umd"))
        assert slot.predictor is active
        assert (slot.previous, state.read_bytes()) == (None, content)
        assert named(slot) == "one"


def test_a_failing_self_test_is_what_refuses_the_sound_file(tmp_path):
    path = failing(tmp_path / "new.umd")
    Predictor.load(path)  # opens without complaint
    with pytest.raises(SelfTestError):
        PredictorSlot.open(path)


def test_calls_in_flight_end_on_the_predictor_they_began_with(bundles):
    one, two = bundles
    with PredictorSlot.open(one) as slot:
        encoded = slot.predictor.encode(IMAGE)
        slot.swap(two)
        assert encoded.ask(QUESTION).bundle.name == "one"
        assert named(slot) == "two"


def test_threads_that_ask_during_swaps_get_whole_answers(bundles):
    expected = {path.stem: Predictor.load(path).ask(IMAGE, QUESTION).to_dict() for path in bundles}
    stop, wrong, seen = threading.Event(), [], set()

    with PredictorSlot.open(bundles[0]) as slot:

        def ask() -> None:
            while not stop.is_set():
                answer = slot.predictor.ask(IMAGE, QUESTION)
                seen.add(answer.bundle.name)
                if answer.to_dict() != expected[answer.bundle.name]:
                    wrong.append(answer)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(10):
            slot.swap(bundles[(turn + 1) % 2])
            time.sleep(0.005)
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert seen == {"one", "two"}


def test_the_choice_survives_the_process(bundles, tmp_path, monkeypatch):
    one, two = bundles
    state = tmp_path / "slot.json"
    monkeypatch.chdir(tmp_path)
    with PredictorSlot.open("one.umd", state=state) as slot:
        slot.swap("two.umd")
    monkeypatch.chdir("/")
    with PredictorSlot.open(one, state=state) as slot:
        assert named(slot) == "two"
        assert slot.previous == str(one)
        slot.rollback()
    with PredictorSlot.open(two, state=state) as slot:
        assert named(slot) == "one"
    assert {path.name for path in tmp_path.iterdir()} == {"one.umd", "two.umd", "slot.json"}


def test_options_and_checks_hold_for_the_bundles_that_follow(bundles):
    with PredictorSlot.open(bundles[0], SessionOptions(variant="fp32", threads=2)) as slot:
        slot.swap(bundles[1])
        assert slot.predictor.variant == "fp32"
        assert slot.predictor._engine.options.threads == 2
    with pytest.raises(UsageError, match="signature is required"):
        PredictorSlot.open(bundles[0], require_signature=True)


def test_another_bundle_under_the_old_name_is_no_silent_swap(bundles, tmp_path):
    one, two = bundles
    state = tmp_path / "slot.json"
    with PredictorSlot.open(one, state=state) as slot:
        slot.swap(two)
        original = one.read_bytes()
        one.write_bytes(two.read_bytes())
        with pytest.raises(BundleIntegrityError, match="another bundle"):
            slot.rollback()
        assert named(slot) == "two"
        two.write_bytes(original)
    with pytest.raises(BundleIntegrityError, match="another bundle"):
        PredictorSlot.open(one, state=state)


def test_a_rollback_without_a_bundle_before_is_refused(bundles):
    with PredictorSlot.open(bundles[0]) as slot, pytest.raises(UsageError, match="no bundle"):
        slot.rollback()


def test_a_rollback_to_a_bundle_that_is_gone_keeps_the_one_in_use(bundles):
    with PredictorSlot.open(bundles[0]) as slot:
        slot.swap(bundles[1])
        bundles[0].unlink()
        with pytest.raises(BundleNotFoundError):
            slot.rollback()
        assert named(slot) == "two"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 2}',
        b'{"format": 1, "active": {"path": 3, "sha256": "a"}, "previous": null}',
        b'{"format": 1, "active": {"path": "a"}, "previous": null}',
        b'{"format": 1, "active": null, "previous": null}',
        b"[" * 60_000,
    ],
)
def test_a_state_file_that_is_none_is_refused_and_stays(bundles, tmp_path, content):
    state = tmp_path / "slot.json"
    state.write_bytes(content)
    with pytest.raises(UsageError, match="state file"):
        PredictorSlot.open(bundles[0], state=state)
    assert state.read_bytes() == content


def test_a_full_disk_stops_the_swap_and_nothing_else(bundles, tmp_path, monkeypatch):
    state = tmp_path / "slot.json"
    with PredictorSlot.open(bundles[0], state=state) as slot:
        content = state.read_bytes()

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device", str(state))

        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(os, "fsync", full)
            slot.swap(bundles[1])
        assert named(slot) == "one"
        assert state.read_bytes() == content
        assert slot.previous is None
        assert len(list(tmp_path.iterdir())) == 3


def test_the_state_says_what_is_in_use(bundles, tmp_path):
    state = tmp_path / "slot.json"
    with PredictorSlot.open(bundles[0], state=state) as slot:
        slot.swap(bundles[1])
        stored = json.loads(state.read_text())
        assert stored["active"] == {"path": str(bundles[1]), "sha256": slot.info.sha256}
        assert stored["previous"]["path"] == str(bundles[0])


class TestSelfTests:
    def test_a_failure_is_told_and_stops_the_answers(self, bundles):
        told = []
        heard = threading.Event()

        def on_failure(error) -> None:
            told.append(error)
            heard.set()

        with PredictorSlot.open(bundles[0]) as slot:
            slot.start_self_tests(0.01, on_failure)
            assert not heard.wait(0.2)  # negative control: a sound bundle fails no test
            original = bundles[0].read_bytes()
            damaged(bundles[0])
            assert heard.wait(10)
            assert isinstance(told[0], BundleError)
            with pytest.raises(BundleError):
                _ = slot.predictor
            with pytest.raises(BundleError):
                slot.self_test()
            slot.close()
            bundles[0].write_bytes(original)
            slot.self_test()
            assert named(slot) == "one"

    def test_a_callback_may_roll_back(self, bundles):
        back = threading.Event()
        with PredictorSlot.open(bundles[1]) as slot:
            slot.swap(bundles[0])
            slot.start_self_tests(0.01, lambda error: (slot.rollback(), back.set()))
            damaged(bundles[0])
            assert back.wait(10)
            assert named(slot) == "two"

    def test_a_callback_that_fails_does_not_end_the_tests(self, bundles, caplog):
        calls = []

        def on_failure(error) -> None:
            calls.append(error)
            raise RuntimeError("broken")

        with PredictorSlot.open(bundles[0]) as slot:
            slot.start_self_tests(0.01, on_failure)
            bundles[0].unlink()
            deadline = time.monotonic() + 10
            while len(calls) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
        assert len(calls) >= 3
        assert "on_failure" in caplog.text

    def test_closing_ends_the_thread_and_the_predictor_stays(self, bundles):
        slot = PredictorSlot.open(bundles[0])
        slot.start_self_tests(3600)
        assert "umd-edge-self-test" in [thread.name for thread in threading.enumerate()]
        slot.close()
        assert "umd-edge-self-test" not in [thread.name for thread in threading.enumerate()]
        assert named(slot) == "one"

    def test_a_callback_may_close_the_slot(self, bundles):
        closed = threading.Event()
        with PredictorSlot.open(bundles[0]) as slot:
            slot.start_self_tests(0.01, lambda error: (slot.close(), closed.set()))
            damaged(bundles[0])
            assert closed.wait(10)

    @pytest.mark.parametrize("every_s", [0, -1, "1", float("nan"), None])
    def test_an_interval_that_is_none_is_refused(self, bundles, every_s):
        with PredictorSlot.open(bundles[0]) as slot, pytest.raises(UsageError, match="every_s"):
            slot.start_self_tests(every_s)

    def test_the_tests_are_started_once(self, bundles):
        with PredictorSlot.open(bundles[0]) as slot:
            slot.start_self_tests(3600)
            with pytest.raises(UsageError, match="already"):
                slot.start_self_tests(3600)
