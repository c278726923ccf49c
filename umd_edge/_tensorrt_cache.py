"""Engines on disk, each under the key of everything that it depends on.

An engine is machine code for one GPU, so it is no part of a bundle: it stands beside it, is made on
the device, and is used only where its key is that of this device. Whoever can write to the folder
decides what the GPU runs; hashes here tell damage, not malice.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ._files import write_whole
from ._json import load_strict
from .errors import ProviderUnavailableError, UsageError

__all__ = ["EngineCache", "EngineKey"]

REVISION = 1
"""Of the builder's settings: engines of another revision are built anew."""
_MAX_DESCRIPTION = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """What an engine was built from and for; another value of any field is another engine."""

    graph: str
    """SHA-256 of the ONNX file."""
    library: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: str
    gpu: str
    driver: str
    precision: str
    """The variant: in a strongly typed network the graph decides."""
    profile: str
    revision: int = REVISION

    @property
    def digest(self) -> str:
        """SHA-256 of all fields."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class EngineCache:
    """A folder of engines, their descriptions, and the timing caches of the builder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def require_writable(self) -> None:
        """Try to write before the long build, not after it.

        Raises:
            UsageError: The folder cannot be made or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "writable", b"")
            (self.folder / "writable").unlink()
        except OSError as error:
            raise UsageError(
                f"the folder of engines {str(self.folder)!r} cannot be written "
                f"({error.strerror}); name another one with --engines, or SessionOptions(engines=)"
            ) from error

    def path(self, key: EngineKey) -> Path:
        """Where the engine of that key stands, whether or not it does."""
        return self.folder / f"{key.digest[:32]}.engine"

    def has(self, key: EngineKey) -> bool:
        """Whether there is an engine of that key, whole or not."""
        return self.path(key).is_file()

    def read(self, key: EngineKey, name: str) -> bytes:
        """Bytes of the engine.

        Args:
            key: What it must have been built from and for.
            name: Of the graph, for messages.

        Raises:
            ProviderUnavailableError: There is none, or it is damaged.
        """
        path = self.path(key)
        try:
            plan = path.read_bytes()
        except OSError as error:
            raise ProviderUnavailableError(
                f"no TensorRT engine of {name!r} for this device and these settings in "
                f"{str(self.folder)!r}{self._why(key)}; run `umd-edge build-engine` with the same "
                "--bundle, --variant and --engines"
            ) from error
        described = self._description(path)
        sha256 = hashlib.sha256(plan).hexdigest()
        if described.get("key") != asdict(key) or described.get("sha256") != sha256:
            raise ProviderUnavailableError(
                f"the TensorRT engine {path.name!r} of {name!r} is damaged; run "
                "`umd-edge build-engine --rebuild`"
            )
        return plan

    def write(self, key: EngineKey, plan: bytes, *, seconds: float) -> Path:
        """Keep an engine; the description first, so that no engine is without one."""
        path = self.path(key)
        described = {
            "key": asdict(key),
            "sha256": hashlib.sha256(plan).hexdigest(),
            "size": len(plan),
            "seconds": round(seconds, 3),
        }
        path.unlink(missing_ok=True)  # never an old engine with a new description
        text = json.dumps(described, indent=1, sort_keys=True) + "\n"
        write_whole(path.with_suffix(".json"), text.encode())
        write_whole(path, plan)
        return path

    def expected_seconds(self, key: EngineKey) -> float | None:
        """How long a build of the same graph with the same profile took here before."""
        for _, found in self._described():
            other, seconds = found["key"], found.get("seconds")
            same = all(
                other.get(field) == getattr(key, field)
                for field in ("graph", "library", "gpu", "profile")
            )
            if same and isinstance(seconds, (int, float)):
                return float(seconds)
        return None

    def newest_profile(self, key: EngineKey) -> EngineKey:
        """The key of the newest engine that differs from `key` in its profile, if in anything."""
        wanted = asdict(key)
        newest, best = float("-inf"), key
        for path, found in self._described():
            other = found["key"]
            profile = other.get("profile")
            if isinstance(profile, str) and {**other, "profile": key.profile} == wanted:
                changed = path.stat().st_mtime
                if changed > newest:
                    newest, best = changed, replace(key, profile=profile)
        return best

    def read_timing(self, key: EngineKey) -> bytes:
        """The timing cache of that TensorRT on that GPU; empty where there is none."""
        try:
            return self._timing_path(key).read_bytes()
        except OSError:
            return b""

    def write_timing(self, key: EngineKey, data: bytes) -> None:
        """Keep a timing cache for the next build."""
        if data:
            write_whole(self._timing_path(key), data)

    def _timing_path(self, key: EngineKey) -> Path:
        text = "\n".join((key.library, key.version, key.gpu, key.driver))
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.timing"

    def _description(self, path: Path) -> dict[str, Any]:
        try:
            with path.with_suffix(".json").open("rb") as file:
                found = load_strict(file.read(_MAX_DESCRIPTION))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _described(self) -> list[tuple[Path, dict[str, Any]]]:
        """Engines with a description that has a key."""
        try:
            paths = sorted(self.folder.glob("*.engine"))
        except OSError:
            return []
        found = [(path, self._description(path)) for path in paths]
        return [item for item in found if isinstance(item[1].get("key"), dict)]

    def _why(self, key: EngineKey) -> str:
        """What the nearest engine of the same graph was built for, where it is another thing."""
        wanted = asdict(key)
        best: list[str] | None = None
        for _, found in self._described():
            other = found["key"]
            if other.get("graph") != key.graph:
                continue
            differing = [field for field in wanted if other.get(field) != wanted[field]]
            told = [f"{f} {other.get(f)!r} and not {wanted[f]!r}" for f in differing]
            if told and (best is None or len(told) < len(best)):
                best = told
        return f" (the nearest was built for {', '.join(best)})" if best else ""
