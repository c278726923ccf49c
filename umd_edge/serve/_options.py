"""`ServeOptions`: where the service listens, and every limit that it keeps to."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UsageError

__all__ = ["ServeOptions", "read_token"]

_LEAST_TOKEN, _MOST_TOKEN = 16, 512


def _default_workers() -> int:
    return min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Address, access and limits of a service.

    Raises:
        UsageError: A limit out of its range, or an address other than loopback without a token.
    """

    host: str = "127.0.0.1"
    """Address to listen on. Any other than a loopback address needs a `token`."""
    port: int = 8765
    """0 takes a free one."""
    token: str | None = field(default=None, repr=False)
    """What every request must carry as `Authorization: Bearer TOKEN`; None asks for none."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which clients may call the service, beside loopback names and `host`."""
    workers: int = field(default_factory=_default_workers)
    """Threads that decode and infer."""
    queue: int = 32
    """Requests that may wait for a worker; one more is refused at once."""
    max_request_bytes: int = 32 << 20
    """Largest body."""
    buffered_bytes: int | None = None
    """Bodies of all requests together; four times `max_request_bytes` where None."""
    timeout_s: float = 30.0
    """From the head of a request to its answer."""
    body_timeout_s: float = 10.0
    """For the whole body to arrive."""
    head_timeout_s: float = 10.0
    """For the whole head to arrive."""
    grace_s: float = 20.0
    """What a signal to stop leaves to requests that were accepted."""
    connections: int = 256
    """Open connections; on one more, requests are answered with 503."""
    images: int = 64
    """Images that are kept encoded for further questions."""
    image_bytes: int = 256 << 20
    """Their files together."""
    image_ttl_s: float = 300.0
    """How long one is kept after its last use."""

    def __post_init__(self) -> None:
        whole = {"workers": 256, "queue": 65_536, "connections": 65_536, "images": 65_536}
        for name, most in whole.items():
            _check_range(name, getattr(self, name), 1, most)
        _check_range("port", self.port, 0, 65_535)
        _check_range("max_request_bytes", self.max_request_bytes, 1024, 512 << 20)
        for name in ("timeout_s", "body_timeout_s", "head_timeout_s", "grace_s", "image_ttl_s"):
            _check_range(name, getattr(self, name), 0.01, 86_400)
        for name in self.allowed_hosts:
            if not name or any(sign in name for sign in " /\t\n@"):
                raise UsageError(
                    f"allowed host {name!r} given; a name alone is needed, such as edge.example"
                )
        if not self.is_loopback and self.token is None:
            raise UsageError(
                f"host {self.host!r} can be reached from other machines, and no token protects it; "
                "give --token-file FILE, or leave --host at 127.0.0.1"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def most_buffered_bytes(self) -> int:
        """Bodies of all requests together."""
        return self.buffered_bytes or 4 * self.max_request_bytes


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{name} {value!r} given; {low:g}..{high:g} is allowed")


def read_token(path: str | os.PathLike[str]) -> str:
    """The token in a file: its only line, of 16 to 512 printable ASCII characters without spaces.

    Raises:
        UsageError: The file cannot be read, or holds no such line.
    """
    advice = "make one with `openssl rand -hex 32 > FILE` and let only its owner read it"
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MOST_TOKEN + 3)
    except OSError as error:
        raise UsageError(
            f"the token file {str(path)!r} cannot be read ({error.strerror}); {advice}"
        ) from error
    text = data.rstrip(b"\r\n").decode("ascii", "replace")
    graphic = text.isascii() and text.isprintable() and " " not in text
    if not graphic or not _LEAST_TOKEN <= len(text) <= _MOST_TOKEN:
        raise UsageError(
            f"the token file {str(path)!r} must hold one line of {_LEAST_TOKEN} to {_MOST_TOKEN} "
            f"printable ASCII characters without spaces; {advice}"
        )
    return text
