"""Who may call: the name by which the service is called, the page that calls, and the token.

A program on the same machine is trusted unless there is a token. A web page is not: browsers let
any page send requests to loopback addresses, and a page that rebinds its own name to one would even
read the answers. So the Host header must be a name of this service, and an Origin this service's.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress

from starlette.datastructures import Headers

from ._errors import AccessDeniedError, MisdirectedRequestError, UnauthorizedError
from ._options import ServeOptions

__all__ = ["check_access"]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_WILDCARDS = frozenset({"0.0.0.0", "::"})


def check_access(
    headers: Headers, options: ServeOptions, scheme: str, *, open_to_all: bool
) -> None:
    """Let a request pass, or refuse it.

    Args:
        headers: Of the request.
        options: Host, allowed names and token.
        scheme: `http` or `https`.
        open_to_all: The route shows nothing and asks for no token.

    Raises:
        MisdirectedRequestError: Host is absent, double, or no name of this service.
        AccessDeniedError: A page of another origin calls.
        UnauthorizedError: The token is missing or wrong.
    """
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not _is_ours(_name_of(hosts[0]), options):
        raise MisdirectedRequestError(
            "the Host header is no name of this service; call it by its address, or start it with "
            "--allow-host NAME"
        )
    origin = headers.get("origin")
    if origin is not None and origin != f"{scheme}://{hosts[0]}":
        raise AccessDeniedError("pages of other origins may not call this service")
    if headers.get("sec-fetch-site") == "cross-site" and not open_to_all:
        raise AccessDeniedError("pages of other sites may not call this service")
    if options.token is not None and not open_to_all:
        _check_token(headers.getlist("authorization"), options.token)


def _name_of(host: str) -> str:
    """Host without its port, in lower case and without the brackets of IPv6."""
    if host.startswith("["):
        name, closed, _ = host[1:].partition("]")
        return name.lower() if closed else ""
    return host.partition(":")[0].lower().rstrip(".")


def _is_ours(name: str, options: ServeOptions) -> bool:
    allowed = {options.host.lower(), *(host.lower() for host in options.allowed_hosts)}
    if name in allowed - _WILDCARDS or (options.is_loopback and name in _LOOPBACK):
        return True
    if options.host not in _WILDCARDS:
        return False
    try:  # an address cannot be rebound
        ipaddress.ip_address(name)
    except ValueError:
        return name in _LOOPBACK
    return True


def _check_token(given: list[str], token: str) -> None:
    scheme, _, value = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    # Digests are of equal length: the comparison tells nothing, not even how long the token is.
    digests = [hashlib.sha256(text.encode()).digest() for text in (value.strip(), token)]
    if not hmac.compare_digest(*digests) or scheme.lower() != "bearer":
        raise UnauthorizedError(
            "the token is missing or wrong; send the header Authorization: Bearer TOKEN"
        )
