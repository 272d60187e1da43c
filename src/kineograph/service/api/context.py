"""What the routes of the REST service work with: the queue and the settings."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from kineograph.service.api.settings import ServeSettings
from kineograph.service.queue import JobQueue


@dataclass(frozen=True)
class Service:
    """The queue and the settings of a REST service."""

    queue: JobQueue
    settings: ServeSettings


def get_service(connection: HTTPConnection) -> Service:
    """Return the service that a request is for: a dependency of routes."""
    service: Service = connection.app.state.service
    return service
