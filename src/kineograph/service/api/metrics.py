"""Metrics of the service for Prometheus: the queue, its jobs, its workers, and the requests of this server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import HTTPConnection

from kineograph.service.api.access import Access
from kineograph.service.api.responses import ApiError
from kineograph.service.queue import JobQueue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
JOB_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 21600)

router = APIRouter()


@dataclass(frozen=True, eq=False)
class QueueCollector(Collector):
    """The state of a queue when it is asked for."""

    queue: JobQueue

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        jobs = GaugeMetricFamily("kineograph_jobs", "Jobs of the queue by state.", labels=["state"])
        for state, number in self.queue.count_jobs().items():
            jobs.add_metric([state], number)
        yield jobs
        workers = self.queue.list_workers()
        yield GaugeMetricFamily("kineograph_workers", "Workers that live.", len(workers))
        loaded = GaugeMetricFamily(
            "kineograph_workers_with_model", "Workers that have loaded a model.", labels=["model"]
        )
        for model in sorted({each for worker in workers for each in worker.models}):
            loaded.add_metric([model], sum(model in worker.models for worker in workers))
        yield loaded


@dataclass(frozen=True, eq=False)
class Metrics:
    """The metrics of a server. last_event: number of the event until which finished jobs are counted."""

    queue: JobQueue
    registry: CollectorRegistry
    requests: Histogram
    jobs: Histogram
    waits: Histogram
    last_event: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, queue: JobQueue) -> Metrics:
        """Return the metrics of a queue, which count from now on."""
        registry = CollectorRegistry()
        registry.register(QueueCollector(queue))
        requests = Histogram(
            "kineograph_request_seconds",
            "Time until the answer to a request began.",
            ["method", "route", "status"],
            registry=registry,
            buckets=REQUEST_SECONDS,
        )
        jobs = Histogram(
            "kineograph_job_seconds",
            "Time from the first attempt of a job to its end.",
            ["command", "state"],
            registry=registry,
            buckets=JOB_SECONDS,
        )
        waits = Histogram(
            "kineograph_job_wait_seconds",
            "Time from the request of a job to its first attempt.",
            ["command"],
            registry=registry,
            buckets=JOB_SECONDS,
        )
        return cls(queue, registry, requests, jobs, waits, [queue.last_event()])

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(method, route, str(status)).observe(seconds)

    def as_text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        self._count_jobs()
        return generate_latest(self.registry)

    def _count_jobs(self) -> None:
        after, last = self.last_event[0], self.queue.last_event()
        self.last_event[:] = [last]
        for _, job in self.queue.finished_jobs(after, last):
            if job.started_at is not None and job.finished_at is not None:
                self.jobs.labels(job.command, job.state).observe(max(0.0, job.finished_at - job.started_at))
                self.waits.labels(job.command).observe(max(0.0, job.started_at - job.created_at))


def get_metrics(connection: HTTPConnection) -> Metrics:
    """Return the metrics of the server: a dependency of routes."""
    metrics: Metrics = connection.app.state.metrics
    return metrics


@router.get(
    "/metrics",
    tags=["server"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def read_metrics(connection: HTTPConnection, metrics: Annotated[Metrics, Depends(get_metrics)]) -> Response:
    """Return the metrics of the queue and of requests; where tokens are set, to owners that the operator names."""
    access: Access = connection.app.state.access
    if access.tokens is not None and connection.state.owner not in access.settings.metrics_owners:
        message = "the operator names who may read the metrics, in the setting `metrics_owners`"
        raise ApiError(403, "forbidden", message)
    return Response(metrics.as_text(), media_type=CONTENT_TYPE)
