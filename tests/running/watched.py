"""Run `umd-edge` commands and write down each socket and each file that is opened for writing."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

_SOCKETS = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.listen")
_CHANGES = {
    "os.mkdir": 0,
    "os.remove": 0,
    "os.rmdir": 0,
    "os.rename": 1,
    "os.link": 1,
    "os.symlink": 1,
    "os.truncate": 0,
    "os.chmod": 0,
    "shutil.rmtree": 0,
}
seen: dict[str, list[str]] = {"sockets": [], "written": []}
watching = False


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if not watching:
        return
    if event in _SOCKETS or event == "socket.__new__":
        seen["sockets"].append(f"{event} {arguments[1:]}")
    elif event == "open":
        path, _, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if isinstance(path, (str, bytes)) and writes:
            seen["written"].append(os.path.abspath(os.fsdecode(path)))
    elif event in _CHANGES:
        path = arguments[_CHANGES[event]]
        if isinstance(path, (str, bytes, os.PathLike)):
            seen["written"].append(os.path.abspath(os.fsdecode(path)))


def main() -> None:
    """Run the command lines of a JSON file; write what was seen and the exit codes to another."""
    global watching
    jobs, report = sys.argv[1:3]
    with open(jobs, encoding="utf-8") as file:
        lines = json.load(file)
    sys.dont_write_bytecode = True
    sys.addaudithook(_note)
    watching = True
    from umd_edge._cli._app import run

    codes = [run(line) for line in lines]
    watching = False
    with open(report, "w", encoding="utf-8") as file:
        json.dump({**seen, "codes": codes}, file)


if __name__ == "__main__":
    main()
