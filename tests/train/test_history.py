from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from umd_edge_train.history import History


def _train(history: History, step: int, **extra: Any) -> None:
    losses = {"loss": 1.0 / step, "vqa_loss": 2.0 / step}
    history.add(kind="train", step=step, losses=losses, **extra)


def _steps(path: Path) -> list[int]:
    lines = (path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.fixture
def axes():
    """Empty axes that belong to no window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


# --- records ------------------------------------------------------


def test_a_resumed_history_drops_what_will_be_repeated(tmp_path: Path):
    history = History(tmp_path, 0)
    for step in range(1, 6):
        _train(history, step)
    again = History(tmp_path, 3)
    assert [record["step"] for record in again.records] == _steps(tmp_path) == [1, 2, 3]
    _train(again, 4)
    assert _steps(tmp_path) == [1, 2, 3, 4]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_line_cut_short_ends_the_history(tmp_path: Path):
    _train(History(tmp_path, 0), 1)
    with (tmp_path / "history.jsonl").open("a", encoding="utf-8") as handle:
        handle.write('{"kind": "train", "st')
    assert [record["step"] for record in History(tmp_path, 9).records] == [1]
    assert _steps(tmp_path) == [1]


def test_a_record_without_a_step_is_refused_on_reading(tmp_path: Path):
    (tmp_path / "history.jsonl").write_text('{"kind": "train"}\n', encoding="utf-8")
    with pytest.raises(KeyError, match="step"):
        History(tmp_path, 1)


# --- pictures -----------------------------------------------------


def test_only_a_coordinated_run_has_a_picture_of_it(tmp_path: Path):
    history = History(tmp_path, 0)
    _train(history, 1)
    history.draw(tmp_path / "curves.png")
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["curves.png"]
    _train(history, 2, coordination={"coefficient_text": 1.0, "coefficient_image": 1.0})
    _train(
        history,
        3,
        coordination={"ratio_text": 2.0, "coefficient_text": 0.8, "coefficient_image": 1.0},
    )
    history.draw(tmp_path / "curves.png")
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["coordination.png", "curves.png"]
    with Image.open(tmp_path / "coordination.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_an_empty_history_is_drawn_as_empty_curves(tmp_path: Path):
    History(tmp_path, 0).draw(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_a_picture_that_cannot_be_drawn_leaves_the_older_one(tmp_path: Path):
    history = History(tmp_path, 0)
    _train(history, 1)
    history.draw(tmp_path / "curves.png")
    before = (tmp_path / "curves.png").read_bytes()
    history.records.append({"kind": "train", "step": 2, "losses": {"loss": "much"}})
    with pytest.raises(TypeError):
        history.draw(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp*"))


def test_coefficients_are_drawn_where_they_are_known(tmp_path: Path, axes: Any):
    history = History(tmp_path, 0)
    reports = [{"ratio_text": 2.0, "coefficient_text": 0.8, "coefficient_image": 1.0}, {}]
    reports += [{"coefficient_text": 1.0, "coefficient_image": 1.0}]
    for step, report in enumerate(reports, start=1):
        _train(history, step, coordination=report)
    history._draw_coefficients(axes)
    raw = [line for line in axes.lines if not line.get_label().endswith("(smoothed)")]
    assert [list(line.get_xdata()) for line in raw] == [[1, 3], [1, 3]]
    assert [list(line.get_ydata()) for line in raw] == [[0.8, 1.0], [1.0, 1.0]]
    smooth = [line for line in axes.lines if line.get_label().startswith("coefficient_text")]
    assert list(smooth[0].get_ydata()) == pytest.approx([0.8, (0.95 * 0.8 + 1.0) / 1.95])
    axes.clear()
    history._draw_ratio(axes)
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[1], [1]]


def test_losses_of_the_validation_stand_beside_those_of_the_training(tmp_path: Path, axes: Any):
    history = History(tmp_path, 0)
    history.add(kind="train", step=1, losses={"loss": 3.0, "mlm_loss": 2.0, "mim_loss": 1.0})
    for step, loss in ((4, 1.5), (8, 1.25)):
        metrics = {"mlm_loss": loss, "mim_loss": None, "mlm_accuracy": 0.5, "itm_accuracy": 0.75}
        tasks = {"reconstruction": {name: {"value": value} for name, value in metrics.items()}}
        history.add(kind="validation", step=step, tasks=tasks)
    history._draw_losses(axes)
    trained, measured = (
        next(line for line in axes.lines if line.get_label() == name)
        for name in ("mlm_loss", "mlm_loss, validation")
    )
    assert list(measured.get_xdata()) == [4, 8]
    assert list(measured.get_ydata()) == [1.5, 1.25]
    assert measured.get_color() == trained.get_color()
    assert measured.get_linestyle() != trained.get_linestyle()
    assert len(axes.lines) == 4  # an undefined one is not drawn
    axes.clear()
    history._draw_metrics(axes)
    drawn = [line.get_label() for line in axes.lines]
    assert drawn == ["reconstruction mlm_accuracy", "reconstruction itm_accuracy"]


def test_recall_at_ten_is_drawn_both_ways(tmp_path: Path, axes: Any):
    history = History(tmp_path, 0)
    names = ("image_to_text_r1", "image_to_text_r10", "image_to_text_medr", "text_to_image_r10")
    metrics = {name: {"value": 1.0} for name in names}
    history.add(kind="validation", step=5, tasks={"captions": metrics})
    history._draw_metrics(axes)
    assert [line.get_label() for line in axes.lines] == [
        "captions image_to_text_r10",
        "captions text_to_image_r10",
    ]
    assert axes.get_ylim()[1] > 1.0  # a perfect one is no part of the frame


def test_thirty_curves_look_different_and_keep_their_names(tmp_path: Path, axes: Any):
    history = History(tmp_path, 0)
    names = [f"task{index:02d}" for index in range(30)]
    history.add(
        kind="validation",
        step=5,
        tasks={name: {"accuracy": {"value": 0.5}, "other": {"value": 0.9}} for name in names},
    )
    history._draw_metrics(axes)
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == len(axes.lines) == 30
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"{name} accuracy" for name in names
    ]
    axes.clear()
    history.add(kind="train", step=6, losses={name: 1.0 for name in names})
    history._draw_losses(axes)
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 30
