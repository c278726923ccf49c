"""`umd-edge rank`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .._defaults import CANDIDATES
from .._gallery import Gallery
from .._predictor import Predictor
from .._rank import DIRECTIONS, METHODS, Direction, Match, Method, Ranking
from ..errors import ImageInputError, TextInputError, UmdEdgeError, UsageError
from ._options import as_json, with_audited_predictor
from ._output import emit, note, progress, report, table

__all__ = ["rank"]

_SUFFIXES = {"", ".dcm", ".dicom", ".jpeg", ".jpg", ".png"}
_MAX_TEXTS_BYTES = 64 << 20


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE...]")
@click.option("--image", "more", multiple=True, metavar="IMAGE", help="The same as IMAGE.")
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="May be given several times.")
@click.option("--texts", "file", metavar="FILE", help="Text file with one text a line.")
@click.option("--task", metavar="NAME", help="Retrieval task, where the bundle has several.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="two_stage",
    help="embedding compares embeddings; fusion runs the fusion for every pair; two_stage only for "
    "the best by embedding. [two_stage]",
)
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    default=CANDIDATES,
    help=f"How many of each list two_stage hands to the fusion. [{CANDIDATES}]",
)
@click.option(
    "--direction",
    type=click.Choice(DIRECTIONS),
    default="both",
    help="Texts for each image, images for each text, or both. [both]",
)
@click.option("--top", type=click.IntRange(min=1), default=5, help="Length of the lists. [5]")
@click.option(
    "--gallery",
    metavar="DIR",
    help="Folder in which the encoded images are kept; without IMAGE, those in it are ranked.",
)
@click.option("--rebuild", is_flag=True, help="Make a gallery again that cannot be used as it is.")
@with_audited_predictor
@as_json
def rank(
    predictor: Predictor,
    images: tuple[str, ...],
    more: tuple[str, ...],
    texts: tuple[str, ...],
    file: str | None,
    task: str | None,
    method: Method,
    candidates: int,
    direction: Direction,
    top: int,
    gallery: str | None,
    rebuild: bool,
    as_json: bool,
) -> int:
    """Rank images for each text and texts for each image.

    IMAGE is a PNG, JPEG or DICOM file, or a folder of them.

    \b
    umd-edge rank films/ --text "pleural effusion" --text "normal chest film" --json
    umd-edge rank films/ --gallery cache/ --text "pleural effusion"
    umd-edge rank --gallery cache/ --text "rib fracture" --top 20

    An image that cannot be used is reported and the others go on; the exit code is then 4.
    """
    wanted = [*texts, *_read_texts(file)]
    if not wanted:
        raise UsageError("no text given; give --text TEXT or --texts FILE")
    text_gallery = predictor.gallery(texts=wanted, task=task)
    failed: dict[int, UmdEdgeError] = {}
    if images or more:
        paths = _expand([*more, *images])
        image_gallery = _encode(predictor, paths, task, gallery, rebuild, failed)
    elif gallery:
        path = Path(gallery) / "images.npz"
        image_gallery = Gallery.load(path, tokens=method != "embedding")
        paths = list(image_gallery.names)
    else:
        raise UsageError("no image given; give IMAGE, or --gallery DIR with a gallery in it")
    ranking = None
    if len(image_gallery):
        with progress("ranking") as advance:
            ranking = predictor.rank(
                image_gallery,
                text_gallery,
                method=method,
                candidates=candidates,
                direction=direction,
                task=task,
                on_progress=advance,
            )
        encoding = image_gallery.timing + text_gallery.timing
        ranking = replace(ranking, timing=encoding + ranking.timing)
    show = _Lines(paths, wanted, failed, top)
    if as_json:
        for line in show.json_lines(ranking):
            emit(line)
    else:
        show.print(ranking)
    return min((error.exit_code for error in failed.values()), default=0)


def _encode(
    predictor: Predictor,
    paths: Sequence[str],
    task: str | None,
    cache: str | None,
    rebuild: bool,
    failed: dict[int, UmdEdgeError],
) -> Gallery:
    """A gallery of the images; those that cannot be used are left out and stand in `failed`."""
    with progress("encoding images") as advance:
        return predictor.gallery(
            images=paths,
            task=task,
            cache=cache,
            on_stale="rebuild" if rebuild else "error",
            on_error=failed.__setitem__,
            on_progress=advance,
        )


def _read_texts(file: str | None) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        TextInputError: No readable UTF-8 file, or larger than 64 MiB.
    """
    if file is None:
        return []
    try:
        with Path(file).open("rb") as opened:
            data = opened.read(_MAX_TEXTS_BYTES + 1)
        if len(data) > _MAX_TEXTS_BYTES:
            raise TextInputError(f"--texts: {file!r} is larger than 64 MiB; rank it in parts")
        lines = data.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TextInputError(
            f"--texts: {file!r} is no readable UTF-8 file; give a text file with one text a line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _expand(given: Sequence[str]) -> list[str]:
    """Folders replaced by the images in them, in the order of their names.

    Raises:
        ImageInputError: A folder holds none or cannot be read.
    """
    paths: list[str] = []
    for name in given:
        folder = Path(name)
        if not folder.is_dir():
            paths.append(name)
            continue
        try:
            inside = sorted(
                str(path)
                for path in folder.iterdir()
                if path.suffix.lower() in _SUFFIXES
                and not path.name.startswith(".")
                and path.is_file()
            )
        except OSError as error:
            raise ImageInputError(f"{name!r} cannot be read: {error.strerror}") from error
        if not inside:
            raise ImageInputError(
                f"the folder {name!r} holds no file ending in {sorted(_SUFFIXES - {''})} or in "
                "nothing; give one with images, or the images themselves"
            )
        paths += inside
    return paths


class _Lines:
    """A ranking in words: positions in the gallery turned back into what was given."""

    def __init__(
        self,
        paths: Sequence[str],
        texts: Sequence[str],
        failed: dict[int, UmdEdgeError],
        top: int,
    ) -> None:
        self._paths, self._texts, self._failed, self._top = paths, texts, failed, top
        self._usable = [index for index in range(len(paths)) if index not in failed]

    def json_lines(self, ranking: Ranking | None) -> Iterator[dict[str, Any]]:
        """One object for each text, then one for each image as given."""
        if ranking is not None and ranking.direction != "image_to_text":
            for index, text in enumerate(self._texts):
                images = [self._image(match) for match in ranking.images_for(index, self._top)]
                yield {"text": text, "index": index, **_common(ranking), "images": images}
        rows = {index: row for row, index in enumerate(self._usable)}
        for index, path in enumerate(self._paths):
            error = self._failed.get(index)
            if error is not None:
                message = {"type": type(error).__name__, "message": report(path, error)}
                yield {"image": path, "index": index, "error": message}
            elif ranking is not None and ranking.direction != "text_to_image":
                row = rows[index]
                texts = [self._text(match) for match in ranking.texts_for(row, self._top)]
                common = _common(ranking, row)
                yield {"image": path, "index": index, **common, "texts": texts}

    def print(self, ranking: Ranking | None) -> None:
        """Two lists of tables; errors on standard error."""
        for index, error in self._failed.items():
            report(self._paths[index], error)
        if ranking is None:
            return
        if ranking.reason:
            note(ranking.reason)
        if ranking.direction != "image_to_text":
            for index, text in enumerate(self._texts):
                images = [self._image(match) for match in ranking.images_for(index, self._top)]
                _show(text, [(item, item["image"]) for item in images])
        if ranking.direction != "text_to_image":
            for row, index in enumerate(self._usable):
                texts = [self._text(match) for match in ranking.texts_for(row, self._top)]
                _show(self._paths[index], [(item, item["text"]) for item in texts])

    def _image(self, match: Match) -> dict[str, Any]:
        index = self._usable[match.index]
        return {"image": self._paths[index], **match.to_dict(), "index": index}

    def _text(self, match: Match) -> dict[str, Any]:
        return {"text": self._texts[match.index], **match.to_dict()}


def _common(ranking: Ranking, row: int | None = None) -> dict[str, Any]:
    """The keys of every line; `row` is the line's image, None for a text."""
    outside = row in ranking.outside
    return {
        **ranking.common_dict(),
        "task": ranking.task,
        "method": ranking.method,
        "status": ranking.status if outside else "ok",
        "reason": ranking.reason if outside else "",
    }


def _show(title: str, items: list[tuple[dict[str, Any], str]]) -> None:
    click.echo(f"{title}:")
    rows = [
        (
            f"{item['score']:.3f}",
            "" if item["match_logit"] is None else f"{item['match_logit']:.3f}",
            name,
        )
        for item, name in items
    ]
    click.echo(table(rows, indent=2, right=[0, 1]))
