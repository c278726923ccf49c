"""The engines of a bundle's variant: which ones, where they are, and how they are built."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ._bundle import Bundle
from ._manifest import PARTS, Manifest
from ._tensorrt_builder import Profile
from ._tensorrt_cache import EngineCache, EngineKey
from ._tensorrt_job import build_in_child
from ._tensorrt_probe import Device, TensorrtFacts, require_device, require_library
from ._tensorrt_progress import BuildStatus
from .errors import UsageError

__all__ = [
    "EngineFile",
    "build_engines",
    "default_profile",
    "engine_cache",
    "engine_key",
    "tensorrt_variant",
]

_MADE_FOR_IT = ("int8-trt", "fp32")

OnPart = Callable[[str, BuildStatus], None]


@dataclass(frozen=True, slots=True)
class EngineFile:
    """One engine on disk."""

    part: str
    path: Path
    size: int
    seconds: float
    """What building took; 0 where it was there already."""
    built: bool


def tensorrt_variant(manifest: Manifest, given: str | None) -> str:
    """The variant to run in TensorRT: the one named, else `int8-trt`, else `fp32`.

    Raises:
        UsageError: The bundle has no variant of that name, or none that TensorRT takes.
    """
    names = manifest.variants
    if given is not None and given not in names:
        raise UsageError(f"the bundle has no variant {given!r}; it has {sorted(names)}")
    chosen = given or next((name for name in _MADE_FOR_IT if name in names), None)
    if chosen is None:
        raise UsageError(
            f"the bundle has variants {sorted(names)}, none of which TensorRT takes; export one of "
            f"{list(_MADE_FOR_IT)} (umd-edge-export bundle --variants), or name one to try"
        )
    return chosen


def engine_cache(bundle: Bundle, folder: str | os.PathLike[str] | None) -> EngineCache:
    """The folder given, else `<bundle>.engines` beside the bundle."""
    path = bundle.path.absolute()
    return EngineCache(Path(folder) if folder else path.with_name(f"{path.name}.engines"))


def engine_key(
    bundle: Bundle,
    variant: str,
    part: str,
    profile: Profile,
    facts: TensorrtFacts,
    device: Device | None,
    compute_capability: tuple[int, int] | None = None,
) -> EngineKey:
    """The key of one engine.

    Engines of TensorRT for RTX hold no machine code of a single GPU: the driver makes it when they
    are loaded. They are keyed by compute capability, and serve every driver and GPU of it.
    """
    path = bundle.manifest.variants[variant].graphs[part]
    if facts.library == "tensorrt_rtx":
        gpu, driver = device.sm if device else "", ""
        if compute_capability is not None:
            gpu = "sm_{}{}".format(*compute_capability)
    else:
        gpu = f"{device.name} {device.sm}" if device else ""
        driver = device.driver if device else ""
    return EngineKey(
        graph=bundle.manifest.files[path].sha256,
        library=facts.library,
        version=facts.version,
        gpu=gpu,
        driver=driver,
        precision=variant,
        profile=str(profile),
    )


def build_engines(
    bundle: Bundle,
    variant: str | None = None,
    *,
    profile: Profile | None = None,
    folder: str | os.PathLike[str] | None = None,
    compute_capability: tuple[int, int] | None = None,
    workspace_bytes: int | None = None,
    rebuild: bool = False,
    on_status: OnPart = lambda part, status: None,
) -> list[EngineFile]:
    """Build the three engines of a variant for this device, or for another one with TensorRT-RTX.

    Args:
        bundle: Where the graphs come from.
        variant: As in `tensorrt_variant`.
        profile: Shapes; batches up to 16 and texts up to the bundle's longest where None.
        folder: Where to keep them; beside the bundle where None.
        compute_capability: Build for this GPU without one (`tensorrt_rtx` alone).
        workspace_bytes: Device memory that a kernel may use.
        rebuild: Build also what is there already.
        on_status: Told part and status every few seconds.

    Raises:
        ProviderUnavailableError: No TensorRT, or no GPU that it can build for.
        UsageError: No such variant, or the folder cannot be written.
        BundleIntegrityError: The bundle is damaged, or TensorRT refuses a graph.
    """
    chosen = tensorrt_variant(bundle.manifest, variant)
    profile = profile or default_profile(bundle.manifest)
    if compute_capability is None:
        facts, device = require_device()
        if facts.library == "tensorrt_rtx":
            compute_capability = device.compute_capability
    else:
        facts, device = require_library(), None
    cache = engine_cache(bundle, folder)
    cache.require_writable()
    files = []
    for part in PARTS:
        key = engine_key(bundle, chosen, part, profile, facts, device, compute_capability)
        if cache.has(key) and not rebuild:
            size = len(cache.read(key, part))
            files.append(EngineFile(part, cache.path(key), size, 0.0, built=False))
            continue
        name = bundle.manifest.variants[chosen].graphs[part]

        def tell(status: BuildStatus, part: str = part) -> None:
            on_status(part, status)

        start = time.monotonic()
        engine = build_in_child(
            facts.library,
            bundle.read(name),
            profile,
            name=name,
            compute_capability=compute_capability,
            timing_cache=cache.read_timing(key),
            workspace_bytes=workspace_bytes,
            expected_s=cache.expected_seconds(key),
            on_status=tell,
        )
        seconds = time.monotonic() - start
        cache.write_timing(key, engine.timing_cache)
        path = cache.write(key, engine.plan, seconds=seconds)
        files.append(EngineFile(part, path, len(engine.plan), seconds, built=True))
    return files


def default_profile(manifest: Manifest) -> Profile:
    """Texts up to the bundle's longest, and batches that hold what ranking fuses at once."""
    return Profile(max_batch=16, max_length=manifest.tokenizer.max_length)
