"""Counters in Prometheus' text format. Labels hold routes, statuses and names of tasks alone."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from .._predictor import Predictor
from ._queue import WorkQueue
from ._store import ImageStore

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """What `/metrics` shows; each service has its own, so that several fit into one process."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, predictor: Predictor, queue: WorkQueue, images: ImageStore) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "umd_edge_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "umd_edge_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.work_seconds = Histogram(
            "umd_edge_work_seconds",
            "In a worker: decoding, preprocessing and inference.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_seconds = Counter(
            "umd_edge_stage_seconds",
            "In each stage of the results given (the keys of timing_ms).",
            ["stage"],
            registry=registry,
        )
        self.results = Counter(
            "umd_edge_results",
            "Results given, by task and status.",
            ["task", "status"],
            registry=registry,
        )
        self._gauges(queue, images)
        bundle = Info("umd_edge_bundle", "The bundle in use.", registry=registry)
        bundle.info(
            {
                **predictor.info.to_dict(),
                "variant": predictor.variant,
                "provider": predictor.provider,
            }
        )

    def _gauges(self, queue: WorkQueue, images: ImageStore) -> None:
        values = {
            "umd_edge_queue_depth": ("Requests that wait for a worker.", lambda: queue.waiting),
            "umd_edge_jobs_running": ("Jobs in the workers' hands.", lambda: queue.running),
            "umd_edge_jobs_abandoned": (
                "Jobs that run on although nobody waits for them.",
                lambda: queue.stuck,
            ),
            "umd_edge_requests_admitted": (
                "Requests that hold a place in the queue.",
                lambda: queue.admitted,
            ),
            "umd_edge_request_bytes": ("Bytes of their bodies.", lambda: queue.buffered),
            "umd_edge_images_stored": ("Images kept for questions.", lambda: len(images)),
            "umd_edge_images_stored_bytes": (
                "Bytes of their files.",
                lambda: images.stored_bytes,
            ),
        }
        for name, (text, value) in values.items():
            Gauge(name, text, registry=self._registry).set_function(value)

    def render(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)
