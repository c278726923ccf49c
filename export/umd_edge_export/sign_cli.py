"""The commands `umd-edge-export keygen` and `sign`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from umd_edge._signature import SIGNATURE_BYTES
from umd_edge.errors import UsageError
from umd_edge_train.options import PATH, json_option

from .options import repack_out_option

__all__ = ["keygen", "sign"]

_passphrase = click.option(
    "--passphrase-file", type=PATH, metavar="FILE", help="Its first line encrypts the private key."
)


@click.command()
@click.option("--out", type=PATH, required=True, metavar="FILE", help="Private key to write, PEM.")
@_passphrase
@json_option
def keygen(out: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Make an Ed25519 key pair for signing bundles.

    The private key stays with whoever makes the bundles. FILE.pub.pem goes to whoever runs them, by
    another way than the bundles.
    """
    from .sign import make_key

    public = make_key(out, passphrase=_read_passphrase(passphrase_file))
    name = out.name.removesuffix(".pem") + ".pub.pem"
    if as_json:
        paths = {"private": str(out), "public": str(out.with_name(name))}
        click.echo(json.dumps({**paths, "fingerprint": public.fingerprint}))
        return
    click.echo(f"{out}: private key, keep it secret")
    click.echo(f"{out.with_name(name)}: public key {public.fingerprint}")


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--key",
    "keys",
    type=PATH,
    multiple=True,
    required=True,
    metavar="FILE",
    help="Private key, PEM; repeatable.",
)
@repack_out_option
@click.option("--keep", is_flag=True, help="Keep the signatures that are there, and add to them.")
@_passphrase
@json_option
def sign(
    bundle: Path,
    keys: tuple[Path, ...],
    out: Path | None,
    keep: bool,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Sign BUNDLE, a .umd file or a directory, after every hash in it was checked.

    \b
    umd-edge-export keygen --out release.pem
    umd-edge-export sign model.umd --key release.pem --out signed.umd
    umd-edge verify --bundle signed.umd --key release.pub.pem --require-signature
    """
    from .sign import sign_bundle

    signed, public = sign_bundle(
        bundle, keys, out, passphrase=_read_passphrase(passphrase_file), keep=keep
    )
    names = [key.fingerprint for key in public]
    count = len(signed.signatures) // SIGNATURE_BYTES
    if as_json:
        found = {"path": str(signed.path), "sha256": signed.sha256}
        click.echo(json.dumps({**found, "signatures": count, "keys": names}))
        return
    click.echo(
        f"{signed.path}: signed with {', '.join(names)}; {count} signature(s), "
        f"sha256 {signed.sha256}"
    )


def _read_passphrase(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        first = path.read_bytes()[:4096].split(b"\n")[0].rstrip(b"\r")
    except OSError as error:
        raise UsageError(f"--passphrase-file {str(path)!r}: {error.strerror}") from error
    if not first:
        raise UsageError(f"--passphrase-file {str(path)!r} begins with an empty line")
    return first
