"""Draws what the demo found as one picture: for each image a card with answers and probabilities.

Everything is laid out in units of the final picture and drawn twice as large, so that edges come
out smooth when it is made smaller. Pillow's own font is used: no other is on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from ._demo import HEADER_BESIDE, DemoItem
from ._predictor import Predictor
from ._results import Classification, Finding

__all__ = ["draw"]

_SCALE = 2
_WIDTH, _MARGIN, _GAP, _PAD = 1600, 48, 28, 28
_HEAD, _FOOT = 132, 64
_PANEL = 400
_LABEL, _VALUE, _BAR, _BESIDE = 500, 680, 1040, 1344
_BAR_WIDTH = 200
_ROW, _LINE = 62, 40
_MOST_CARDS = 24
_MOST_FINDINGS = 3

_PAGE, _CARD, _BLACK = "#eef1f5", "#ffffff", "#000000"
_INK, _MUTED, _RULE, _TRACK = "#15202e", "#66748a", "#e2e7ee", "#e6ebf1"
_ACCENT, _QUIET = "#0b7f79", "#9fb0c3"
_AMBER, _AMBER_INK = "#fdf0d5", "#8a5a00"
_RED, _RED_INK = "#fde4e1", "#9c2b1f"

_SCAN_TITLE = 30


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)


class _Canvas:
    """Drawing in units of the final picture."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * _SCALE, height * _SCALE), _PAGE)
        self._draw = ImageDraw.Draw(self.image)

    def box(
        self, x: float, y: float, width: float, height: float, colour: str, round_: float = 0
    ) -> None:
        corners = [x * _SCALE, y * _SCALE, (x + width) * _SCALE - 1, (y + height) * _SCALE - 1]
        self._draw.rounded_rectangle(corners, radius=round_ * _SCALE, fill=colour)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: int,
        colour: str = _INK,
        *,
        anchor: str = "lm",
        bold: bool = False,
        most: float | None = None,
    ) -> float:
        """Write a line (y is its middle) and give its width back; cut it at `most`."""
        font = _font(size)
        # The font has ASCII only; anything else would be drawn as an empty box.
        shown = text.encode("ascii", "replace").decode("ascii")
        if most is not None and self.width(shown, size) > most:
            while shown and self.width(shown + "...", size) > most:
                shown = shown[:-1]
            shown = shown.rstrip() + "..."
        self._draw.text(
            (x * _SCALE, y * _SCALE),
            shown,
            font=font,
            fill=colour,
            anchor=anchor,
            stroke_width=1 if bold else 0,
            stroke_fill=colour,
        )
        return self.width(shown, size)

    @staticmethod
    def width(text: str, size: int) -> float:
        return float(_font(size).getlength(text)) / _SCALE

    def pill(self, x: float, y: float, text: str, colour: str, ink: str) -> float:
        """A word on a coloured ground, y being its middle; its width is given back."""
        width = self.width(text, 17) + 26
        self.box(x, y - 15, width, 30, colour, 15)
        self.text(x + 13, y, text, 17, ink)
        return width

    def paste(self, image: Image.Image, x: float, y: float, width: float, height: float) -> None:
        """Fit an image into a box, keeping its proportions."""
        scale = min(width * _SCALE / image.width, height * _SCALE / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        fitted = image.resize(size, Image.Resampling.LANCZOS)
        left = round((x + width / 2) * _SCALE - size[0] / 2)
        top = round((y + height / 2) * _SCALE - size[1] / 2)
        self.image.paste(fitted, (left, top))

    def finished(self) -> Image.Image:
        size = (self.image.width // _SCALE, self.image.height // _SCALE)
        return self.image.resize(size, Image.Resampling.LANCZOS)


def draw(items: Sequence[DemoItem], predictor: Predictor) -> Image.Image:
    """Draw the picture; of more than 24 images the first 24.

    Returns:
        RGB image, 1600 pixels wide.
    """
    shown = items[:_MOST_CARDS]
    heights = [_card_height(item) for item in shown]
    total = _HEAD + sum(height + _GAP for height in heights) - _GAP + _FOOT
    canvas = _Canvas(_WIDTH, total)
    _head(canvas, predictor)
    y = _HEAD
    for item, height in zip(shown, heights, strict=True):
        _card(canvas, item, y, height)
        y += height + _GAP
    left_out = len(items) - len(shown)
    foot = "Not a medical device. For research and development only; accuracy: umd-edge info"
    if left_out:
        foot = f"{left_out} more images in demo.jsonl. " + foot
    canvas.text(_MARGIN, y - _GAP + _FOOT / 2, foot, 17, _MUTED)
    return canvas.finished()


def _head(canvas: _Canvas, predictor: Predictor) -> None:
    canvas.text(_MARGIN, 52, "umd-edge", 40, _INK, bold=True)
    text = "real medical images, answered on this device"
    canvas.text(_MARGIN + canvas.width("umd-edge", 40) + 20, 56, text, 24, _MUTED)
    info = predictor.info
    bundle = f"{info.name} {info.version}, {predictor.variant} on {predictor.provider}"
    canvas.text(_MARGIN, 96, f"{bundle}, {info.sha256[:12]}", 17, _MUTED)


def _lines(result: Classification) -> list[Finding]:
    """The findings that are drawn: the most probable ones."""
    ordered = sorted(result.findings, key=lambda finding: -finding.probability)
    return ordered[:_MOST_FINDINGS]


def _line_count(result: Classification) -> int:
    """Lines of a classification: its findings, and its status where that is not ok."""
    return len(_lines(result)) + (result.status != "ok")


def _card_height(item: DemoItem) -> int:
    if item.error is not None:
        return 236
    lines = sum(_line_count(result) for result in item.classifications)
    content = 78 + _ROW * len(item.answers) + 26 + _LINE * lines + 8 * len(item.classifications)
    return max(content + _PAD, 400)


def _card(canvas: _Canvas, item: DemoItem, y: int, height: int) -> None:
    width = _WIDTH - 2 * _MARGIN
    canvas.box(_MARGIN, y, width, height, _CARD, 18)
    canvas.box(_MARGIN + 14, y + 14, _PANEL, height - 28, _BLACK, 10)
    title = item.source.title
    used = canvas.text(_LABEL, y + 44, title, _SCAN_TITLE, bold=True, most=600)
    if item.source.image != title:
        canvas.text(_LABEL + used + 18, y + 47, item.source.image, 17, _MUTED, most=330)
    if item.error is not None or item.shown is None:
        canvas.pill(_LABEL, y + 96, "cannot be used", _RED, _RED_INK)
        _paragraph(canvas, str(item.error), _LABEL, y + 140, _WIDTH - _MARGIN - _PAD - _LABEL)
        return
    canvas.paste(item.shown, _MARGIN + 24, y + 24, _PANEL - 20, height - 48)
    right = _WIDTH - _MARGIN - _PAD
    if item.answers:
        speed = f"{item.first_answer_ms:.0f} ms to the first answer"
        canvas.text(right, y + 47, speed, 17, _MUTED, anchor="rm")
    row = _answers(canvas, item, y + 78)
    if item.header is None:
        lines = ("No DICOM header:", "judged by what", "it looks like alone")
        for number, line in enumerate(lines):
            canvas.text(_BESIDE, y + 100 + 22 * number, line, 15, _MUTED)
    canvas.box(_LABEL, row + 8, right - _LABEL, 1, _RULE)
    row += 26
    for result in item.classifications:
        row = _classification(canvas, result, row) + 8


def _answers(canvas: _Canvas, item: DemoItem, y: float) -> float:
    for name, answer in item.answers.items():
        middle = y + _ROW / 2 - 8
        canvas.text(_LABEL, middle, name, 19, _MUTED)
        if answer.answer:
            canvas.text(_VALUE, middle, answer.answer, 23, bold=True, most=_BAR - _VALUE - 20)
            colour = _ACCENT if answer.status == "ok" else _QUIET
            _bar(canvas, middle, answer.probability, colour)
            others = [
                f"{other.answer} {100 * other.probability:.0f} %"
                for other in answer.alternatives[:2]
            ]
            text = "then " + ", ".join(others)
            if answer.status == "ok":
                canvas.text(_VALUE, middle + 24, text, 15, _MUTED, most=_BAR - _VALUE + _BAR_WIDTH)
        if answer.status != "ok":  # in place of the alternatives, or of everything
            place = middle + 28 if answer.answer else middle
            canvas.pill(_VALUE, place, answer.status.replace("_", " "), _AMBER, _AMBER_INK)
        beside = HEADER_BESIDE.get(name)
        if beside is not None and item.header is not None:
            most = _WIDTH - _MARGIN - _PAD - _BESIDE
            canvas.text(_BESIDE, middle - 10, f"{beside}", 15, _MUTED, most=most)
            value = item.header[beside]
            ink = _INK if value else _MUTED
            canvas.text(_BESIDE, middle + 12, value or "not given", 20, ink, most=most)
        y += _ROW
    return y


def _bar(canvas: _Canvas, middle: float, probability: float, colour: str) -> None:
    canvas.box(_BAR, middle - 7, _BAR_WIDTH, 14, _TRACK, 7)
    canvas.box(_BAR, middle - 7, max(14.0, _BAR_WIDTH * probability), 14, colour, 7)
    canvas.text(_BAR + _BAR_WIDTH + 76, middle, f"{100 * probability:.1f} %", 18, anchor="rm")


def _classification(canvas: _Canvas, result: Classification, y: float) -> float:
    middle = y + _LINE / 2
    canvas.text(_LABEL, middle, result.task, 19, _MUTED, most=_VALUE - _LABEL - 10)
    if result.status != "ok":
        word = result.status.replace("_", " ")
        width = canvas.pill(_VALUE, middle, word, _AMBER, _AMBER_INK)
        canvas.text(_VALUE + width + 14, middle, _why(result), 16, _MUTED, most=500)
        y += _LINE
    for finding in _lines(result):
        middle = y + _LINE / 2
        stands = finding.positive and result.status == "ok"
        ink, colour = (_INK, _ACCENT) if stands else (_MUTED, _QUIET)
        canvas.text(_VALUE, middle, finding.label, 20, ink, bold=stands, most=340)
        _bar(canvas, middle, finding.probability, colour)
        y += _LINE
    return y


def _why(result: Classification) -> str:
    """The reason of a status in few words."""
    if result.status == "outside_intended_use":
        return f"the header's {result.reason.split(' of the DICOM header')[0]} says so"
    if result.status == "out_of_distribution":
        return "unlike the images of this task: not to be used"
    return "too uncertain: not to be used"


def _paragraph(canvas: _Canvas, text: str, x: float, y: float, width: float) -> None:
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if canvas.width(longer, 18) > width and line:
            canvas.text(x, y, line, 18, _MUTED)
            y, line = y + 28, word
        else:
            line = longer
    canvas.text(x, y, line, 18, _MUTED, most=width)
