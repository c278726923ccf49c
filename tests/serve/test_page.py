"""The page in a real browser: Debian's Chromium, headless."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.chromium import browser, chromium
from support.clips import make_clip, moving_bar
from umd_edge import Predictor

READY = "!document.querySelector('#ask-button').disabled"
STARTED = "document.documentElement.dataset.started === 'yes'"


@pytest.fixture(scope="module")
def open_page(tmp_path_factory):
    chromium()
    with browser(tmp_path_factory.mktemp("profile")) as build:
        yield build


@pytest.fixture
def page(open_page, run_server):
    shown = open_page(run_server().url + "/")
    shown.wait(STARTED)
    return shown


def results(page) -> int:
    return page.run("document.querySelectorAll('#results article').length")


def task_button(name: str) -> str:
    return f"[...document.querySelectorAll('#tasks button')].find(b => b.textContent === '{name}')"


def test_a_question_is_answered_with_probabilities(page, image_file):
    page.choose_file("#file", image_file)
    page.wait(READY)
    page.run("document.querySelector('#question').focus()")
    page.type("which organ is shown?")
    page.key("Enter", "\r")
    page.wait("document.querySelectorAll('#results article').length === 1")
    article = page.text("#results article")
    assert "which organ is shown?" in article
    assert "%" in article
    assert "ok" in article
    assert page.run("document.querySelectorAll('#results li').length") >= 2
    assert page.run("document.querySelector('#preview').naturalWidth") == 40
    assert page.run("document.querySelector('#results').getAttribute('aria-live')") == "polite"
    assert page.log == []


def test_a_task_is_classified_with_the_values_given(page, image_file, predictor):
    page.choose_file("#file", image_file)
    page.wait(READY)
    page.run("document.querySelector('[data-name=\"age\"]').value = '61'")
    page.run("document.querySelector('[data-name=\"structured.itch\"]').value = 'yes'")
    page.run(f"{task_button('skin-lesion')}.click()")
    page.wait("document.querySelectorAll('#results article').length === 1")
    wanted = predictor.classify(
        image_file, "skin-lesion", structured={"age": 61, "structured.itch": True}
    )
    assert wanted.top.label in page.text("#results .answer")
    shown = page.text("#results li.first .percent")
    assert shown == f"{100 * wanted.top.probability:.1f} %"


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_can_be_dropped_or_pasted(page, png, kind):
    event = {
        "drop": "new DragEvent('drop', {dataTransfer: carried, cancelable: true})",
        "paste": "new ClipboardEvent('paste', {clipboardData: carried})",
    }[kind]
    page.run(
        f"""(() => {{
          const bytes = Uint8Array.from(atob("{base64.b64encode(png).decode()}"),
            (c) => c.charCodeAt(0));
          const carried = new DataTransfer();
          carried.items.add(new File([bytes], "carried.png"));
          document.dispatchEvent({event});
        }})()"""
    )
    page.wait("document.querySelector('#preview').naturalWidth === 40")
    page.wait(READY)
    assert page.text("#caption") == "carried.png"


def test_another_image_clears_the_results_of_the_first(page, image_file, tmp_path):
    page.choose_file("#file", image_file)
    page.wait(READY)
    page.click("#suggestions button")
    page.wait("document.querySelectorAll('#results article').length === 1")
    other = tmp_path / "other.png"
    Image.fromarray(np.full((30, 60), 90, np.uint8)).save(other)
    page.choose_file("#file", other)
    page.wait("document.querySelector('#caption').textContent === 'other.png'")
    assert results(page) == 0
    page.wait(READY)
    assert page.run("document.querySelector('#preview').naturalWidth") == 60


def test_the_frame_of_a_clip_is_chosen(page, clip, tmp_path):
    path = tmp_path / "clip.dcm"
    path.write_bytes(clip)
    page.choose_file("#file", path)
    page.wait("!document.querySelector('#frames').hidden")
    page.wait(READY)
    assert page.text("#frame-shown") == "1 of 3"
    page.run(
        "(() => { const f = document.querySelector('#frame'); f.value = 3;"
        " f.dispatchEvent(new Event('input')); f.dispatchEvent(new Event('change')); })()"
    )
    page.wait("document.querySelector('#frame-shown').textContent === '3 of 3'")
    page.wait(READY)
    page.click("#suggestions button")
    page.wait("document.querySelectorAll('#results article').length === 1")


def test_a_video_gets_one_answer_and_each_frame_its_own(page, tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    path.write_bytes(make_clip(moving_bar(12)))
    page.choose_file("#file", path)
    page.wait("!document.querySelector('#frames').hidden")
    page.wait(READY)
    assert page.run("document.querySelector('#clip-on').checked")
    page.click("#suggestions button")
    page.wait("document.querySelectorAll('#results article').length === 1")
    assert "From frames 1, 3, 4, 6, 7, 9, 10, 12 of 12" in page.text("#results")
    assert page.run("document.querySelector('button.heat') === null")
    page.screenshot(tmp_path / "clip.png")
    page.click("#clip-on")
    page.wait("document.querySelectorAll('#results article').length === 0")
    page.wait(READY)
    page.click("#suggestions button")
    page.wait("document.querySelectorAll('#results article').length === 1")
    assert "From frames" not in page.text("#results")


def test_a_bad_file_is_told_in_words(page, tmp_path):
    path = tmp_path / "<b>x<b>.png"
    path.write_text("not an image", encoding="utf-8")
    page.choose_file("#file", path)
    page.wait("!document.querySelector('#problem').hidden")
    assert "no image by its content" in page.text("#problem")
    assert not page.run(READY)


def test_what_is_outside_the_intended_use_is_said_with_its_reason(page, clip, tmp_path):
    path = tmp_path / "clip.dcm"
    path.write_bytes(clip)
    page.choose_file("#file", path)
    page.wait(READY)
    page.run(f"{task_button('chest-xray')}.click()")
    page.wait("document.querySelectorAll('#results article').length === 1")
    article = page.text("#results article")
    assert "outside the intended use" in article
    assert "Modality (0008,0060)" in article
    assert "%" not in article


@pytest.mark.parametrize("status", ["abstain", "out_of_distribution"])
def test_what_must_not_be_used_does_not_look_like_an_answer(page, image_file, monkeypatch, status):
    from dataclasses import replace

    from umd_edge._encoded import EncodedImage

    ask = EncodedImage.ask
    given = {"status": status, "reason": "too far from what it knows"}
    monkeypatch.setattr(
        EncodedImage, "ask", lambda *args, **more: replace(ask(*args, **more), **given)
    )
    page.choose_file("#file", image_file)
    page.wait(READY)
    page.click("#suggestions button")
    page.wait("document.querySelectorAll('#results article').length === 1")
    assert page.run("document.querySelectorAll('#results .answer').length") == 0
    article = page.text("#results article")
    assert "too far from what it knows" in article
    assert "It would say:" in article
    badges = page.run("document.querySelectorAll('#results .badge.ok').length")
    assert badges == 0


def test_what_the_bundle_cannot_do_is_not_offered(open_page, run_server, monkeypatch):
    classifying = property(
        lambda self: tuple(task for task in self.manifest.tasks if task.kind == "classification")
    )
    monkeypatch.setattr(Predictor, "tasks", classifying)
    page = open_page(run_server().url + "/")
    page.wait(STARTED)
    assert page.run("document.querySelector('#asking').hidden")
    assert not page.run("document.querySelector('#classifying').hidden")


def test_the_bundle_and_its_intended_use_are_named(page, predictor):
    assert predictor.info.sha256[:12] in page.text("#bundle")
    assert page.run("document.querySelector('#intended').textContent") == (
        predictor.manifest.intended_use.statement
    )
    assert "Not a medical device" in page.text("header")


def test_markup_in_a_question_stays_text(page, image_file):
    page.choose_file("#file", image_file)
    page.wait(READY)
    page.run("document.querySelector('#question').value = '<img src=x onerror=alert(1)>'")
    page.click("#ask-button")
    page.wait("document.querySelectorAll('#results article').length === 1")
    assert "<img" in page.text("#results h3")
    assert page.run("document.querySelectorAll('#results img').length") == 0


def test_a_forgotten_image_is_sent_again(open_page, run_server, image_file):
    running = run_server()
    page = open_page(running.url + "/")
    page.wait(STARTED)
    page.choose_file("#file", image_file)
    page.wait(READY)
    page.click("#suggestions button")
    page.wait("document.querySelectorAll('#results article').length === 1")
    page.wait(READY)
    running.service.images._images.clear()
    page.click("#suggestions button")
    page.wait("document.querySelectorAll('#results article').length === 2")


def test_a_token_is_asked_for_and_kept_in_memory_alone(open_page, run_server, image_file):
    token = "0123456789abcdef0123456789abcdef"
    page = open_page(run_server(token=token).url + "/")
    page.wait("!document.querySelector('#access').hidden")
    assert page.run("document.querySelector('#main').hidden")
    page.run("document.querySelector('#token').focus()")
    page.type("wrong")
    page.key("Enter", "\r")
    page.run("document.querySelector('#token').value = ''")
    page.type(token)
    page.key("Enter", "\r")
    page.wait(STARTED)
    page.choose_file("#file", image_file)
    page.wait(READY)
    assert page.run("localStorage.length + sessionStorage.length") == 0
    assert page.run("document.cookie") == ""


def test_it_works_by_keyboard_alone(page, image_file):
    page.choose_file("#file", image_file)
    page.wait(READY)
    seen = []
    for _ in range(12):
        page.key("Tab")
        seen.append(page.run("document.activeElement.id || document.activeElement.textContent"))
    assert seen.index("file") < seen.index("question") < seen.index("ask-button")
    assert "chest-xray" in seen
    page.run(f"{task_button('chest-xray')}.focus()")
    page.key("Enter", "\r")
    page.wait("document.querySelectorAll('#results article').length === 1")


def test_a_heat_map_is_laid_over_the_image_and_taken_off(page, image_file, explained):
    page.choose_file("#file", image_file)
    page.wait(READY)
    plain = page.run("document.querySelector('#preview').src")
    page.click("#suggestions button")
    page.wait("document.querySelector('#results button.heat') !== null")
    page.wait(READY)
    assert "unproven" in page.text("#results button.heat")
    page.click("#results button.heat")
    page.wait("!document.querySelector('#heat').hidden")
    heat = page.run("document.querySelector('#preview').src")
    assert heat != plain
    assert "unproven" in page.text("#heat")
    assert "Heat map" in page.run("document.querySelector('#preview').alt")
    page.click("#heat-on")
    assert page.run("document.querySelector('#preview').src") == plain
    page.click("#heat-on")
    assert page.run("document.querySelector('#preview').src") == heat


def test_every_control_has_a_name(page):
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "slider", "combobox", "checkbox", "spinbutton", "image"}
    nameless = [
        node
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in roles
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []


def test_nothing_is_loaded_from_elsewhere(open_page, run_server, image_file):
    running = run_server()
    page = open_page(running.url + "/")
    page.wait(STARTED)
    page.choose_file("#file", image_file)
    page.wait(READY)
    blob = f"blob:{running.url}"
    assert [url for url in page.requests if not url.startswith((running.url, blob))] == []
    assert page.log == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_cut_off_and_colours_are_told_apart(page, image_file, tmp_path, width, dark):
    page.resize(width, 800)
    page.dark(dark)
    page.choose_file("#file", image_file)
    page.wait(READY)
    page.click("#suggestions button")
    page.wait("document.querySelectorAll('#results article').length === 1")
    assert page.run("document.documentElement.scrollWidth") <= width
    shown = np.asarray(Image.open(page.screenshot(tmp_path / "page.png")).convert("L"))
    corner = int(shown[2, 2])
    assert corner < 60 if dark else corner > 200
    assert Path(tmp_path / "page.png").stat().st_size > 5000
    assert contrast(page, ".answer") >= 4.5
    assert contrast(page, ".muted") >= 4.5
    assert contrast(page, ".badge") >= 4.5


def contrast(page, selector: str) -> float:
    """Contrast of text and ground after WCAG 2."""
    colours = page.run(
        f"""(() => {{
          let e = document.querySelector('#results {selector}, main {selector}');
          const ink = getComputedStyle(e).color;
          while (getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;
          return [ink, getComputedStyle(e).backgroundColor];
        }})()"""
    )

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")[:3]]
        red, green, blue = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted(luminance(colour) for colour in colours)
    return (high + 0.05) / (low + 0.05)
