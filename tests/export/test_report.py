from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from PIL import Image

import umd_edge
from support.bundles import unpack
from support.labelled import make_labelled
from umd_edge.errors import UsageError
from umd_edge_export.cli import run
from umd_edge_export.gates import GateResult
from umd_edge_export.report import report_bundle, show_pictures
from umd_edge_export.report_charts import Bar, bar_chart, heat_map
from umd_edge_export.report_html import ReportContent, render_report, write_report
from umd_edge_export.report_pictures import check_outside
from umd_edge_export.speed import SpeedReport

_VOID = {"meta"}


class _Page(HTMLParser):
    """Headings and text; refuses tags that do not close in order and anything fetched."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.words, self.tags = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        assert not {name for name, _ in attributes} & {"src", "href", "onload"}
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def predictor(tiny_bundle):
    return umd_edge.Predictor.load(tiny_bundle, variant="fp32", threads=1)


@pytest.fixture(scope="module")
def data(predictor, tmp_path_factory):
    return make_labelled(tmp_path_factory.mktemp("labelled") / "data", predictor, 8)


@pytest.fixture(scope="module")
def content(tiny_bundle, data):
    return report_bundle(tiny_bundle, [data], tasks=["vqa"])


def test_the_page_is_whole_and_shows_every_part(content):
    text = render_report(content)
    page = _Page(text)
    assert page.headings[1:] == [
        "Latency",
        "Accuracy against fp32",
        "Metrics of every variant",
        "Sensitivity of the layers",
        "Records that disagree most",
    ]
    assert "http" not in text and "<script" not in text and "svg" in page.tags
    assert "record-" in page.text and "8 of 8" in page.text
    assert page.text.index("record-") > page.text.index("Records that disagree most")


def test_what_was_not_measured_is_said(tiny_bundle):
    page = _Page(render_report(report_bundle(tiny_bundle)))
    assert "labelled records and a reference are needed" in page.text
    assert "None, or not measured." in page.text


def test_names_are_escaped(predictor, tiny_bundle, tmp_path):
    def rename(index, record):
        record["id"] = f"<script>{index}</script>&"

    data = make_labelled(tmp_path / "data", predictor, 4, rename)
    text = render_report(report_bundle(tiny_bundle, [data], tasks=["vqa"]))
    assert "<script" not in text
    assert "<script>0</script>&" in _Page(text).text


def test_gates_and_times_are_shown():
    content = ReportContent(
        name="x 1.0.0",
        gates=[GateResult(gate="speed", variant="int8", status="failed", message="too slow")],
        speed={"int8": SpeedReport(10.0, 12.5, 1.25, 1.1, 1.4, 16), "int8-trt": None},
    )
    page = _Page(render_report(content))
    assert "too slow" in page.text and "1.25 of fp32 (1.10 to 1.40)" in page.text
    assert "Not measured here: int8-trt" in page.text
    assert "`" not in page.text and page.tags.count("code") >= 2


def test_the_sensitivity_map_has_a_cell_for_each_layer_and_output():
    layers = [
        {"part": "vision", "name": "conv_1", "noise": {"vqa": 1e-4, "match_logit": 1e-2}},
        {"part": "fusion", "name": "head", "noise": {"vqa": 0.0}, "float": True},
    ]
    page = _Page(render_report(ReportContent(name="x", sensitivity={"int8": {"layers": layers}})))
    assert page.tags.count("rect") == 4
    assert "fusion: head (float)" in page.text


@pytest.mark.parametrize("values", [[[0.0, 0.0]], [[float("inf"), 1.0]], [[2.0, 2.0]]])
def test_a_map_of_odd_values_is_still_a_map(values):
    assert _Page(heat_map(["layer"], ["a", "b"], values, "map")).tags.count("rect") == 2


@pytest.mark.parametrize("length", [1, 50, 90])
def test_a_long_name_of_a_layer_has_room_beside_the_map(length):
    drawn = heat_map(["m" * length, "a"], ["vqa"], [[1.0], [2.0]], "map")
    ends = float(drawn.split('text-anchor="end"')[0].rsplit(' x="', 1)[1].split('"')[0])
    # a browser draws a name of 50 letters 317 pixels wide
    assert ends >= 317 / 50 * length
    cells = float(drawn.split('<rect x="')[1].split('"')[0])
    assert ends < cells


def test_bars_are_in_proportion():
    text = bar_chart([Bar("a", {"x": 1.0, "y": 1.0}, ""), Bar("b", {"x": 1.0}, "")], "t")
    widths = [float(part.split('"')[0]) for part in text.split('width="')[2:]]
    assert widths[0] == widths[1] == widths[2] > 0


def test_pictures_go_to_the_folder_and_their_names_to_the_page(content, tmp_path):
    shown = show_pictures(content, tmp_path / "pictures")
    files = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert files[0] == "int8-01-vqa.png" and len(files) == len(set(shown.pictures.values())) == 8
    with Image.open(tmp_path / "pictures" / files[0]) as picture:
        assert picture.width > 2 * 300
        assert len(picture.getcolors(1 << 20)) > 10
    text = render_report(shown)
    assert "int8-01-vqa.png" in text and "<img" not in text and "data:" not in text


def test_places_inside_the_bundle_are_refused(tmp_path):
    with pytest.raises(UsageError, match="outside a bundle only"):
        check_outside(tmp_path, tmp_path / "report.html")
    check_outside(tmp_path / "bundle", tmp_path / "report.html", None)


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    page = tmp_path / "report.html"
    page.write_text("yesterday")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("umd_edge._files.os.replace", full)
    with pytest.raises(UsageError, match="No space left"):
        write_report(page, ReportContent(name="x"))
    assert page.read_text() == "yesterday" and list(tmp_path.iterdir()) == [page]


def test_the_command_writes_the_page_and_leaves_the_bundle(tiny_bundle, data, tmp_path, capsys):
    before = tiny_bundle.read_bytes()
    page = tmp_path / "page.html"
    arguments = ["report", str(tiny_bundle), "--data", str(data), "--task", "vqa"]
    assert run([*arguments, "--out", str(page), "--with-pictures", str(tmp_path / "p")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{page}\n" and "vqa: 16 of 16 runs" in err
    assert "record-" in page.read_text() and (tmp_path / "p").is_dir()
    assert tiny_bundle.read_bytes() == before and b"record-" not in before


def test_another_bundle_can_be_the_reference(tiny_bundle, data, tmp_path):
    page = tmp_path / "page.html"
    arguments = ["report", str(tiny_bundle), "--data", str(data), "--task", "vqa"]
    assert run([*arguments, "--against", str(tiny_bundle), "--out", str(page)]) == 0
    assert "Accuracy against reference" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["report", "nothing.umd"], 3),
        (["report", "BUNDLE", "--with-pictures", "p"], 2),
        (["report", "BUNDLE", "--against", "BUNDLE"], 2),
        (["report", "BUNDLE", "--data", "nothing.jsonl"], 4),
        (["report", "BUNDLE", "--out", "no/folder/page.html"], 2),
        (["report", "UNPACKED", "--out", "UNPACKED/page.html"], 2),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    arguments, code, tiny_bundle, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = unpack(tmp_path / "unpacked")
    given = [
        item.replace("BUNDLE", str(tiny_bundle)).replace("UNPACKED", str(folder))
        for item in arguments
    ]
    before = sorted(tmp_path.rglob("*"))
    assert run(given) == code
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert len([line for line in err.splitlines() if line.lower().startswith("error")]) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_stored_sensitivity_of_a_bundle_is_shown(tiny_bundle, tmp_path):
    from support.bundles import repack, tiny_files

    layers = [{"part": "vision", "name": "conv_7", "noise": {"vqa": 1e-3}}]
    stored = json.dumps({"sensitivity": {"int8": {"layers": layers}}}).encode()
    path = repack(tmp_path / "a.umd", {**tiny_files(), "report.json": stored})
    assert "vision: conv_7" in render_report(report_bundle(path))
