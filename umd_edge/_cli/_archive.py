"""`umd-edge classify --out`: a results file for a whole archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._defaults import WORKERS
from .._predictor import Predictor
from .._record import dataclass
from ..errors import InputError, UmdEdgeError
from ._output import emit, note, progress, report
from ._places import check_place
from ._reports import ReportFiles

if TYPE_CHECKING:
    from .._map import Outcome
    from .._table import ResultTable

__all__ = ["Archive", "archive_options"]


def archive_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a results file: `out` and `workers`."""
    workers = click.option(
        "--workers",
        type=click.IntRange(1, 256),
        default=WORKERS,
        help=f"Images at the same time, with --out. [{WORKERS}]",
    )
    out = click.option(
        "--out",
        metavar="FILE",
        help="Write a row for each image to a .csv, .jsonl or .parquet file; a run that was "
        "interrupted goes on where it was.",
    )
    return out(workers(command))


@dataclass(frozen=True, slots=True)
class Archive:
    """One run over an archive."""

    predictor: Predictor
    task: str
    out: str
    """The results file."""
    workers: int
    timeout_s: float | None
    options: Mapping[str, Any]
    """Further keywords of `Predictor.classify`."""

    def write(self, given: Sequence[str], reports: ReportFiles, *, as_json: bool) -> int:
        """Classify all images that have no row yet, and say how many rows there are.

        Args:
            given: Paths of images; one that is named twice counts once.
            reports: What else is written for each image.
            as_json: Print the summary as a JSON object.

        Returns:
            Exit code: 4 if an image could not be used, 5 if only packages or time were missing, or
            0.
        """
        from .._table import open_table

        if not Path(self.out).is_file():  # one that is there is gone on with
            check_place("--out", self.out)
        names = list(dict.fromkeys(given))
        places = {_printable(name): index for index, name in enumerate(names)}
        reports.prepare(names)
        labels = self.predictor._engine.tasks.classification(self.task).outputs
        codes: list[int] = []
        with open_table(self.out, labels, self._run()) as rows:
            left = [name for name in names if _printable(name) not in rows.done]
            self._tell_resumed(rows, len(names) - len(left))
            for outcome in self._outcomes(left):
                image = _printable(outcome.image)
                written, error = _write_reports(reports, outcome)
                if error is not None:
                    codes.append(error.exit_code)
                    report(image, error)
                rows.add({**outcome.to_dict(), "image": image, "index": places[image], **written})
            rows.finish()
            summary = {
                "out": self.out,
                "rows": len(rows.done),
                "new": len(left),
                "errors": len(codes),
            }
        if as_json:
            emit(summary)
        else:
            click.echo(
                f"{self.out}: {summary['rows']} rows, {summary['new']} of them new, "
                f"{summary['errors']} with an error"
            )
        return min(codes, default=0)

    def _outcomes(self, names: Sequence[str]) -> Iterator[Outcome]:
        with progress("classifying") as advance:
            yield from self.predictor.map(
                names,
                task=self.task,
                workers=self.workers,
                timeout_s=self.timeout_s,
                on_progress=lambda done, total: advance(done, total or done),
                **self.options,
            )

    def _run(self) -> str:
        from .._table_rows import run_of

        predictor = self.predictor
        return run_of(
            {
                "bundle": predictor.info.sha256,
                "variant": predictor.variant,
                "provider": predictor.provider,
                "int8_path": predictor._engine.graphs.int8_path,
                "task": self.task,
                "options": {k: v for k, v in self.options.items() if v is not None},
            }
        )

    def _tell_resumed(self, rows: ResultTable, done: int) -> None:
        if rows.resumed or rows.retried:
            note(
                f"{self.out}: {rows.resumed} rows are there already and stay; {done} images are "
                f"done, {rows.retried} with an error are tried again"
            )


def _write_reports(
    reports: ReportFiles, outcome: Outcome
) -> tuple[Mapping[str, Any], UmdEdgeError | None]:
    """What a row says of the image's reports, and the error of the image or of its reports."""
    if outcome.classification is None:
        return {}, outcome.error
    try:
        return reports.write(outcome.image, outcome.classification), None
    except InputError as error:  # the row stands; there is no report of it
        return {}, error


def _printable(path: str) -> str:
    """The path as text: bytes that are no UTF-8 as backslash and number."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
