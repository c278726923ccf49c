"""Options that several commands share."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .._bundle import Bundle
from .._options import PROVIDERS, SessionOptions
from .._predictor import Predictor
from ..errors import StructuredInputError

__all__ = [
    "as_json",
    "bundle_option",
    "coverage_option",
    "engines_option",
    "frame_option",
    "open_bundle",
    "read_structured",
    "with_predictor",
]

Function = TypeVar("Function", bound=Callable[..., Any])

_MAX_STRUCTURED_BYTES = 1 << 20

as_json = click.option("--json", "as_json", is_flag=True, help="JSON Lines on standard output.")
frame_option = click.option(
    "--frame", type=click.IntRange(min=1), help="Frame of a DICOM file with several, from 1."
)
bundle_option = click.option(
    "--bundle", metavar="PATH", help="Bundle: a .umd file or a directory. [the one in the package]"
)
coverage_option = click.option(
    "--coverage", type=float, metavar="SHARE", help="Also give what cannot be excluded at 0.9, say."
)
engines_option = click.option(
    "--engines", metavar="DIR", help="Folder of TensorRT engines. [BUNDLE.engines]"
)


def with_predictor(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a bundle and how to run it, and hand the command a `predictor`."""

    @bundle_option
    @click.option("--variant", metavar="NAME", help="Variant of the bundle, such as int8 or fp32.")
    @click.option(
        "--provider",
        metavar="|".join(PROVIDERS),
        default="cpu",
        help="Execution provider; never replaced by another one. [cpu]",
    )
    @click.option(
        "--threads",
        type=click.IntRange(1, 256),
        default=1,
        help="Threads inside one operator. [1]",
    )
    @engines_option
    @functools.wraps(command)
    def wrapped(
        bundle: str | None,
        variant: str | None,
        provider: str,
        threads: int,
        engines: str | None,
        **rest: Any,
    ) -> Any:
        options = SessionOptions(
            provider=provider, variant=variant, threads=threads, engines=engines
        )
        load = functools.partial(Predictor.load, bundle) if bundle else Predictor.default
        return command(predictor=load(options), **rest)

    return wrapped


def open_bundle(path: str | None) -> Bundle:
    """The bundle at `path`, or the default one."""
    return Bundle.open(path) if path else Predictor.default().bundle


def read_structured(given: str | None) -> dict[str, Any] | None:
    """The object behind `--structured`: JSON itself, or the name of a file that holds it.

    Raises:
        StructuredInputError: No such file, not JSON, or no object.
    """
    if given is None:
        return None
    text = given
    if not given.lstrip().startswith("{"):
        try:
            with Path(given).open("rb") as file:
                text = file.read(_MAX_STRUCTURED_BYTES + 1).decode("utf-8")
        except (OSError, ValueError) as error:
            raise StructuredInputError(
                f"--structured: {given!r} is neither a JSON object nor a readable UTF-8 file; give "
                "for instance '{\"age\": 61}' or the name of a .json file"
            ) from error
    try:
        values = json.loads(text[: _MAX_STRUCTURED_BYTES + 1])
    except (ValueError, RecursionError) as error:
        raise StructuredInputError(
            '--structured: not valid JSON; an object such as {"age": 61} is needed'
        ) from error
    if not isinstance(values, dict):
        raise StructuredInputError('--structured: an object such as {"age": 61} is needed')
    return values
