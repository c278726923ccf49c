"""`umd-edge audit`: verify an audit log, show it, and give its head."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from .._audit_chain import FIRST, Link, read_log, verify_log
from .._audit_secret import keyed_hash, read_secret
from .._image import read_image_file
from ..errors import AuditError, UsageError
from ._options import as_json
from ._output import emit, note, table

__all__ = ["audit"]

_SHORT = 12
_IMAGES = ("file_sha256", "gallery_sha256")
_TEXTS = ("text", "gallery_text")
_TIME = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d(:\d\d(:\d\d(\.\d{1,3})?)?)?Z?)?)?)?")


@click.group()
def audit() -> None:
    """Check and read audit logs, written with `--audit FILE`."""


@audit.command()
@click.argument("logs", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    metavar="HASH",
    help="Hash of a record, kept elsewhere, that the log must hold; repeatable.",
)
@click.option(
    "--after",
    default=FIRST,
    metavar="HASH",
    help="Hash of the record before the first one, where older parts were put away.",
)
@as_json
def verify(logs: tuple[str, ...], anchors: tuple[str, ...], after: str, as_json: bool) -> int:
    """Follow the chain of each log, through its full parts (FILE.000001, ...) to FILE.

    The chain shows that no record was changed, taken out or put in. That the end was not cut, and
    the whole log not written anew, is shown only by an anchor: the head of the log, kept where
    whoever writes the log cannot change it.

    Exit code 3 when a chain is broken, its beginning missing, or an anchor not in it.
    """
    codes = []
    for log in logs:
        try:
            report = verify_log(log, after=after, anchors=anchors)
        except AuditError as error:
            codes.append(error.exit_code)
            message = " ".join(str(error).split())
            note(f"error: {message}")
            if as_json:
                emit({"log": log, "error": {"type": type(error).__name__, "message": message}})
            continue
        if as_json:
            emit({"log": log, "status": "ok", **report.to_dict()})
            continue
        parts = f" in {len(report.files)} files" if len(report.files) > 1 else ""
        click.echo(f"{log}: ok, {report.records} records{parts}, from {report.first} on")
        click.echo(f"  head {report.head}, {report.time}")
        if not anchors:
            click.echo("  no anchor was given: a cut end or a log written anew would not show")
        if report.recovered:
            click.echo(f"  {report.recovered} half-written line(s) were set aside earlier")
        if report.torn_bytes:
            click.echo(f"  {report.torn_bytes} bytes of a half-written record follow the last one")
    return max(codes, default=0)


@audit.command()
@click.argument("log", metavar="FILE")
@as_json
def head(log: str, as_json: bool) -> None:
    """Print number, hash and time of the last record, after following the chain.

    Keep the hash where whoever writes the log cannot change it: it is an anchor for `verify`.
    """
    # Without its older parts a log still has a head; what comes before is not judged here.
    first = next(read_log(log), None)
    after = FIRST if first is None else first.record["previous"]
    report = verify_log(log, after=after)
    last = report.first + report.records - 1
    if as_json:
        emit({"log": log, "seq": last, "head": report.head, "time": report.time})
        return
    click.echo(f"{last} {report.head} {report.time}")


@audit.command()
@click.argument("log", metavar="FILE")
@click.option("--image", metavar="FILE", help="Only records of this image file.")
@click.option("--question", metavar="TEXT", help="Only records of exactly this question.")
@click.option("--text", metavar="TEXT", help="Only records of exactly this text.")
@click.option("--task", metavar="NAME", help="Only records of this task.")
@click.option("--status", metavar="NAME", help="Only records of this status, such as ok or error.")
@click.option(
    "--since",
    metavar="TIME",
    help="Only records from then on (UTC), such as 2026-01-31 or 2026-01-31T08:30.",
)
@as_json
def show(log: str, as_json: bool, **filters: str | None) -> None:
    """Show the records of a log, oldest first, checking the chain on the way.

    The log holds keyed hashes of questions and texts, not their words: --question and --text need
    the log's secret, FILE.secret, and find exact matches.
    """
    wanted = _filter(log, filters)
    if as_json:
        for link in read_log(log):
            if wanted(link.record):
                emit(link.record)
        return
    rows = [("record", "time", "task", "status", "image", "decision", "ms")]
    rows.extend(_row(link) for link in read_log(log) if wanted(link.record))
    click.echo(table(rows, right=[0, 6]))


def _filter(log: str, filters: Mapping[str, str | None]) -> Callable[[Mapping[str, Any]], bool]:
    same = {key: filters[key] for key in ("task", "status") if filters[key] is not None}
    inputs = list(_input_hashes(log, filters))
    since = _since(filters["since"])

    def wanted(record: Mapping[str, Any]) -> bool:
        return (
            all(record.get(key) == value for key, value in same.items())
            and all(_names(record, kinds, value) for kinds, value in inputs)
            and str(record["time"]) >= since
        )

    return wanted


def _names(record: Mapping[str, Any], kinds: tuple[str, ...], value: str) -> bool:
    """Whether a record is about something, or ranks it among the best."""
    things = [record.get("input", {}), *record.get("ranked", ())]
    return any(thing.get(kind) == value for thing in things for kind in kinds)


def _since(given: str | None) -> str:
    """A day or a moment in UTC, to be compared with those of the records as text."""
    if given is not None and not _TIME.fullmatch(given):
        raise UsageError(
            f"--since {given!r}: a day or a time in UTC is needed, such as 2026-01-31 or "
            "2026-01-31T08:30"
        )
    return (given or "").removesuffix("Z")


def _input_hashes(
    log: str, filters: Mapping[str, str | None]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Members in which an input may stand, and its hash."""
    image = filters["image"]
    if image is not None:
        yield _IMAGES, hashlib.sha256(read_image_file(Path(image))).hexdigest()
    for kind in ("question", "text"):
        value = filters[kind]
        if value is not None:
            yield (kind,), keyed_hash(read_secret(Path(f"{log}.secret")), kind, value)


def _row(link: Link) -> tuple[str, str, str, str, str, str, str]:
    record = link.record
    image = record.get("input", {})
    shown = next((image[kind] for kind in (*_IMAGES, "pixels_sha256") if kind in image), "")
    latency = record.get("latency_ms", {})
    return (
        str(record["seq"]),
        record["time"],
        record.get("task") or "",
        record.get("status") or f"({record['event']})",
        shown[:_SHORT],
        ", ".join(record.get("decision") or ()) or record.get("error") or _best(record),
        f"{sum(latency.values()):.1f}" if latency else "",
    )


def _best(record: Mapping[str, Any]) -> str:
    """The first of a ranked list: `text 1f2e3d4c5b6a (0.312)`."""
    for item in record.get("ranked", ()):
        kind = next(kind for kind in (*_IMAGES, *_TEXTS) if kind in item)
        what = "text" if kind in _TEXTS else "image"
        return f"{what} {item[kind][:_SHORT]} ({item['score']:.3f})"
    return ""
