"""The service under more requests than it can serve: is each one answered, and in bounded time?

`python -m benchmarks.serve_load [--seconds 60] [--factor 2] [--out load.json]`

First the capacity is measured: as many connections as keep all workers busy, each asking again as
soon as it is answered. Then requests are sent on a fixed schedule of `factor` times that rate,
whatever becomes of the ones before, over a bounded number of connections. Latencies count from the
first byte sent; `late_ms` says how far behind its schedule the generator was, which shares the
machine with the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
from PIL import Image

__all__ = ["Load", "main", "measure"]

_QUESTION = "what+imaging+modality+was+used+to+take+this+image"
_SPARE_S = 5.0  # beyond the service's own limit, before a request counts as lost
_WARM_UP = 20
_CONNECTIONS = 128


@dataclass
class Load:
    """What became of the requests."""

    seconds: list[float] = field(default_factory=list)
    """From the first byte sent to the last one received."""
    late: list[float] = field(default_factory=list)
    """From the moment at which a request was due to its first byte."""
    statuses: list[int] = field(default_factory=list)
    """Of each request; 0 where no answer came."""
    kilobytes: list[int] = field(default_factory=list)
    """Resident size of the service, twice a second."""
    lasted: float = 0.0

    def report(self, limit_s: float) -> dict[str, Any]:
        """Counts, latencies in milliseconds, and how far the memory moved."""
        everything, statuses = np.array(self.seconds), np.array(self.statuses)
        tenth = max(1, len(self.kilobytes) // 10)
        second, last = self.kilobytes[tenth : 2 * tenth], self.kilobytes[-tenth:]
        return {
            "requests": len(self.seconds),
            "per_second": round(len(self.seconds) / self.lasted, 1),
            "lost": self.statuses.count(0),
            "by_status": {str(k): v for k, v in sorted(Counter(self.statuses).items())},
            "answered_per_second": round(self.statuses.count(200) / self.lasted, 1),
            "late_ms": _quantiles(np.array(self.late)),
            "all_ms": _quantiles(everything),
            "ok_ms": _quantiles(everything[statuses == 200]),
            "limit_ms": limit_s * 1e3,
            "beyond_limit": int((everything > limit_s).sum()),
            "rss_mb": {
                "second_tenth": round(statistics.median(second) / 1024, 1),
                "last_tenth": round(statistics.median(last) / 1024, 1),
                "highest": round(max(self.kilobytes) / 1024, 1),
                "ratio": round(statistics.median(last) / statistics.median(second), 4),
            },
        }


def _quantiles(seconds: np.ndarray[Any, Any]) -> dict[str, float]:
    if not len(seconds):
        return {}
    found = {f"p{q:g}": np.quantile(seconds, q / 100) for q in (50, 90, 99, 99.9)}
    found["max"] = seconds.max()
    return {name: round(1e3 * float(value), 1) for name, value in found.items()}


class _Client:
    """Connections that are kept open and used again."""

    def __init__(self, port: int, image: bytes, patience_s: float) -> None:
        self._port, self._patience_s = port, patience_s
        head = (
            f"POST /v1/ask?question={_QUESTION} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/octet-stream\r\nContent-Length: {len(image)}\r\n\r\n"
        )
        self._request = head.encode() + image
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self) -> int:
        """Send one request; its status, or 0 where no whole answer came."""
        try:
            return await asyncio.wait_for(self._ask(), self._patience_s)
        except (OSError, EOFError, asyncio.TimeoutError, TimeoutError, ValueError):
            return 0

    async def close(self) -> None:
        """Close what is idle."""
        for _, writer in self._idle:
            await _closed(writer)

    async def _ask(self) -> int:
        # A connection that the service has closed meanwhile is no lost request.
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                break
            await _closed(writer)
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(self._request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
            body = await reader.readexactly(length)
        except BaseException:
            await _closed(writer)
            raise
        status = int(head.split(b" ", 2)[1])
        if status == 200 and json.loads(body)["answers"][0]["status"] == "":
            raise ValueError("an answer without a status")
        if b"connection: close" in head.lower():
            await _closed(writer)
        else:
            self._idle.append((reader, writer))
        return status


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _closed_loop(client: _Client, connections: int, seconds: float) -> float:
    """Answers a second when each connection asks again at once."""
    end = perf_counter() + seconds
    answered = 0

    async def repeat() -> None:
        nonlocal answered
        while perf_counter() < end:
            status = await client.ask()
            answered += status == 200

    start = perf_counter()
    await asyncio.gather(*(repeat() for _ in range(connections)))
    return answered / (perf_counter() - start)


async def _open_loop(client: _Client, rate: float, seconds: float, process: int) -> Load:
    """Requests on a schedule, whatever becomes of the ones before."""
    load = Load()
    start = perf_counter()
    pending: set[asyncio.Task[None]] = set()

    free = asyncio.Semaphore(_CONNECTIONS)

    async def one(due: float) -> None:
        async with free:
            sent = perf_counter()
            status = await client.ask()
        load.late.append(sent - due)
        load.seconds.append(perf_counter() - sent)
        load.statuses.append(status)

    async def watch() -> None:
        while True:
            load.kilobytes.append(_resident(process))
            await asyncio.sleep(0.5)

    watching = asyncio.ensure_future(watch())
    for number in range(int(rate * seconds)):
        due = start + number / rate
        if due > perf_counter():
            await asyncio.sleep(due - perf_counter())
        task = asyncio.ensure_future(one(due))
        pending.add(task)
        task.add_done_callback(pending.discard)
    await asyncio.gather(*pending)
    watching.cancel()
    load.lasted = perf_counter() - start
    return load


def _resident(process: int) -> int:
    """Kilobytes; Linux."""
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1])  # type: ignore[index]


@contextlib.contextmanager
def _service(arguments: list[str]) -> Iterator[tuple[int, int]]:
    """Port and process of a running `umd-edge serve`."""
    command = [sys.executable, "-m", "umd_edge", "serve", "--port", "0", "--quiet", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        said = ""
        try:
            for line in process.stderr or ():
                said += line
                found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
                if found:
                    yield int(found[1]), process.pid
                    return
            raise click.ClickException(f"the service did not start: {said}")
        finally:
            process.terminate()


def measure(
    arguments: list[str],
    image: bytes,
    *,
    workers: int,
    factor: float,
    seconds: float,
    limit_s: float,
) -> dict[str, Any]:
    """Capacity, then what happens at `factor` times it; see `Load.report`."""

    async def run(port: int, process: int) -> tuple[float, Load]:
        client = _Client(port, image, limit_s + _SPARE_S)
        for _ in range(_WARM_UP):
            await client.ask()
        capacity = await _closed_loop(client, 2 * workers, min(10.0, seconds))
        click.echo(f"capacity: {capacity:.1f} answers/s", err=True)
        load = await _open_loop(client, factor * capacity, seconds, process)
        await client.close()
        return capacity, load

    with _service(arguments) as (port, process):
        capacity, load = asyncio.run(run(port, process))
    return {
        "capacity_per_second": round(capacity, 1),
        "factor": factor,
        "seconds": seconds,
        "image_bytes": len(image),
        **load.report(limit_s),
    }


def _picture(side: int) -> bytes:
    """A JPEG of smooth noise, of the size of a scan that is sent from a console."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (side // 8, side // 8), dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(coarse).resize((side, side)).save(out, "JPEG", quality=90)
    return out.getvalue()


@click.command()
@click.option("--bundle", help="[the one in the package]")
@click.option("--seconds", type=click.FloatRange(5), default=60.0, show_default=True)
@click.option("--factor", type=click.FloatRange(0.1), default=2.0, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--queue", type=click.IntRange(1), default=32, show_default=True)
@click.option("--timeout", type=click.FloatRange(0.1), default=2.0, show_default=True)
@click.option("--image", type=Path, help="[a generated JPEG of 512 x 512]")
@click.option("--out", type=Path, help="Write the report there too.")
def main(
    bundle: str | None,
    seconds: float,
    factor: float,
    workers: int,
    queue: int,
    timeout: float,
    image: Path | None,
    out: Path | None,
) -> None:
    """Send a service more requests than it can answer."""
    arguments = ["--workers", str(workers), "--queue", str(queue), "--timeout", str(timeout)]
    arguments += ["--bundle", bundle] if bundle else []
    data = image.read_bytes() if image else _picture(512)
    report = measure(
        arguments, data, workers=workers, factor=factor, seconds=seconds, limit_s=timeout
    )
    text = json.dumps(report, indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    click.echo(text)
    if report["lost"]:
        raise click.ClickException(f"{report['lost']} requests were lost")


if __name__ == "__main__":
    main()
