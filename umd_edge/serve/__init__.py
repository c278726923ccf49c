"""A local service: the bundle behind HTTP, for desktop programs that are not written in Python.

`serve` runs it until a signal comes; `create_app` gives the ASGI application alone. Nothing else in
umd-edge opens a socket. It needs the extra `serve` (Starlette, uvicorn).
"""

from __future__ import annotations

from ..errors import MissingDependencyError

try:
    import prometheus_client  # noqa: F401
    import python_multipart  # noqa: F401
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as _error:
    raise MissingDependencyError(
        f'the service needs {_error.name!r}, which is not installed: pip install "umd-edge[serve]"'
    ) from _error

from ._app import create_app
from ._options import ServeOptions, read_token
from ._server import serve

__all__ = ["ServeOptions", "create_app", "read_token", "serve"]
