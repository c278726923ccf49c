from __future__ import annotations

import pytest

from umd_edge import _doctor
from umd_edge._doctor import jetson_release

RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\nmore\n"


@pytest.fixture
def board(monkeypatch, tmp_path):
    """Gives a function that makes this machine a Jetson."""
    model, release = tmp_path / "model", tmp_path / "nv_tegra_release"
    monkeypatch.setattr(_doctor, "_MODEL", model)
    monkeypatch.setattr(_doctor, "_L4T", release)

    def become(text: str, name: str = "NVIDIA Jetson Orin Nano Developer Kit\0") -> None:
        release.write_text(text)
        model.write_text(name)

    return become


def _checks():
    return {check.name: check for check in _doctor._tensorrt()}


def test_ordinary_machine_is_no_jetson(board):
    assert jetson_release() is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (RELEASE, "NVIDIA Jetson Orin Nano Developer Kit, L4T 36.4.3 (JetPack 6)"),
        (RELEASE.replace("R36", "R39"), "L4T 39.4.3 (JetPack 7.2)"),
        (RELEASE.replace("R36", "R77"), "an unknown JetPack"),
        ("something else\n", "L4T of an unknown release"),
    ],
)
def test_jetson_tells_board_and_jetpack(board, text, told):
    board(text)
    assert told in jetson_release()


def test_board_and_what_works_on_it_are_told(board, fake_driver, fake_tensorrt):
    board(RELEASE)
    checks = _checks()
    assert {check.state for check in checks.values()} == {"ok"}
    assert "10.3.0" in checks["TensorRT"].detail
    assert "sm_87, driver CUDA 12.6" in checks["NVIDIA GPU"].detail
    assert "build-engine" in checks["TensorRT on this GPU"].advice


@pytest.mark.parametrize(
    ("trouble", "name", "told"),
    [
        ("crash", "TensorRT on this GPU", "SIGSEGV"),
        ("import", "TensorRT", "cannot be imported"),
    ],
)
def test_what_is_wrong_is_told_and_the_rest_goes_on(
    board, fake_driver, fake_tensorrt, trouble, name, told
):
    fake_tensorrt("10.3.0", trouble)
    checks = _checks()
    assert checks[name].state == "absent"
    assert told in checks[name].detail
    assert checks["NVIDIA GPU"].state == "ok"


@pytest.mark.parametrize(("jetson", "advice"), [(True, "nvidia-jetpack"), (False, "pip install")])
def test_missing_tensorrt_is_no_fault_and_told_how_to_get(board, monkeypatch, jetson, advice):
    if jetson:
        board(RELEASE)
    monkeypatch.setattr(_doctor, "is_installed", lambda: False)
    check = _checks()["TensorRT"]
    assert check.state == "absent"
    assert advice in check.advice
