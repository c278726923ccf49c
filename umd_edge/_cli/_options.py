"""Options that several commands share."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .._bundle import Bundle
from .._options import PROVIDERS, SessionOptions
from .._predictor import Predictor
from .._record import dataclass
from ..errors import StructuredInputError, UsageError

if TYPE_CHECKING:
    from .._audit import AuditLog

__all__ = [
    "BundleChoice",
    "as_json",
    "bundle_option",
    "coverage_option",
    "engines_option",
    "frame_option",
    "open_bundle",
    "patient_options",
    "read_structured",
    "with_audited_predictor",
    "with_predictor",
]

Function = TypeVar("Function", bound=Callable[..., Any])

_MAX_STRUCTURED_BYTES = 1 << 20

as_json = click.option("--json", "as_json", is_flag=True, help="JSON Lines on standard output.")
frame_option = click.option(
    "--frame", type=click.IntRange(min=1), help="Frame of a DICOM file with several, from 1."
)
coverage_option = click.option(
    "--coverage", type=float, metavar="SHARE", help="Also give what cannot be excluded at 0.9, say."
)
engines_option = click.option(
    "--engines", metavar="DIR", help="Folder of TensorRT engines. [BUNDLE.engines]"
)


@dataclass(frozen=True, slots=True)
class BundleChoice:
    """Which bundle the user wants, and how its origin is checked."""

    path: str | None
    """None means the bundle in the package."""
    keys: tuple[str, ...] = ()
    """Files of public keys; the bundle must be signed with one of them where any is given."""
    require_signature: bool = False

    def load(self, options: SessionOptions | None = None, **more: Any) -> Predictor:
        """A predictor with the bundle; `more` as in `Predictor.load`."""
        more["public_key"] = self.keys or None
        more["require_signature"] = self.require_signature
        if self.path is None:
            return Predictor.default(options, **more)
        return Predictor.load(self.path, options, **more)


def patient_options(command: Function) -> Function:
    """Add `--text` and `--structured`, which `read_structured` turns into values."""
    for option in (
        click.option(
            "--structured",
            metavar="FILE|JSON",
            help="Values that the task reads: a JSON object, or the name of a file that holds one.",
        ),
        click.option("--text", metavar="TEXT", help="Free text, for a task that reads it."),
    ):
        command = option(command)
    return command


def bundle_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose a bundle, and hand the command a `BundleChoice` as `bundle`."""

    @click.option(
        "--bundle",
        metavar="PATH",
        help="Bundle: a .umd file or a directory. [the one in the package]",
    )
    @click.option(
        "--key",
        "keys",
        multiple=True,
        metavar="FILE",
        help="Public key with which the bundle must be signed; repeatable, one of them is enough.",
    )
    @click.option(
        "--require-signature",
        is_flag=True,
        help="Refuse a bundle whose signature is not checked: an error without --key.",
    )
    @functools.wraps(command)
    def wrapped(
        bundle: str | None, keys: tuple[str, ...], require_signature: bool, **rest: Any
    ) -> Any:
        return command(bundle=BundleChoice(bundle, keys, require_signature), **rest)

    return wrapped


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
    @click.option(
        "--self-test", is_flag=True, help="Run the bundle's known-answer test before anything else."
    )
    @functools.wraps(command)
    def wrapped(
        bundle: BundleChoice,
        variant: str | None,
        provider: str,
        threads: int,
        engines: str | None,
        self_test: bool,
        audit: AuditLog | None = None,
        **rest: Any,
    ) -> Any:
        options = SessionOptions(
            provider=provider, variant=variant, threads=threads, engines=engines
        )
        predictor = bundle.load(options, self_test=self_test, audit=audit)
        return command(predictor=predictor, **rest)

    return wrapped


def with_audited_predictor(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same as `with_predictor`, with the options of an audit log."""
    inner = with_predictor(command)

    @click.option(
        "--audit", metavar="FILE", help="Append a record of every result to this audit log."
    )
    @click.option("--operator", metavar="ID", help="Who runs this, for the audit log.")
    @functools.wraps(inner)
    def wrapped(audit: str | None, operator: str | None, **rest: Any) -> Any:
        if audit is None:
            if operator is not None:
                raise UsageError("--operator is for the audit log; give --audit FILE as well")
            return inner(**rest)
        from .._audit import AuditLog

        with AuditLog(audit, operator=operator) as log:
            return inner(audit=log, **rest)

    return wrapped


def open_bundle(choice: BundleChoice) -> Bundle:
    """The chosen bundle."""
    if choice.path is None:
        return choice.load().bundle
    return Bundle.open(
        choice.path,
        public_key=choice.keys or None,
        require_signature=choice.require_signature,
    )


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
